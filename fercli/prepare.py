"""Records -> prepared store: in parallel, resumable at any moment, with nothing lost.

The records are cut into chunks. Each finished chunk is one file in ``parts/``, written atomically and named by a hash of
all it depends on (parameters, records, size and time of the source files): a run that was stopped goes on with the
chunks that are missing, and chunks of other parameters or sources are not taken for its own. When all are there they
are assembled into the arrays of `fercli.store`; meta.json comes last and makes the store complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np

from fercli import console
from fercli.contact_sheet import draw_contact_sheet
from fercli.datasets.records import Listing, Record
from fercli.errors import FercliError
from fercli.faces.extract import Extracted, Options, centred_shape, extract
from fercli.store import (
    ARRAYS,
    FORMAT,
    ArrayWriter,
    count_statuses,
    disk_error,
    read_manifest,
    read_meta,
    write_atomically,
    write_manifest,
)

#: Files of a complete store.
_FILES = (*(f"{name}.npy" for name in ARRAYS), "manifest.csv", "contact-sheet.jpg")


@dataclass
class Summary:
    """What a run of `prepare` did.

    Attributes:
        folder: the store.
        counts: records listed (``expected``) and what became of them, by status.
        splits: {split: {listed, kept}}.
        steps: how many faces each step of the retry ladder found.
        reasons: how many records were rejected for each reason.
        left_out: what the reader left out, by reason.
        seconds: wall time of this run.
        computed: records worked on in this run; the rest was there from earlier ones.
        up_to_date: true where the store was complete already and nothing was done.
    """

    folder: Path
    counts: dict[str, int]
    splits: dict[str, dict[str, int]]
    steps: dict[str, int]
    reasons: dict[str, int]
    left_out: dict[str, int]
    seconds: float = 0.0
    computed: int = 0
    up_to_date: bool = False

    @property
    def expected(self) -> int:
        """Records listed."""
        return self.counts["expected"]

    @property
    def found(self) -> int:
        """Faces found in the plain pass."""
        return self.counts["found"]

    @property
    def retried(self) -> int:
        """Faces found by the retry ladder."""
        return self.counts["retried"]

    @property
    def given(self) -> int:
        """Faces prepared from the dataset's own landmarks."""
        return self.counts["given"]

    @property
    def mean_landmarks(self) -> int:
        """Faces under the dataset's mean shape."""
        return self.counts["mean-landmarks"]

    @property
    def rejected(self) -> int:
        """Records without a face in the store."""
        return self.counts["rejected"]

    @property
    def kept(self) -> int:
        """Faces in the store."""
        return self.expected - self.rejected


@dataclass
class _Chunk:
    """Some records in the listing's order, and the part that they become."""

    part: Path
    records: Sequence[Record]
    shapes: tuple[np.ndarray, np.ndarray] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def prepare(listing: Listing, out: str | os.PathLike[str], options: object = None) -> Summary:
    """Prepare a dataset.

    Args:
        listing: the dataset's records (`fercli.datasets.read_dataset`).
        out: folder of the store; called as the dataset.
        options: `Options`, or anything with its fields.

    Raises:
        FercliError: no record ends with a face (no store is written then, a former one stays), or the disk is full.
    """
    started = time.monotonic()
    out = Path(out)
    options = Options() if options is None else Options.of(options)
    lines = _fingerprint_lines(listing, options)
    fingerprint = _digest(lines)
    meta = read_meta(out)
    if meta is not None and meta.get("fingerprint") == fingerprint and all((out / name).exists() for name in _FILES):
        console.say(f"{listing.name}: {out} is up to date")
        summary = _summary(out, listing, read_manifest(out))
        summary.up_to_date = True
        return summary
    parts = out / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise FercliError(f"cannot write to {out}: {failure.strerror}") from None
    chunks = _plan(listing.records, lines, parts, options, "part")
    computed = _run(chunks, listing, options, f"{listing.name}: faces", parts)
    fills = _plan_fills(chunks, listing, parts, options)
    computed += _run(fills, listing, options, f"{listing.name}: mean landmarks", parts) if fills else 0
    rows = _merge_rows(chunks, fills)
    if all(row["status"] == "rejected" for row in rows):
        _discard(out)
        reason, count = Counter(row["reason"] for row in rows).most_common(1)[0]
        raise FercliError(f"{listing.name}: not one face in {len(rows)} records of {listing.root} ({count}: {reason})")
    try:
        _assemble(out, listing, options, fingerprint, chunks, fills, rows)
    except OSError as failure:
        raise disk_error(failure, out) from failure
    summary = _summary(out, listing, rows)
    summary.seconds, summary.computed = time.monotonic() - started, computed
    return summary


# What a store depends on


def _fingerprint_lines(listing: Listing, options: Options) -> list[str]:
    """Return what the store depends on: a line for the whole, then one a record."""
    whole = {
        "format": FORMAT,
        "parameters": options.parameters(),
        "versions": _versions(),
        "listing": [listing.name, listing.adapt_splits, listing.score_splits, listing.left_out, listing.stand_in],
    }
    states: dict[str, str] = {}
    lines = [json.dumps(whole, sort_keys=True)]
    for record in listing.records:
        if record.path not in states:
            states[record.path] = _file_state(listing.root / record.path)
        lines.append(f"{record!r} {states[record.path]}")
    return lines


def _file_state(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError as failure:
        return type(failure).__name__
    return f"{status.st_size} {status.st_mtime_ns}"


def _versions() -> dict[str, str]:
    versions = {"fercli": "fercli", "mediapipe": "mediapipe", "opencv": "opencv-contrib-python", "numpy": "numpy"}
    found = {}
    for name, package in versions.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = cv2.__version__ if name == "opencv" else "none"
    return found


def _digest(lines: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


# Chunks


def _plan(
    records: Sequence[Record],
    lines: Sequence[str],
    parts: Path,
    options: Options,
    kind: str,
    shapes: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[_Chunk]:
    """Cut records into chunks, each named by its place and by the hash of what it depends on."""
    chunks = []
    for start in range(0, len(records), options.chunk):
        depends = [lines[0], *lines[1 + start : 1 + start + options.chunk]]
        part = parts / f"{kind}-{start // options.chunk:06d}-{_digest(depends)[:24]}.npz"
        chunks.append(_Chunk(part, records[start : start + options.chunk], shapes))
    wanted = {chunk.part.name for chunk in chunks}
    for stale in parts.glob(f"{kind}-*"):
        if stale.name not in wanted:
            stale.unlink()
    return chunks


def _plan_fills(chunks: Sequence[_Chunk], listing: Listing, parts: Path, options: Options) -> list[_Chunk]:
    """Return chunks of the records to lay the dataset's mean shape over, where that is asked for."""
    if options.missing != "mean-landmarks":
        return []
    missing = [r for c in chunks for r, row in zip(c.records, c.rows, strict=True) if row["fillable"]]
    if not missing:
        return []
    sums: dict[bool, tuple[np.ndarray, int]] = {}
    for chunk in chunks:
        kept = [r for r, row in zip(chunk.records, chunk.rows, strict=True) if row["status"] != "rejected"]
        with np.load(chunk.part) as data:
            for record, relative in zip(kept, data["relative"], strict=True):
                total, count = sums.get(record.box is None, (np.zeros((5, 2)), 0))
                sums[record.box is None] = (total + relative, count + 1)
    shapes = tuple(sums[w][0] / sums[w][1] if w in sums else centred_shape() for w in (False, True))
    whole = [*(repr(shape.tolist()) for shape in shapes)]
    lines = _fingerprint_lines(Listing(listing.name, listing.root, missing, (), ()), options)
    return _plan(missing, [lines[0] + "".join(whole), *lines[1:]], parts, options, "fill", shapes)


def _run(chunks: Sequence[_Chunk], listing: Listing, options: Options, title: str, parts: Path) -> int:
    """Make the parts that are missing, and read the rows of all; return how many records were worked on."""
    todo = [chunk for chunk in chunks if not chunk.part.exists()]
    total, open_ = sum(len(c.records) for c in chunks), sum(len(c.records) for c in todo)
    if open_ < total:
        console.say(f"{title}: going on after {total - open_} of {total}")
    counts: Counter[str] = Counter()
    with console.progress(title, total=total, done=total - open_) as bar:
        for statuses in _in_parallel(todo, listing.root, options):
            counts.update(statuses)
            rejected = counts["rejected"]
            bar.advance(len(statuses), note=f"{counts.total() - rejected} found, {rejected} rejected")
    for chunk in chunks:
        with np.load(chunk.part) as data:
            chunk.rows = json.loads(data["rows"].tobytes())
    return open_


def _in_parallel(chunks: Sequence[_Chunk], root: Path, options: Options) -> Iterator[list[str]]:
    """Yield the statuses of each chunk's records as the chunks are made, by one process or several."""
    workers = min(options.workers or joblib.cpu_count(), len(chunks))
    if workers <= 1 or options.backend == "sequential":
        for chunk in chunks:
            yield _make_part(chunk, root, options)
        return
    threads = {"inner_max_num_threads": 1} if options.backend == "loky" else {}
    with joblib.parallel_config(backend=options.backend, n_jobs=workers, **threads):
        jobs = (joblib.delayed(_make_part)(chunk, root, options) for chunk in chunks)
        yield from joblib.Parallel(return_as="generator")(jobs)


def _make_part(chunk: _Chunk, root: Path, options: Options) -> list[str]:
    """Prepare one chunk's faces and write its part; runs in any process."""
    cv2.setNumThreads(1)
    done = [extract(record, root, options, chunk.shapes) for record in chunk.records]
    kept = [one for one in done if one.face is not None]
    side, crop = options.side, options.crop_size
    blank = np.zeros((5, 2))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        rows=np.frombuffer(json.dumps([_row(one) for one in done]).encode(), np.uint8),
        faces=_stack([one.face for one in kept], (side, side, 3), np.uint8),
        landmarks=_stack([one.landmarks for one in kept], (5, 2), np.float32),
        crops=_stack([one.crops for one in kept], (5, crop, crop, 3), np.uint8),
        relative=_stack([blank if one.relative is None else one.relative for one in kept], (5, 2), np.float64),
    )
    write_atomically(chunk.part, buffer.getvalue())
    return [one.status for one in done]


def _row(one: Extracted) -> dict[str, Any]:
    return {
        "status": one.status,
        "reason": " ".join(one.reason.split()),
        "box": "" if one.box is None else " ".join(f"{v:.1f}" for v in one.box),
        "score": "" if one.score is None else f"{one.score:.4f}",
        "fillable": one.fillable,
    }


def _stack(arrays: Sequence[np.ndarray | None], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros((0, *shape), dtype)


# The store


def _merge_rows(chunks: Sequence[_Chunk], fills: Sequence[_Chunk]) -> list[dict[str, Any]]:
    """Return the manifest: every record with what became of it, filled ones in place of the rejected."""
    filled = (row for chunk in fills for row in chunk.rows)
    rows = []
    for chunk in chunks:
        for record, made in zip(chunk.records, chunk.rows, strict=True):
            if fills and made["fillable"]:
                made = next(filled)
            about = {"id": record.id, "path": record.path, "split": record.split, "label": record.label}
            about["subject"] = record.subject or ""
            rows.append({**about, **{key: made[key] for key in ("box", "score", "status", "reason")}})
    return rows


def _kept_arrays(chunks: Sequence[_Chunk], fills: Sequence[_Chunk]) -> Iterator[dict[str, np.ndarray]]:
    """Yield faces, landmarks and crops part by part, in the manifest's order: one part in memory at a time."""
    filled = _filled_faces(fills)
    for chunk in chunks:
        with np.load(chunk.part) as data:
            arrays = {name: data[name] for name in ("faces", "landmarks", "crops")}
        if fills and any(row["fillable"] for row in chunk.rows):
            arrays = _with_filled(arrays, chunk.rows, filled)
        yield arrays


def _filled_faces(fills: Sequence[_Chunk]) -> Iterator[tuple[np.ndarray, ...] | None]:
    for chunk in fills:
        with np.load(chunk.part) as data:
            faces = zip(data["faces"], data["landmarks"], data["crops"], strict=True)
            for row in chunk.rows:
                yield None if row["status"] == "rejected" else next(faces)


def _with_filled(
    arrays: dict[str, np.ndarray], rows: Sequence[dict[str, Any]], filled: Iterator[tuple[np.ndarray, ...] | None]
) -> dict[str, np.ndarray]:
    own = zip(arrays["faces"], arrays["landmarks"], arrays["crops"], strict=True)
    merged = []
    for row in rows:
        one = next(filled) if row["fillable"] else None if row["status"] == "rejected" else next(own)
        if one is not None:
            merged.append(one)
    if not merged:
        return arrays
    return dict(zip(("faces", "landmarks", "crops"), (np.stack(a) for a in zip(*merged, strict=True)), strict=True))


def _assemble(
    out: Path,
    listing: Listing,
    options: Options,
    fingerprint: str,
    chunks: Sequence[_Chunk],
    fills: Sequence[_Chunk],
    rows: Sequence[dict[str, Any]],
) -> None:
    kept = [row for row in rows if row["status"] != "rejected"]
    fresh = out / "parts" / "assembled"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    count, side, crop = len(kept), options.side, options.crop_size
    writers = {
        "faces": ArrayWriter(fresh / "faces.npy", "uint8", (count, side, side, 3)),
        "landmarks": ArrayWriter(fresh / "landmarks.npy", "float32", (count, 5, 2)),
        "crops": ArrayWriter(fresh / "crops.npy", "uint8", (count, 5, crop, crop, 3)),
    }
    for arrays in _kept_arrays(chunks, fills):
        for name, writer in writers.items():
            writer.append(arrays[name])
    width = max(16, *(len(row["split"]) for row in kept))
    writers["labels"] = ArrayWriter(fresh / "labels.npy", "int64", (count,))
    writers["labels"].append(np.array([row["label"] for row in kept], np.int64))
    writers["splits"] = ArrayWriter(fresh / "splits.npy", f"<U{width}", (count,))
    writers["splits"].append(np.array([row["split"] for row in kept], f"<U{width}"))
    hashes = {name: writers[name].close() for name in ARRAYS}
    write_manifest(fresh / "manifest.csv", rows)
    draw_contact_sheet(fresh, rows, listing, options)
    by_status, splits = count_statuses(rows)
    meta = {
        "format": FORMAT,
        "name": listing.name,
        "stand_in": listing.stand_in,
        "root": str(listing.root),
        "adapt_splits": list(listing.adapt_splits),
        "score_splits": list(listing.score_splits),
        "parameters": options.parameters(),
        "counts": by_status,
        "splits": splits,
        "left_out": listing.left_out,
        "versions": _versions(),
        "sha256": hashes,
        "fingerprint": fingerprint,
    }
    # From here to the new meta.json the folder is no complete store; the parts are still there to make it one.
    (out / "meta.json").unlink(missing_ok=True)
    for name in _FILES:
        os.replace(fresh / name, out / name)
    write_atomically(out / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
    shutil.rmtree(out / "parts")


def _discard(out: Path) -> None:
    """Remove what a run that found no face has made, and the folder if nothing else is in it."""
    shutil.rmtree(out / "parts")
    if not any(out.iterdir()):
        out.rmdir()


def _summary(out: Path, listing: Listing, rows: Sequence[dict[str, Any]]) -> Summary:
    counts, splits = count_statuses(rows)
    steps = Counter(row["reason"] for row in rows if row["status"] == "retried")
    reasons = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    return Summary(out, counts, splits, dict(steps.most_common()), dict(reasons.most_common()), listing.left_out)
