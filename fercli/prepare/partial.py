"""Partial stores, which are being written or were left by a run that was stopped, and what can be taken over from them.

A partial store is the arrays of a store and a journal that says which records are in them. The arrays are valid .npy
files at any moment: rows are appended first, then the header is told of them, then the journal gets a line for each
record, rejected or not, in the order of the listing. A kill in between leaves rows that no line speaks of. Each line
begins with its own check sum, and each face has its digest: what a power cut spoilt is seen for what it is, so that
nobody needs to wait for the disk after each piece of work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fercli.faces.extract import REJECTIONS
from fercli.spec import Prepare
from fercli.store import FACE_ARRAYS, face_digest, npy_header, read_array, read_manifest, read_meta

#: Columns of the manifest that tell what became of a record.
MADE_COLUMNS = ("box", "score", "status", "reason", "roll", "yaw", "pitch", "hash", "given_error", "source")
#: What became of a record: `MADE_COLUMNS` as text with ``fillable``, and, of a face, its row of each of `FACE_ARRAYS`.
Made = tuple[dict[str, Any], Sequence[np.ndarray] | None]

#: A record's key: 16 bytes of a hash over the parameters and the record, and 8 over its file's size and time.
KEY, STATE = 16, 8
#: Raised when keys are made otherwise: all faces are made again.
KEY_FORMAT = 2

_JOURNAL = "journal.jsonl"
#: The journal's first line. What has another number is not read.
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


def _journal(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (record key, what became of the record) of a partial store, as far as its journal is as it was written.

    The key is empty where the record must be tried again.
    """
    try:
        file = (folder / _JOURNAL).open("rb")
    except OSError:
        return
    with file:
        lines = _lines(file)
        head = next(lines, {})
        for row in lines if head.get("journal") == _HEAD["journal"] else ():
            again = row["status"] == "rejected" and head["rejections"] != REJECTIONS
            yield b"" if again else bytes.fromhex(row.pop("key")), row


def _lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        if line[:_CHECK] != _check(line[_CHECK + 1 :]):
            return
        yield json.loads(line[_CHECK + 1 :])


def _line(what: dict[str, Any]) -> bytes:
    text = json.dumps(what).encode() + b"\n"
    return _check(text) + b" " + text


def _check(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_CHECK // 2).hexdigest().encode()


class Known(NamedTuple):
    """What there is of a record.

    Attributes:
        folder: of the store that has it.
        row: what became of it (`Made`).
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
            records = list(_records(folder, _journal(folder)))
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
        """Whether a record's face is as it was written."""
        try:
            _, face = self.made(known)
        except (OSError, ValueError, IndexError):  # an array is missing, short, or its header damaged
            return False
        return face is None or bool((face_digest(*face[:-1]) == face[-1]).all())

    def made(self, known: Known) -> Made:
        """What became of the record, its face mapped. Raises OSError, ValueError or IndexError where it is damaged."""
        if known.place < 0:
            return known.row, None
        arrays = self._open.get(known.folder)
        if arrays is None:
            arrays = [read_array(known.folder / f"{name}.npy", mapped=True) for name in FACE_ARRAYS]
            self._open[known.folder] = arrays
        return known.row, [array[known.place] for array in arrays]

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
    """As `_journal`, of a complete store; without a key what must be made again."""
    # A mean shape depends on all faces of its dataset: it is laid again.
    again = {"mean-landmarks"}
    if (read_meta(store) or {}).get("rejections") != REJECTIONS:
        again.add("rejected")
    for key, row in zip(read_array(store / "keys.npy"), read_manifest(store), strict=True):
        made = {**{column: row[column] for column in MADE_COLUMNS}, "fillable": False}
        yield b"" if row["status"] in again else key.tobytes(), made
