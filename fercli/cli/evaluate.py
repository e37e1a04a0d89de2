"""fercli evaluate"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import chosen_targets, read_spec, source_option, spec_options


@click.command("evaluate", short_help="Score source-only and adapted models; write the report.")
@spec_options
@source_option
@click.option(
    "--target",
    "targets",
    metavar="NAME",
    multiple=True,
    help="Target (may be repeated), or all. Default: those adapted to.",
)
@click.option("--report", is_flag=True, help="Also write the HTML report.")
def command(spec_file, overrides, quiet, as_json, sources, targets, report):
    """Score the source model and the adapted ones; write the numbers and, with --report, one HTML file.

    \b
    Examples:
      fercli evaluate --report
      fercli evaluate --target jaffe --json
    """
    from fercli.evaluation.evaluate import adapted_targets, evaluate, headline

    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    names = chosen_targets(spec, targets) if targets else adapted_targets(spec)
    results, files = evaluate(spec, names, report)
    console.table(*headline(results))
    for kind, path in files.items():
        console.say(f"{kind}: {path}")
    console.result({**results, "files": {kind: str(path) for kind, path in files.items()}})
