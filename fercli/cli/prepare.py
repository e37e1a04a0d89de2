"""fercli prepare"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fercli import console
from fercli.cli.options import read_spec, spec_options

if TYPE_CHECKING:
    from fercli.spec import Spec

#: What the quality report counts, in words.
_FINDINGS = {
    "leaks": "pairs in a source and a target (a leak)",
    "across_splits": "pairs in two splits of one dataset",
    "duplicates": "pairs in one dataset, those included",
}


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
@click.option("--verify", "look", is_flag=True, help="Check what is prepared, from end to end, and change nothing.")
@click.option("--report/--no-report", default=True, help="Write quality.html beside the stores (default), or do not.")
def command(spec_file, overrides, quiet, as_json, datasets, root, look, report):
    """Find the faces of a dataset, align them, cut the local regions, and store them.

    Reads the dataset's own layout; a second run goes on where a stopped one left off, and makes again only what has
    changed. Look at contact-sheet.jpg in the store, and at quality.html beside the stores.

    \b
    Examples:
      fercli prepare --dataset expw
      fercli prepare --dataset raf-db --root /data/RAF-DB/basic
      fercli prepare --verify
    """
    from fercli.errors import SpecError

    spec = read_spec(spec_file, overrides, quiet, as_json)
    names = list(dict.fromkeys(datasets or [*spec.data.source, *spec.data.targets]))
    if root is not None and len(names) != 1:
        raise SpecError("--root goes with exactly one --dataset")
    _verify(spec, names, root) if look else _prepare(spec, names, root, report)


def _prepare(spec: Spec, names: list[str], root: str | None, report: bool) -> None:
    from fercli.pipeline import list_dataset, prepare_listing, write_quality_report

    # All are listed before the first is prepared: a folder that is missing is told at once, not after an hour.
    listings = [list_dataset(spec, name, root) for name in names]
    summaries = {listing.name: prepare_listing(spec, listing) for listing in listings}
    columns = ("dataset", "listed", "found", "retried", "given", "mean shape", "rejected", "left out")
    keys = ("expected", "found", "retried", "given", "mean-landmarks", "rejected", "left_out")
    console.table("Prepared faces", columns, [[name, *(row[k] for k in keys)] for name, row in summaries.items()])
    for name, row in summaries.items():
        console.say(f"{name}: {row['folder']} (look at contact-sheet.jpg)")
    quality = write_quality_report(spec, names) if report else {}
    if report:
        found = [f"{quality[key]} {what}" for key, what in _FINDINGS.items() if quality[key]]
        style = "bold red" if quality["leaks"] else None
        console.say(f"{quality['page']}: {', '.join(found) or 'no face is there twice'}", style=style)
    console.result({"prepared": summaries, "quality": quality})


def _verify(spec: Spec, names: list[str], root: str | None) -> None:
    from fercli.errors import FercliError
    from fercli.pipeline import list_dataset
    from fercli.verify import verify

    verdicts = {}
    for name in names:
        try:
            listing = list_dataset(spec, name, root)
        except FercliError as failure:
            # A machine that only trains holds the stores and not the photographs.
            console.say(f"{name}: the photographs are not compared: {failure}")
            listing = None
        verdicts[name] = verify(spec.store_path(name), listing)
    rows = [
        [name, "whole" if v.whole else "DAMAGED", v.faces, v.photographs, len(v.changed), len(v.missing)]
        for name, v in verdicts.items()
    ]
    columns = ("dataset", "store", "faces", "photographs compared", "changed since", "gone since")
    console.table("Verified", columns, rows)
    for name, verdict in verdicts.items():
        if verdict.changed or verdict.missing:
            few = ", ".join([*verdict.changed, *verdict.missing][:3])
            console.say(f"{name}: photographs have changed since ({few} ...): fercli prepare --dataset {name}")
    console.result({"verified": {name: {**vars(v), "whole": v.whole} for name, v in verdicts.items()}})
    for name, verdict in verdicts.items():
        if verdict.damage:
            raise FercliError(
                f"{verdict.store} is damaged: {'; '.join(verdict.damage)}; delete it and run: "
                f"fercli prepare --dataset {name}"
            )
