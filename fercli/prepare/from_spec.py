"""Datasets of a run spec: which reader, which folder, which store."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fercli import console
from fercli.datasets import READERS, Listing, read_dataset
from fercli.datasets.protocol import absent
from fercli.errors import FercliError
from fercli.prepare.build import prepare
from fercli.spec import Dataset, Spec
from fercli.store import Store, read_meta


def list_dataset(spec: Spec, name: str, root: str | None = None) -> Listing:
    """Read the listing of a dataset from the folder in the spec (or from `root`).

    Raises:
        FercliError: no reader is known for the dataset, or its folder is missing or has another layout.
    """
    spec.store_path(name)  # checks that the name is valid for a folder
    entry = spec.data.datasets.get(name, Dataset())
    reader = entry.reader or name
    if entry.reader is None and name not in READERS:
        known = [*READERS, *spec.data.datasets, *spec.data.source, *spec.data.targets]
        near = difflib.get_close_matches(name, known, 1)
        if near and near[0] != name:
            raise FercliError(f"no such dataset: '{name}'; did you mean {near[0]}?")
        raise FercliError(
            f"no reader is known for {name}; choose one, such as "
            f"--set data.datasets.{name}.reader=folders (one of {', '.join(READERS)})"
        )
    folder = Path(root) if root else entry.root or spec.paths.data / name
    return read_dataset(name, reader, folder, **entry.options)


def photo_folder(spec: Spec, named: str) -> tuple[Spec, str] | None:
    """Treat a folder of photographs as a target without labels, which is prepared into the run's own folder.

    Args:
        named: the target as the user gave it. It means a folder if it contains a separator, or if the folder exists and
            no dataset of the spec or of a reader has this name. A folder that was deleted after it was prepared is
            recognised by the run's store.

    Returns:
        The spec with the dataset added, and the dataset's name, which is the folder's. None for a dataset's name.

    Raises:
        FercliError: there is no such folder, a dataset or another folder has its name, or the run folder is inside it.
    """
    path = Path(named)
    root = Path(os.path.abspath(path))
    name = re.sub(r"[^\w.+-]+", "-", root.name).strip(".-") or "photographs"
    store = spec.run_folder / "prepared" / name
    meta = read_meta(store)
    there = named != "" and (path.is_dir() or (meta is not None and meta.get("root") == str(root)))
    own = [key for key, given in spec.data.datasets.items() if given.store is None]
    datasets = {*READERS, *own, *spec.data.source, *spec.data.targets}
    is_path = len(path.parts) > 1 or named.endswith(("/", os.sep)) or named in (".", "..")
    if not is_path and (named in datasets or not there):
        return None
    if not there:
        raise FercliError(f"no such folder: {named}", "give a folder of images or a dataset (fercli datasets)")
    if name in datasets:
        raise FercliError(f"{named}: a dataset is also called {name}", "rename the folder")
    entry = Dataset(reader="folders", root=root, options={"labelled": False}, store=store)
    other = spec.data.datasets.get(name, entry)
    if other.root != root or (meta is not None and meta.get("root") != str(root)):
        where = other.root if other.root != root else meta.get("root")
        raise FercliError(
            f"{named}: the run already has faces of {where} under this name",
            "give the folder or the run (--set name=NAME) another name",
        )
    if Path(os.path.abspath(spec.run_folder)).is_relative_to(root):
        raise FercliError(
            f"{named} contains the run's own images, in {spec.run_folder}", "set paths.runs to a folder outside it"
        )
    data = spec.data.model_copy(update={"datasets": {**spec.data.datasets, name: entry}})
    return spec.model_copy(update={"data": data}), name


def need_splits(spec: Spec, listing: Listing) -> None:
    """Raise FercliError if a dataset lacks a split that its role in the spec requires.

    A source needs a split to train on, and a target needs a split to be scored on.
    """
    present = list(dict.fromkeys(record.split for record in listing))
    for names, option, splits in (
        (spec.data.source, "adapt", listing.adapt_splits),
        (spec.data.targets, "score", listing.score_splits),
    ):
        if listing.name in names and not set(splits) & set(present):
            raise FercliError(absent(listing.name, option, splits, present))


def prepare_listing(spec: Spec, listing: Listing, repair: bool = False) -> dict[str, Any]:
    """Prepare one listed dataset of the spec and return its counts, ready for tables and JSON."""
    summary = prepare(listing, spec.store_path(listing.name), spec.prepare, repair)
    return {
        "folder": str(summary.folder),
        **summary.counts,
        "left_out": sum(summary.left_out.values()),
        "reasons": dict(summary.reasons),
        "left_out_reasons": dict(summary.left_out),
        "retried_by": dict(summary.steps),
        "up_to_date": summary.up_to_date,
        "computed": summary.computed,
        "taken_over": summary.taken_over,
        "seconds": round(summary.seconds, 1),
    }


def write_quality_report(spec: Spec, names: Sequence[str]) -> dict[str, Any]:
    """Write quality.html and quality.json next to the stores, for the datasets named and all those in the spec.

    Datasets of the spec that are not prepared yet are left out. Nothing is done if the page is already up to date with
    the stores.

    Returns:
        ``page``, its path, and the counts in the summary of `fercli.prepare.audit.report.write_quality`.
    """
    from fercli.prepare.audit.report import write_quality

    roles = {**dict.fromkeys(names, ""), **dict.fromkeys(spec.data.targets, "target")}
    roles.update(dict.fromkeys(spec.data.source, "source"))
    stores = []
    for name in roles:
        if read_meta(spec.store_path(name)) is None:
            continue
        try:
            stores.append(Store.open(spec.store_path(name), name=name))
        except FercliError as failure:
            console.warn(f"{name} is left out of the quality report: {failure}")
    document = write_quality(stores, spec.paths.prepared, {store.name: roles[store.name] for store in stores})
    return {"page": str(spec.paths.prepared / "quality.html"), **document["summary"]}
