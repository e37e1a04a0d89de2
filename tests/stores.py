"""Helpers that modify prepared stores."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fercli.store import MANIFEST_COLUMNS, SMALL_FILES, Store, file_hash, read_manifest


def seal(folder: Path) -> None:
    """Update the hashes in meta.json to the current files, as if they had been prepared like this."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"] = {name: file_hash(folder / name) for name in SMALL_FILES if (folder / name).exists()}
    (folder / "meta.json").write_text(json.dumps(meta))


def cut(store: Path, out: Path, keep: np.ndarray, **changes: object) -> None:
    """Write a copy of a store with only the faces at `keep`; `changes` go into its meta.json."""
    out.mkdir(parents=True)
    for file in store.glob("*.npy"):
        array = np.load(file)
        np.save(out / file.name, array if file.stem == "keys" else array[keep])
    rows = [row for row in read_manifest(store) if row["status"] != "rejected"]
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        writer.writerows(rows[i] for i in keep)
    meta = json.loads((store / "meta.json").read_text())
    for split, counts in meta["splits"].items():
        counts["listed"] = int((np.load(out / "splits.npy") == split).sum())
    (out / "meta.json").write_text(json.dumps({**meta, **changes}))
    seal(out)


def changeable(store: Store) -> Store:
    """Return the open store with writable labels, ids and subjects."""
    for name in ("labels", "ids", "subjects"):
        setattr(store, name, np.array(getattr(store, name)))
    return store


def with_labels(prepared: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> Path:
    """Make stores whose target labels are changed (or removed, if `change` returns None)."""
    folder.mkdir()
    (folder / "raf-db").symlink_to(prepared / "raf-db")
    shutil.copytree(prepared / "jaffe", folder / "jaffe")
    file = folder / "jaffe/labels.npy"
    labels = change(np.load(file))
    file.unlink()
    if labels is not None:
        np.save(file, labels)
    seal(folder / "jaffe")
    return folder
