"""Prepared stores of noise. Training on them costs the same as on faces, and they need no images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fercli.expressions import NUM_EXPRESSIONS
from fercli.files import write_atomically
from fercli.spec import Prepare
from fercli.store import FORMATS, SMALL_FILES, STATUSES, Store, file_hash, write_manifest

#: Positions of the landmarks as fractions of the view's side, roughly those of the ArcFace template.
_LANDMARKS = ((0.34, 0.46), (0.66, 0.46), (0.5, 0.64), (0.37, 0.82), (0.63, 0.82))
_BLOCK = 256


def noise_store(folder: Path, name: str, faces: int, prepare: Prepare, crops: bool, seed: int = 0) -> Store:
    """Write a prepared store with random pixels, cycling labels and landmarks near their usual positions, and open it.

    Args:
        folder: the store's folder, `name`, is created in it.
        faces: number of faces, all in one split.
        prepare: sizes of the faces and crops.
        crops: whether the local crops hold noise. Otherwise they are zeros, which take no space on the disk.
    """
    path, numbers = folder / name, np.random.default_rng(seed)
    path.mkdir(parents=True)
    side, patch = prepare.size + 2 * prepare.margin, prepare.crop_size
    np.save(path / "labels.npy", np.arange(faces) % NUM_EXPRESSIONS)
    np.save(path / "splits.npy", np.full(faces, "train", "<U16"))
    np.save(path / "ids.npy", np.arange(faces).astype(str))
    np.save(path / "subjects.npy", np.full(faces, "", "<U1"))
    places = np.array(_LANDMARKS) * prepare.size + prepare.margin
    jitter = numbers.normal(0, 0.02 * prepare.size, (faces, 5, 2))
    np.save(path / "landmarks.npy", (places + jitter).astype("float32"))
    _fill(path / "faces.npy", (faces, side, side, 3), numbers)
    _fill(path / "crops.npy", (faces, 5, patch, patch, 3), numbers if crops else None)
    np.save(path / "digests.npy", np.zeros((faces, 16), "uint8"))
    write_manifest(path / "manifest.csv", ({"id": f"{i}", "split": "train", "status": "found"} for i in range(faces)))
    counts = {status: 0 for status in STATUSES} | {"expected": faces, "found": faces}
    meta = {
        "format": FORMATS[prepare.align],
        "name": name,
        "synthetic": True,
        "adapt_splits": ["train"],
        "score_splits": ["train"],
        "splits": {"train": {"listed": faces, "kept": faces}},
        "counts": counts,
        "parameters": prepare.model_dump(mode="json"),
        "sha256": {name: file_hash(path / name) for name in SMALL_FILES if name != "keys.npy"},
    }
    write_atomically(path / "meta.json", json.dumps(meta).encode())
    return Store.open(path)


def _fill(file: Path, shape: tuple[int, ...], numbers: np.random.Generator | None) -> None:
    array = np.lib.format.open_memmap(file, "w+", "uint8", shape)
    if numbers is not None:
        for start in range(0, len(array), _BLOCK):
            block = array[start : start + _BLOCK]
            block[:] = numbers.integers(0, 256, block.shape, "uint8")
