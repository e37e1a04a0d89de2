"""Sixty-eight points of a face from the five that are drawn, in the order of CK+, AffectNet and dlib (iBUG)."""

from __future__ import annotations

import numpy as np

_EYE = [(-0.2, 0.0), (-0.07, -0.06), (0.07, -0.06), (0.2, 0.0), (0.07, 0.06), (-0.07, 0.06)]
_BROW = [(-0.36, 0.09), (-0.2, 0.0), (0.0, -0.04), (0.17, -0.02), (0.31, 0.03)]
_NOSTRILS = [(-0.19, 0.1), (-0.1, 0.14), (0.0, 0.16), (0.1, 0.14), (0.19, 0.1)]
#: Share of the way from the image-left to the image-right corner, and height: outer lips clockwise, then inner ones.
_LIPS = [
    (0.0, 0.0), (0.18, -0.06), (0.37, -0.1), (0.5, -0.08), (0.63, -0.1), (0.82, -0.06),
    (1.0, 0.0), (0.82, 0.09), (0.65, 0.14), (0.5, 0.15), (0.35, 0.14), (0.18, 0.09),
    (0.07, 0.0), (0.35, -0.03), (0.5, -0.02), (0.65, -0.03), (0.93, 0.0), (0.65, 0.05), (0.5, 0.06), (0.35, 0.05),
]  # fmt: skip


def sixty_eight(five: np.ndarray) -> np.ndarray:
    """Return float64 [68, 2]: 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes, 48-67 lips; image-left comes first.

    Exact are the eyes (the middle of the corners 36, 39 and of 42, 45, and of the six points each), the nose tip 30
    and the mouth corners 48 and 54; the rest lies where it lies in an average face.

    Args:
        five: [5, 2] pixels: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.
    """
    left, right, tip, *corners = np.asarray(five, np.float64)
    across = right - left
    down = np.array([-across[1], across[0]])  # across, a quarter turn clockwise on the screen
    axes, between = np.stack([across, down]), (left + right) / 2
    angle = np.linspace(0, np.pi, 17)
    jaw = between + np.stack([-1.05 * np.cos(angle), 1.8 * np.sin(angle) - 0.05], 1) @ axes
    mirrored = [(-x, y) for x, y in reversed(_BROW)]
    brows = [eye + np.array(brow) @ axes - 0.36 * down for eye, brow in ((left, _BROW), (right, mirrored))]
    share = np.array([0.1, 0.4, 0.7, 1.0])[:, None]
    bridge = (1 - share) * between + share * tip
    along, height = np.array(_LIPS).T[:, :, None]
    lips = (1 - along) * corners[0] + along * corners[1] + height * down
    eyes = [eye + np.array(_EYE) @ axes for eye in (left, right)]
    return np.concatenate([jaw, *brows, bridge, tip + np.array(_NOSTRILS) @ axes, *eyes, lips])
