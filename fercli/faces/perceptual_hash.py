"""Fingerprints of aligned faces: a 256-bit hash for finding a face again, and a detailed similarity of two faces.

The hash is perceptual: the signs of the lowest frequencies of the cosine transform (Zauner, Implementation and
Benchmarking of Perceptual Image Hash Functions, 2010), here of the square that the network sees. Aligned faces look
alike, so a hash that distinguishes images does not necessarily distinguish faces.

It was measured on 2,501 prepared faces (3.1 million pairs), and on 110 images that were saved again in six ways (JPEG
50, half size, both, brighter, tightly cropped, 64 pixels grey) and prepared again. A distance of 56 includes 97 % of
the saved copies, and fewer than one in a million pairs of different faces. For images of 48 pixels saved at JPEG 50 or
brighter it includes 83 %, because the landmarks drift with so few pixels. A difference hash that finds as many copies
confuses three to ten times as many pairs of different procedural faces.

`likeness` confirms pairs whose hashes are near.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fercli.faces.failures import may_pass

#: Bits of a hash, and the distance within which two faces may come from one image.
BITS, NEAR = 256, 56

#: Side in pixels at which faces are compared in detail.
PATCH = 56

# Side in pixels of the square that the cosine transform is taken of.
_SIDE = 32
# A coefficient must exceed this to count: a flat face has none except for rounding.
_FLAT = 0.5
# Only the middle of the patch is registered and compared, because tightly cropped images end further out.
_REGISTER, _COMPARE = 7, 11


# The positions [BITS] of the lowest frequencies except the mean, ordered by u^2 + v^2, then by u.
_LOWEST = np.argsort((np.indices((_SIDE, _SIDE)) ** 2).sum(0).ravel(), kind="stable")[1 : BITS + 1]
_MIDDLE = np.zeros((PATCH, PATCH), np.uint8)
_MIDDLE[_REGISTER:-_REGISTER, _REGISTER:-_REGISTER] = 1


def perceptual_hash(face: np.ndarray, margin: int) -> str:
    """Return the hash of a prepared face as 64 hex digits.

    The face without its margin is converted to grey (Rec. 601), averaged to 32 x 32 and transformed (DCT-II,
    orthonormal). A bit is set if a coefficient is above 0.5. The bits are the 256 lowest frequencies after the mean, in
    rising order of u^2 + v^2 (u counts down the face), with the first in the highest bit. Takes about 0.04 ms.

    Args:
        face: uint8 [S, S, 3] RGB.
        margin: pixels around the square that the network sees.
    """
    small = cv2.resize(_inner(face, margin), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(cv2.dct(small).ravel()[_LOWEST] > _FLAT).tobytes().hex()


def unpack(hashes: Sequence[str]) -> np.ndarray:
    """Return hashes as uint8 [n, 32]; raises ValueError if one does not have 64 hex digits."""
    data = bytes.fromhex("".join(hashes))
    if len(data) * 8 != len(hashes) * BITS:
        raise ValueError(f"each hash must have {BITS // 4} hex digits")
    return np.frombuffer(data, np.uint8).reshape(len(hashes), BITS // 8)


def patch(face: np.ndarray, margin: int) -> np.ndarray:
    """Return the input of `likeness`: the face without its margin, grey, float32 [PATCH, PATCH]."""
    return cv2.resize(_inner(face, margin), (PATCH, PATCH), interpolation=cv2.INTER_AREA)


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Return how similar two patches are in detail, -1 to 1; 0 if one of them is flat.

    An affine map first registers the second with the first (ECC: Evangelidis and Psarakis, PAMI 2008), because the
    landmarks of the same image in another quality differ by a pixel or two. The middles are then correlated, without
    details that are finer or coarser than facial features (Gaussians of 0.7 and 2 pixels).

    These results are for pairs near by hash, measured as above. Of images saved again, 96 % are above 0.95 and 99 %
    above 0.88 (tiny ones: 99 and 100 %). Different real faces reach 0.84. Procedural faces of different people, drawn
    in one manner, mostly stay below 0.94. One person drawn twice with one expression may reach 0.99.
    """
    matrix = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
    try:
        _, matrix = cv2.findTransformECC(first, second, matrix, cv2.MOTION_AFFINE, stop, _MIDDLE, 5)
    except cv2.error as failure:
        if may_pass(failure):
            raise
        # The registration did not converge: the patches are compared unregistered.
        matrix = np.eye(2, 3, dtype=np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    second = cv2.warpAffine(second, matrix, (PATCH, PATCH), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    a, b = _detail(first), _detail(second)
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(np.dot(a, b) / norm, -1, 1)) if norm > 1e-3 else 0.0


def _inner(face: np.ndarray, margin: int) -> np.ndarray:
    inner = np.ascontiguousarray(face[margin : face.shape[0] - margin, margin : face.shape[1] - margin])
    return cv2.cvtColor(inner, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _detail(image: np.ndarray) -> np.ndarray:
    band = cv2.GaussianBlur(image, (0, 0), 0.7) - cv2.GaussianBlur(image, (0, 0), 2)
    middle = band[_COMPARE:-_COMPARE, _COMPARE:-_COMPARE].ravel()
    return middle - middle.mean()
