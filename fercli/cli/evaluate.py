"""fercli evaluate"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import chosen_targets, read_spec, source_option, spec_options, target_option


@click.command("evaluate", short_help="Score source-only and adapted models; write the report.")
@spec_options
@source_option
@target_option("Target (may be repeated), or all. Default: those adapted to.")
@click.option("--report", is_flag=True, help="Also write the HTML report.")
def command(spec_file, overrides, quiet, as_json, sources, targets, report):
    """Score the source model and the adapted ones; write the numbers and, with --report, one HTML file.

    Into the run's folder report/ go results.json, results.csv (the scores, one a row), predictions/*.csv (a row a
    face) and report.html.

    Of a spec with a sweep section it makes the benchmark's table from whatever the sweep has trained so far.

    \b
    Examples:
      fercli evaluate --report
      fercli evaluate --target jaffe --json
      fercli evaluate -c shifts --report
    """
    from fercli.evaluation.evaluate import adapted_targets, evaluate
    from fercli.evaluation.headline import headline

    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    if spec.sweep is not None:
        _evaluate_sweep(spec, targets, report)
        return
    names = chosen_targets(spec, targets) if targets else adapted_targets(spec)
    results, files = evaluate(spec, names, report)
    console.table(*headline(results))
    for kind, path in files.items():
        console.say(f"{kind}: {path}")
    console.result({**results, "files": {kind: str(path) for kind, path in files.items()}})


def _evaluate_sweep(spec, targets, report):
    from fercli.report.sweep import sweep_headline, sweep_rule_table, write_sweep_report
    from fercli.sweep import gather, write_results

    if targets and "all" not in targets:
        spec = spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"targets": list(targets)})})
    document = gather(spec)
    files = write_results(document, spec.run_folder)
    if report:
        files["report"] = write_sweep_report(document, spec.run_folder)
    console.table(*sweep_headline(document))
    console.table(*sweep_rule_table(document))
    for kind, path in files.items():
        console.say(f"{kind}: {path}")
    console.result({**document, "files": {kind: str(path) for kind, path in files.items()}})
