"""fercli prepare"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from fercli import console
from fercli.cli.options import dataset_option, read_spec, reader_option, reader_options, root_option, spec_options

if TYPE_CHECKING:
    from fercli.spec import Spec

#: The counts of the quality report, in words: leaks first.
_FINDINGS = {
    "leaks": "trained on in a source and scored in a target (a leak)",
    "leaks_within": "trained on and scored in the same dataset (a leak)",
    "shared": "in a source and a target",
    "across_splits": "in two splits of one dataset",
    "duplicates": "in one dataset",
    "unlooked": "with similar hashes, not examined",
}


@click.command("prepare", short_help="Find, align and store the faces of a dataset.")
@spec_options
@dataset_option("Dataset to prepare (may be repeated). Default: every dataset in the spec.")
@root_option
@reader_option
@click.option("--verify", "look", is_flag=True, help="Check the prepared stores completely; change nothing.")
@click.option("--repair", is_flag=True, help="Rebuild what --verify found damaged, and keep the rest.")
@click.option(
    "--report/--no-report", default=True, help="Write quality.html beside the stores, or not. Default: write."
)
def command(spec_file, overrides, quiet, as_json, datasets, root, options, look, repair, report):
    """Find the faces of a dataset, align them, cut the local regions, and store them.

    Reads the dataset in its own layout. A second run resumes a stopped one and redoes only what has changed. Look at
    contact-sheet.jpg in the store, and at quality.html beside the stores.

    \b
    Examples:
      fercli prepare --dataset expw
      fercli prepare --dataset raf-db --root /data/RAF-DB/basic
      fercli prepare --dataset fer2013 --option score=public-test
      fercli prepare --verify
      fercli prepare --repair --dataset expw
    """
    from fercli.errors import SpecError

    if options and len(set(datasets)) != 1:
        raise SpecError("--option needs exactly one --dataset")
    chosen = reader_options(options).items()
    overrides += tuple(f"data.datasets.{datasets[0]}.options.{key}={json.dumps(value)}" for key, value in chosen)
    spec = read_spec(spec_file, overrides, quiet, as_json)
    names = list(dict.fromkeys(datasets or [*spec.data.source, *spec.data.targets]))
    if root is not None and len(names) != 1:
        raise SpecError("--root needs exactly one --dataset")
    if look:
        _verify(spec, names, root, bool(datasets))
    else:
        _prepare(spec, names, root, repair, report)


def _prepare(spec: Spec, names: list[str], root: str | None, repair: bool, report: bool) -> None:
    from fercli.datasets.protocol import describe
    from fercli.prepare.from_spec import list_dataset, need_splits, prepare_listing, write_quality_report

    # All datasets are listed before the first is prepared: a missing folder is reported at once, not after an hour.
    listings = [list_dataset(spec, name, root) for name in names]
    for listing in listings:
        need_splits(spec, listing)
    protocols = {
        listing.name: describe(listing.adapt_splits, listing.score_splits, dict.fromkeys(r.split for r in listing))
        for listing in listings
    }
    summaries = {listing.name: prepare_listing(spec, listing, repair) for listing in listings}
    columns = ("dataset", "listed", "found", "retried", "given", "mean shape", "rejected", "left out")
    keys = ("expected", "found", "retried", "given", "mean-landmarks", "rejected", "left_out")
    console.table("Prepared faces", columns, [[name, *(row[k] for k in keys)] for name, row in summaries.items()])
    for name, row in summaries.items():
        console.say(f"{name}: {row['folder']} (look at contact-sheet.jpg)")
        console.say(f"  {protocols[name]}")
        for what, reasons in (("rejected", row["reasons"]), ("left out", row["left_out_reasons"])):
            if reasons:
                console.say(f"  {what}: {_few(reasons)}")
    quality = {}
    if report:
        quality = write_quality_report(spec, names)
        found = [f"{what}: {quality[key]}" for key, what in _FINDINGS.items() if quality[key]]
        if quality["subjects_across"]:
            found.append(f"subjects in several splits: {quality['subjects_across']}")
        said = f"{quality['page']}: " + (
            "pairs of duplicate faces " + "; ".join(found) if found else "no duplicate faces"
        )
        # Shown even with --quiet: an unnoticed leak ends up in published results.
        console.warn(said) if quality["leaks"] or quality["leaks_within"] else console.say(said)
    console.result({"prepared": summaries, "quality": quality})


def _few(reasons: dict[str, int], most: int = 4) -> str:
    """Return the most frequent reasons with their counts."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in ordered[most:])
    return "; ".join(f"{count} {reason}" for reason, count in ordered[:most]) + (f"; {rest} others" if rest else "")


def _verify(spec: Spec, names: list[str], root: str | None, named: bool) -> None:
    from fercli.errors import Advice, FercliError
    from fercli.prepare.from_spec import list_dataset
    from fercli.prepare.verify import verify
    from fercli.store import read_meta

    verdicts, failures = {}, []
    for name in names:
        if not named and read_meta(spec.store_path(name)) is None:
            console.say(f"{name} is not prepared")
            continue
        try:
            listing = list_dataset(spec, name, root)
        except FercliError:
            listing = None  # a machine that only trains holds the stores but not the images
        try:
            verdicts[name] = verify(spec.store_path(name), listing)
        except FercliError as failure:
            failures.append(failure)
            continue
        if listing is None and verdicts[name].whole:
            console.say(f"{name}: its images are not on this machine and were not compared")
        if verdicts[name].damage:
            path, damage = verdicts[name].store, "; ".join(verdicts[name].damage)
            failures.append(
                FercliError(f"{path} is damaged: {damage}", Advice.run("prepare", f"--repair --dataset {name}"))
            )
    rows = [
        [name, "whole", v.faces, v.photographs or "-", len(v.changed), len(v.gone), len(v.new)]
        if v.whole
        else [name, "DAMAGED", v.faces, "-", "-", "-", "-"]
        for name, v in verdicts.items()
    ]
    columns = ("dataset", "store", "faces", "images compared", "changed", "missing", "new")
    console.table("Verified", columns, rows)
    for name, verdict in verdicts.items():
        if verdict.changed or verdict.gone or verdict.new:
            console.say(f"{name}: the dataset has changed since it was prepared; run: fercli prepare --dataset {name}")
    console.result({"verified": {name: {**vars(v), "whole": v.whole} for name, v in verdicts.items()}})
    for failure in failures[:-1]:
        console.error(str(failure))
    if failures:
        raise failures[-1]
    if not verdicts:
        raise FercliError("nothing is prepared", Advice.run("prepare"))
