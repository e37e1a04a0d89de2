"""Records -> prepared store: in parallel, resumable at any moment, with nothing lost.

The records are prepared in chunks (`fercli.parts`), kept below ``parts/`` in the store's folder until all are there.
Then they are assembled into the arrays of `fercli.store`; meta.json comes last and makes the store complete, and the
parts are removed. Stopped at any moment, the next run goes on and ends with the same bytes. Where a complete store lies
already but a record, a photograph or the protocol has changed, only what depends on the change is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fercli import console
from fercli.assembly import PICTURE, Assembly, is_complete, recover
from fercli.datasets.reader import Listing
from fercli.errors import FercliError
from fercli.faces.extract import REJECTIONS, Options, centred_shape
from fercli.files import LOCK, disk_error, only_one
from fercli.former import Former
from fercli.part_files import MADE_COLUMNS, read_arrays
from fercli.parts import Chunk, plan, record_keys, run
from fercli.store import FACE_ARRAYS, FORMAT, count_statuses, read_manifest, read_meta

__all__ = ["Options", "Summary", "prepare"]


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
        computed: records made in this run; the rest was there from a run that was stopped, or in the former store.
        taken_over: those taken over from the former store.
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
    taken_over: int = 0
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


def prepare(listing: Listing, out: str | os.PathLike[str], options: object = None, repair: bool = False) -> Summary:
    """Prepare a dataset.

    Args:
        listing: the dataset's records (`fercli.datasets.read_dataset`).
        out: folder of the store; called as the dataset.
        options: `Options`, or anything with its fields.
        repair: look at every face of a store that is there, and make the damaged ones again.

    Raises:
        FercliError: no record ends with a face (no store is written then, a former one stays), or the disk is full.
    """
    started = time.monotonic()
    out = Path(out)
    options = Options() if options is None else Options.of(options)
    if options.landmarks == "given" and all(record.landmarks is None for record in listing):
        console.say(f"{listing.name} brings no landmarks of its own: they are looked for")
        options = replace(options, landmarks="detect")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise FercliError(f"cannot write to {out}: {failure.strerror}") from None
    with only_one(out, "prepare"):
        keys = record_keys(listing, options)
        fingerprint = _fingerprint(listing, options, keys)
        try:
            recover(out)
            meta = read_meta(out)
            complete = is_complete(out, meta)
            if complete and meta.get("fingerprint") == fingerprint and (out / PICTURE).exists() and not repair:
                console.say(f"{listing.name}: {out} is up to date")
                summary = _summary(out, listing, read_manifest(out))
                summary.up_to_date = True
                return summary
            former = Former(out) if complete else None
            (out / "parts").mkdir(exist_ok=True)
            rows, computed, taken_over = _make(listing, out, options, keys, fingerprint, former)
        except PermissionError as failure:
            raise FercliError(f"cannot write to {out}: {failure.strerror}") from None
        except OSError as failure:
            raise disk_error(failure, out) from failure
    summary = _summary(out, listing, rows)
    summary.seconds, summary.computed, summary.taken_over = time.monotonic() - started, computed, taken_over
    if taken_over:
        console.say(f"{listing.name}: {taken_over} of {len(rows)} records are as they were and kept")
    return summary


def _fingerprint(listing: Listing, options: Options, keys: np.ndarray) -> str:
    """Return the hash of all that a store depends on."""
    whole = [FORMAT, REJECTIONS, options.parameters()]
    whole += [listing.name, listing.adapt_splits, listing.score_splits]
    text = json.dumps([*whole, listing.left_out, listing.synthetic], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape") + keys.tobytes()).hexdigest()


def _make(
    listing: Listing, out: Path, options: Options, keys: np.ndarray, fingerprint: str, former: Former | None
) -> tuple[list[dict[str, Any]], int, int]:
    """Make the parts and the store; return (manifest, records made, records taken over)."""
    parts = out / "parts"
    chunks = plan(listing.records, keys, parts, options, former)
    assembly = Assembly(out, options)
    title = f"{listing.name}: faces"
    if options.missing == "reject":
        fills: list[Chunk] = []
        computed, taken_over = run(
            chunks, listing, options, out, title, ready=lambda chunk: assembly.append_part(chunk.part)
        )
    else:
        computed, taken_over = run(chunks, listing, options, out, title)
        fills = _plan_fills(chunks, listing, keys, parts, options)
        if fills:
            run(fills, listing, options, out, f"{listing.name}: mean landmarks")
        for arrays in _filled(chunks, fills):
            assembly.append(arrays)
    rows = _merge_rows(chunks, fills)
    if all(row["status"] == "rejected" for row in rows):
        _discard(out)
        reason, count = Counter(row["reason"] for row in rows).most_common(1)[0]
        raise FercliError(f"{listing.name}: not one face in {len(rows)} records of {listing.root} ({count}: {reason})")
    assembly.finish(listing, rows, keys, fingerprint)
    return rows, computed, taken_over


def _plan_fills(
    chunks: Sequence[Chunk], listing: Listing, keys: np.ndarray, parts: Path, options: Options
) -> list[Chunk]:
    """Return chunks of the records to lay the dataset's mean shape over."""
    missing = [i for i, row in enumerate(row for chunk in chunks for row in chunk.rows) if row["fillable"]]
    if not missing:
        return []
    sums: dict[bool, tuple[np.ndarray, int]] = {}
    for chunk in chunks:
        kept = [r for r, row in zip(chunk.records, chunk.rows, strict=True) if row["status"] != "rejected"]
        for record, shape in zip(kept, read_arrays(chunk.part)["shapes"], strict=True):
            total, count = sums.get(record.box is None, (np.zeros((5, 2)), 0))
            sums[record.box is None] = (total + shape, count + 1)
    shapes = tuple(sums[w][0] / sums[w][1] if w in sums else centred_shape() for w in (False, True))
    return plan([listing.records[i] for i in missing], keys[missing], parts, options, shapes=shapes)


def _merge_rows(chunks: Sequence[Chunk], fills: Sequence[Chunk]) -> list[dict[str, Any]]:
    """Return the manifest: every record with what became of it, filled ones in place of the rejected."""
    filled = (row for chunk in fills for row in chunk.rows)
    rows = []
    for chunk in chunks:
        for record, made in zip(chunk.records, chunk.rows, strict=True):
            if fills and made["fillable"]:
                made = next(filled)
            about = {"id": record.id, "path": record.path, "split": record.split, "label": record.label}
            about["subject"] = record.subject or ""
            rows.append({**about, **{key: made[key] for key in MADE_COLUMNS}})
    return rows


def _filled(chunks: Sequence[Chunk], fills: Sequence[Chunk]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of faces part by part, in the manifest's order, filled ones in place of the rejected."""
    filled = _filled_faces(fills)
    for chunk in chunks:
        arrays = read_arrays(chunk.part)
        if fills and any(row["fillable"] for row in chunk.rows):
            arrays = _with_filled(arrays, chunk.rows, filled)
        yield arrays


def _filled_faces(fills: Sequence[Chunk]) -> Iterator[tuple[np.ndarray, ...] | None]:
    for chunk in fills:
        arrays = read_arrays(chunk.part)
        faces = zip(*(arrays[name] for name in FACE_ARRAYS), strict=True)
        for row in chunk.rows:
            yield None if row["status"] == "rejected" else next(faces)


def _with_filled(
    arrays: dict[str, np.ndarray], rows: Sequence[dict[str, Any]], filled: Iterator[tuple[np.ndarray, ...] | None]
) -> dict[str, np.ndarray]:
    own = zip(*(arrays[name] for name in FACE_ARRAYS), strict=True)
    merged = []
    for row in rows:
        one = next(filled) if row["fillable"] else None if row["status"] == "rejected" else next(own)
        if one is not None:
            merged.append(one)
    if not merged:
        return arrays
    return dict(zip(FACE_ARRAYS, (np.stack(a) for a in zip(*merged, strict=True)), strict=True))


def _discard(out: Path) -> None:
    """Remove what a run that found no face has made, and the folder if nothing else is in it."""
    shutil.rmtree(out / "parts")
    if all(path.name == LOCK for path in out.iterdir()):
        shutil.rmtree(out)


def _summary(out: Path, listing: Listing, rows: Sequence[dict[str, Any]]) -> Summary:
    counts, splits = count_statuses(rows)
    steps = Counter(row["reason"] for row in rows if row["status"] == "retried")
    reasons = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    return Summary(out, counts, splits, dict(steps.most_common()), dict(reasons.most_common()), listing.left_out)
