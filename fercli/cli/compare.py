"""fercli compare"""

from __future__ import annotations

from pathlib import Path

import click

from fercli import console
from fercli.cli.completion import complete_runs
from fercli.cli.options import dataset_option, force_option, read_spec, spec_options


@click.command("compare", short_help="Compare runs: scores, significance, specs, faces that changed.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_runs)
@dataset_option("Compare on this dataset only (may be repeated). Default: all scored datasets.")
@click.option(
    "--faces", type=click.IntRange(min=0), default=0, metavar="N", help="List N faces of each kind of change."
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all changed faces.")
@force_option("Replace the --csv FILE if it already exists.")
@spec_options
def command(runs, datasets, faces, csv_file, force, spec_file, overrides, quiet, as_json):
    """Compare evaluated runs with the first: scores, paired significance, differences between specs, changed faces.

    RUN is a run folder, its name under paths.runs, or one of its stage folders (runs/baseline/adapt-jaffe). Each model
    is compared with the model in the same stage folder of the first run. Two stage folders are compared with each
    other. With a single run, each of its models is compared with source-only on the same target.

    \b
    Examples:
      fercli compare baseline
      fercli compare baseline other --faces 5
      fercli compare runs/a/adapt-jaffe runs/b/adapt-jaffe --csv changed.csv
    """
    from fercli.cli import compare_view as view
    from fercli.errors import Advice, FercliError
    from fercli.evaluation.compare import compare
    from fercli.evaluation.runs import find_run, match, tell_apart, within
    from fercli.output_files import check_output

    spec = read_spec(spec_file, overrides, quiet, as_json)
    if csv_file is not None:
        check_output("--csv", csv_file, force)
    found = tell_apart([find_run(given, spec.paths.runs) for given in runs])
    pairs, left = (within(found[0]), []) if len(found) == 1 else ([], [])
    for other in found[1:]:
        more, lines = match(found[0], other)
        pairs, left = pairs + more, left + lines
    if datasets:
        pairs = [pair for pair in pairs if pair.reference.dataset in datasets]
    if not pairs:
        reason = f"no two models are scored on {', '.join(datasets) or 'the same dataset'}"
        raise FercliError(
            Advice("nothing to compare: ", Advice.joined("; ", left) if left and not datasets else reason)
        )
    for name in dict.fromkeys(f"{run.folder}/{stage}" for run in found for stage in run.outdated()):
        console.warn(
            f"{name} was trained after it was scored; run: fercli evaluate -c {Path(name).parent / 'spec.yaml'}"
        )
    documents = compare(pairs)
    by_name = {run.name: run for run in found}
    for document in documents:
        document["spec"] = view.differences_of(document, by_name)
    if csv_file is not None:
        view.write_changed(documents, csv_file)
    view.show(documents, found, faces)
    for line in left:
        console.say(f"not compared: {line}")
    if csv_file is not None:
        console.say(f"changed faces: {csv_file}")
    told = [{"name": run.name, "folder": str(run.folder), "created": run.results["created"]} for run in found]
    console.result({"compare": {"runs": told, "comparisons": documents, "not_compared": left}})
