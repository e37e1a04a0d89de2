"""Is a prepared store still what it was when it was written, and are the photographs still those it was made from?"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fercli import console
from fercli.datasets.records import Listing
from fercli.expressions import NUM_EXPRESSIONS, UNLABELLED
from fercli.faces.extract import read_source, source_hash
from fercli.faces.images import Unreadable
from fercli.store import SMALL_FILES, Store, count_statuses, damaged_faces, file_hash, read_manifest


@dataclass
class Verdict:
    """What `verify` found.

    Attributes:
        store: the store's folder.
        faces: how many it holds.
        damage: a line for whatever makes it unfit for use.
        changed, missing: ids of records whose photograph is another by now, or gone (the store is whole all the same;
            the next `fercli prepare` makes these faces again).
        photographs: how many were compared; 0 where their folder is not on this machine.
    """

    store: Path
    faces: int
    damage: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    photographs: int = 0

    @property
    def whole(self) -> bool:
        """Whether the store is fit for use."""
        return not self.damage


def verify(path: Path, listing: Listing | None = None) -> Verdict:
    """Read a prepared store from end to end and compare it with what its meta.json says.

    Args:
        path: the store's folder.
        listing: the dataset as it lies on the disk now, to compare its photographs too.

    Raises:
        FercliError: there is no complete store.
    """
    store = Store.open(path)
    verdict = Verdict(store.path, len(store))
    verdict.damage += _damage(store)
    if listing is not None and verdict.whole:
        _compare_sources(store, listing, verdict)
    return verdict


def _damage(store: Store) -> Iterator[str]:
    for name in SMALL_FILES:
        if file_hash(store.path / name) != store.meta["sha256"].get(name):
            yield f"{name} is not as it was written"
    damaged = damaged_faces(store.path)
    if damaged:
        few = ", ".join(store.ids[damaged[:3]]) + (", ..." if len(damaged) > 3 else "")
        yield f"{len(damaged)} of {len(store)} faces are not as they were written ({few})"
    try:
        rows = read_manifest(store.path)
        counts, splits = count_statuses(rows)
    except (OSError, KeyError, csv.Error) as failure:
        yield f"manifest.csv cannot be read ({failure})"
        return
    if (counts, splits) != (store.meta["counts"], store.meta["splits"]):
        yield "manifest.csv and meta.json count other records"
    kept = [row for row in rows if row["status"] != "rejected"]
    if [row["label"] for row in kept] != [str(label) for label in store.labels.tolist()]:
        yield "labels.npy and manifest.csv disagree"
    if [row["split"] for row in kept] != store.splits.tolist():
        yield "splits.npy and manifest.csv disagree"
    if not np.isin(store.labels, range(UNLABELLED, NUM_EXPRESSIONS)).all():
        yield "labels.npy holds other numbers than -1 to 6"
    if not np.isfinite(store.landmarks).all():
        yield "landmarks.npy holds what is no number"


def _compare_sources(store: Store, listing: Listing, verdict: Verdict) -> None:
    written = {row["id"]: row for row in read_manifest(store.path)}
    with console.progress(f"{store.name}: photographs", total=len(listing)) as bar:
        for record in listing:
            row = written.pop(record.id, None)
            bar.advance()
            if row is None:
                verdict.changed.append(record.id)
                continue
            verdict.photographs += 1
            try:
                now = source_hash(read_source(record, listing.root))
            except Unreadable:
                now = ""
            if now != row["source"]:
                (verdict.changed if now else verdict.missing).append(record.id)
    verdict.missing += written
