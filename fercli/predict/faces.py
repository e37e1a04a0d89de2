"""What a worker does with one image: read it, find every face, and cut each one as `fercli prepare` does.

Nothing here imports torch: the workers that find faces do not need it.
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

#: An image as given: a file, the bytes of one, or uint8 [H, W, 3] RGB.
Source = Path | bytes | np.ndarray


@dataclass(frozen=True)
class CutFace:
    """A face found and cut out, as the network receives it.

    Attributes:
        found: where it is in the image.
        face: uint8 [size, size, 3], the network's input: a prepared face without its margin.
        landmarks: float32 [5, 2] in pixels of `face`.
        crops: uint8 [5, C, C, 3] local crops; None if the network reads none.
    """

    found: Found
    face: np.ndarray
    landmarks: np.ndarray
    crops: np.ndarray | None


def cut_faces(picture: Decoded, options: Prepare, with_crops: bool) -> list[CutFace]:
    """Find and cut every face of an image, from left to right.

    Args:
        picture: the image. If a huge one was decoded at a fraction of its size, faces are given in pixels of the
            original.
        options: how faces were prepared for the network.
        with_crops: whether the network reads local crops.

    A face whose landmarks coincide cannot be aligned and is left out.
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
        # Copies: a view would send its margin from process to process as well.
        faces.append(CutFace(found, made.face[inner, inner].copy(), landmarks, made.crops if with_crops else None))
    return faces


def see(source: Source, options: Prepare, with_crops: bool, name: str | Path = "the image") -> list[CutFace]:
    """Run `decode` and `cut_faces`; raises `Unreadable`, or TransientError with the name if the error may pass."""
    name = source if isinstance(source, Path) else name
    with naming(name):
        return cut_faces(decode(source, name), options, with_crops)


def look(sources: Sequence[Source], options: Prepare, with_crops: bool) -> list[list[CutFace] | str]:
    """Run `see` on several images; an image that fails, even temporarily, is replaced by the reason."""
    seen: list[list[CutFace] | str] = []
    for source in sources:
        try:
            seen.append(see(source, options, with_crops))
        except Unreadable as why:
            seen.append(str(why))
        except TransientError as why:
            # Its message begins with the name, which the output states already.
            seen.append(str(why).removeprefix(f"{source} ") if isinstance(source, Path) else str(why))
        except Exception as failure:
            seen.append(reason(failure, "the image"))
    return seen
