"""fercli sweep"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import console_options, overrides_option, read_spec


@click.command("sweep", short_help="Methods x targets x seeds, and one table.")
@click.argument("spec_file", metavar="SPEC")
@overrides_option
@click.option("--jobs", type=click.IntRange(min=1), help="Cells trained at a time; a shortcut for sweep.jobs.")
@click.option("--dry-run", is_flag=True, help="Check the spec and list the cells; train nothing.")
@console_options
def command(spec_file, overrides, jobs, dry_run, quiet, as_json):
    """Train and score methods on targets over seeds, by the `sweep` section of a run spec.

    The datasets must be prepared. Stopped or killed, the same command goes on where it was; results.json and
    results.csv are written at the end, and "fercli evaluate -c SPEC --report" makes the report at any time.

    \b
      sweep:
        methods: {aglrls: , no-adversarial: {method: aglrls, options: {adversarial: false}}, dann: }
        seeds: [0, 1, 2]
        grid: {adapt.batch: [8, 16]}      # optional: any key of the spec
        jobs: 2                           # cells at a time

    \b
    Examples:
      fercli sweep shifts --jobs 2
      fercli sweep my-sweep.yaml --set sweep.seeds=[0,1,2,3,4]
    """
    from fercli.cli.results_view import show
    from fercli.errors import Advice, FercliError
    from fercli.scoring.results_files import write_results
    from fercli.sweep.aggregate import gather
    from fercli.sweep.plan import plan
    from fercli.sweep.run import sweep

    overrides = overrides if jobs is None else (*overrides, f"sweep.jobs={jobs}")
    spec = read_spec(spec_file, overrides, quiet, as_json)
    cells = plan(spec)
    if dry_run:
        rows = [[cell.spec.adapt_folder(cell.target).relative_to(spec.run_folder), cell.method] for cell in cells]
        console.table(f"{len(cells)} cells in {spec.run_folder}", ["folder", "method"], rows)
        console.result({"cells": [cell.title for cell in cells]})
        return
    failed = sweep(spec)
    document = gather(spec)
    files = write_results(document, [], spec.run_folder)
    show(document, files)
    if failed:
        raise FercliError(Advice.joined("\n  ", [f"{len(failed)} of {len(cells)} cells failed:", *failed]))
