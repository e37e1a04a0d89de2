"""Faces embedded in a page as small data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

#: Maximum side of a face in pixels, and its JPEG quality; a face takes 3 to 4 KB.
FACE, QUALITY = 112, 74

#: Maximum number of characters that the faces may take in a page; the page itself stays below 2 MB.
MOST = 5_000_000

#: Colours of the heat map, RGB 0..255, at heat 0, 1/2 and 1, and the maximum opacity over the face.
_RAMP = np.array([[70, 0, 110], [225, 40, 70], [255, 225, 60]], float)
_COVER = 0.75


@dataclass(frozen=True)
class Picture:
    """A face as the network received it, with its overlays.

    Attributes:
        face: uint8 [S, S, 3] RGB, the centre crop.
        landmarks: float [5, 2], (x, y) in its pixels; they may be outside the crop.
        heat: float [h, w] in 0..1, `fercli.scoring.explain.grad_cam` for the prediction, to be stretched over the face.
    """

    face: np.ndarray
    landmarks: np.ndarray
    heat: np.ndarray


class Faces:
    """The faces that a page may show. They are encoded as data: URIs on request until `most` characters are used up;
    further faces are only counted, in `refused`."""

    def __init__(self, pictures: Mapping[Hashable, Picture] | None, most: int = MOST):
        self.pictures, self.most = pictures or {}, most
        self.spent = self.refused = 0

    def show(self, key: Hashable) -> dict[str, Any] | None:
        """Return {"face", "heat" (data: URIs), "dots" (SVG)} for a face; None without an image, or without space."""
        picture = self.pictures.get(key)
        if picture is None:
            return None
        face = np.asarray(picture.face)
        shown = {"face": face_uri(face), "heat": face_uri(heated(face, np.asarray(picture.heat)))}
        size = sum(map(len, shown.values()))
        if self.spent + size > self.most:
            self.refused += 1
            return None
        self.spent += size
        return {**shown, "dots": landmark_dots(np.asarray(picture.landmarks), len(face))}


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """Return an image as a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def face_uri(face: np.ndarray, side: int = FACE, quality: int = QUALITY) -> str:
    """Return a square face uint8 [S, S, 3] as a data: URI, scaled down to `side` pixels if it is larger."""
    image = Image.fromarray(np.ascontiguousarray(face))
    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return jpeg_uri(image, quality)


def heated(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay a heat map on a greyscale face: transparent where cold, yellow where hottest.

    Args:
        face: uint8 [S, S, 3].
        heat: float [h, w], 0..1; stretched over the face. NaN counts as cold.

    Returns:
        uint8 [S, S, 3].
    """
    height, width = face.shape[:2]
    cold = np.nan_to_num(np.asarray(heat, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    wide = np.asarray(Image.fromarray(cold, "F").resize((width, height), Image.Resampling.BICUBIC))
    heat = np.clip(wide, 0, 1)[..., None]
    levels = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(heat[..., 0], levels, channel) for channel in _RAMP.T], -1)
    grey = face.astype(float) @ (0.299, 0.587, 0.114)
    cover = _COVER * heat**0.85
    return np.round((1 - cover) * grey[..., None] + cover * colours).astype(np.uint8)


def landmark_dots(points: np.ndarray, side: float) -> Markup:
    """Draw landmarks [K, 2], in pixels of a square face with that side (centres at integers), as an SVG overlay."""
    # A line of zero length with round ends is a dot; pixel coordinates refer to pixel centres.
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in np.asarray(points, float) + 0.5)
    return Markup(
        '<svg viewBox="0 0 {side} {side}" class="dots" aria-hidden="true"><path class="rim" d="{path}"/>'
        '<path d="{path}"/></svg>'
    ).format(side=side, path=path)
