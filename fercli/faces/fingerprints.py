"""Stub until the quality helper's version lands."""

from __future__ import annotations

import cv2
import numpy as np


def difference_hash(face: np.ndarray, margin: int) -> str:
    """256-bit difference hash."""
    inner = cv2.cvtColor(face[margin : len(face) - margin, margin : len(face) - margin], cv2.COLOR_RGB2GRAY)
    small = cv2.resize(inner, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()
