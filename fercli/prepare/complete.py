"""Partial store -> store: write the small files, the contact sheet and finally meta.json, then move all into place.

meta.json is written to the partial store's folder once everything else is there and on the disk. From then on nothing
can be lost: if the run is killed while the files are moved, `recover` completes the store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from fercli.datasets.reader import Listing
from fercli.faces.extract import REJECTIONS
from fercli.faces.network_files import RELEASE
from fercli.files import to_disk, write_atomically
from fercli.machine import installed_version
from fercli.prepare.contact_sheet import PICTURE, draw_contact_sheet
from fercli.prepare.partial import partial_stores
from fercli.spec import Prepare
from fercli.store import (
    FILES,
    FORMATS,
    LATER_FILES,
    SMALL_FILES,
    count_statuses,
    damaged_faces,
    file_hash,
    is_current,
    read_meta,
    write_array,
    write_manifest,
)
from fercli.version import __version__


def complete(
    folder: Path, listing: Listing, options: Prepare, rows: Sequence[dict[str, Any]], keys: np.ndarray, fingerprint: str
) -> None:
    """Write the missing files of a partial store and replace the previous store with it.

    Args:
        folder: the partial store's folder. Its faces are those of the rows that are not rejected, in order.
        listing: the dataset.
        options: how its faces were prepared.
        rows: rows of the manifest, one per record.
        keys: keys of the records, uint8 [len(listing), 24] (`fercli.prepare.build.record_keys`).
        fingerprint: hash of all that the store depends on.

    Raises:
        FercliError, OSError: the disk is full or fails.
    """
    kept = [row for row in rows if row["status"] != "rejected"]
    write_array(folder / "labels.npy", np.array([row["label"] for row in kept], np.int64))
    for name, least in (("split", 16), ("id", 1), ("subject", 1)):
        width = max(least, *(len(row[name]) for row in kept))
        write_array(folder / f"{name}s.npy", np.array([row[name] for row in kept], f"<U{width}"))
    write_array(folder / "keys.npy", keys)
    write_manifest(folder / "manifest.csv", rows)
    draw_contact_sheet(folder, rows, listing, options)
    by_status, splits = count_statuses(rows)
    meta = {
        "format": FORMATS[options.align],
        "name": listing.name,
        "synthetic": listing.synthetic,
        "root": os.path.abspath(listing.root),
        "adapt_splits": list(listing.adapt_splits),
        "score_splits": list(listing.score_splits),
        "parameters": options.parameters(),
        "rejections": REJECTIONS,
        "counts": by_status,
        "splits": splits,
        "left_out": listing.left_out,
        "versions": versions(),
        "sha256": {name: file_hash(folder / name) for name in SMALL_FILES},
        "bytes": {name: (folder / name).stat().st_size for name in FILES},
        "fingerprint": fingerprint,
    }
    for name in (*FILES, PICTURE):
        with (folder / name).open("rb+") as file:
            to_disk(file)
    write_atomically(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
    _put_in_place(folder)


@lru_cache(maxsize=1)
def versions() -> dict[str, str | None]:
    """Return the versions of the software that makes a store, for its meta.json. No record key depends on them."""
    return {
        **{"fercli": __version__, "numpy": np.__version__, "pillow": PIL.__version__, "opencv": cv2.__version__},
        **{"litert": installed_version("ai-edge-litert"), "networks": RELEASE},
    }


def recover(out: Path) -> bool:
    """Complete a store whose run was killed while its files were moved into place.

    Returns:
        Whether there was such a store and a face in it is damaged. A disk may have lost data that it reported as
        written.
    """
    for folder in partial_stores(out):
        meta = read_meta(folder)
        if meta is None:
            continue
        lies = {name: folder if (folder / name).exists() else out for name in FILES}
        if is_complete(lies, meta):
            _put_in_place(folder)
            try:
                return bool(damaged_faces(dict.fromkeys(FILES, out)))
            except (OSError, ValueError):
                return True
        (folder / "meta.json").unlink()
    return False


def _put_in_place(folder: Path) -> None:
    out = folder.parent
    # The folder is not a complete store until the new meta.json is there too.
    (out / "meta.json").unlink(missing_ok=True)
    for name in (*FILES, PICTURE):
        if (folder / name).exists():
            os.replace(folder / name, out / name)
    os.replace(folder / "meta.json", out / "meta.json")
    discard_partial_stores(out)


def discard_partial_stores(out: Path) -> None:
    """Remove all partial stores, and the ``parts`` that earlier versions wrote instead."""
    for folder in (*partial_stores(out), out / "parts"):
        shutil.rmtree(folder, ignore_errors=True)


def is_complete(lies: Mapping[str, Path], meta: Mapping[str, Any] | None) -> bool:
    """Return whether a store's files exist with the sizes in its meta.json, and its small files are as written.

    Args:
        lies: the folder that contains each of `FILES`.
        meta: contents of meta.json (`read_meta`).
    """
    if meta is None or not is_current(meta):
        return False
    names = [name for name in FILES if name not in LATER_FILES or name in meta["bytes"]]
    try:
        return all((lies[name] / name).stat().st_size == meta["bytes"][name] for name in names) and all(
            file_hash(lies[name] / name) == meta["sha256"][name] for name in names if name in SMALL_FILES
        )
    except (OSError, KeyError):
        return False
