"""What earlier runs left: the complete previous store and partial stores alike, face by face, by record key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fercli.faces.extract import REJECTIONS
from fercli.prepare.partial import MADE_COLUMNS, Made, partial_stores, read_journal
from fercli.store import FACE_ARRAYS, face_digest, read_array, read_manifest, read_meta

#: A record's key: 16 bytes of a hash over the parameters and the record, and 8 over its file's size and time.
KEY, STATE = 16, 8


class Known(NamedTuple):
    """What there is of a record.

    Attributes:
        folder: of the store that has it.
        row: what became of it (`fercli.prepare.partial.Made`).
        place: of its face in that store's arrays; -1 where it was rejected.
        state: the second part of its key, uint8 [STATE] as bytes: whether the photograph looks untouched.
    """

    folder: Path
    row: dict[str, Any]
    place: int
    state: bytes


class Previous:
    """Faces of earlier runs. Partial stores that are of no use any more are removed.

    Args:
        out: the store's folder.
        complete: whether a complete store is in it; else only partial ones count.
        keys: of the records that are wanted, uint8 [n, KEY + STATE].
    """

    def __init__(self, out: Path, complete: bool, keys: np.ndarray):
        self._known: dict[bytes, Known] = {}
        self._open: dict[Path, list[np.ndarray]] = {}
        wanted = {key[:KEY].tobytes() for key in keys}
        for folder in partial_stores(out):
            records = list(_records(folder, read_journal(folder)))
            # One of other parameters, or all in newer ones: a run that is stopped again and again fills no disk.
            own = {key for key, _ in records}
            if own.isdisjoint(wanted) or own <= self._known.keys():
                shutil.rmtree(folder)
                continue
            for key, known in records:
                self._known.setdefault(key, known)
        if complete:
            for key, known in _records(out, _manifest(out)):
                self._known.setdefault(key, known)

    def find(self, key: np.ndarray) -> Known | None:
        """Return what there is of the record with this key, uint8 [KEY + STATE]; its face is not looked at."""
        return self._known.get(key[:KEY].tobytes())

    def is_sound(self, known: Known) -> bool:
        """Whether a face is as it was written."""
        _, face = self.made(known)
        return known.place < 0 or (face is not None and bool((face_digest(*face[:-1]) == face[-1]).all()))

    def made(self, known: Known) -> Made:
        """What became of the record, as it was; its face is None where it cannot be read."""
        if known.place < 0:
            return known.row, None
        try:
            arrays = self._open.get(known.folder) or [
                read_array(known.folder / f"{name}.npy", mapped=True) for name in FACE_ARRAYS
            ]
            self._open[known.folder] = arrays
            return known.row, [array[known.place] for array in arrays]
        except (OSError, ValueError, IndexError):  # an array is missing, short, or its header damaged
            return known.row, None

    def forget(self) -> None:
        """Let go of the arrays: what was read of them counts as this process's memory."""
        self._open = {}


def _records(folder: Path, rows: Iterator[tuple[bytes, dict[str, Any]]]) -> Iterator[tuple[bytes, Known]]:
    place = 0
    for key, row in rows:
        kept = row["status"] != "rejected"
        # A row without a key counts faces only.
        if key:
            yield key[:KEY], Known(folder, row, place if kept else -1, key[KEY:])
        place += kept


def _manifest(store: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """As `fercli.prepare.partial.read_journal`, of a complete store; without a key what must be made again."""
    # A mean shape depends on all faces of its dataset: it is laid again.
    again = {"mean-landmarks"}
    if (read_meta(store) or {}).get("rejections") != REJECTIONS:
        again.add("rejected")
    for key, row in zip(read_array(store / "keys.npy"), read_manifest(store), strict=True):
        made = {**{column: row[column] for column in MADE_COLUMNS}, "fillable": False}
        yield b"" if row["status"] in again else key.tobytes(), made
