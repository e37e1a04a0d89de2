"""The complete store that a run replaces: faces are taken over where record, parameters and photograph are the same."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from fercli.datasets.reader import Record
from fercli.faces.extract import REJECTIONS, Extracted, read_source, source_hash
from fercli.faces.images import Unreadable
from fercli.store import FACE_ARRAYS, face_digest, read_array, read_manifest, read_meta

#: A record's key: 16 bytes of a hash over the parameters and the record, and 8 over its file's size and time.
KEY, STATE = 16, 8

#: What a former store has of a record: its manifest's row, its place among the faces (-1 where it was rejected), and
#: whether its photograph looks untouched.
Known = tuple[dict[str, str], int, bool]


class Former:
    """What there is to be taken over.

    Args:
        store: folder of a complete store.
    """

    def __init__(self, store: Path):
        self._keys, self._rows = read_array(store / "keys.npy"), read_manifest(store)
        kept = np.array([row["status"] != "rejected" for row in self._rows], bool)
        self._faces = np.where(kept, np.cumsum(kept) - 1, -1)
        self._places = {key[:KEY].tobytes(): i for i, key in enumerate(self._keys)}
        # A mean shape depends on all faces of its dataset: it is laid again.
        self._again = {"mean-landmarks"}
        if (read_meta(store) or {}).get("rejections") != REJECTIONS:
            self._again.add("rejected")

    def find(self, key: np.ndarray) -> Known | None:
        """Return what there is of the record with this key, uint8 [KEY + STATE]."""
        place = self._places.get(key[:KEY].tobytes())
        if place is None or self._rows[place]["status"] in self._again:
            return None
        untouched = bool((self._keys[place, KEY:] == key[KEY:]).all())
        return self._rows[place], int(self._faces[place]), untouched


def take_over(record: Record, root: Path, store: Path, known: Known | None) -> Extracted | None:
    """Return a record's face as the former store has it; None where its photograph is another, or the face damaged."""
    if known is None:
        return None
    row, place, untouched = known
    if not untouched:
        try:
            if source_hash(read_source(record, root)) != row["source"]:
                return None
        except Unreadable:
            return None
    pose = [row["roll"], row["yaw"], row["pitch"]]
    one = Extracted(
        row["status"],
        row["reason"],
        box=tuple(float(v) for v in row["box"].split()) or None,
        score=_number(row["score"]),
        pose=tuple(float(v) for v in pose) if all(pose) else None,
        given_error=_number(row["given_error"]),
        source=row["source"],
        hash=row["hash"],
    )
    if place >= 0:
        try:
            *face, digest = (array[place] for array in _arrays(store, os.stat(store / "meta.json").st_mtime_ns))
        except (ValueError, IndexError):  # an array's own header is damaged
            return None
        if (face_digest(*face) != digest).any():
            return None
        one.face, one.landmarks, one.crops, one.shape = face
    return one


def forget() -> None:
    """Let go of the former store's arrays: what was read of them counts as this process's memory."""
    _arrays.cache_clear()


@lru_cache(maxsize=1)
def _arrays(store: Path, _written_at: int) -> list[np.ndarray]:
    return [read_array(store / f"{name}.npy", mapped=True) for name in FACE_ARRAYS]


def _number(text: str) -> float | None:
    return float(text) if text else None
