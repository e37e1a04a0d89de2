"""The prepared store: one dataset's aligned faces in a folder, either complete or absent, opened memory-mapped.

    faces.npy      uint8 [N, S, S, 3] RGB, S = size + 2 * margin
    landmarks.npy  float32 [N, 5, 2] (x, y) in pixels of that face, pixel centres at integers
    crops.npy      uint8 [N, 5, C, C, 3] RGB patches centred on the landmarks
    labels.npy     int64 [N], -1 if unknown
    splits.npy     <U16 [N] (wider if a dataset's own split names are longer)
    ids.npy        text [N] the dataset's own record names
    subjects.npy   text [N] the subject of each face, '' if unknown
    shapes.npy     float32 [N, 5, 2] the landmarks relative to the given box, or to the image's central square
    manifest.csv   a row for every record listed, kept or rejected; the kept ones in the order of the arrays
    digests.npy    uint8 [N, 16] digest of each face's rows in faces, landmarks, crops and shapes (`face_digest`)
    keys.npy       uint8 [listed, 24] what each record was made from (`fercli.prepare`), so that the next run keeps it
    meta.json      parameters, counts, versions, hashes; written last: a store without it is incomplete

Columns of the manifest: what the dataset lists (id, path, split, label, subject, box); the detector's score; status and
reason; roll, yaw and pitch in degrees; hash of the face; given_error, the distance between detected landmarks and the
dataset's own, in units of the distance between the eyes; source, the hash of the image. Cells without a value are
empty.

This module needs neither mediapipe nor OpenCV: machines that only train do not have them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fercli.datasets.protocol import absent
from fercli.errors import Advice, FercliError

#: Format version by ``prepare.align``; raised whenever earlier stores can no longer be used. In version 2, ``box`` was
#: the square around the face's box.
FORMATS = {"template": 2, "box": 3}

#: Arrays made by workers, with a row for every face kept, and their types; digests cover the others.
FACE_ARRAYS = {"faces": "uint8", "landmarks": "float32", "crops": "uint8", "shapes": "float32", "digests": "uint8"}
#: Files whose SHA-256 is in meta.json.
SMALL_FILES = ("labels.npy", "splits.npy", "ids.npy", "subjects.npy", "digests.npy", "keys.npy", "manifest.csv")
#: Files that earlier versions did not write; the manifest is read instead until `fercli prepare` has written them.
LATER_FILES = ("ids.npy", "subjects.npy")
#: All files of a store except its contact sheet and meta.json.
FILES = (*(f"{name}.npy" for name in FACE_ARRAYS if name != "digests"), *SMALL_FILES)
MANIFEST_COLUMNS = (
    *("id", "path", "split", "label", "subject", "box", "score", "status", "reason"),
    *("roll", "yaw", "pitch", "hash", "given_error", "source"),
)
#: Status of a record; all but the last are kept.
STATUSES = ("found", "retried", "given", "mean-landmarks", "rejected")


#: The arrays that a store maps: name, type, and the shape of a row; None is a dimension set by options.
_MAPPED: tuple[tuple[str, str, tuple[int | None, ...]], ...] = (
    ("faces", "uint8", (None, None, 3)),
    ("landmarks", "float32", (5, 2)),
    ("crops", "uint8", (5, None, None, 3)),
)

#: Bytes in an .npy file's header.
_HEADER = 128
#: How manifest.csv is opened: names that are not valid UTF-8 keep their bytes.
_MANIFEST_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class _Meta(BaseModel):
    """The fields of meta.json that are read."""

    model_config = ConfigDict(strict=True)

    format: int
    name: str
    synthetic: bool
    adapt_splits: list[str]
    score_splits: list[str]
    parameters: dict[str, Any]
    counts: dict[str, int]
    splits: dict[str, dict[str, int]]
    sha256: dict[str, str] = {}
    bytes: dict[str, int | None] = {}
    fingerprint: str = ""


class Store:
    """A prepared dataset, opened for reading.

    Attributes:
        path: its folder.
        name: the dataset.
        meta: the contents of meta.json.
        faces, landmarks, crops: read-only memory maps, as in the module's docstring.
        adapt_splits, score_splits: the dataset's protocol.
        synthetic: true for procedural faces.
    """

    def __init__(self, path: Path, meta: dict[str, Any], labels: bool, checked: bool):
        self.path, self.meta, self._are_checked = path, meta, checked
        self.name: str = meta["name"]
        self.synthetic: bool = meta["synthetic"]
        self.adapt_splits: tuple[str, ...] = tuple(meta["adapt_splits"])
        self.score_splits: tuple[str, ...] = tuple(meta["score_splits"])
        self.faces, self.landmarks, self.crops = (_faces_array(path, name, dtype, row) for name, dtype, row in _MAPPED)
        names = ["splits", "ids", "subjects", *(["digests"] if checked else []), *(["labels"] if labels else [])]
        hashes = meta["sha256"] if checked else {}
        later = {} if "ids.npy" in meta["sha256"] else _of_manifest(path, hashes)
        self._hashes = {name: hashes[f"{name}.npy"] for name in names if name not in later} if checked else {}
        # Mapped now, so that all are from the same moment; read on first use, since no caller needs all of them.
        self._small = {
            name: later[name] if name in later else read_array(path / f"{name}.npy", mapped=True) for name in names
        }
        columns = [self.faces, self.landmarks, self.crops, *self._small.values()]
        if len({len(column) for column in columns}) != 1:
            raise ValueError("its arrays have different lengths")

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], labels: bool = True, checked: bool = True, name: str | None = None
    ) -> Store:
        """Open the store in a folder as of one moment, even if it is prepared again meanwhile.

        Args:
            path: the folder.
            labels: False where labels must not be read (adapting to a target): `labels` then raises.
            checked: whether the small arrays must have the hashes in meta.json. Each is checked on first use
                (FercliError). False when looking for damage (`fercli.prepare.verify`).
            name: the name of the dataset that the store must hold; None accepts any.

        Raises:
            FercliError: the store is absent, incomplete, damaged, or of another dataset; the message names the command
                that makes it.
        """
        path = Path(path)
        make = Advice.run("prepare", f"--dataset {path.name}")
        if not path.is_dir():
            raise FercliError(f"{path.name} is not prepared: no such folder: {path}", make)
        meta, now = None, read_meta(path)
        # `fercli prepare` removes meta.json before it changes any other file, and writes it last. Files read between
        # two reads of the same meta.json belong together.
        while now != meta:
            meta, problem = now, None
            if meta is None:
                break
            if not is_current(meta):
                raise FercliError(f"the prepared store {path} was written by another version of fercli", make)
            try:
                store = cls(path, meta, labels, checked)
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as failure:
                problem = failure
            now = read_meta(path)
        if meta is None:
            what = "has a damaged meta.json" if (path / "meta.json").exists() else "is incomplete"
            raise FercliError(f"the prepared store {path} {what}", make)
        if name not in (None, meta["name"]):
            raise FercliError(
                f"the prepared store {path} contains the faces of {meta['name']}; its folder was copied or renamed",
                Advice("remove it, and ", make),
            )
        if problem is not None:
            raise _damaged(path, problem)
        return store

    def __len__(self) -> int:
        return len(self.faces)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels int64 [N]. Raises RuntimeError in a store opened without labels: reading them would be a mistake."""
        if "labels" not in self._small:
            raise RuntimeError(f"the labels of {self.name} were requested where labels must not be read")
        return self._checked("labels")

    @cached_property
    def splits(self) -> np.ndarray:
        """Split names, text [N]."""
        return self._checked("splits")

    @cached_property
    def ids(self) -> np.ndarray:
        """The dataset's own record names, text [N]."""
        return self._checked("ids")

    @cached_property
    def subjects(self) -> np.ndarray:
        """The subjects of the faces, text [N]; '' if unknown."""
        return self._checked("subjects")

    def _checked(self, name: str) -> np.ndarray:
        """Return one of the small arrays, read-only; raise FercliError if its hash differs from meta.json."""
        array, due = self._small[name], self._hashes.pop(name, None)
        # The map covers the whole file, including its header.
        if due is not None and hashlib.sha256(array.base).hexdigest() != due:
            self._hashes[name] = due
            raise _damaged(self.path, f"{name}.npy has changed since it was written")
        return array

    @cached_property
    def faces_digest(self) -> str:
        """Identifies the faces and their order: SHA-256 of ids and splits, without labels or pixels.

        Files with a row per face (predictions, outputs) belong to stores with the same digest.
        """
        rows = "\n".join(f"{name}\t{split}" for name, split in zip(self.ids, self.splits, strict=True))
        return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()

    def content_digest(self, labels: bool = False) -> str:
        """Identifies the faces themselves: SHA-256 of `faces_digest` and of every face's pixels and landmarks.

        Args:
            labels: include the labels; for sources.

        A model trained on these faces is valid for stores with the same digest. No pixels are read: they enter through
        the digests that `fercli prepare` stored. The whole manifest is read. If it was edited, FercliError is raised,
        because the edit would have no effect.
        """
        if self._manifest_is_edited:
            raise _damaged(self.path, "manifest.csv has changed since it was written")
        files = ["digests", *(["labels"] if labels else [])]
        for name in files:
            self._checked(name)
        parts = [self.faces_digest, *(self.meta["sha256"][f"{name}.npy"] for name in files)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def _manifest_is_edited(self) -> bool:
        due = self.meta["sha256"].get("manifest.csv")
        edited = self._are_checked and file_hash(self.path / "manifest.csv") != due
        return edited and read_meta(self.path) == self.meta  # otherwise the store was prepared again meanwhile

    def indices(self, splits: Iterable[str]) -> np.ndarray:
        """Return the positions int64 [k] of the faces in these splits, ascending.

        Raises FercliError if there are none. If the splits are those of the dataset's protocol, the message names the
        option.
        """
        wanted = tuple(splits)
        positions = np.flatnonzero(np.isin(self.splits, wanted)).astype(np.int64)
        if not len(positions):
            present = list(dict.fromkeys(self.splits.tolist()))
            protocol = {"adapt": self.adapt_splits, "score": self.score_splits}
            option = next((option for option, splits in protocol.items() if splits == wanted), None)
            if option:
                raise FercliError(absent(self.name, option, wanted, present))
            raise FercliError(
                f"{self.name} has no face in {' or '.join(wanted)} (prepared splits: {', '.join(present)})"
            )
        return positions

    def expected(self, splits: Iterable[str]) -> int:
        """Return how many records the dataset lists in these splits, kept or rejected."""
        return sum(self.meta["splits"].get(split, {}).get("listed", 0) for split in splits)

    def copies(self, indices: np.ndarray) -> int:
        """Return how many of these faces are pixel-identical duplicates of another one."""
        return len(indices) - len(np.unique(self._checked("digests")[indices], axis=0))

    def counts(self) -> dict[str, int]:
        """Return how many records were listed (``expected``), and how many have each status (`STATUSES`)."""
        return dict(self.meta["counts"])


def is_current(meta: Mapping[str, Any]) -> bool:
    """Return whether a store with this meta.json has the current format for its face alignment."""
    parameters = meta.get("parameters")
    align = parameters.get("align", "template") if isinstance(parameters, dict) else "template"
    return meta["format"] == FORMATS.get(align)


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return a store's meta.json, or None if the store is incomplete or absent, or the file is damaged."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if "stand_in" in meta:  # its name in stores of fercli 0.2
            meta["synthetic"] = meta.pop("stand_in")
        if is_current(meta):
            _Meta.model_validate(meta)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):  # pydantic's is a ValueError
        return None
    return meta


def read_array(file: Path | IO[bytes], mapped: bool = False) -> np.ndarray:
    """Return the array in an .npy file.

    Args:
        mapped: return a read-only memory map.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, damaged, or not an .npy file.
    """
    try:
        array = np.load(file, mmap_mode="r" if mapped else None)
    except OSError:
        raise
    except (
        Exception
    ) as failure:  # arbitrary bytes make numpy raise EOFError, TokenError, OverflowError, MemoryError, ...
        raise ValueError(f"{getattr(file, 'name', 'an array')} is empty or damaged") from failure
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{getattr(file, 'name', 'an array')} is not an .npy file")
    return array


def _faces_array(path: Path, name: str, dtype: str, row: tuple[int | None, ...]) -> np.ndarray:
    array = read_array(path / f"{name}.npy", mapped=True)
    fits = array.ndim == 1 + len(row) and all(b in (None, a) for a, b in zip(array.shape[1:], row, strict=True))
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}.npy contains {array.dtype} {list(array.shape)}")
    return array


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Return the rows of a store's manifest.csv, every value as text."""
    with (path / "manifest.csv").open(**_MANIFEST_TEXT) as file:
        return list(csv.DictReader(file))


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write manifest rows to a file."""
    with path.open("w", **_MANIFEST_TEXT) as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS, lineterminator="\n")
        # Before Python 3.13, a carriage return is not quoted and ends the row on reading.
        quoting = csv.DictWriter(file, MANIFEST_COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for row in rows:
            (quoting if any("\r" in str(value) for value in row.values()) else writer).writerow(row)


def _of_manifest(path: Path, hashes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return the contents of `LATER_FILES` from the manifest; raise ValueError if the manifest's hash differs."""
    if hashes and file_hash(path / "manifest.csv") != hashes["manifest.csv"]:
        raise ValueError("manifest.csv has changed since it was written")
    kept = [row for row in read_manifest(path) if row["status"] != "rejected"]
    return {f"{name}s": np.array([row[name] for row in kept], str) for name in ("id", "subject")}


def _damaged(path: Path, what: object) -> FercliError:
    make = Advice.run("prepare", f"--dataset {path.name} --repair")
    return FercliError(f"the prepared store {path} is damaged ({what})", make)


def damaged_faces(lies: Mapping[str, Path]) -> list[int]:
    """Return the positions of the faces that have changed since they were written; `lies` maps files to folders."""
    files = [lies[f"{name}.npy"] / f"{name}.npy" for name in FACE_ARRAYS]
    damaged, count, block = [], len(read_array(files[-1])), 128
    for start in range(0, count, block):
        # Mapped again for each block: pages read from a map count as this process's memory.
        arrays = (read_array(file, mapped=True)[start : start + block] for file in files)
        rows = enumerate(zip(*arrays, strict=True), start)
        damaged += [i for i, (*face, digest) in rows if (face_digest(*face) != digest).any()]
    return damaged


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as sha256sum prints it."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb") as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def face_digest(face: np.ndarray, landmarks: np.ndarray, crops: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return uint8 [16], the first half of the SHA-256 of a face's rows in the arrays."""
    digest = hashlib.sha256(np.ascontiguousarray(face).data)
    for array in (landmarks, crops, shape):
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest()[:16], np.uint8)


def count_statuses(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return (counts by status and ``expected``, {split: {listed, kept}}) for manifest rows."""
    by_status = Counter(row["status"] for row in rows)
    splits: dict[str, dict[str, int]] = {}
    for row in rows:
        part = splits.setdefault(row["split"], {"listed": 0, "kept": 0})
        part["listed"] += 1
        part["kept"] += row["status"] != "rejected"
    return {"expected": len(rows), **{status: by_status[status] for status in STATUSES}}, splits


def subsample(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the positions 0..count-1, ascending and evenly spread, with both ends if limit >= 2."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file. Its length is fixed, so that it can be rewritten when rows are added.

    `numpy.lib.format` writes the same header except for the padding, which varies between numpy versions. A store's
    bytes must not vary, because runs identify a store by their hashes.
    """
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    start = np.lib.format.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little")
    return start + repr(about).encode("latin1").ljust(_HEADER - 11) + b"\n"


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file with `npy_header`."""
    with path.open("wb") as file:
        file.write(npy_header(array.dtype, array.shape))
        file.write(array.tobytes())
