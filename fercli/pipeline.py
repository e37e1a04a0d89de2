"""From the run spec to the rooms that know nothing of it: which reader, which folder, which store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fercli.datasets import READERS, Listing, read_dataset
from fercli.errors import FercliError
from fercli.spec import Dataset, Spec


def list_dataset(spec: Spec, name: str, root: str | None = None) -> Listing:
    """Read the listing of a dataset where the spec (or `root`) says it lies.

    Raises:
        FercliError: no reader is known for it, or the folder is missing or of another layout.
    """
    entry = spec.data.datasets.get(name, Dataset())
    reader = entry.reader or name
    if reader not in READERS:
        raise FercliError(
            f"{name}: no reader is known for it; say how to read it, such as "
            f"--set data.datasets.{name}.reader=folders (one of {', '.join(READERS)})"
        )
    folder = Path(root) if root else entry.root or spec.paths.data / name
    return read_dataset(name, reader, folder, **entry.options)


def prepare_listing(spec: Spec, listing: Listing) -> dict[str, Any]:
    """Prepare one listed dataset of the spec and return its counts, ready for tables and JSON."""
    from fercli.prepare import prepare

    summary = prepare(listing, spec.store_path(listing.name), spec.prepare)
    return {
        "folder": str(summary.folder),
        **summary.counts,
        "left_out": sum(summary.left_out.values()),
        "reasons": dict(summary.reasons),
        "left_out_reasons": dict(summary.left_out),
        "seconds": round(summary.seconds, 1),
    }


def write_quality_report(spec: Spec, names: Sequence[str]) -> dict[str, Any]:
    """Write quality.html and quality.json beside the stores, of the datasets named and of all that the spec lists.

    Those of the spec that are not prepared yet are left out. Nothing is done where the page is of the same stores.

    Returns:
        ``page``, its path, and the counts of `fercli.quality.report.write_quality`'s summary.
    """
    from fercli.quality.report import write_quality
    from fercli.store import Store, read_meta

    roles = {**dict.fromkeys(names, ""), **dict.fromkeys(spec.data.targets, "target")}
    roles.update(dict.fromkeys(spec.data.source, "source"))
    there = [name for name in roles if read_meta(spec.store_path(name)) is not None]
    stores = [Store.open(spec.store_path(name)) for name in there]
    document = write_quality(stores, spec.paths.prepared, {name: roles[name] for name in there})
    return {"page": str(spec.paths.prepared / "quality.html"), **document["summary"]}
