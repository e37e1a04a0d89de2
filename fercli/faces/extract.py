"""Turn one record of a dataset into one prepared face, or into the reason why there is none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from fercli.datasets.reader import Box, Record
from fercli.faces import align
from fercli.faces.failures import may_pass, naming
from fercli.faces.images import Decoded, Unreadable, decode, decode_pixels, read_bytes, read_pixels
from fercli.faces.landmarker import Landmarker
from fercli.faces.perceptual_hash import perceptual_hash
from fercli.faces.search import scale_box, scale_points
from fercli.spec import Prepare

#: A version number for each ``prepare.align``. Raise it when a step from image to face changes (decoding, finding,
#: aligning, cutting): all faces of that alignment are then made again. The versions of libraries do not count.
STEPS = {"template": 1, "box": 2}
#: Raise this number when rejected images may now be readable: they are tried again, while faces already found are kept.
REJECTIONS = 2


@dataclass
class Extracted:
    """The result for one record.

    Attributes:
        status, reason: as in the manifest; the reason of a retried face is the step that found it.
        box: the given box, or else the box of the mesh, in pixels of the source image.
        score: the detector's score.
        pose: (roll, yaw, pitch) in degrees, for faces that the mesh found.
        given_error: mean distance between found and given landmarks, in units of the given distance between the eyes.
        source: BLAKE2b hash of the image file's content (or of its field of pixels), 32 hexadecimal digits.
        hash: hash of the prepared face (`perceptual_hash`), for finding it again in other images.
        face: uint8 [S, S, 3]; None for a rejected record, as are the next three.
        landmarks: float32 [5, 2] in pixels of the face.
        crops: uint8 [5, C, C, 3].
        shape: float32 [5, 2] landmarks as fractions of the given box, or of the image's central square.
        fillable: whether this is a rejected record with a readable image: the dataset's mean shape may be placed on it.
    """

    status: str
    reason: str = ""
    box: Box | None = None
    score: float | None = None
    pose: tuple[float, float, float] | None = None
    given_error: float | None = None
    source: str = ""
    hash: str = ""
    face: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    crops: np.ndarray | None = None
    shape: np.ndarray | None = None
    fillable: bool = False


def extract(record: Record, root: Path, options: Prepare, shapes: Sequence[np.ndarray] | None = None) -> Extracted:
    """Prepare one record's face.

    Args:
        record: the record.
        root: the dataset's folder.
        options: the options of the preparation.
        shapes: None, or (mean shape in a given box, mean shape in an image), each [5, 2] as `Extracted.shape`. If
            given, the mean shape is placed on the image instead of looking for a face (status ``mean-landmarks``).
    """
    with naming(root / record.path):
        source = ""
        try:
            data = read_source(record, root)
            source = source_hash(data)
            picture = decode_source(record, root, data)
            frame = frame_of(record, picture.size)
        except Unreadable as why:
            return Extracted("rejected", str(why), box=record.box, source=source)
        given, image = record, picture.pixels
        if picture.scale > 1:
            record, frame = _scaled(record, 1 / picture.scale), scale_box(frame, 1 / picture.scale)
        try:
            result, points, box = locate(record, image, frame, options, shapes)
            if points is not None:
                cut(result, image, points, box, frame, options, record.cropped)
        except (ArithmeticError, cv2.error) as failure:
            if may_pass(failure):
                raise
            reason = "the given box or landmarks are out of range"
            result = Extracted("rejected", reason, fillable=shapes is None)
        except ValueError as why:
            result = Extracted("rejected", str(why), fillable=shapes is None)
        if given.box is not None or result.box is None:
            result.box = given.box
        elif picture.scale > 1:
            result.box = scale_box(result.box, picture.scale)
        result.source = source
        return result


def _scaled(record: Record, factor: float) -> Record:
    """Return the record for its image scaled by a factor (above 1 enlarges, below 1 reduces)."""
    box = None if record.box is None else scale_box(record.box, factor)
    points = None if record.landmarks is None else tuple(map(tuple, scale_points(record.landmarks, factor).tolist()))
    return replace(record, box=box, landmarks=points)


def locate(
    record: Record, image: np.ndarray, frame: Box, options: Prepare, shapes: Sequence[np.ndarray] | None = None
) -> tuple[Extracted, np.ndarray | None, Box | None]:
    """Return the record's result, its five landmarks float64 [5, 2] (None if rejected) and its face's box."""
    if shapes is not None:
        points = frame[:2] + shapes[record.box is None] * (np.array(frame[2:]) - frame[:2]) - 0.5
        return Extracted("mean-landmarks", "no landmarks: the dataset's mean shape"), points, record.box
    if options.landmarks == "given":
        if record.landmarks is None:
            return Extracted("rejected", "no landmarks given", box=record.box, fillable=True), None, None
        points = np.array(record.landmarks, float)
        if not ((points.mean(0) >= 0) & (points.mean(0) < image.shape[1::-1])).all():
            raise ValueError("the given landmarks are outside the image")
        # Along the line of the eyes, each right point is to the right of its left one. The mouth is below the eyes.
        across = points[1] - points[0]
        below = points[3:].mean(0) - points[:2].mean(0)
        if across @ (points[4] - points[3]) <= 0 or across[0] * below[1] - across[1] * below[0] <= 0:
            raise ValueError("the given landmarks are not in order (left eye, right eye, nose, mouth corners)")
        return Extracted("given"), points, record.box
    found = landmarker_of(options).find(image, record.box)
    if found is None:
        reason = "no face found" if record.box is None else "no face found in the given box"
        return Extracted("rejected", reason, box=record.box, fillable=True), None, None
    status, _, step = found.how.partition(":")
    result = Extracted(status, step, score=found.score, pose=found.pose)
    if record.landmarks is not None:
        result.given_error = _distance(found.points5, np.array(record.landmarks, float))
    return result, found.points5, record.box or found.box


def read_source(record: Record, root: Path) -> bytes:
    """Return the bytes that the record's image is decoded from; raises `Unreadable` with the reason on failure."""
    path = root / record.path
    return read_bytes(path) if record.offset is None else read_pixels(path, record.offset)


def decode_source(record: Record, root: Path, data: bytes) -> Decoded:
    """Decode the record's image from the result of `read_source`; raises `Unreadable` with the reason on failure."""
    return decode(data, root / record.path) if record.offset is None else Decoded(decode_pixels(data))


def source_hash(data: bytes) -> str:
    """Return `Extracted.source` for the result of `read_source`."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def centred_shape() -> np.ndarray:
    """Return the template's shape float64 [5, 2] as fractions of the square that it fills."""
    return (align.ARCFACE_TEMPLATE + 0.5) / 112


def frame_of(record: Record, size: tuple[int, int]) -> Box:
    """Return the frame that relative landmarks refer to: the given box, or the image's central square.

    Args:
        record: the record.
        size: (width, height) of its image in pixels.
    """
    width, height = size
    if record.box is None:
        side = min(width, height)
        return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if not all(map(math.isfinite, record.box)):
        raise Unreadable("the given box has corners that are not finite numbers")
    left, top, right, bottom = record.box
    if min(right, width) - max(left, 0) < 2 or min(bottom, height) - max(top, 0) < 2:
        raise Unreadable(f"the given box is outside the image ({width} x {height})")
    return record.box


def _distance(found: np.ndarray, given: np.ndarray) -> float | None:
    eyes = math.dist(given[0], given[1])
    return float(np.linalg.norm(found - given, axis=1).mean() / eyes) if eyes > 0 else None


def cut(
    result: Extracted,
    image: np.ndarray,
    points: np.ndarray,
    box: Box | None,
    frame: Box,
    options: Prepare,
    cropped: bool = False,
) -> None:
    """Cut the face and the local crops out of an image, uint8 [H, W, 3], and store them in a result.

    Args:
        result: receives box, face, hash, landmarks, crops and shape.
        image: the source image.
        points: the five landmarks float64 [5, 2] in its pixels.
        box: the face's box; if None, it is made from the landmarks.
        frame: the frame that `Extracted.shape` refers to (`frame_of`).
        options: the options of the preparation.
        cropped: whether ``align: box`` takes the whole image (`Record.cropped`).

    Raises:
        ValueError: the landmarks are not finite or coincide, or the box lies outside the image.
    """
    if not np.isfinite(points).all():
        raise ValueError("the landmarks are not finite numbers")
    box = box or align.box_of_points(points)
    picture = image.shape[1], image.shape[0]
    whole = (0.0, 0.0, *map(float, picture)) if cropped else box
    matrix = align.alignment_matrix(options.align, points, whole, picture, options.size, options.margin)
    landmarks = align.transform(matrix, points)
    result.box = box
    result.face = align.warp(image, matrix, options.side)
    result.hash = perceptual_hash(result.face, options.margin)
    result.landmarks = landmarks.astype(np.float32)
    result.crops = align.local_crops(image, matrix, landmarks, options.crop_size, options.crop_zoom)
    result.shape = ((points + 0.5 - frame[:2]) / (np.array(frame[2:]) - frame[:2])).astype(np.float32)


def landmarker_of(options: Prepare) -> Landmarker:
    """Return the landmarker for these options, made once per process."""
    return _landmarker(options.confidence, options.low_confidence, tuple(options.retries))


_landmarker = lru_cache(maxsize=4)(Landmarker)
