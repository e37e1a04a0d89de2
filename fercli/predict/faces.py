"""What a worker does with one picture: read it, find every face, cut each as `fercli prepare` cuts it.

Nothing here imports torch: the workers that find faces need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fercli.errors import FercliError
from fercli.faces.extract import Extracted, Options, cut, landmarker_of
from fercli.faces.images import Unreadable, decode_image, read_image
from fercli.faces.landmarker import Found

#: A picture as it comes: a file, the bytes of one, or uint8 [H, W, 3] RGB.
Source = Path | bytes | np.ndarray


@dataclass(frozen=True)
class CutFace:
    """A face found and cut out, as the network takes it.

    Attributes:
        found: where it is in the picture.
        face: uint8 [size, size, 3], what the network sees: a prepared face without its margin.
        landmarks: float32 [5, 2] in pixels of `face`.
        crops: uint8 [5, C, C, 3] local crops; None where the network reads none.
    """

    found: Found
    face: np.ndarray
    landmarks: np.ndarray
    crops: np.ndarray | None


def read(source: Source) -> np.ndarray:
    """Return a picture uint8 [H, W, 3] RGB; `Unreadable` with the reason where it cannot be read."""
    if isinstance(source, np.ndarray):
        return source
    return decode_image(source) if isinstance(source, bytes) else read_image(source)


def cut_faces(image: np.ndarray, options: Options, with_crops: bool) -> list[CutFace]:
    """Find and cut every face of a picture, from left to right.

    Args:
        image: uint8 [H, W, 3] RGB.
        options: how faces were prepared for the network.
        with_crops: whether it reads local crops.

    A face whose landmarks coincide has no alignment and is left out.
    """
    frame = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    inner = slice(options.margin, options.margin + options.size)
    faces = []
    for found in landmarker_of(options).find_all(image):
        made = Extracted("found")
        try:
            cut(made, image, found.points5, found.box, frame, options)
        except (ValueError, ArithmeticError, cv2.error):
            continue
        landmarks = made.landmarks - np.float32(options.margin)
        # Copies: a view would carry its margin from process to process.
        faces.append(CutFace(found, made.face[inner, inner].copy(), landmarks, made.crops if with_crops else None))
    return faces


def look(sources: Sequence[Source], options: Options, with_crops: bool) -> list[list[CutFace] | str]:
    """Do `read` and `cut_faces` for some pictures; of one that cannot be read, the reason stands in its place."""
    seen: list[list[CutFace] | str] = []
    for source in sources:
        try:
            seen.append(cut_faces(read(source), options, with_crops))
        except (Unreadable, FercliError) as why:
            seen.append(str(why))
    return seen
