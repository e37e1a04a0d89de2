"""Predictions drawn on an image: a box, five dots and a label for each face, legible on light and dark images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from fercli.expressions import EXPRESSIONS
from fercli.predict.recognizer import Face

#: One colour per class, distinguishable with colour blindness too (after Okabe and Ito, 2008); the label repeats the
#: class in words.
_COLOURS = ("#f0e442", "#cc79a7", "#00be8c", "#ffb01e", "#56b4e9", "#f06e3c", "#dcdcdc")
COLOURS = dict(zip(EXPRESSIONS, map(ImageColor.getrgb, _COLOURS), strict=True))
_DARK = (20, 20, 20)


def draw(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """Return a copy of uint8 [H, W, 3] RGB with the faces' predictions drawn on it.

    Lines and letters scale with the image and the face. A label is on top of its box, or inside it at the image's edge.
    """
    drawn = np.ascontiguousarray(image).copy()
    shorter = min(image.shape[:2])
    thick = max(1, round(shorter / 400))
    # Large faces last, so that their labels stay legible.
    for face in sorted(faces, key=lambda one: one.box[3] - one.box[1]):
        left, top, right, bottom = (round(edge) for edge in face.box)
        colour = COLOURS[face.expression]
        cv2.rectangle(drawn, (left, top), (right, bottom), _DARK, thick + 2, cv2.LINE_AA)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick, cv2.LINE_AA)
        radius = max(1, round((right - left) / 70))
        for x, y in face.landmarks:
            at = (round(16 * x), round(16 * y))
            cv2.circle(drawn, at, 16 * radius + 16, _DARK, -1, cv2.LINE_AA, 4)
            cv2.circle(drawn, at, 16 * radius, colour, -1, cv2.LINE_AA, 4)
        who = "" if face.track is None else f"{face.track} "
        # An eighth of the face's height, but legible and no larger than the image allows.
        size = int(np.clip((bottom - top) / 8, 11, max(11, shorter / 22)))
        _lay(drawn, _label(f"{who}{face.expression} {face.confidence:.0%}", size, colour), left - thick, top - thick)
    return drawn


def _lay(image: np.ndarray, label: np.ndarray, left: int, bottom: int) -> None:
    """Draw a label with its bottom left corner at this point, or as near to it as it fits."""
    height, width = min(label.shape[0], image.shape[0]), min(label.shape[1], image.shape[1])
    top = int(np.clip(bottom - height, 0, image.shape[0] - height))
    left = int(np.clip(left, 0, image.shape[1] - width))
    image[top : top + height, left : left + width] = label[:height, :width]


@lru_cache(maxsize=512)
def _label(text: str, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Return uint8 [H, W, 3]: dark letters on the colour, with a dark border."""
    font = ImageFont.load_default(size)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    pad = max(2, size // 4)
    chip = Image.new("RGB", (round(right - left) + 2 * pad, ascent + descent + 2), colour)
    pen = ImageDraw.Draw(chip)
    pen.text((pad - left, 1), text, font=font, fill=_DARK)
    pen.rectangle((0, 0, chip.width - 1, chip.height - 1), outline=_DARK)
    return np.asarray(chip)
