"""Boxes of faces in one picture: which are the same face, which one counts, and tiles to look for them in.

A box is (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fercli.datasets.reader import Box
from fercli.faces.networks import overlaps

#: Meshes that overlap by more lie on one face.
SAME = 0.3
#: So do two of which one has this share of itself in the other.
_INSIDE = 0.6


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0..1."""
    return float(overlaps(np.array(a), np.array([b]))[0])


def scale_box(box: Box, factor: float) -> Box:
    """Return the box in a picture enlarged by a factor (reduced: below 1)."""
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def scale_points(points: np.ndarray, factor: float) -> np.ndarray:
    """Return points float64 [n, 2], pixel centres at integers, in a picture enlarged by a factor (reduced: below 1)."""
    return (np.asarray(points, np.float64) + 0.5) * factor - 0.5


def is_new(box: Box, known: Sequence[Box]) -> bool:
    """Whether a box lies on no face of those known."""
    return not any(_same_face(box, other) for other in known)


def choose(boxes: Sequence[Box], given: Box | None) -> int | None:
    """Return the index of the face that counts: by overlap with the given box, else the largest; None if none does."""
    if given is None:
        return max(range(len(boxes)), key=lambda i: _area(boxes[i]), default=None)
    inside = [
        i
        for i, (left, top, right, bottom) in enumerate(boxes)
        if given[0] <= (left + right) / 2 <= given[2] and given[1] <= (top + bottom) / 2 <= given[3]
    ]
    return max(inside, key=lambda i: overlap(boxes[i], given), default=None)


def starts(length: int, side: float, shared: float) -> list[float]:
    """Return where tiles of a side begin along a length, so that they cover it and share at least so much of a side."""
    if length <= side:
        return [0.0]
    count = math.ceil((length - side) / (side * (1 - shared)))
    return [i * (length - side) / count for i in range(count + 1)]


def _same_face(a: Box, b: Box) -> bool:
    common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return overlap(a, b) > SAME or common > _INSIDE * min(_area(a), _area(b))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
