"""Records -> parts: the chunks of a dataset being prepared, each one file, made in parallel and resumable.

A part is named by a hash of all that it depends on (parameters, records, size and time of the source files):
a run that was stopped goes on with the parts that are missing, and never takes one of other parameters or sources for
its own. What a former, complete store holds is taken over face by face (`fercli.former`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from fercli import console, parallel
from fercli.datasets.reader import Listing, Record
from fercli.errors import FercliError
from fercli.faces.extract import STEPS, Options, extract
from fercli.faces.network_files import RELEASE, ensure_networks
from fercli.former import KEY, STATE, Former, Known, forget, take_over
from fercli.machine import installed_version
from fercli.part_files import read_rows, write_part
from fercli.store import FORMAT
from fercli.version import __version__

#: Mean shapes to lay over pictures without landmarks: in a given box, in a whole picture; see `extract`.
Shapes = tuple[np.ndarray, np.ndarray]


@dataclass
class Chunk:
    """Some records in the listing's order, and the part that they become.

    Attributes:
        part: its file.
        records: the records.
        shapes: mean shapes to lay over them instead of looking for a face.
        former: what the former store has of each record.
        rows: what became of the records; there once the part is.
    """

    part: Path
    records: Sequence[Record]
    shapes: Shapes | None = None
    former: Sequence[Known | None] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


def record_keys(listing: Listing, options: Options) -> np.ndarray:
    """Return what each record's face depends on, uint8 [len(listing), KEY + STATE]."""
    parameters = json.dumps([FORMAT, STEPS, options.parameters()], sort_keys=True).encode()
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
    # Rights change without the time of writing.
    return f"{status.st_size} {status.st_mtime_ns} {os.access(path, os.R_OK)}".encode()


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


@lru_cache(maxsize=1)
def versions() -> dict[str, str | None]:
    """Return what a store was made with, for its meta.json: no key depends on it."""
    return {
        **{"fercli": __version__, "numpy": np.__version__, "pillow": PIL.__version__, "opencv": cv2.__version__},
        **{"litert": installed_version("ai-edge-litert"), "networks": RELEASE},
    }


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
    for start, end in _cut(keys, options.chunk):
        own = keys[start:end]
        part = parts / f"{kind}-{_hash(salt + own.tobytes(), 16).hex()}"
        there = [former.find(key) for key in own] if former else []
        chunks.append(Chunk(part, records[start:end], shapes, there))
    wanted = {chunk.part.name for chunk in chunks}
    for stale in parts.glob(f"{kind}-*"):
        if stale.name not in wanted:
            stale.unlink()
    return chunks


def _cut(keys: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of chunks of about `size` records.

    Where a chunk ends depends on the records around: one that comes in or goes changes the chunks about it, not all
    that follow.
    """
    least, most = -(-size // 2), 2 * size
    start = 0
    for end in range(1, len(keys) + 1):
        ends_here = int.from_bytes(keys[end - 1, :4].tobytes(), "little") % least == 0
        if end == len(keys) or end - start >= most or (end - start >= least and ends_here):
            yield start, end
            start = end


def run(
    chunks: Sequence[Chunk],
    listing: Listing,
    options: Options,
    store: Path,
    title: str,
    ready: Callable[[Chunk], None] | None = None,
) -> tuple[int, int]:
    """Make the parts that are missing and read the rows of all.

    Args:
        chunks: from `plan`.
        listing: their dataset.
        options: how faces are prepared.
        store: folder of the former store.
        title: of the progress bar.
        ready: called with each chunk in order, as soon as its part is there.

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
    if todo and todo[0].shapes is None and options.landmarks == "detect" and options.backend not in ("dask", "ray"):
        ensure_networks()
    root, store = Path(os.path.abspath(listing.root)), Path(os.path.abspath(store))
    made = parallel.in_order(make_part, ((c, root, options, store) for c in todo), len(todo), options)
    with console.progress(title, total=total, done=total - open_) as bar, closing(made):
        for chunk in chunks:
            if not chunk.rows:
                counts.update(next(made))
                bar.advance(len(chunk.records), f"{counts['faces']} found, {counts['rejected']} rejected")
                chunk.rows = _await_rows(chunk.part, options)
            if not chunk.rows:
                raise FercliError(
                    f"{listing.name}: the part {chunk.part} is not there although a worker wrote it; "
                    "all workers must see the same disk under the same path"
                )
            if ready is not None:
                ready(chunk)
    return open_ - counts["kept"], counts["kept"]


def _await_rows(part: Path, options: Options) -> list[dict[str, Any]]:
    """Return the rows of a part just made; a network's file system may take a minute to show another's file."""
    deadline = time.monotonic() + (60 if options.backend in ("dask", "ray") else 0)
    while not (rows := read_rows(part, check=False)) and time.monotonic() < deadline:
        time.sleep(1)
    return rows


def make_part(chunk: Chunk, root: Path, options: Options, store: Path) -> Counter[str]:
    """Prepare one chunk's faces and write its part; runs in any process, on any machine that sees the disk.

    Returns:
        Counts of records: ``faces`` and ``rejected``, and ``kept``, those of either that were taken over.
    """
    cv2.setNumThreads(1)
    if not root.is_dir():
        raise FercliError(
            f"{root} is not there on {platform.node()}; all workers must see the same disk under the same path"
        )
    done, kept = [], 0
    for i, record in enumerate(chunk.records):
        one = take_over(record, root, store, chunk.former[i]) if chunk.former else None
        kept += one is not None
        done.append(one or extract(record, root, options, chunk.shapes))
    forget()
    faces = write_part(chunk.part, done, options)
    return Counter(faces=faces, rejected=len(done) - faces, kept=kept)
