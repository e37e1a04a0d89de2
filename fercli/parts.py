"""Records -> parts: the chunks of a dataset being prepared, each one file, made in parallel and resumable.

A part is named by its place and by a hash of all that it depends on (parameters, versions, records, size and time of
the source files): a run that was stopped goes on with the parts that are missing, and never takes one of other
parameters or sources for its own. A part carries the hash of its contents, so that one which a power cut spoilt is made
again; to wait for the disk after each would cost more than that.

What a former, complete store holds is taken over face by face where a record, the parameters and the photograph are
still the same (`Former`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fercli import clusters, console
from fercli.datasets.records import Listing, Record
from fercli.errors import FercliError
from fercli.faces.extract import Extracted, Options, extract, read_source, source_hash
from fercli.faces.images import Unreadable
from fercli.files import disk_error, replacing
from fercli.store import FORMAT, read_manifest

#: Mean shapes to lay over pictures without landmarks: in a given box, in a whole picture; see `extract`.
Shapes = tuple[np.ndarray, np.ndarray]
#: A record's key: 16 bytes of a hash over the parameters and the record, and 8 over its file's size and time.
KEY, STATE = 16, 8

#: Arrays of a part, each with a row for every face kept.
PART_ARRAYS = ("faces", "landmarks", "crops", "shapes")
#: Columns of a part's rows that go into the manifest as they are.
MADE_COLUMNS = ("box", "score", "status", "reason", "roll", "yaw", "pitch", "hash", "given_error", "source")


@dataclass
class Chunk:
    """Some records in the listing's order, and the part that they become.

    Attributes:
        part: its file.
        records: the records.
        shapes: mean shapes to lay over them instead of looking for a face.
        former: the former store's row of each record, its place among the store's faces (-1 where it was rejected) and
            whether its file looks untouched; None where the former store does not have it.
        rows: what became of the records; there once the part is.
    """

    part: Path
    records: Sequence[Record]
    shapes: Shapes | None = None
    former: Sequence[tuple[dict[str, str], int, bool] | None] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


def record_keys(listing: Listing, options: Options) -> np.ndarray:
    """Return what each record's face depends on, uint8 [len(listing), KEY + STATE]."""
    parameters = json.dumps([FORMAT, options.parameters(), versions()], sort_keys=True).encode()
    keys = np.empty((len(listing.records), KEY + STATE), np.uint8)
    states: dict[str, bytes] = {}
    for key, record in zip(keys, listing.records, strict=True):
        if record.path not in states:
            states[record.path] = _hash(_file_state(listing.root / record.path), STATE)
        described = repr(record).encode("utf-8", "surrogateescape")
        key[:] = np.frombuffer(_hash(parameters + described, KEY) + states[record.path], np.uint8)
    return keys


def _file_state(path: Path) -> bytes:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as failure:
        return type(failure).__name__.encode()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions that a store's bytes may depend on; none for a package that is not installed."""
    packages = {"fercli": "fercli", "mediapipe": "mediapipe", "opencv": "opencv-contrib-python", "numpy": "numpy"}
    found = {}
    for name, package in packages.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = cv2.__version__ if name == "opencv" else "none"
    return found


class Former:
    """The complete store that a run replaces, as far as its faces can be kept.

    Args:
        store: its folder.
    """

    def __init__(self, store: Path):
        self._keys, self._rows = np.load(store / "keys.npy"), read_manifest(store)
        kept = np.array([row["status"] != "rejected" for row in self._rows], bool)
        self._faces = np.where(kept, np.cumsum(kept) - 1, -1)
        self._places = {key[:KEY].tobytes(): i for i, key in enumerate(self._keys)}

    def find(self, key: np.ndarray) -> tuple[dict[str, str], int, bool] | None:
        """Return what `Chunk.former` holds of the record with this key (uint8 [KEY + STATE])."""
        place = self._places.get(key[:KEY].tobytes())
        # A mean shape depends on all faces of its dataset: it is laid again.
        if place is None or self._rows[place]["status"] == "mean-landmarks":
            return None
        untouched = bool((self._keys[place, KEY:] == key[KEY:]).all())
        return self._rows[place], int(self._faces[place]), untouched


def plan(
    records: Sequence[Record],
    keys: np.ndarray,
    parts: Path,
    options: Options,
    former: Former | None = None,
    shapes: Shapes | None = None,
) -> list[Chunk]:
    """Cut records into chunks; parts that lie there and belong to none of them are removed.

    Args:
        records: the records.
        keys: of the records (`record_keys`).
        parts: folder of the parts.
        options: how they are prepared.
        former: the store whose faces are taken over where they are still right.
        shapes: mean shapes, for a second pass over records in which no face was found.
    """
    kind, salt = ("part", b"") if shapes is None else ("fill", b"".join(shape.tobytes() for shape in shapes))
    chunks = []
    for number, start in enumerate(range(0, len(records), options.chunk)):
        own = keys[start : start + options.chunk]
        part = parts / f"{kind}-{number:06d}-{_hash(salt + own.tobytes(), 12).hex()}"
        there = [former.find(key) for key in own] if former else []
        chunks.append(Chunk(part, records[start : start + options.chunk], shapes, there))
    wanted = {chunk.part.name for chunk in chunks}
    for stale in parts.glob(f"{kind}-*"):
        if stale.name not in wanted:
            stale.unlink()
    return chunks


def run(chunks: Sequence[Chunk], listing: Listing, options: Options, store: Path, title: str) -> tuple[int, int]:
    """Make the parts that are missing and read the rows of all.

    Returns:
        How many records were made in this run, and how many were taken over from the former store.
    """
    for chunk in chunks:
        chunk.rows = read_rows(chunk.part)
    todo = [chunk for chunk in chunks if not chunk.rows]
    total, open_ = sum(len(c.records) for c in chunks), sum(len(c.records) for c in todo)
    if open_ < total:
        console.say(f"{title}: going on after {total - open_} of {total}")
    counts: Counter[str] = Counter()
    root, store = Path(os.path.abspath(listing.root)), Path(os.path.abspath(store))
    with console.progress(title, total=total, done=total - open_) as bar:
        for made in clusters.in_order(make_part, ((c, root, options, store) for c in todo), len(todo), options):
            counts.update(made)
            rejected = counts["rejected"]
            bar.advance(sum(made.values()) - made["kept"], note=f"{counts['faces']} found, {rejected} rejected")
    for chunk in todo:
        chunk.rows = read_rows(chunk.part, check=False)
        if not chunk.rows:
            raise FercliError(
                f"{listing.name}: the part {chunk.part} is not there although a worker wrote it; "
                "all workers must see the same disk under the same path"
            )
    return open_ - counts["kept"], counts["kept"]


def make_part(chunk: Chunk, root: Path, options: Options, store: Path) -> Counter[str]:
    """Prepare one chunk's faces and write its part; runs in any process, on any machine that sees the disk.

    Returns:
        Counts of records: ``faces`` and ``rejected``, and ``kept``, those of either that were taken over.
    """
    cv2.setNumThreads(1)
    done, kept = [], 0
    for i, record in enumerate(chunk.records):
        one = _taken_over(record, root, store, chunk.former[i]) if chunk.former else None
        kept += one is not None
        done.append(one or extract(record, root, options, chunk.shapes))
    faces = write_part(chunk.part, done, options)
    return Counter(faces=faces, rejected=len(done) - faces, kept=kept)


def _taken_over(
    record: Record, root: Path, store: Path, former: tuple[dict[str, str], int, bool] | None
) -> Extracted | None:
    """Return a record's face as the former store has it, or None where its photograph is another by now."""
    if former is None:
        return None
    row, place, untouched = former
    if not untouched:
        try:
            if source_hash(read_source(record, root)) != row["source"]:
                return None
        except Unreadable:
            return None
    numbers = [row["roll"], row["yaw"], row["pitch"]]
    one = Extracted(
        row["status"],
        row["reason"],
        box=tuple(float(v) for v in row["box"].split()) or None,
        score=_number(row["score"]),
        pose=tuple(float(v) for v in numbers) if all(numbers) else None,
        given_error=_number(row["given_error"]),
        source=row["source"],
        hash=row["hash"],
    )
    if place >= 0:
        faces, landmarks, crops, shapes = _arrays_of(store, os.stat(store / "meta.json").st_mtime_ns)
        one.face, one.landmarks, one.crops, one.shape = faces[place], landmarks[place], crops[place], shapes[place]
    return one


@lru_cache(maxsize=1)
def _arrays_of(store: Path, _written_at: int) -> list[np.ndarray]:
    return [np.load(store / f"{name}.npy", mmap_mode="r") for name in PART_ARRAYS]


def _number(text: str) -> float | None:
    return float(text) if text else None


def _row(one: Extracted) -> dict[str, Any]:
    roll, yaw, pitch = ("", "", "") if one.pose is None else (f"{angle:.1f}" for angle in one.pose)
    return {
        "status": one.status,
        "reason": " ".join(one.reason.split()),
        "box": "" if one.box is None else " ".join(f"{v:.1f}" for v in one.box),
        "score": "" if one.score is None else f"{one.score:.4f}",
        "roll": roll,
        "yaw": yaw,
        "pitch": pitch,
        "hash": one.hash,
        "given_error": "" if one.given_error is None else f"{one.given_error:.4f}",
        "source": one.source,
        "fillable": one.fillable,
    }


def _stack(arrays: Sequence[np.ndarray | None], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros((0, *shape), dtype)


# A part's file: a line of JSON {rows, sha256 of the rest}, then the arrays of PART_ARRAYS in .npy format.


def write_part(part: Path, done: Sequence[Extracted], options: Options) -> int:
    """Write what became of a chunk's records; return how many faces there are among them."""
    side, crop = options.side, options.crop_size
    faces = [one for one in done if one.face is not None]
    arrays = {
        "faces": _stack([one.face for one in faces], (side, side, 3), np.uint8),
        "landmarks": _stack([one.landmarks for one in faces], (5, 2), np.float32),
        "crops": _stack([one.crops for one in faces], (5, crop, crop, 3), np.uint8),
        "shapes": _stack([one.shape for one in faces], (5, 2), np.float32),
    }
    digest = hashlib.sha256()
    for name in PART_ARRAYS:
        digest.update(arrays[name].data)
    head = json.dumps({"rows": [_row(one) for one in done], "sha256": digest.hexdigest()}) + "\n"
    try:
        with replacing(part, flush=False) as file:
            file.write(head.encode())
            for array in map(arrays.__getitem__, PART_ARRAYS):
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)
    except OSError as failure:
        raise disk_error(failure, part) from failure
    return len(faces)


def read_rows(part: Path, check: bool = True) -> list[dict[str, Any]]:
    """Return the rows of a part; none where there is no such file, or (`check`) where it is not as it was written."""
    try:
        with part.open("rb") as file:
            head = json.loads(file.readline())
            if check:
                digest = hashlib.sha256()
                for _ in PART_ARRAYS:
                    digest.update(np.lib.format.read_array(file).data)
                if digest.hexdigest() != head["sha256"]:
                    return []
    except (OSError, ValueError, KeyError, EOFError):
        return []
    return head["rows"]


def read_arrays(part: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a part by name: rows of the faces it keeps, in order."""
    with part.open("rb") as file:
        file.readline()
        return {name: np.lib.format.read_array(file) for name in PART_ARRAYS}
