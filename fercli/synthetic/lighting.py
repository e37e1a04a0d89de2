"""Light a painted face so that flat colours look round: Lambert's cosine law over a height field."""

from __future__ import annotations

import cv2
import numpy as np

from fercli.synthetic.anatomy import Anatomy
from fercli.synthetic.domains import Domain

#: Height field: left, top, step and shape (rows, columns) of its grid, in face units.
_LEFT, _TOP, _STEP, _ROWS, _COLUMNS = -1.6, -2.0, 0.03, 150, 107


def light_up(
    picture: np.ndarray,
    covered: np.ndarray,
    matrix: np.ndarray,
    body: Anatomy,
    domain: Domain,
    rng: np.random.Generator,
) -> np.ndarray:
    """Light a painted person: Lambert's cosine law over a height field, and a soft gloss.

    The height is an ellipsoid plus axis-aligned Gaussian bumps, so its gradient is exact and takes two matrix products.

    Args:
        picture: uint8 [H, W, 3] RGB, flat colours.
        covered: uint8 [H, W], 255 where the person is; the rest is not changed.
        matrix: float [2, 3], face units to pixels of this image.
        domain: determines the lighting; `rng` draws the light of one image.

    Returns:
        float32 [H, W, 3], 0..255 and above.
    """
    maps = _light_maps(matrix, body, domain, rng)
    grid = np.array([[_STEP, 0, _LEFT], [0, _STEP, _TOP], [0, 0, 1]])
    place = (np.vstack([matrix, [0, 0, 1]]) @ grid)[:2]
    field = cv2.warpAffine(maps, place, covered.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    field *= (covered * np.float32(1 / 255))[..., None]
    return picture * (1 + field[..., :3]) + field[..., 3:]


def _light_maps(matrix: np.ndarray, body: Anatomy, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Return float32 [rows, columns, 4] over the height field's grid: the factors of RGB minus 1, and the gloss."""
    side, above = rng.uniform(-1, 1) * domain.light_side, rng.uniform(*domain.light_above)
    tint = np.clip(1 + rng.normal(0, domain.tint, 3), 0.6, 1.4)
    ambient = rng.uniform(*domain.ambient)
    x = _LEFT + _STEP * np.arange(_COLUMNS)
    y = _TOP + _STEP * np.arange(_ROWS)
    bx, by, sx, sy, height = (column[:, None] for column in body.bumps.T)
    across, down = np.exp(-0.5 * ((x - bx) / sx) ** 2), np.exp(-0.5 * ((y - by) / sy) ** 2)
    centre = body.project([(0, 0.2)], 0)[0]
    wide = 1.18 * np.abs(body.outline[:, 0]).max()
    u, v = (x[None] - 0.5 * centre[0]) / wide, (y[:, None] - 0.2) / 2.0
    dome = np.sqrt(np.maximum(1 - u**2 - v**2, 0.16))
    slope_x = -0.85 * u / wide / dome + (down * height * domain.relief).T @ (across * -(x - bx) / sx**2)
    slope_y = -0.6 * v / 2.0 / dome + (down * height * domain.relief * -(y - by) / sy**2).T @ across
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    # The light's direction is given in the image's frame, but the height field rolls with the head.
    lx, ly = matrix[:, :2].T @ np.array([side, -above]) / np.hypot(matrix[0, 0], matrix[1, 0])
    towards = np.array([lx, ly, 1.0])
    towards /= np.linalg.norm(towards)
    lit = np.maximum((-slope_x * towards[0] - slope_y * towards[1] + towards[2]) / length, 0)
    shade = ambient + (1 - ambient) * lit / max(towards[2], 0.3)
    half = towards + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    gloss = np.maximum((-slope_x * half[0] - slope_y * half[1] + half[2]) / length, 0) ** 24 * domain.gloss * 255
    # Add red where blood is close to the surface of the skin: cheeks and nose.
    px, py = body.project([(-0.62, 0.55), (0.62, 0.55), (0, 0.6)], 0.1).T[..., None]
    red = 0.05 * np.exp(-0.5 * ((y - py) / 0.2) ** 2).T @ np.exp(-0.5 * ((x - px) / 0.22) ** 2)
    colours = [shade * tint[channel] * (1 + share * red) for channel, share in enumerate((0.4, -1, -1))]
    return np.stack([*(colour - 1 for colour in colours), gloss], axis=-1).astype(np.float32)
