"""A partial store: the arrays of a store that is being written, and a journal that says which records are in them.

The arrays are valid .npy files at any moment: rows are appended first, then the header is told of them, then the
journal has a line for each record, rejected or not, in the order of the listing. A kill in between leaves rows that no
line speaks of. Each line begins with its own check sum, and each face has its digest: what a power cut spoilt is seen
for what it is, so that nobody needs to wait for the disk after each piece of work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fercli.faces.extract import REJECTIONS, Extracted
from fercli.spec import Prepare
from fercli.store import FACE_ARRAYS, face_digest, npy_header

#: Columns of the manifest that tell what became of a record.
MADE_COLUMNS = ("box", "score", "status", "reason", "roll", "yaw", "pitch", "hash", "given_error", "source")
#: What became of a record: `MADE_COLUMNS` as text with ``fillable``, and, of a face, its row of each of `FACE_ARRAYS`.
Made = tuple[dict[str, Any], Sequence[np.ndarray] | None]

_JOURNAL = "journal.jsonl"
#: The journal's first line: what is written otherwise is not read.
_HEAD = {"journal": 1, "rejections": REJECTIONS}
_CHECK = 16


def partial_stores(out: Path) -> list[Path]:
    """Folders of the partial stores in a store's folder, the newest first."""
    numbers = {path: path.name.removeprefix("partial-") for path in out.glob("partial-*")}
    return sorted((path for path, number in numbers.items() if number.isdigit()), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("partial-"))


class PartialStore:
    """A new partial store, open for appending; a context manager that closes its files.

    Args:
        out: the store's folder, in which it gets a folder of its own.
        options: how its faces are prepared.

    Attributes:
        folder: its own folder.
        rows: what became of each record appended so far.
    """

    def __init__(self, out: Path, options: Prepare):
        self.folder = out / f"partial-{max(map(_number, partial_stores(out)), default=0) + 1}"
        self.folder.mkdir(parents=True)
        self.rows: list[dict[str, Any]] = []
        self._arrays = [
            _Array(self.folder / f"{name}.npy", FACE_ARRAYS[name], row) for name, row in options.rows().items()
        ]
        self._journal = (self.folder / _JOURNAL).open("wb")
        self._journal.write(_line(_HEAD))

    def __enter__(self) -> PartialStore:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._arrays, self._journal):
            file.close()

    def append(self, keys: np.ndarray, made: Sequence[Made]) -> None:
        """Write what became of the next records.

        Args:
            keys: of the records, uint8 [len(made), 24] (`fercli.prepare.build.record_keys`).
            made: what became of each.

        Raises:
            OSError: the disk is full, or fails.
        """
        faces = [face for _, face in made if face is not None]
        for array, rows in zip(self._arrays, zip(*faces, strict=True), strict=False):
            array.append(rows)
        for key, (row, _) in zip(keys, made, strict=True):
            self._journal.write(_line({"key": key.tobytes().hex(), **row}))
            self.rows.append(row)
        self._journal.flush()


class _Array:
    """An .npy file that rows are appended to."""

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...]):
        self._dtype, self._row, self._count = np.dtype(dtype), row, 0
        self._file = path.open("wb")
        self._file.write(npy_header(self._dtype, (0, *row)))

    def append(self, rows: Sequence[np.ndarray]) -> None:
        for row in rows:
            if row.shape != self._row or row.dtype != self._dtype:
                raise ValueError(f"a row of {row.dtype} {row.shape} in an array of {self._dtype} {self._row}")
            self._file.write(np.ascontiguousarray(row).data)
        self._count += len(rows)
        self._file.seek(0)  # which writes the rows: they are there before the header counts them
        self._file.write(npy_header(self._dtype, (self._count, *self._row)))
        self._file.seek(0, 2)

    def close(self) -> None:
        self._file.close()


def made_of(one: Extracted) -> Made:
    """What became of a record, as it is sent from worker to writer and written down."""
    roll, yaw, pitch = ("", "", "") if one.pose is None else (f"{angle:.1f}" for angle in one.pose)
    row = {
        "box": "" if one.box is None else " ".join(f"{v:.1f}" for v in one.box),
        "score": "" if one.score is None else f"{one.score:.4f}",
        "status": one.status,
        "reason": " ".join(one.reason.split()),
        "roll": roll,
        "yaw": yaw,
        "pitch": pitch,
        "hash": one.hash,
        "given_error": "" if one.given_error is None else f"{one.given_error:.4f}",
        "source": one.source,
        "fillable": one.fillable,
    }
    if one.face is None:
        return row, None
    face = (one.face, one.landmarks, one.crops, one.shape)
    return row, (*face, face_digest(*face))


def read_journal(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (record key, what became of the record) of a partial store, as far as its journal is as it was written."""
    try:
        with (folder / _JOURNAL).open("rb") as file:
            if file.readline() != _line(_HEAD):
                return
            for line in file:
                if line[:_CHECK] != _check(line[_CHECK + 1 :]):
                    return
                row = json.loads(line[_CHECK + 1 :])
                yield bytes.fromhex(row.pop("key")), row
    except OSError:
        return


def _line(what: dict[str, Any]) -> bytes:
    text = json.dumps(what).encode() + b"\n"
    return _check(text) + b" " + text


def _check(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_CHECK // 2).hexdigest().encode()
