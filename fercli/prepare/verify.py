"""Check that a prepared store is as it was written, and that its source images are unchanged."""

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
    """The result of `verify`.

    Attributes:
        store: the store's folder.
        faces: number of faces in the store.
        damage: a line for each fault that makes the store unusable.
        changed, gone, new: ids of records whose image, label or split has changed, that no longer exist, or that are
            not in the store yet. The store is still usable, and the next `fercli prepare` updates it.
        photographs: number of source images compared; 0 if their folder is not on this machine.
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
        """Whether the store is usable."""
        return not self.damage


def verify(path: Path, listing: Listing | None = None) -> Verdict:
    """Read a whole prepared store and compare it with its meta.json.

    Args:
        path: the store's folder.
        listing: the dataset as it is on the disk now; if given, its images are compared too.

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
    """Return a line for each fault. A file that cannot be read is a fault too, and ends the check that reads it."""
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
            yield f"{name} has changed since it was written"


def _faces(store: Store) -> Iterator[str]:
    damaged = damaged_faces(dict.fromkeys(FILES, store.path))
    if damaged:
        few = ", ".join(store.ids[damaged[:3]]) + (", ..." if len(damaged) > 3 else "")
        yield f"{len(damaged)} of {len(store)} faces have changed since they were written ({few})"


def _disagreements(store: Store) -> Iterator[str]:
    rows = read_manifest(store.path)
    if count_statuses(rows) != (store.meta["counts"], store.meta["splits"]):
        yield "manifest.csv and meta.json have different record counts"
    kept = [row for row in rows if row["status"] != "rejected"]
    labels = read_array(store.path / "labels.npy")
    if [row["label"] for row in kept] != [str(label) for label in labels.tolist()]:
        yield "labels.npy and manifest.csv disagree"
    for name in ("split", "id", "subject"):
        if [row[name] for row in kept] != getattr(store, f"{name}s").tolist():
            yield f"{name}s.npy and manifest.csv disagree"
    if not np.isin(labels, range(UNLABELLED, NUM_EXPRESSIONS)).all():
        yield "labels.npy contains numbers other than -1 to 6"
    if not np.isfinite(store.landmarks).all():
        yield "landmarks.npy contains values that are not finite numbers"


def _compare_sources(store: Store, listing: Listing, verdict: Verdict) -> None:
    written = {row["id"]: row for row in read_manifest(store.path)}
    with console.progress(f"{store.name}: images", total=len(listing)) as bar:
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
