"""What a worker does with one image: read it, find every face, cut each as `fercli prepare` cuts it.

Nothing here imports torch: the workers that find faces need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fercli.errors import TransientError
from fercli.faces.extract import Extracted, cut, landmarker_of
from fercli.faces.failures import may_pass, naming, reason
from fercli.faces.images import Decoded, Unreadable, decode
from fercli.faces.landmarker import Found
from fercli.faces.search import scale_box, scale_points
from fercli.spec import Prepare

#: An image as it comes: a file, the bytes of one, or uint8 [H, W, 3] RGB.
Source = Path | bytes | np.ndarray


@dataclass(frozen=True)
class CutFace:
    """A face found and cut out, as the network takes it.

    Attributes:
        found: where it is in the image.
        face: uint8 [size, size, 3], what the network sees: a prepared face without its margin.
        landmarks: float32 [5, 2] in pixels of `face`.
        crops: uint8 [5, C, C, 3] local crops; None where the network reads none.
    """

    found: Found
    face: np.ndarray
    landmarks: np.ndarray
    crops: np.ndarray | None


def cut_faces(picture: Decoded, options: Prepare, with_crops: bool) -> list[CutFace]:
    """Find and cut every face of an image, from left to right.

    Args:
        image: the image; of a huge one decoded at a part of its size, faces are given in pixels of the whole.
        options: how faces were prepared for the network.
        with_crops: whether it reads local crops.

    A face whose landmarks coincide has no alignment and is left out.
    """
    image, scale = picture.pixels, picture.scale
    frame = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    inner = slice(options.margin, options.margin + options.size)
    faces = []
    for found in landmarker_of(options).find_all(image):
        made = Extracted("found")
        try:
            cut(made, image, found.points5, found.box, frame, options)
        except (ValueError, ArithmeticError, cv2.error) as failure:
            if may_pass(failure):
                raise
            continue
        assert made.face is not None and made.landmarks is not None  # it was cut
        landmarks = made.landmarks - np.float32(options.margin)
        if scale > 1:
            found = replace(found, box=scale_box(found.box, scale), points5=scale_points(found.points5, scale))
        # Copies: a view would carry its margin from process to process.
        faces.append(CutFace(found, made.face[inner, inner].copy(), landmarks, made.crops if with_crops else None))
    return faces


def see(source: Source, options: Prepare, with_crops: bool, name: str | Path = "the image") -> list[CutFace]:
    """Do `decode` and `cut_faces`; raises `Unreadable`, or TransientError with the name for what may pass."""
    name = source if isinstance(source, Path) else name
    with naming(name):
        return cut_faces(decode(source, name), options, with_crops)


def look(sources: Sequence[Source], options: Prepare, with_crops: bool) -> list[list[CutFace] | str]:
    """Do `see` for some images; of one that cannot be answered, or not just now, the reason stands in its place."""
    seen: list[list[CutFace] | str] = []
    for source in sources:
        try:
            seen.append(see(source, options, with_crops))
        except Unreadable as why:
            seen.append(str(why))
        except TransientError as why:
            # Its message begins with the name, which the answers name already.
            seen.append(str(why).removeprefix(f"{source} ") if isinstance(source, Path) else str(why))
        except Exception as failure:
            seen.append(reason(failure, "the image"))
    return seen
