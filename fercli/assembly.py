"""Parts -> store: the arrays are written as the parts come, the rest at the end, meta.json last of all.

Written is into ``parts/assembled``. Once everything is there, meta.json too, the parts are removed, the disk is waited
for, and the files take their places. A kill in between leaves what `recover` puts in place. The parts go first so that
the disk need not write them as well; the price: a power cut in the seconds of waiting costs the run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fercli.contact_sheet import draw_contact_sheet
from fercli.datasets.reader import Listing
from fercli.faces.extract import REJECTIONS, Options
from fercli.files import to_disk, write_atomically
from fercli.part_files import places
from fercli.parts import versions
from fercli.store import (
    FACE_ARRAYS,
    FILES,
    FORMAT,
    SMALL_FILES,
    ArrayWriter,
    count_statuses,
    damaged_faces,
    file_hash,
    read_meta,
    write_manifest,
)

#: Drawn of the store; not needed to use it.
PICTURE = "contact-sheet.jpg"


class Assembly:
    """A store that is being written, in ``parts/assembled`` of its folder until it is complete.

    Args:
        out: the store's folder; ``parts`` is in it.
        options: how its faces are prepared.
    """

    def __init__(self, out: Path, options: Options):
        self._out, self._options, self._fresh = out, options, out / "parts" / "assembled"
        shutil.rmtree(self._fresh, ignore_errors=True)
        self._fresh.mkdir()
        self._writers = {
            name: ArrayWriter(self._fresh / f"{name}.npy", FACE_ARRAYS[name], row)
            for name, row in options.rows().items()
        }

    def append_part(self, part: Path) -> None:
        """Write the faces of a part."""
        with part.open("rb") as file:
            for name, place in places(part).items():
                self._writers[name].append_from(file, *place)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next faces: their rows of each of `FACE_ARRAYS`."""
        for name, writer in self._writers.items():
            writer.append(arrays[name])

    def finish(self, listing: Listing, rows: Sequence[dict[str, Any]], keys: np.ndarray, fingerprint: str) -> None:
        """Write the rest and put the store in place of a former one.

        Args:
            listing: the dataset.
            rows: of the manifest; those not rejected are the faces appended, in order.
            keys: of the records (`fercli.parts.record_keys`).
            fingerprint: of all that the store depends on.
        """
        kept = [row for row in rows if row["status"] != "rejected"]
        for writer in self._writers.values():
            writer.close()
        width = max(16, *(len(row["split"]) for row in kept))
        small = {
            "labels": np.array([row["label"] for row in kept], np.int64),
            "splits": np.array([row["split"] for row in kept], f"<U{width}"),
            "keys": keys,
        }
        for name, array in small.items():
            ArrayWriter.whole(self._fresh / f"{name}.npy", array)
        write_manifest(self._fresh / "manifest.csv", rows)
        draw_contact_sheet(self._fresh, rows, listing, self._options)
        by_status, splits = count_statuses(rows)
        meta = {
            "format": FORMAT,
            "name": listing.name,
            "synthetic": listing.synthetic,
            "root": os.path.abspath(listing.root),
            "adapt_splits": list(listing.adapt_splits),
            "score_splits": list(listing.score_splits),
            "parameters": self._options.parameters(),
            "rejections": REJECTIONS,
            "counts": by_status,
            "splits": splits,
            "left_out": listing.left_out,
            "versions": versions(),
            "sha256": {name: file_hash(self._fresh / name) for name in SMALL_FILES},
            "bytes": {name: _size(self._fresh / name) for name in FILES},
            "fingerprint": fingerprint,
        }
        write_atomically(self._fresh / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
        for part in (self._out / "parts").glob("*-*"):
            part.unlink(missing_ok=True)
        _put_in_place(self._fresh, self._out)


def recover(out: Path) -> None:
    """Complete a store that was whole in ``parts/assembled`` when its run was killed.

    After a power cut files may be there and hold nothing; where one is not as it should be, nothing is touched.
    """
    fresh = out / "parts" / "assembled"
    meta = read_meta(fresh)
    if meta is None:
        return
    lies = {name: fresh if (fresh / name).exists() else out for name in FILES}
    try:
        whole = _as_written(lies, meta) and not damaged_faces(lies)
    except (OSError, ValueError):
        whole = False
    if whole:
        _put_in_place(fresh, out)


def _put_in_place(fresh: Path, out: Path) -> None:
    # Until the new meta.json is there too the folder is no complete store.
    (out / "meta.json").unlink(missing_ok=True)
    for name in (*FILES, PICTURE):
        if (fresh / name).exists():
            with (fresh / name).open("rb+") as file:
                to_disk(file)
            os.replace(fresh / name, out / name)
    os.replace(fresh / "meta.json", out / "meta.json")
    shutil.rmtree(out / "parts", ignore_errors=True)


def is_complete(out: Path, meta: Mapping[str, Any] | None) -> bool:
    """Tell whether the files of a store are there, as long as its meta.json says, and the small ones as written."""
    return meta is not None and _as_written(dict.fromkeys(FILES, out), meta)


def _as_written(lies: Mapping[str, Path], meta: Mapping[str, Any]) -> bool:
    """As `is_complete`, of files that lie in the folders that `lies` names."""
    if meta.get("format") != FORMAT:
        return False
    try:
        return all(_size(lies[name] / name) == meta["bytes"][name] for name in FILES) and all(
            file_hash(lies[name] / name) == meta["sha256"][name] for name in SMALL_FILES
        )
    except (OSError, KeyError):
        return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
