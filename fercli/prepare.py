"""Records -> prepared store: in parallel, resumable at any moment, with nothing lost.

The records are prepared in chunks (`fercli.parts`), kept below ``parts/`` in the store's folder until all are there.
Then they are assembled into the arrays of `fercli.store`; meta.json comes last and makes the store complete, and the
parts are removed. Stopped at any moment, the next run goes on and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fercli import console
from fercli.contact_sheet import draw_contact_sheet
from fercli.datasets.records import Listing
from fercli.errors import FercliError
from fercli.faces.extract import Options, centred_shape
from fercli.files import disk_error, write_atomically
from fercli.parts import Chunk, digest, fingerprint_lines, plan, run, versions
from fercli.store import (
    ARRAYS,
    FORMAT,
    ArrayWriter,
    count_statuses,
    read_manifest,
    read_meta,
    write_manifest,
)

__all__ = ["Options", "Summary", "prepare"]

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
    lines = fingerprint_lines(listing, options)
    fingerprint = digest(lines)
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
    chunks = plan(listing.records, lines, parts, options, "part")
    computed = run(chunks, listing, options, f"{listing.name}: faces")
    fills = _plan_fills(chunks, listing, parts, options)
    computed += run(fills, listing, options, f"{listing.name}: mean landmarks") if fills else 0
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


def _plan_fills(chunks: Sequence[Chunk], listing: Listing, parts: Path, options: Options) -> list[Chunk]:
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
    in_box, in_picture = (sums[w][0] / sums[w][1] if w in sums else centred_shape() for w in (False, True))
    lines = fingerprint_lines(Listing(listing.name, listing.root, missing, (), ()), options)
    lines[0] += f" {in_box.tolist()} {in_picture.tolist()}"
    return plan(missing, lines, parts, options, "fill", (in_box, in_picture))


# The store


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
            rows.append({**about, **{key: made[key] for key in ("box", "score", "status", "reason")}})
    return rows


def _kept_arrays(chunks: Sequence[Chunk], fills: Sequence[Chunk]) -> Iterator[dict[str, np.ndarray]]:
    """Yield faces, landmarks and crops part by part, in the manifest's order: one part in memory at a time."""
    filled = _filled_faces(fills)
    for chunk in chunks:
        with np.load(chunk.part) as data:
            arrays = {name: data[name] for name in ("faces", "landmarks", "crops")}
        if fills and any(row["fillable"] for row in chunk.rows):
            arrays = _with_filled(arrays, chunk.rows, filled)
        yield arrays


def _filled_faces(fills: Sequence[Chunk]) -> Iterator[tuple[np.ndarray, ...] | None]:
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
    chunks: Sequence[Chunk],
    fills: Sequence[Chunk],
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
        "versions": versions(),
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
