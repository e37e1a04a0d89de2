"""The prepared store: one dataset's aligned faces in a folder, complete or not there, opened memory-mapped.

    faces.npy      uint8 [N, S, S, 3] RGB, S = size + 2 * margin
    landmarks.npy  float32 [N, 5, 2] (x, y) in pixels of that face, pixel centres at integers
    crops.npy      uint8 [N, 5, C, C, 3] RGB patches centred on the landmarks
    labels.npy     int64 [N], -1 where not known
    splits.npy     <U16 [N] (wider where a dataset's own names are)
    ids.npy        text [N] what the dataset calls the record
    subjects.npy   text [N] whose face it is, '' where not known
    shapes.npy     float32 [N, 5, 2] the landmarks as shares of the given box, or of the photograph's middle square
    manifest.csv   a row for every record listed, kept or rejected; the kept ones in the order of the arrays
    digests.npy    uint8 [N, 16] of each face's row of faces, landmarks, crops and shapes (`face_digest`)
    keys.npy       uint8 [listed, 24] what every record was made from (`fercli.prepare`), so that the next run keeps it
    meta.json      parameters, counts, versions, hashes; written last: a store without it is incomplete

Columns of the manifest: what the dataset lists (id, path, split, label, subject, box); score, the detector's; status
and reason; roll, yaw and pitch in degrees; hash, of the face; given_error, the distance of the landmarks found from the
dataset's own in distances between the eyes; source, the hash of the photograph. Empty where there is none.

Neither mediapipe nor OpenCV is needed here: machines that only train have none.
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

#: By ``prepare.align``. Changed whenever stores written before can no longer be used. What version 2 called ``box`` was
#: the square around the face's box.
FORMATS = {"template": 2, "box": 3}

#: Arrays with a row for every face kept that workers make, and their types; digests cover the others.
FACE_ARRAYS = {"faces": "uint8", "landmarks": "float32", "crops": "uint8", "shapes": "float32", "digests": "uint8"}
#: Files that meta.json holds the SHA-256 of.
SMALL_FILES = ("labels.npy", "splits.npy", "ids.npy", "subjects.npy", "digests.npy", "keys.npy", "manifest.csv")
#: Those that earlier versions left to the manifest, which is read until `fercli prepare` has written them.
LATER_FILES = ("ids.npy", "subjects.npy")
#: All files of a store but its image and meta.json.
FILES = (*(f"{name}.npy" for name in FACE_ARRAYS if name != "digests"), *SMALL_FILES)
MANIFEST_COLUMNS = (
    *("id", "path", "split", "label", "subject", "box", "score", "status", "reason"),
    *("roll", "yaw", "pitch", "hash", "given_error", "source"),
)
#: What became of a record; all but the last are kept.
STATUSES = ("found", "retried", "given", "mean-landmarks", "rejected")


#: What a store maps: name, type, and the shape of a row; None is a side that the options set.
_MAPPED: tuple[tuple[str, str, tuple[int | None, ...]], ...] = (
    ("faces", "uint8", (None, None, 3)),
    ("landmarks", "float32", (5, 2)),
    ("crops", "uint8", (5, None, None, 3)),
)

#: Bytes of an .npy file's header.
_HEADER = 128
#: How manifest.csv is opened: names that are no UTF-8 keep their bytes.
_MANIFEST_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class _Meta(BaseModel):
    """What is read of meta.json."""

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
        # Mapped now, so that all are of one moment; read when they are asked for, as nobody needs all of them.
        self._small = {
            name: later[name] if name in later else read_array(path / f"{name}.npy", mapped=True) for name in names
        }
        columns = [self.faces, self.landmarks, self.crops, *self._small.values()]
        if len({len(column) for column in columns}) != 1:
            raise ValueError("its files disagree")

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], labels: bool = True, checked: bool = True, name: str | None = None
    ) -> Store:
        """Open the store in a folder: all of it as of one moment, though it may be prepared again meanwhile.

        Args:
            path: the folder.
            labels: False where labels must not be read (adapting to a target): `labels` then raises.
            checked: whether the small arrays must have the hashes that meta.json names, which is seen when one is first
                asked for (FercliError). False where damage is what is looked for (`fercli.prepare.verify`).
            name: of the dataset that it must be of; None where any will do.

        Raises:
            FercliError: there is no store, an incomplete or damaged one, or that of another dataset; names the command
                that makes it.
        """
        path = Path(path)
        make = Advice.run("prepare", f"--dataset {path.name}")
        if not path.is_dir():
            raise FercliError(f"{path.name} is not prepared: no folder {path}", make)
        meta, now = None, read_meta(path)
        # `fercli prepare` takes meta.json away before it changes any other file, and writes it last. What was read
        # between two reads of the same meta.json belongs together.
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
                f"the prepared store {path} holds the faces of {meta['name']}: its folder was copied or renamed",
                Advice("remove it, and ", make),
            )
        if problem is not None:
            raise _damaged(path, problem)
        return store

    def __len__(self) -> int:
        return len(self.faces)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels int64 [N]. Raises RuntimeError in a store opened without them, for then reading them is a mistake."""
        if "labels" not in self._small:
            raise RuntimeError(f"the labels of {self.name} were asked for where none may be read")
        return self._checked("labels")

    @cached_property
    def splits(self) -> np.ndarray:
        """Names of splits, text [N]."""
        return self._checked("splits")

    @cached_property
    def ids(self) -> np.ndarray:
        """What the dataset calls its records, text [N]."""
        return self._checked("ids")

    @cached_property
    def subjects(self) -> np.ndarray:
        """Whose faces they are, text [N]; '' where that is not known."""
        return self._checked("subjects")

    def _checked(self, name: str) -> np.ndarray:
        """One of the small arrays, read-only; FercliError where it has not the hash that meta.json names."""
        array, due = self._small[name], self._hashes.pop(name, None)
        # The map is the whole file, its header too.
        if due is not None and hashlib.sha256(array.base).hexdigest() != due:
            self._hashes[name] = due
            raise _damaged(self.path, f"{name}.npy is not as it was written")
        return array

    @cached_property
    def faces_digest(self) -> str:
        """Tells which faces these are and in which order: SHA-256 of ids and splits, without labels or pixels.

        What was written down face by face (answers, outputs) belongs to stores of the same digest.
        """
        rows = "\n".join(f"{name}\t{split}" for name, split in zip(self.ids, self.splits, strict=True))
        return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()

    def content_digest(self, labels: bool = False) -> str:
        """Tells the faces themselves: SHA-256 of `faces_digest` and of every face's pixels and landmarks.

        Args:
            labels: of their labels too; for sources.

        What is trained on these faces holds for stores of the same digest. It reads no pixels, which are in it by the
        digests that `fercli prepare` left, but the whole manifest: FercliError where somebody has edited that, for
        nothing would come of it.
        """
        if self._manifest_is_edited:
            raise _damaged(self.path, "manifest.csv is not as it was written")
        files = ["digests", *(["labels"] if labels else [])]
        for name in files:
            self._checked(name)
        parts = [self.faces_digest, *(self.meta["sha256"][f"{name}.npy"] for name in files)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def _manifest_is_edited(self) -> bool:
        due = self.meta["sha256"].get("manifest.csv")
        edited = self._are_checked and file_hash(self.path / "manifest.csv") != due
        return edited and read_meta(self.path) == self.meta  # else it is that of a store prepared meanwhile

    def indices(self, splits: Iterable[str]) -> np.ndarray:
        """Return the positions int64 [k] of the faces in these splits, ascending.

        Raises FercliError where there is none; it names the option where they are the dataset's protocol.
        """
        wanted = tuple(splits)
        positions = np.flatnonzero(np.isin(self.splits, wanted)).astype(np.int64)
        if not len(positions):
            present = list(dict.fromkeys(self.splits.tolist()))
            protocol = {"adapt": self.adapt_splits, "score": self.score_splits}
            option = next((option for option, splits in protocol.items() if splits == wanted), None)
            if option:
                raise FercliError(absent(self.name, option, wanted, present))
            raise FercliError(f"{self.name} has no face in {' or '.join(wanted)} (prepared are: {', '.join(present)})")
        return positions

    def expected(self, splits: Iterable[str]) -> int:
        """Return how many records the dataset lists in these splits, kept or rejected."""
        return sum(self.meta["splits"].get(split, {}).get("listed", 0) for split in splits)

    def copies(self, indices: np.ndarray) -> int:
        """Return how many of these faces are another of them once more, pixel for pixel."""
        return len(indices) - len(np.unique(self._checked("digests")[indices], axis=0))

    def counts(self) -> dict[str, int]:
        """Return how many records were listed (``expected``) and what became of them (`STATUSES`)."""
        return dict(self.meta["counts"])


def is_current(meta: Mapping[str, Any]) -> bool:
    """Whether a store of this meta.json has the format of this version of fercli, by how its faces are aligned."""
    parameters = meta.get("parameters")
    align = parameters.get("align", "template") if isinstance(parameters, dict) else "template"
    return meta["format"] == FORMATS.get(align)


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return a store's meta.json, or None where the store is incomplete or not there, or the file is damaged."""
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
        mapped: as a read-only memory map.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, damaged, or no .npy file.
    """
    try:
        array = np.load(file, mmap_mode="r" if mapped else None)
    except OSError:
        raise
    except Exception as failure:  # numpy meets arbitrary bytes: EOFError, TokenError, OverflowError, MemoryError, ...
        raise ValueError(f"{getattr(file, 'name', 'an array')} is empty or damaged") from failure
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{getattr(file, 'name', 'an array')} is no .npy file")
    return array


def _faces_array(path: Path, name: str, dtype: str, row: tuple[int | None, ...]) -> np.ndarray:
    array = read_array(path / f"{name}.npy", mapped=True)
    fits = array.ndim == 1 + len(row) and all(b in (None, a) for a, b in zip(array.shape[1:], row, strict=True))
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}.npy holds {array.dtype} {list(array.shape)}")
    return array


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Return the rows of a store's manifest.csv, every value as text."""
    with (path / "manifest.csv").open(**_MANIFEST_TEXT) as file:
        return list(csv.DictReader(file))


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write manifest rows to a file."""
    with path.open("w", **_MANIFEST_TEXT) as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS, lineterminator="\n")
        # Before Python 3.13 a carriage return is not quoted, and ends the row when it is read.
        quoting = csv.DictWriter(file, MANIFEST_COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for row in rows:
            (quoting if any("\r" in str(value) for value in row.values()) else writer).writerow(row)


def _of_manifest(path: Path, hashes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return `LATER_FILES` of a store that has none; ValueError where its manifest has not the hash given."""
    if hashes and file_hash(path / "manifest.csv") != hashes["manifest.csv"]:
        raise ValueError("manifest.csv is not as it was written")
    kept = [row for row in read_manifest(path) if row["status"] != "rejected"]
    return {f"{name}s": np.array([row[name] for row in kept], str) for name in ("id", "subject")}


def _damaged(path: Path, what: object) -> FercliError:
    make = Advice.run("prepare", f"--dataset {path.name} --repair")
    return FercliError(f"the prepared store {path} is damaged ({what})", make)


def damaged_faces(lies: Mapping[str, Path]) -> list[int]:
    """Return the positions of the faces that are not as they were written; `lies` tells each file's folder."""
    files = [lies[f"{name}.npy"] / f"{name}.npy" for name in FACE_ARRAYS]
    damaged, count, block = [], len(read_array(files[-1])), 128
    for start in range(0, count, block):
        # Mapped again for each block: what was read of a map counts as this process's memory.
        arrays = (read_array(file, mapped=True)[start : start + block] for file in files)
        rows = enumerate(zip(*arrays, strict=True), start)
        damaged += [i for i, (*face, digest) in rows if (face_digest(*face) != digest).any()]
    return damaged


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as sha256sum gives it."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb") as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def face_digest(face: np.ndarray, landmarks: np.ndarray, crops: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return uint8 [16], the first half of the SHA-256 of a face's rows of the arrays."""
    digest = hashlib.sha256(np.ascontiguousarray(face).data)
    for array in (landmarks, crops, shape):
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest()[:16], np.uint8)


def count_statuses(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return (counts by status with ``expected``, {split: {listed, kept}}) of manifest rows."""
    by_status = Counter(row["status"] for row in rows)
    splits: dict[str, dict[str, int]] = {}
    for row in rows:
        part = splits.setdefault(row["split"], {"listed": 0, "kept": 0})
        part["listed"] += 1
        part["kept"] += row["status"] != "rejected"
    return {"expected": len(rows), **{status: by_status[status] for status in STATUSES}}, splits


def subsample(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the positions 0..count-1, ascending, evenly spread and with both ends where limit >= 2."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file: of one length, so that it can be written again once there are more rows.

    `numpy.lib.format` writes the same but for its padding, which differs from version to version; a store's bytes, and
    with them the hashes that runs remember it by, must not.
    """
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    start = np.lib.format.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little")
    return start + repr(about).encode("latin1").ljust(_HEADER - 11) + b"\n"


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file with `npy_header`."""
    with path.open("wb") as file:
        file.write(npy_header(array.dtype, array.shape))
        file.write(array.tobytes())
