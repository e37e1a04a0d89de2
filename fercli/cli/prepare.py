"""fercli prepare"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import read_spec, spec_options


@click.command("prepare", short_help="Find, align and store the faces of a dataset.")
@spec_options
@click.option(
    "--dataset",
    "datasets",
    metavar="NAME",
    multiple=True,
    help="Dataset to prepare (may be repeated). Default: all of the spec.",
)
@click.option("--root", metavar="FOLDER", help="Where the dataset lies. Default: paths.data/NAME.")
def command(spec_file, overrides, quiet, as_json, datasets, root):
    """Find the faces of a dataset, align them, cut the local regions, and store them.

    Reads the dataset's own layout; a second run goes on where a stopped one left off.

    \b
    Examples:
      fercli prepare --dataset expw
      fercli prepare --dataset raf-db --root /data/RAF-DB/basic
    """
    from fercli.errors import SpecError
    from fercli.pipeline import list_dataset, prepare_listing

    spec = read_spec(spec_file, overrides, quiet, as_json)
    names = list(dict.fromkeys(datasets or [*spec.data.source, *spec.data.targets]))
    if root is not None and len(names) != 1:
        raise SpecError("--root goes with exactly one --dataset")
    # All are listed before the first is prepared: a folder that is missing is told at once, not after an hour.
    listings = [list_dataset(spec, name, root) for name in names]
    summaries = {listing.name: prepare_listing(spec, listing) for listing in listings}
    columns = ("dataset", "listed", "found", "retried", "given", "mean shape", "rejected", "left out")
    keys = ("expected", "found", "retried", "given", "mean-landmarks", "rejected", "left_out")
    console.table("Prepared faces", columns, [[name, *(row[k] for k in keys)] for name, row in summaries.items()])
    for name, row in summaries.items():
        console.say(f"{name}: {row['folder']} (look at contact-sheet.jpg)")
    console.result({"prepared": summaries})
