"""The run: a record's face is reused from an earlier run if it is still valid, else computed by a worker.

One writer appends the faces, in the order of the listing, to a partial store (`fercli.prepare.partial`). A run that is
stopped leaves its partial store. The next run reuses from it, as from a complete store, the faces that are still valid,
by record key. This is the only way in which a run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fercli import console, parallel
from fercli.datasets.reader import Listing, Record
from fercli.errors import FercliError
from fercli.faces.extract import REJECTIONS, STEPS, Extracted, centred_shape, extract, read_source, source_hash
from fercli.faces.images import Unreadable
from fercli.faces.network_files import ensure_networks
from fercli.files import LOCK, disk_error, only_one
from fercli.prepare.complete import complete, discard_partial_stores, is_complete, recover
from fercli.prepare.contact_sheet import PICTURE, draw_contact_sheet
from fercli.prepare.partial import KEY, KEY_FORMAT, MADE_COLUMNS, STATE, Made, PartialStore, Previous
from fercli.spec import Prepare
from fercli.store import FACE_ARRAYS, FILES, FORMATS, count_statuses, face_digest, read_array, read_manifest, read_meta

#: Upper limit for the faces that a worker sends at a time, so that large faces do not fill the memory.
_PIECE_BYTES = 8 << 20

#: Mean shapes for images without landmarks: one for a given box, one for a whole image; see `extract`.
Shapes = tuple[np.ndarray, np.ndarray]


@dataclass
class Summary:
    """The result of a run of `prepare`.

    Attributes:
        folder: the store.
        counts: records listed (``expected``), and their number by status.
        splits: {split: {listed, kept}}.
        steps: how many faces each step of the retry ladder found.
        reasons: how many records were rejected for each reason.
        left_out: what the reader left out, by reason.
        seconds: wall time of this run.
        computed: records computed in this run.
        taken_over: records reused from the previous store or from a run that was stopped.
        up_to_date: true if the store was already complete and nothing was done, except perhaps drawing its contact
            sheet.
    """

    folder: Path
    counts: dict[str, int]
    splits: dict[str, dict[str, int]]
    steps: dict[str, int]
    reasons: dict[str, int]
    left_out: dict[str, int]
    seconds: float = 0.0
    computed: int = 0
    taken_over: int = 0
    up_to_date: bool = False


def prepare(
    listing: Listing, out: str | os.PathLike[str], options: Prepare | None = None, repair: bool = False
) -> Summary:
    """Prepare a dataset.

    Args:
        listing: the dataset's records (`fercli.datasets.read_dataset`).
        out: folder of the store, named after the dataset.
        options: how to prepare the faces; None for the run spec's defaults.
        repair: check every face of an existing store and compute the damaged ones again.

    Raises:
        FercliError: no record gives a face (then no store is written and a previous one stays), or the disk is full.
    """
    started = time.monotonic()
    out = Path(out)
    options = Prepare() if options is None else options
    if options.landmarks == "given" and all(record.landmarks is None for record in listing):
        console.say(f"{listing.name} has no landmarks of its own; they are detected")
        options = options.model_copy(update={"landmarks": "detect"})
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise FercliError(f"cannot write to {out}: {failure.strerror}") from None
    with only_one(out, "prepare"):
        try:
            summary = _prepare(listing, out, options, repair)
        except PermissionError as failure:
            raise FercliError(f"cannot write to {out}: {failure.strerror}") from None
        except OSError as failure:
            raise disk_error(failure, out) from failure
    summary.seconds = time.monotonic() - started
    return summary


def _prepare(listing: Listing, out: Path, options: Prepare, repair: bool) -> Summary:
    keys = record_keys(listing, options)
    fingerprint = _fingerprint(listing, options, keys)
    repair |= recover(out)
    meta = read_meta(out)
    there = is_complete(dict.fromkeys(FILES, out), meta)
    # A store of an earlier version may lack files. They are written, and all its faces are reused.
    if there and meta["fingerprint"] == fingerprint and meta["bytes"].keys() >= set(FILES) and not repair:
        rows = read_manifest(out)
        if not (out / PICTURE).exists():
            draw_contact_sheet(out, rows, listing, options)
        console.say(f"{listing.name}: {out} is up to date")
        summary = _summary(out, listing, rows)
        summary.up_to_date = True
        return summary
    partial, computed, taken_over = _build(listing, out, options, keys, there, f"{listing.name}: faces")
    if options.missing == "mean-landmarks" and any(row["fillable"] for row in partial.rows):
        shapes = _mean_shapes(listing.records, partial)
        # Faces with mean landmarks depend on the shapes, so the keys of their records must depend on them too.
        salt = b"".join(shape.tobytes() for shape in shapes)
        own = keys.copy()
        for key, row in zip(own, partial.rows, strict=True):
            if row["fillable"]:
                key[:KEY] = np.frombuffer(_hash(salt + key.tobytes(), KEY), np.uint8)
        partial, _, _ = _build(listing, out, options, own, there, f"{listing.name}: mean landmarks", shapes)
    rows = [_manifest_row(record, made) for record, made in zip(listing, partial.rows, strict=True)]
    if all(row["status"] == "rejected" for row in rows):
        discard_partial_stores(out)
        if all(path.name == LOCK for path in out.iterdir()):
            shutil.rmtree(out)
        reason, count = Counter(row["reason"] for row in rows).most_common(1)[0]
        raise FercliError(f"{listing.name}: no face in {len(rows)} records in {listing.root} ({count}: {reason})")
    complete(partial.folder, listing, options, rows, keys, fingerprint)
    summary = _summary(out, listing, rows)
    summary.computed, summary.taken_over = computed, taken_over
    return summary


def record_keys(listing: Listing, options: Prepare) -> np.ndarray:
    """Return a key of all that each record's face depends on, uint8 [len(listing), KEY + STATE]."""
    parameters = json.dumps([KEY_FORMAT, STEPS[options.align], options.parameters()], sort_keys=True).encode()
    keys = np.empty((len(listing.records), KEY + STATE), np.uint8)
    states: dict[str, bytes] = {}
    for key, record in zip(keys, listing.records, strict=True):
        if record.path not in states:
            states[record.path] = _hash(_file_state(listing.root / record.path), STATE)
        described = repr(record).encode("utf-8", "surrogateescape")
        if options.align == "box":
            described += bytes([record.cropped])
        key[:] = np.frombuffer(_hash(parameters + described, KEY) + states[record.path], np.uint8)
    return keys


def _file_state(path: Path) -> bytes:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as failure:
        return type(failure).__name__.encode()
    # Permissions can change without the modification time.
    return f"{status.st_size} {status.st_mtime_ns} {os.access(path, os.R_OK)}".encode()


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def _fingerprint(listing: Listing, options: Prepare, keys: np.ndarray) -> str:
    """Return a hash of all that a store depends on."""
    whole = [FORMATS[options.align], REJECTIONS, options.parameters()]
    whole += [listing.name, listing.adapt_splits, listing.score_splits]
    text = json.dumps([*whole, listing.left_out, listing.synthetic], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape") + keys.tobytes()).hexdigest()


def _build(
    listing: Listing,
    out: Path,
    options: Prepare,
    keys: np.ndarray,
    there: bool,
    title: str,
    shapes: Shapes | None = None,
) -> tuple[PartialStore, int, int]:
    """Write a partial store of all records.

    Args:
        listing: the dataset.
        out: the store's folder.
        options: how its faces are prepared.
        keys: the keys of the records.
        there: whether the folder contains a complete store to reuse faces from.
        title: title of the progress bar.
        shapes: mean shapes for the records that are not reused.

    Returns:
        The closed partial store, the number of records computed, and the number reused.
    """
    previous = Previous(out, there, keys)
    known = [previous.find(key) for key in keys]
    changed = [found is not None and found.state != key[KEY:].tobytes() for found, key in zip(known, keys, strict=True)]
    face_bytes = sum(np.dtype(FACE_ARRAYS[name]).itemsize * int(np.prod(row)) for name, row in options.rows().items())
    size = max(1, min(options.chunk, _PIECE_BYTES // face_bytes))
    pieces = [range(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
    left = sum(found is None for found in known)
    if left < len(known):
        console.say(f"{title}: {len(known) - left} of {len(known)} records already exist")

    def work() -> Iterator[tuple[Any, ...]]:
        root = Path(os.path.abspath(listing.root))
        for piece in pieces:
            for i in piece:
                if known[i] is not None and not previous.is_sound(known[i]):
                    known[i] = None
            todo = [i for i in piece if known[i] is None or changed[i]]
            yield [(listing.records[i], known[i] and known[i].row["source"]) for i in todo], root, options, shapes

    busy = sum(any(known[i] is None or changed[i] for i in piece) for piece in pieces)
    where = options if busy else options.model_copy(update={"backend": "sequential"})
    if busy and shapes is None and options.landmarks == "detect" and options.backend not in ("dask", "ray"):
        ensure_networks()
    results = parallel.in_order(make_faces, work(), max(busy, 1), where, "prepare")
    taken_over = faces = 0
    with PartialStore(out, options) as partial, console.progress(title, total=len(keys)) as bar, closing(results):
        for piece, result in zip(pieces, results, strict=True):
            fresh, made = iter(result), []
            for i in piece:
                one = next(fresh) if known[i] is None or changed[i] else None
                taken_over += one is None
                made.append(previous.made(known[i]) if one is None else one)
            partial.append(keys[piece.start : piece.stop], made)
            previous.forget()
            faces += sum(face is not None for _, face in made)
            bar.advance(len(piece), f"{faces} found, {len(partial.rows) - faces} rejected")
    return partial, len(keys) - taken_over, taken_over


def make_faces(
    records: Sequence[tuple[Record, str | None]], root: Path, options: Prepare, shapes: Shapes | None
) -> list[Made | None]:
    """Prepare the faces of some records. It runs in any process, on any machine that can read the images.

    Args:
        records: each with the hash that its image had when its face was computed, if that is known.
        root: the dataset's folder.
        options: how to prepare the faces.
        shapes: mean shapes to use instead of detecting a face.

    Returns:
        The result for each record; None if its image is unchanged.
    """
    if not records:
        return []
    cv2.setNumThreads(1)
    if not root.is_dir():
        raise FercliError(
            f"{root} does not exist on {platform.node()}; all workers need the same disk under the same path"
        )
    return [
        None if source and _source(record, root) == source else made_of(extract(record, root, options, shapes))
        for record, source in records
    ]


def _source(record: Record, root: Path) -> str | None:
    try:
        return source_hash(read_source(record, root))
    except Unreadable:
        return None


def made_of(one: Extracted) -> Made:
    """Return the result of a record in the form that the worker sends and the writer stores."""
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


def _mean_shapes(records: Sequence[Record], partial: PartialStore) -> Shapes:
    """Return the mean shapes of the faces that have landmarks: for given boxes and for whole images."""
    kept = [record for record, row in zip(records, partial.rows, strict=True) if row["status"] != "rejected"]
    sums: dict[bool, tuple[np.ndarray, int]] = {}
    for record, shape in zip(kept, read_array(partial.folder / "shapes.npy"), strict=True):
        total, count = sums.get(record.box is None, (np.zeros((5, 2)), 0))
        sums[record.box is None] = (total + shape, count + 1)
    in_box, in_picture = (sums[w][0] / sums[w][1] if w in sums else centred_shape() for w in (False, True))
    return in_box, in_picture


def _manifest_row(record: Record, made: dict[str, Any]) -> dict[str, Any]:
    about = {"id": record.id, "path": record.path, "split": record.split, "label": record.label}
    return {**about, "subject": record.subject or "", **{column: made[column] for column in MADE_COLUMNS}}


def _summary(out: Path, listing: Listing, rows: Sequence[dict[str, Any]]) -> Summary:
    counts, splits = count_statuses(rows)
    steps = Counter(row["reason"] for row in rows if row["status"] == "retried")
    reasons = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    return Summary(out, counts, splits, dict(steps.most_common()), dict(reasons.most_common()), listing.left_out)
