"""The regions of an image in which a face is searched for, and the choice among the faces found.

Regions of an image are enlarged, padded or turned, and can be mapped back to it. A box is (left, top, right, bottom)
in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np

from fercli.datasets.reader import Box
from fercli.faces.networks import overlaps

T = TypeVar("T")

#: No side is enlarged beyond this: a very narrow image would exceed the memory when its short side is enlarged.
_MOST = 5120
#: Meshes whose overlap (intersection over union) is above this are on one face.
SAME = 0.3
#: Two meshes are also on one face if more than this fraction of the smaller is inside the other.
_INSIDE = 0.6


@dataclass(frozen=True)
class SearchRegion:
    """An image, uint8 [H, W, 3], or its crop, enlargement or padding. Mapping back: original = view * scale + offset.

    Offsets are in edge coordinates (a pixel's centre is at +0.5), so that scaling adds no offset. As a last step, a
    view may be turned by `angle` degrees clockwise. `back` [2, 3] maps its edge coordinates to those before the turn.
    """

    image: np.ndarray
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    back: np.ndarray | None = None

    @property
    def short_side(self) -> int:
        """Shorter side in pixels."""
        return min(self.image.shape[:2])

    def crop(self, box: Box, widen: float) -> SearchRegion:
        """Crop to the box (in original pixels), widened on each side by `widen` of its longer side, within the view."""
        grow = widen * max(box[2] - box[0], box[3] - box[1])
        edges = np.array([[box[0] - grow, box[1] - grow], [box[2] + grow, box[3] + grow]])
        size = np.array(self.image.shape[1::-1])
        (x0, y0), (x1, y1) = np.clip(np.round((edges - self.offset) / self.scale), 0, size).astype(int)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return self
        offset = (self.offset[0] + x0 * self.scale[0], self.offset[1] + y0 * self.scale[1])
        return SearchRegion(self.image[y0:y1, x0:x1], self.scale, offset)

    def pad(self, share: float) -> SearchRegion:
        """Replicate the border by this fraction of the longer side."""
        n = max(1, round(share * max(self.image.shape[:2])))
        padded = cv2.copyMakeBorder(self.image, n, n, n, n, cv2.BORDER_REPLICATE)
        offset = (self.offset[0] - n * self.scale[0], self.offset[1] - n * self.scale[1])
        return SearchRegion(padded, self.scale, offset)

    def enlarge(self, short_side: int) -> SearchRegion:
        """Enlarge to this shorter side, if it is below."""
        factor = short_side / self.short_side
        return self if factor <= 1 else self._resize(factor, cv2.INTER_CUBIC)

    def limit(self, long_side: int) -> SearchRegion:
        """Reduce to this longer side, if it is above."""
        factor = long_side / max(self.image.shape[:2])
        return self if factor >= 1 else self._resize(factor, cv2.INTER_AREA)

    def turn(self, degrees: float) -> SearchRegion:
        """Turn clockwise about the middle. The image grows so that nothing is cut off, and its border is replicated."""
        height, width = self.image.shape[:2]
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        size = [math.ceil(width * a + height * b) for a, b in ((abs(cos), abs(sin)), (abs(sin), abs(cos)))]
        turn = np.array([[cos, sin], [-sin, cos]])
        back = np.column_stack([turn, np.array([width, height]) / 2 - turn @ size / 2])
        # The same map between pixel centres, which OpenCV uses.
        centres = np.column_stack([turn, back[:, 2] + turn @ [0.5, 0.5] - 0.5])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        turned = cv2.warpAffine(self.image, centres, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return replace(self, image=turned, angle=degrees, back=back)

    def _resize(self, factor: float, interpolation: int) -> SearchRegion:
        height, width = self.image.shape[:2]
        size = [max(1, min(round(n * factor), _MOST)) for n in (width, height)]
        resized = cv2.resize(self.image, size, interpolation=interpolation)
        scale = (self.scale[0] * width / size[0], self.scale[1] * height / size[1])
        return SearchRegion(resized, scale, self.offset)

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Map points [n, 2] in pixels of this view (edges at integers) to original pixels (centres at integers)."""
        if self.back is not None:
            points = points @ self.back[:, :2].T + self.back[:, 2]
        return points * self.scale + self.offset - 0.5


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union, 0..1."""
    return float(overlaps(np.array(a), np.array([b]))[0])


def scale_box(box: Box, factor: float) -> Box:
    """Return the box in an image scaled by a factor (above 1 enlarges, below 1 reduces)."""
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def scale_points(points: np.ndarray, factor: float) -> np.ndarray:
    """Return points float64 [n, 2], pixel centres at integers, in an image scaled by a factor (above 1 enlarges)."""
    return (np.asarray(points, np.float64) + 0.5) * factor - 0.5


def is_new(box: Box, known: Sequence[Box]) -> bool:
    """Return whether a box is not on any of the known faces."""
    return not any(_same_face(box, other) for other in known)


def choose(faces: Sequence[T], given: Box | None, box_of: Callable[[T], Box]) -> T | None:
    """Return the face that overlaps the given box best, or the largest if no box is given; None if there is none."""
    if given is None:
        return max(faces, key=lambda face: _area(box_of(face)), default=None)

    def inside(face: T) -> bool:
        left, top, right, bottom = box_of(face)
        return given[0] <= (left + right) / 2 <= given[2] and given[1] <= (top + bottom) / 2 <= given[3]

    return max(filter(inside, faces), key=lambda face: overlap(box_of(face), given), default=None)


def starts(length: int, side: float, shared: float) -> list[float]:
    """Return where tiles begin along a length, so that they cover it and overlap by at least `shared` of a side."""
    if length <= side:
        return [0.0]
    count = math.ceil((length - side) / (side * (1 - shared)))
    return [i * (length - side) / count for i in range(count + 1)]


def _same_face(a: Box, b: Box) -> bool:
    common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return overlap(a, b) > SAME or common > _INSIDE * min(_area(a), _area(b))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
