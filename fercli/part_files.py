"""The file of a part: a line of JSON (rows, arrays, check), then the bytes of the arrays one after the other.

The check makes a part that a power cut spoilt be seen for what it is, so that nobody needs to wait for the disk after
each part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fercli.faces.extract import Extracted, Options
from fercli.files import disk_error, replacing
from fercli.store import FACE_ARRAYS, face_digest

#: Columns of a part's rows that go into the manifest as they are.
MADE_COLUMNS = ("box", "score", "status", "reason", "roll", "yaw", "pitch", "hash", "given_error", "source")


def write_part(part: Path, done: Sequence[Extracted], options: Options) -> int:
    """Write what became of a chunk's records; return how many faces there are among them.

    Raises:
        FercliError: the disk is full.
    """
    faces = [one for one in done if one.face is not None]
    stacks = {
        "faces": [one.face for one in faces],
        "landmarks": [one.landmarks for one in faces],
        "crops": [one.crops for one in faces],
        "shapes": [one.shape for one in faces],
        "digests": [face_digest(one.face, one.landmarks, one.crops, one.shape) for one in faces],
    }
    arrays = {
        name: np.stack(stacks[name]) if faces else np.zeros((0, *row), FACE_ARRAYS[name])
        for name, row in options.rows().items()
    }
    rows = [_row(one) for one in done]
    head = {
        "rows": rows,
        "arrays": {name: [array.dtype.str, *array.shape] for name, array in arrays.items()},
        "check": _check(rows, arrays["digests"]),
    }
    try:
        with replacing(part, flush=False) as file:
            file.write(json.dumps(head).encode() + b"\n")
            for array in arrays.values():
                file.write(array.data)
    except OSError as failure:
        raise disk_error(failure, part) from failure
    return len(faces)


def read_rows(part: Path, check: bool = True) -> list[dict[str, Any]]:
    """Return the rows of a part; none where there is no such file, or (`check`) where it is not as it was written."""
    try:
        head, _ = _head(part)
        if check:
            faces, landmarks, crops, shapes, digests = read_arrays(part).values()
            if head["check"] != _check(head["rows"], digests):
                return []
            for *face, digest in zip(faces, landmarks, crops, shapes, digests, strict=True):
                if (face_digest(*face) != digest).any():
                    return []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return head["rows"]


def read_arrays(part: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a part by name, memory-mapped: rows of the faces it keeps, in order."""
    return {
        # There is no map of nothing.
        name: np.memmap(part, dtype, "r", at, shape) if math.prod(shape) else np.zeros(shape, dtype)
        for name, (at, dtype, shape) in places(part).items()
    }


def places(part: Path) -> dict[str, tuple[int, np.dtype, tuple[int, ...]]]:
    """Return where in a part's file its arrays lie: {name: (first byte, type, shape)}."""
    head, at = _head(part)
    found = {}
    for name, (code, *shape) in head["arrays"].items():
        dtype = np.dtype(code)
        found[name] = at, dtype, tuple(shape)
        at += math.prod(shape) * dtype.itemsize
    return found


def _head(part: Path) -> tuple[dict[str, Any], int]:
    with part.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)


def _check(rows: list[dict[str, Any]], digests: np.ndarray) -> str:
    return hashlib.sha256(json.dumps(rows).encode() + digests.tobytes()).hexdigest()


def _row(one: Extracted) -> dict[str, Any]:
    roll, yaw, pitch = ("", "", "") if one.pose is None else (f"{angle:.1f}" for angle in one.pose)
    return {
        "status": one.status,
        "reason": " ".join(one.reason.split()),
        "box": "" if one.box is None else " ".join(f"{v:.1f}" for v in one.box),
        "score": "" if one.score is None else f"{one.score:.4f}",
        "roll": roll,
        "yaw": yaw,
        "pitch": pitch,
        "hash": one.hash,
        "given_error": "" if one.given_error is None else f"{one.given_error:.4f}",
        "source": one.source,
        "fillable": one.fillable,
    }
