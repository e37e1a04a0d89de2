"""fercli sweep"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import console_options, overrides_option, read_spec


class _Jobs(click.ParamType):
    """A number of at least 1, or ``gpus``."""

    name = "jobs"

    def convert(self, value, param, ctx):
        if value != "gpus" and not (str(value).isdecimal() and int(value)):
            self.fail(f"{value!r} is neither a positive integer nor gpus", param, ctx)
        return value


@click.command("sweep", short_help="Train and score methods x targets x seeds, in one table.")
@click.argument("spec_file", metavar="SPEC")
@overrides_option
@click.option(
    "--jobs",
    type=_Jobs(),
    metavar="N|gpus",
    help="Cells to train at a time; gpus: one per GPU. A shortcut for sweep.jobs.",
)
@click.option("--dry-run", is_flag=True, help="Check the spec and list the cells; train nothing.")
@click.option("--cells", "counting", is_flag=True, help="Print the number of cells; train nothing.")
@click.option(
    "--cell", type=click.IntRange(min=0), metavar="N", help="Train only this cell, numbered from 0 as in --dry-run."
)
@console_options
def command(spec_file, overrides, jobs, dry_run, counting, cell, quiet, as_json):
    """Train and score methods on targets over seeds, as set in the `sweep` section of a run spec.

    The datasets must be prepared. If the sweep is stopped or killed, run the same command again to resume. results.json
    and results.csv are written at the end, and "fercli evaluate -c SPEC --report" makes the report at any time.

    \b
      sweep:
        methods:
          aglrls:
          no-adversarial: {method: aglrls, options: {adversarial: false}}
          dann:
        seeds: [0, 1, 2]
        grid: {adapt.batch: [8, 16]}      # optional: any key of the spec
        jobs: 2                           # cells at a time; gpus: one per GPU
        backend: dask                     # optional: run on a cluster

    Several processes of the same sweep, on one machine or on machines that share the run folder, divide the cells among
    them. The cell of a killed process is taken over by another, after two minutes if it ran on another machine.

    --cell is for SLURM arrays. The first process of a seed trains its source model while the others wait, and the
    process that finishes last writes the table. In a batch script:

    \b
      #SBATCH --gres=gpu:1 --requeue
      srun fercli sweep my-sweep.yaml --cell $SLURM_ARRAY_TASK_ID
    To submit it:
      sbatch --array=0-$(( $(fercli sweep my-sweep.yaml --cells) - 1 )) cell.sh

    \b
    Examples:
      fercli sweep shifts --jobs 2
      fercli sweep my-sweep.yaml --jobs gpus
      fercli sweep my-sweep.yaml --cell 3
      fercli sweep my-sweep.yaml --set sweep.cluster=tcp://node1:8786
      fercli sweep my-sweep.yaml --set sweep.seeds=[0,1,2,3,4]
    """
    from fercli.engine.interrupt import StopRequest

    # From here on, including imports and the making of tables, a signal takes effect only where nothing is lost.
    with StopRequest():
        _sweep(spec_file, overrides, jobs, dry_run, counting, cell, quiet, as_json)


def _sweep(spec_file, overrides, jobs, dry_run, counting, cell, quiet, as_json):
    from fercli.cli.results_view import show
    from fercli.errors import Advice, FercliError, SpecError
    from fercli.sweep.plan import plan
    from fercli.sweep.run import sweep, unfinished

    asked = {"--cell": cell is not None, "--cells": counting, "--dry-run": dry_run, "--jobs": jobs is not None}
    given = [option for option, there in asked.items() if there]
    if len(given) > 1:
        raise SpecError(f"{given[0]} and {given[1]} cannot be combined", "leave out one of them")
    overrides = overrides if jobs is None else (*overrides, f"sweep.jobs={jobs}")
    spec = read_spec(spec_file, overrides, quiet, as_json)
    cells = plan(spec)
    if dry_run or counting:
        if counting and not as_json:
            console.write(f"{len(cells)}\n")
        elif dry_run:
            rows = [[i, c.folder.relative_to(spec.run_folder), c.method, c.target] for i, c in enumerate(cells)]
            columns = ["cell", "folder", "method", "target"]
            console.table(f"{len(cells)} cells in {spec.run_folder}", columns, rows, left=len(columns))
        console.result({"cells": [one.title for one in cells]})
        return
    failed = sweep(spec, cell)
    left = [] if cell is None else [one.title for one in unfinished(cells) if one != cells[cell]]
    if not left:
        show(*_write_table(spec))
    if failed:
        head = [f"{len(failed)} of {len(cells)} cells failed:"] if cell is None else []
        raise FercliError(Advice.joined("\n  ", [*head, *failed]))
    if left:
        many = f"{left[0]} remains" if len(left) == 1 else f"{len(left)} cells remain, the first is {left[0]}"
        console.say(f"{cells[cell].title}: done; {many}. The last cell writes the table. To write it at any time:")
        console.say(f"  fercli evaluate -c {spec_file} --report")
        console.result({"cell": cell, "title": cells[cell].title, "left": left})


def _write_table(spec):
    from fercli.files import only_one
    from fercli.scoring.results_files import write_results
    from fercli.sweep.aggregate import gather

    with only_one(
        spec.run_folder, "sweep", waiting=f"another process is writing the table in {spec.run_folder}; waiting"
    ):
        document = gather(spec)
        return document, write_results(document, [], spec.run_folder)
