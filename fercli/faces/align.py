"""Geometry of the prepared face: similarity to the ArcFace template, the released code's box, and the local crops.

Matrices are float64 [2, 3] and map pixels of the source image to pixels of the canvas, with pixel centres at integers.
The canvas is S x S with S = size + 2 * margin. The face as the network sees it (112) is in the middle. The margin shows
more of the source image, so that a training crop can be jittered without inventing pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from fercli.datasets.reader import Box

#: The ArcFace 112 x 112 template (x, y): image-left eye, image-right eye, nose tip, image-left and -right mouth corner.
ARCFACE_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
_TEMPLATE_SIZE = 112


def template(size: int = 112, margin: int = 14) -> np.ndarray:
    """Return the five template points float64 [5, 2] in pixels of the canvas of `size` + 2 * `margin`."""
    return (ARCFACE_TEMPLATE + 0.5) * (size / _TEMPLATE_SIZE) - 0.5 + margin


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the similarity float64 [2, 3] that maps `source` [n, 2] to `target` [n, 2] with the least squared error.

    It consists of rotation, scale and translation, without reflection (Umeyama, PAMI 1991, equations 40-42). In the
    plane this is a division of complex numbers. Raises ValueError if the source points coincide, because the scale is
    then undefined.
    """
    source, target = (np.ascontiguousarray(p, np.float64).view(np.complex128)[:, 0] for p in (source, target))
    source_mean, target_mean = source.mean(), target.mean()
    centred = source - source_mean
    spread = np.vdot(centred, centred).real
    if not spread > 1e-12 * len(source) or not math.isfinite(spread):
        raise ValueError("the landmarks coincide or are not finite: no similarity is defined")
    turn = np.vdot(centred, target - target_mean) / spread
    shift = target_mean - turn * source_mean
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def template_matrix(points5: np.ndarray, size: int = 112, margin: int = 14) -> np.ndarray:
    """Return the matrix that maps the five points [5, 2] (pixels of the source image) closest to the template."""
    return umeyama(points5, template(size, margin))


def released_box(box: Box, picture: tuple[int, int]) -> Box:
    """Return the region of an image that the released code of AGLRLS cuts out for a face's box, in whole pixels.

    The edges of the box are truncated to whole pixels. The box then grows by a tenth of its width on the left and the
    right, and by a tenth of its height at the top and the bottom (in whole pixels, rounded down). It is clipped to the
    image.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        picture: (width, height) of the image.

    Raises:
        ValueError: the box does not overlap the image.
    """
    left, top, right, bottom = (int(edge) for edge in box)
    across, down = max(0, right - left) // 10, max(0, bottom - top) // 10
    left, right = max(left - across, 0), min(right + across, picture[0])
    top, bottom = max(top - down, 0), min(bottom + down, picture[1])
    if left >= right or top >= bottom:
        raise ValueError("the face's box is outside the image")
    return left, top, right, bottom


def box_matrix(box: Box, size: int = 112, margin: int = 14) -> np.ndarray:
    """Return the matrix that squashes a box into the inner `size` x `size`: x and y scaled separately, no rotation.

    Args:
        box: (left, top, right, bottom) in pixels of the source image; for faces, the result of `released_box`.
    """
    corner, edges = np.array(box[:2], float), np.array(box[2:], float)
    scale = size / (edges - corner)
    # Box edges lie between pixels, but matrices count from pixel centres: hence the halves.
    return np.column_stack([np.diag(scale), margin - 0.5 - scale * (corner - 0.5)])


def alignment_matrix(
    kind: str, points5: np.ndarray, box: Box, picture: tuple[int, int], size: int, margin: int
) -> np.ndarray:
    """Return the matrix of ``prepare.align`` for an image of size `picture` (width, height).

    Raises ValueError for any kind but ``template`` and ``box``, for landmarks that coincide, and for a box outside the
    image.
    """
    if kind == "template":
        return template_matrix(points5, size, margin)
    if kind == "box":
        return box_matrix(released_box(box, picture), size, margin)
    raise ValueError(f"unknown alignment: {kind!r}")


def box_of_points(points5: np.ndarray) -> Box:
    """Return the upright square that the template's 112 x 112 covers around five points: the box if none is given."""
    matrix = template_matrix(points5, _TEMPLATE_SIZE, 0)
    side = _TEMPLATE_SIZE / math.hypot(matrix[0, 0], matrix[1, 0])
    centre = transform(cv2.invertAffineTransform(matrix), np.full(2, (_TEMPLATE_SIZE - 1) / 2)) + 0.5
    return (*(centre - side / 2), *(centre + side / 2))


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [..., 2] by a matrix [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 [side, side, 3]: the image uint8 [H, W, 3] warped by the matrix.

    Outside the image, its border is replicated. An image that is reduced to half or less is first averaged over areas,
    so that large images do not alias. A matrix without rotation (a box) is resized like Pillow's bilinear filter,
    which averages over all the pixels that it merges, as the released code of AGLRLS does.
    """
    if matrix[0, 1] == matrix[1, 0] == 0 and matrix[0, 0] > 0 and matrix[1, 1] > 0:
        return _resized(image, matrix, side)
    image, matrix = _reduced(image, matrix, np.array([(0.0, 0.0), (side, side)]))
    return _sampled(image, matrix, side)


def _resized(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """`warp` for a matrix without rotation."""
    seen, beyond, spans, window = [], [], [], []
    for axis, length in enumerate(image.shape[1::-1]):
        step = 1 / matrix[axis, axis]  # image pixels per canvas pixel
        start = 0.5 - (matrix[axis, 2] + 0.5) * step  # the canvas's edge, counted from the image's edge
        reach = max(1.0, step)  # of the filter
        # Canvas pixels that depend on more than the image's outermost pixels, and one more at either end.
        low = int(np.clip(np.floor((-reach - start) / step) - 1, 0, side - 1))
        high = int(np.clip(np.ceil((length + reach - start) / step) + 1, low + 1, side))
        first, last = np.floor(start + low * step - reach), np.ceil(start + high * step + reach)
        begin, end = (int(np.clip(place, 0, length - 1)) for place in (first, last - 1))
        seen.append(slice(begin, end + 1))
        beyond.append((max(0, int(min(begin, last - 1) - first)), max(0, int(last - 1 - max(end, first)))))
        spans.append((low, high))
        window.append((start + low * step - first, start + high * step - first))
    part = cv2.copyMakeBorder(image[seen[1], seen[0]], *beyond[1], *beyond[0], borderType=cv2.BORDER_REPLICATE)
    (left, right), (top, bottom) = spans
    corners = (window[0][0], window[1][0], window[0][1], window[1][1])
    small = Image.fromarray(part).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=corners)
    rest = (top, side - bottom, left, side - right)
    return cv2.copyMakeBorder(np.asarray(small), *rest, borderType=cv2.BORDER_REPLICATE)


def _sampled(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    # Cubic interpolation takes four times as long. On real images (scales 0.5 to 3.5) it differs by half a grey level.
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _reduced(image: np.ndarray, matrix: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image until the remaining reduction is to more than half; return it and the matrix from there.

    The image is halved by averaging areas, as often as needed. Only the part that `window` shows (two corners [2, 2]
    in pixels of the canvas) is averaged and returned.
    """
    scale = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    if scale > 0.5:
        return image, matrix
    times = 2 ** math.floor(math.log2(1 / scale))
    (x0, y0), (x1, y1) = window[0] - 1, window[1] + 1
    seen = transform(cv2.invertAffineTransform(matrix), np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)]))
    limit = np.array(image.shape[1::-1])
    # Whole multiples of the reduction, so that every pixel of the result is the mean of equally many pixels.
    low = np.clip(np.floor(seen.min(0) - 2 * times) // times * times, 0, limit - 1).astype(int)
    high = np.clip(low + np.ceil((seen.max(0) - low) / times + 2) * times, low + 1, limit).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    size = np.maximum(1, (high - low) // times)
    small = cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA)
    back = (high - low) / size
    # small pixel -> image pixel: (x + 0.5) * back - 0.5 + low
    linear = matrix[:, :2] * back
    shift = matrix[:, :2] @ (0.5 * back - 0.5 + low) + matrix[:, 2]
    return small, np.hstack([linear, shift[:, None]])


def local_crops(
    image: np.ndarray, matrix: np.ndarray, points: np.ndarray, size: int = 48, zoom: float = 1.5
) -> np.ndarray:
    """Return uint8 [n, size, size, 3]: patches centred on landmarks, cut from the source image itself.

    Args:
        image: the source image, uint8 [H, W, 3].
        matrix: the face's alignment [2, 3]; the patches are rotated or squashed like the face.
        points: landmarks [n, 2] in pixels of the canvas.
        size: side of a patch in pixels.
        zoom: scale of a patch relative to the scale of the face; above 1, a patch shows more detail than the face.
    """
    zoomed, centres = zoom * matrix, zoom * np.asarray(points, np.float64)
    # The patches overlap, so the image is reduced once for all of them.
    image, zoomed = _reduced(image, zoomed, np.stack([centres.min(0) - size / 2, centres.max(0) + size / 2]))
    crops = np.empty((len(points), size, size, 3), np.uint8)
    for crop, centre in zip(crops, centres, strict=True):
        own = zoomed.copy()
        own[:, 2] += (size - 1) / 2 - centre
        crop[:] = _sampled(image, own, size)
    return crops
