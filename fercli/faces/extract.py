"""One record of a dataset -> one prepared face, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from fercli.datasets.records import Box, Record
from fercli.faces import align
from fercli.faces.images import Unreadable, read_image, read_pixel_row
from fercli.faces.landmarker import RETRIES, Landmarker


@dataclass(frozen=True)
class Options:
    """How faces are prepared; the run spec's section ``prepare`` has the same fields and says what they mean."""

    align: str = "template"
    landmarks: str = "detect"
    missing: str = "reject"
    size: int = 112
    margin: int = 14
    crop_size: int = 48
    crop_zoom: float = 1.5
    confidence: float = 0.5
    low_confidence: float = 0.2
    retries: tuple[str, ...] = RETRIES
    workers: int = 0
    backend: str = "loky"
    chunk: int = 128

    @classmethod
    def of(cls, section: object) -> Options:
        """Copy the fields of anything that has them (the spec's section)."""
        values = {name: getattr(section, name) for name in cls.__dataclass_fields__}
        return cls(**{**values, "retries": tuple(values["retries"])})

    @property
    def side(self) -> int:
        """Side S of a prepared face in pixels."""
        return self.size + 2 * self.margin

    def parameters(self) -> dict[str, object]:
        """Return the fields that a store's bytes depend on."""
        how = ("workers", "backend", "chunk")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in how}
        return {**values, "retries": list(self.retries)}


@dataclass
class Extracted:
    """What became of one record.

    Attributes:
        status, reason: as in the manifest; the reason of a retried face is the step that found it.
        box: the given box, else that of the mesh, in pixels of the photograph.
        score: the detector's.
        face: uint8 [S, S, 3]; None for a rejected record, as are the next three.
        landmarks: float32 [5, 2] in pixels of the face.
        crops: uint8 [5, C, C, 3].
        relative: float64 [5, 2] landmarks as shares of the given box, or of the middle square of the photograph.
        fillable: a rejected record whose photograph can be read: the dataset's mean shape may be laid over it.
    """

    status: str
    reason: str = ""
    box: Box | None = None
    score: float | None = None
    face: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    crops: np.ndarray | None = None
    relative: np.ndarray | None = None
    fillable: bool = False


def extract(record: Record, root: Path, options: Options, shapes: Sequence[np.ndarray] | None = None) -> Extracted:
    """Prepare one record's face.

    Args:
        record: the record.
        root: the dataset's folder.
        options: how.
        shapes: None, or (mean shape in a given box, mean shape in a photograph), each [5, 2] as `Extracted.relative`:
            instead of looking for a face, lay the mean shape over it (status ``mean-landmarks``).
    """
    try:
        image = read_source(record, root)
        frame = _frame(record, image)
    except Unreadable as why:
        return Extracted("rejected", str(why), box=record.box)
    try:
        if shapes is not None:
            points = frame[:2] + shapes[record.box is None] * (np.array(frame[2:]) - frame[:2]) - 0.5
            result = Extracted("mean-landmarks", "no landmarks: the dataset's mean shape")
            return _cut(result, image, points, record.box, options)
        if options.landmarks == "given":
            if record.landmarks is None:
                return Extracted("rejected", "no landmarks given", box=record.box, fillable=True)
            points = np.array(record.landmarks, float)
            if not ((points.mean(0) >= 0) & (points.mean(0) < image.shape[1::-1])).all():
                raise ValueError("the given landmarks lie outside the picture")
            return _cut(Extracted("given"), image, points, record.box, options, frame)
        found = _landmarker(options).find(image, record.box)
        if found is None:
            reason = "no face found" if record.box is None else "no face found in the given box"
            return Extracted("rejected", reason, box=record.box, fillable=True)
        status, _, step = found.how.partition(":")
        result = Extracted(status, step, score=found.score)
        return _cut(result, image, found.points5, record.box or found.box, options, frame)
    except (ValueError, cv2.error) as why:
        return Extracted("rejected", str(why), box=record.box, fillable=shapes is None)


def read_source(record: Record, root: Path) -> np.ndarray:
    """Return the record's photograph uint8 [H, W, 3] RGB; raises `Unreadable` with the reason where it cannot."""
    path = root / record.path
    return read_image(path) if record.offset is None else read_pixel_row(path, record.offset)


def centred_shape() -> np.ndarray:
    """Return the template's shape float64 [5, 2] in shares of the square that it fills."""
    return (align.ARCFACE_TEMPLATE + 0.5) / 112


def _frame(record: Record, image: np.ndarray) -> Box:
    """Return what relative landmarks are shares of: the given box, or the middle square of the photograph."""
    height, width = image.shape[:2]
    if record.box is None:
        side = min(width, height)
        return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    left, top, right, bottom = record.box
    if min(right, width) - max(left, 0) < 2 or min(bottom, height) - max(top, 0) < 2:
        raise Unreadable(f"the given box lies outside the picture ({width} x {height})")
    return record.box


def _cut(
    result: Extracted,
    image: np.ndarray,
    points: np.ndarray,
    box: Box | None,
    options: Options,
    frame: Box | None = None,
) -> Extracted:
    if not np.isfinite(points).all():
        raise ValueError("landmarks that are no numbers")
    box = box or align.box_of_points(points)
    if options.align == "box":
        matrix = align.box_matrix(box, options.size, options.margin)
    else:
        matrix = align.template_matrix(points, options.size, options.margin)
    landmarks = align.transform(matrix, points)
    result.box = box
    result.face = align.warp(image, matrix, options.side)
    result.landmarks = landmarks.astype(np.float32)
    result.crops = align.local_crops(image, matrix, landmarks, options.crop_size, options.crop_zoom)
    if frame is not None:
        result.relative = (points + 0.5 - frame[:2]) / (np.array(frame[2:]) - frame[:2])
    return result


def _landmarker(options: Options) -> Landmarker:
    return _cached_landmarker(options.confidence, options.low_confidence, options.retries)


@lru_cache(maxsize=4)
def _cached_landmarker(confidence: float, low_confidence: float, retries: tuple[str, ...]) -> Landmarker:
    return Landmarker(confidence, low_confidence, retries)
