"""Is a prepared store still what it was when it was written, and are the photographs still those it was made from?"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fercli import console
from fercli.datasets.reader import Listing
from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS, UNLABELLED
from fercli.faces.extract import read_source, source_hash
from fercli.faces.images import Unreadable
from fercli.store import (
    FILES,
    LATER_FILES,
    SMALL_FILES,
    Store,
    count_statuses,
    damaged_faces,
    file_hash,
    read_array,
    read_manifest,
)


@dataclass
class Verdict:
    """What `verify` found.

    Attributes:
        store: the store's folder.
        faces: how many it holds.
        damage: a line for whatever makes it unfit for use.
        changed, gone, new: ids of records that are others by now (their photograph, label or split), that are not there
            any more, or not in the store yet (which is whole all the same; the next `fercli prepare` puts it right).
        photographs: how many were compared; 0 where their folder is not on this machine.
    """

    store: Path
    faces: int
    damage: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
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
    store = Store.open(path, labels=False, checked=False)
    verdict = Verdict(store.path, len(store))
    verdict.damage += _damage(store)
    if listing is not None and verdict.whole:
        _compare_sources(store, listing, verdict)
    return verdict


def _damage(store: Store) -> list[str]:
    """Return a line for whatever is amiss; what cannot be read is one of them and ends the look."""
    damage = []
    with console.progress(f"{store.name}: store", total=3) as bar:
        for look in (_small_files, _faces, _disagreements):
            try:
                damage += look(store)
            except (OSError, ValueError, KeyError, TypeError, csv.Error, FercliError) as failure:
                what = getattr(failure, "filename", None)
                damage.append(f"{Path(what).name} is missing" if what else f"a file cannot be read ({failure})")
            bar.advance()
    return list(dict.fromkeys(damage))


def _small_files(store: Store) -> Iterator[str]:
    for name in SMALL_FILES:
        if name in LATER_FILES and name not in store.meta["sha256"]:
            continue
        if not (store.path / name).is_file():
            yield f"{name} is missing"
        elif file_hash(store.path / name) != store.meta["sha256"].get(name):
            yield f"{name} is not as it was written"


def _faces(store: Store) -> Iterator[str]:
    damaged = damaged_faces(dict.fromkeys(FILES, store.path))
    if damaged:
        few = ", ".join(store.ids[damaged[:3]]) + (", ..." if len(damaged) > 3 else "")
        yield f"{len(damaged)} of {len(store)} faces are not as they were written ({few})"


def _disagreements(store: Store) -> Iterator[str]:
    rows = read_manifest(store.path)
    if count_statuses(rows) != (store.meta["counts"], store.meta["splits"]):
        yield "manifest.csv and meta.json count other records"
    kept = [row for row in rows if row["status"] != "rejected"]
    labels = read_array(store.path / "labels.npy")
    if [row["label"] for row in kept] != [str(label) for label in labels.tolist()]:
        yield "labels.npy and manifest.csv disagree"
    for name in ("split", "id", "subject"):
        if [row[name] for row in kept] != getattr(store, f"{name}s").tolist():
            yield f"{name}s.npy and manifest.csv disagree"
    if not np.isin(labels, range(UNLABELLED, NUM_EXPRESSIONS)).all():
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
                verdict.new.append(record.id)
                continue
            verdict.photographs += 1
            try:
                now = source_hash(read_source(record, listing.root))
            except Unreadable:
                now = ""
            if now != row["source"]:
                (verdict.changed if now else verdict.gone).append(record.id)
            elif (row["label"], row["split"]) != (str(record.label), record.split):
                verdict.changed.append(record.id)
    verdict.gone += written
