"""Partial stores, which are being written or were left by a run that was stopped, and the faces to reuse from them.

A partial store consists of the arrays of a store and a journal of the records in them. The arrays are valid .npy files
at any moment: rows are appended first, then the header is updated, then the journal gets a line for each record,
rejected or not, in the order of the listing. A kill in between leaves rows without a journal line. Each line begins
with its own checksum, and each face has a digest. Data damaged by a power cut is therefore detected, and the writer
does not need to wait for the disk after each piece of work.
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

#: Columns of the manifest with a record's result.
MADE_COLUMNS = ("box", "score", "status", "reason", "roll", "yaw", "pitch", "hash", "given_error", "source")
#: A record's result: `MADE_COLUMNS` as text with ``fillable``, and, if it has a face, its row of each of `FACE_ARRAYS`.
Made = tuple[dict[str, Any], Sequence[np.ndarray] | None]

#: Bytes of a record's key: a hash of the parameters and the record, and a hash of its file's size and time.
KEY, STATE = 16, 8
#: Increased when the way keys are made changes. All faces are then computed again.
KEY_FORMAT = 2

_JOURNAL = "journal.jsonl"
#: The journal's first line. A journal with another number is not read.
_HEAD = {"journal": 1, "rejections": REJECTIONS}
_CHECK = 16


def partial_stores(out: Path) -> list[Path]:
    """Return the folders of the partial stores in a store's folder, newest first."""
    numbers = {path: path.name.removeprefix("partial-") for path in out.glob("partial-*")}
    return sorted((path for path, number in numbers.items() if number.isdigit()), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("partial-"))


class PartialStore:
    """A new partial store, open for appending. It is a context manager that closes its files.

    Args:
        out: the store's folder, in which the partial store gets its own folder.
        options: how its faces are prepared.

    Attributes:
        folder: the partial store's own folder.
        rows: the result of each record appended so far.
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
        """Write the results of the next records.

        Args:
            keys: keys of the records, uint8 [len(made), 24] (`fercli.prepare.build.record_keys`).
            made: the result of each record.

        Raises:
            OSError: the disk is full or fails.
        """
        faces = [face for _, face in made if face is not None]
        for array, rows in zip(self._arrays, zip(*faces, strict=True), strict=False):
            array.append(rows)
        for key, (row, _) in zip(keys, made, strict=True):
            self._journal.write(_line({"key": key.tobytes().hex(), **row}))
            self.rows.append(row)
        self._journal.flush()


class _Array:
    """An .npy file to which rows are appended."""

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
        self._file.seek(0)  # this flushes the rows, so that they are written before the header counts them
        self._file.write(npy_header(self._dtype, (self._count, *self._row)))
        self._file.seek(0, 2)

    def close(self) -> None:
        self._file.close()


def _journal(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (record key, result) of each record of a partial store, up to the first damaged line of its journal.

    The key is empty if the record must be tried again.
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
    """The stored result of a record.

    Attributes:
        folder: folder of the store that has it.
        row: the record's result (`Made`).
        place: index of its face in that store's arrays; -1 if it was rejected.
        state: the second part of its key, uint8 [STATE] as bytes. It shows whether the image seems unchanged.
    """

    folder: Path
    row: dict[str, Any]
    place: int
    state: bytes


class Previous:
    """Faces of earlier runs. Partial stores that are no longer useful are removed.

    Args:
        out: the store's folder.
        complete: whether it contains a complete store; otherwise only partial stores are used.
        keys: keys of the wanted records, uint8 [n, KEY + STATE].
    """

    def __init__(self, out: Path, complete: bool, keys: np.ndarray):
        self._known: dict[bytes, Known] = {}
        self._open: dict[Path, list[np.ndarray]] = {}
        wanted = {key[:KEY].tobytes() for key in keys}
        for folder in partial_stores(out):
            records = list(_records(folder, _journal(folder)))
            # It has other parameters, or newer ones have all its records. Repeated stops thus do not fill the disk.
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
        """Return the stored result for this key, uint8 [KEY + STATE], or None. Its face is not checked."""
        return self._known.get(key[:KEY].tobytes())

    def is_sound(self, known: Known) -> bool:
        """Return whether a record's face is as it was written."""
        try:
            _, face = self.made(known)
        except (OSError, ValueError, IndexError):  # an array is missing, short, or its header damaged
            return False
        return face is None or bool((face_digest(*face[:-1]) == face[-1]).all())

    def made(self, known: Known) -> Made:
        """Return a record's result, with its face mapped. Raises OSError, ValueError or IndexError if it is damaged."""
        if known.place < 0:
            return known.row, None
        arrays = self._open.get(known.folder)
        if arrays is None:
            arrays = [read_array(known.folder / f"{name}.npy", mapped=True) for name in FACE_ARRAYS]
            self._open[known.folder] = arrays
        return known.row, [array[known.place] for array in arrays]

    def forget(self) -> None:
        """Release the arrays, because their pages that were read count as this process's memory."""
        self._open = {}


def _records(folder: Path, rows: Iterator[tuple[bytes, dict[str, Any]]]) -> Iterator[tuple[bytes, Known]]:
    place = 0
    for key, row in rows:
        kept = row["status"] != "rejected"
        # A row without a key only advances the place.
        if key:
            yield key[:KEY], Known(folder, row, place if kept else -1, key[KEY:])
        place += kept


def _manifest(store: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield as `_journal`, for a complete store. The key is empty for records that must be computed again."""
    # A mean shape depends on all faces of its dataset, so these faces are computed again.
    again = {"mean-landmarks"}
    if (read_meta(store) or {}).get("rejections") != REJECTIONS:
        again.add("rejected")
    for key, row in zip(read_array(store / "keys.npy"), read_manifest(store), strict=True):
        made = {**{column: row[column] for column in MADE_COLUMNS}, "fillable": False}
        yield b"" if row["status"] in again else key.tobytes(), made
