"""Records -> parts: the chunks of a dataset being prepared, each one file, made in parallel and resumable.

Each finished chunk is one file, written atomically and named by its place and by a hash of all it depends on
(parameters, versions, records, size and time of the source files): a run that was stopped goes on with the chunks that
are missing, and never takes a chunk of other parameters or sources for its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
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
from fercli.datasets.records import Listing, Record
from fercli.faces.extract import Extracted, Options, extract
from fercli.files import write_atomically
from fercli.store import FORMAT

#: Mean shapes to lay over pictures without landmarks: in a given box, in a whole picture; see `extract`.
Shapes = tuple[np.ndarray, np.ndarray]


@dataclass
class Chunk:
    """Some records in the listing's order, and the part that they become."""

    part: Path
    records: Sequence[Record]
    shapes: Shapes | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def fingerprint_lines(listing: Listing, options: Options) -> list[str]:
    """Return what the store depends on: a line for the whole, then one a record."""
    whole = {
        "format": FORMAT,
        "parameters": options.parameters(),
        "versions": versions(),
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


def digest(lines: Sequence[str]) -> str:
    """Return the SHA-256 of some lines of text."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def plan(
    records: Sequence[Record],
    lines: Sequence[str],
    parts: Path,
    options: Options,
    kind: str,
    shapes: Shapes | None = None,
) -> list[Chunk]:
    """Cut records into chunks, each named by its place and by the hash of what it depends on."""
    chunks = []
    for start in range(0, len(records), options.chunk):
        depends = [lines[0], *lines[1 + start : 1 + start + options.chunk]]
        part = parts / f"{kind}-{start // options.chunk:06d}-{digest(depends)[:24]}.npz"
        chunks.append(Chunk(part, records[start : start + options.chunk], shapes))
    wanted = {chunk.part.name for chunk in chunks}
    for stale in parts.glob(f"{kind}-*"):
        if stale.name not in wanted:
            stale.unlink()
    return chunks


def run(chunks: Sequence[Chunk], listing: Listing, options: Options, title: str) -> int:
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


def _in_parallel(chunks: Sequence[Chunk], root: Path, options: Options) -> Iterator[list[str]]:
    """Yield the statuses of each chunk's records as the chunks are made, by one process or several."""
    workers = min(options.workers or joblib.cpu_count(), len(chunks))
    if workers <= 1 or options.backend == "sequential":
        threads = cv2.getNumThreads()
        try:
            for chunk in chunks:
                yield _make_part(chunk, root, options)
        finally:
            cv2.setNumThreads(threads)
        return
    inner = {"inner_max_num_threads": 1} if options.backend == "loky" else {}
    with joblib.parallel_config(backend=options.backend, n_jobs=workers, **inner):
        jobs = (joblib.delayed(_make_part)(chunk, root, options) for chunk in chunks)
        yield from joblib.Parallel(return_as="generator")(jobs)


def _make_part(chunk: Chunk, root: Path, options: Options) -> list[str]:
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
