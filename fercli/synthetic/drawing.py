"""Paint a procedural face in flat colours; `fercli.synthetic.lighting` then makes it look round.

All contours are given in face units (see `fercli.synthetic.anatomy`) and mapped to the canvas by one similarity.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from fercli.faces.align import transform
from fercli.synthetic.anatomy import Anatomy, Identity, Points, both, smooth
from fercli.synthetic.domains import Domain

_FRACTION_BITS = 4
Colour = np.ndarray


class Canvas:
    """An RGB image uint8 [H, W, 3] to draw on; `matrix` [2, 3] is the similarity from face units to its pixels."""

    def __init__(self, picture: np.ndarray, matrix: np.ndarray):
        self.picture, self.matrix = picture, matrix
        self.unit = float(np.hypot(matrix[0, 0], matrix[1, 0]))
        self.covered = np.zeros(picture.shape[:2], np.uint8)

    def pixels(self, points: Points) -> Points:
        """Return face-unit points [n, 2] in pixels of the canvas."""
        return transform(self.matrix, points)

    def fill(self, points: Points, colour, alpha: float = 1.0, soft: float = 0.0, inside: Points | None = None) -> None:
        """Fill a contour with its edge blurred by `soft` face units, limited to the contour `inside` if given."""
        pixels = self.pixels(points)
        blur = soft * self.unit
        margin = 2.5 * blur + 2
        height, width = self.covered.shape
        left, top = np.maximum(np.floor(pixels.min(axis=0) - margin), 0).astype(int)
        right, bottom = np.minimum(np.ceil(pixels.max(axis=0) + margin) + 1, (width, height)).astype(int)
        if right <= left or bottom <= top:
            return
        mask = _mask(pixels, left, top, right, bottom)
        if blur > 0.3:
            mask = _soften(mask, blur)
        weight = mask.astype(np.float32) * (alpha / 255)
        if inside is not None:
            weight *= _mask(self.pixels(inside), left, top, right, bottom) * np.float32(1 / 255)
        part = self.picture[top:bottom, left:right]
        mixed = np.asarray(colour, np.float32) - part
        mixed *= weight[..., None]
        mixed += part
        mixed += np.float32(0.5)
        part[:] = mixed

    def solid(self, points: Points, colour, cover: bool = True) -> None:
        """Fill a contour with a hard, anti-aliased edge.

        With `cover`, it counts as part of the person: lit, and in front of the background.
        """
        fixed = np.round(self.pixels(points) * 2**_FRACTION_BITS).astype(np.int32)
        cv2.fillPoly(self.picture, [fixed], [float(c) for c in colour], cv2.LINE_AA, _FRACTION_BITS)
        if cover:
            cv2.fillPoly(self.covered, [fixed], 255, cv2.LINE_AA, _FRACTION_BITS)

    def ribbon(self, points: Points, width, colour, alpha: float = 1.0, soft: float = 0.0, inside=None) -> None:
        """Fill a stroke of `width` (one number, or one per point, in face units) along an open curve."""
        self.fill(_ribbon(points, width), colour, alpha, soft, inside)

    def hairs(self, curves: list[Points], colours, width: float) -> None:
        """Draw many thin lines at low cost; `colours` is [n, 3]."""
        thick = max(1, round(width * self.unit))
        for curve, colour in zip(curves, colours, strict=True):
            fixed = np.round(self.pixels(curve) * 2**_FRACTION_BITS).astype(np.int32)
            cv2.polylines(self.picture, [fixed], False, [float(c) for c in colour], thick, cv2.LINE_AA, _FRACTION_BITS)


def _mask(pixels: Points, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((bottom - top, right - left), np.uint8)
    fixed = np.round((pixels - (left, top)) * 2**_FRACTION_BITS).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _FRACTION_BITS)
    return mask


def _soften(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a mask. Wide blurs use two box filters, whose cost does not grow with their width.

    (cv2.stackBlur is as fast, but its result depends on the number of threads.)
    """
    if sigma < 1.5:
        return cv2.GaussianBlur(mask, (0, 0), sigma)
    side = 2 * round((np.sqrt(6 * sigma**2 + 1) - 1) / 2) + 1
    return cv2.blur(cv2.blur(mask, (side, side)), (side, side))


def _ribbon(points: Points, width) -> Points:
    along = np.gradient(points, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    half = 0.5 * np.broadcast_to(np.asarray(width, dtype=float), (len(points),))[:, None]
    return np.concatenate([points + normal * half, (points - normal * half)[::-1]])


def _taper(points: Points, width: float) -> np.ndarray:
    return width * np.sin(np.linspace(0.12, np.pi - 0.12, len(points))) ** 0.7


def _circle(centre, radius: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.asarray(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _along(stops: list[tuple[int, int, int]], share: float) -> Colour:
    """Return the colour at this fraction of the way along a row of colours."""
    at = share * (len(stops) - 1)
    return np.array([np.interp(at, range(len(stops)), channel) for channel in zip(*stops, strict=True)])


def skin_colour(melanin: float) -> Colour:
    """Return the RGB 0..255 of skin with this melanin 0..1, from light to dark."""
    return _along([(243, 208, 184), (229, 183, 150), (199, 146, 110), (150, 102, 72), (98, 66, 48)], melanin)


def hair_colour(shade: float, melanin: float, age: float) -> Colour:
    """Return the RGB 0..255 of hair: black to blond by `shade`, darker with melanin, grey with age."""
    stops = [(26, 21, 20), (52, 36, 27), (88, 58, 38), (128, 82, 48), (178, 138, 84)]
    colour = _along(stops, shade * (1 - 0.85 * min(1.0, melanin * 1.4)))
    grey = np.clip((age - 0.82) * 5, 0, 0.8)
    return colour * (1 - grey) + np.array([170, 168, 166]) * grey


def paint(
    canvas: Canvas, body: Anatomy, person: Identity, domain: Domain, clothes: Colour, rng: np.random.Generator
) -> None:
    """Paint one person of a population over the canvas's background, in flat colours, for `light_up` to light.

    `rng` draws the hair and similar details of one image.
    """
    palest, darkest = domain.melanin
    melanin = palest + person.traits["melanin"] * (darkest - palest)
    skin = skin_colour(melanin)
    hair = hair_colour(person.traits["hair_shade"], melanin, person.traits["age"])
    style = int(person.traits["hair"] * 6)
    _behind(canvas, body, style, skin, hair, clothes)
    canvas.solid(body.outline, skin)
    if person.traits["beard"] < domain.beard:
        _beard(canvas, body, hair, person.traits["volume"])
    for points, width, strength in body.creases:
        dark = skin * (0.62, 0.5, 0.46)
        canvas.ribbon(points, _taper(points, width * domain.line), dark, min(0.75 * strength * domain.line, 0.9), 0.014)
    _paint_nose(canvas, body, skin)
    _paint_mouth(canvas, body, skin, person.traits["lips"])
    for eye in body.eyes:
        _paint_eye(canvas, eye, skin, person, domain.line)
    brow = hair * 0.75 + skin * 0.08
    for points, width in body.brows:
        canvas.ribbon(points, width, brow, 0.85, 0.012)
        along = np.gradient(points, axis=0)
        side = np.sign(points[-1, 0] - points[0, 0])
        strands = []
        for k in range(1, len(points) - 1, 2):
            lean = np.array([-along[k, 1], along[k, 0]]) * side * (1 - 1.2 * k / len(points))
            start = points[k] + lean / (np.linalg.norm(along[k]) + 1e-9) * 0.4 * width[k]
            strands.append(np.stack([start, points[k] + along[k] * 1.2 - (start - points[k])]))
        canvas.hairs(strands, [brow * 0.7] * len(strands), 0.012)
    _front_hair(canvas, body, person, style, hair, rng)
    if person.traits["glasses"] < domain.glasses:
        _glasses(canvas, body)


def _paint_eye(canvas: Canvas, eye, skin: Colour, person: Identity, line: float) -> None:
    lids, upper, fold = eye["lids"], eye["upper"], eye["fold"]
    shadow = skin * (0.72, 0.62, 0.58)
    canvas.fill(np.concatenate([fold, upper[::-1]]), shadow, 0.3, 0.02)
    canvas.ribbon(eye["bag"], _taper(eye["bag"], 0.03), shadow, 0.35, 0.016)
    canvas.ribbon(fold, _taper(fold, 0.022 * line), skin * (0.5, 0.4, 0.36), 0.6, 0.008)
    canvas.solid(lids, (232, 226, 220), cover=False)
    hue = person.traits["iris"]
    rgb = colorsys.hsv_to_rgb(
        0.07 if hue < 0.6 else 0.07 + 1.3 * (hue - 0.6), 0.6 - 0.3 * (hue > 0.75), 0.32 + 0.25 * (hue > 0.6)
    )
    iris, centre = np.array(rgb) * 255, eye["iris"][0]
    canvas.fill(_circle(centre, 0.112), iris * 0.45, 1, 0.004, inside=lids)
    canvas.fill(_circle(centre, 0.092), iris, 1, 0.012, inside=lids)
    canvas.fill(_circle(centre, 0.048), (14, 12, 12), 1, 0.004, inside=lids)
    canvas.ribbon(upper + np.array([0, 0.022]), _taper(upper, 0.05), (90, 70, 64), 0.45, 0.014, inside=lids)
    canvas.fill(_circle(centre + np.array([0.03, -0.035]), 0.02), (255, 255, 255), 0.85, 0.004, inside=lids)
    lash = skin * 0.14 + 8
    canvas.ribbon(upper, _taper(upper, 0.036 * line), lash, 0.95, 0.005)
    below = np.concatenate([lids[len(lids) // 2 :], lids[:1]])
    canvas.ribbon(below, _taper(below, 0.016), skin * (0.5, 0.38, 0.36), 0.7, 0.005)


def _paint_nose(canvas: Canvas, body: Anatomy, skin: Colour) -> None:
    dark = skin * (0.45, 0.34, 0.31)
    for side in ("left", "right"):
        wing, hole = body.nose[f"wing-{side}"], body.nose[f"hole-{side}"]
        canvas.ribbon(wing, _taper(wing, 0.03), dark, 0.5, 0.014)
        canvas.fill(hole, dark * 0.5, 0.85, 0.012)
    canvas.ribbon(body.nose["under"], _taper(body.nose["under"], 0.03), dark, 0.45, 0.016)


def _paint_mouth(canvas: Canvas, body: Anatomy, skin: Colour, redness: float) -> None:
    mouth = body.mouth
    lip = skin * (0.86 - 0.06 * redness, 0.62 - 0.12 * redness, 0.62 - 0.08 * redness)
    gap = float(mouth["gap"][0])
    if gap > 0.02:
        inside = mouth["inside"]
        canvas.fill(inside, (58, 22, 22), 1, 0.004)
        top, low = mouth["top-line"], mouth["low-line"]
        if gap > 0.16:
            tongue = np.concatenate([0.35 * top + 0.65 * low, low[::-1]])[3:-3]
            canvas.fill(tongue, (150, 72, 70), 0.8, 0.03, inside=inside)
        bite = min(0.085 / (gap + 1e-6), 0.85)
        teeth = np.concatenate([top[2:-2], ((1 - bite) * top + bite * low)[2:-2][::-1]])
        canvas.fill(teeth, (236, 230, 218), 0.95, 0.008, inside=inside)
        lower = float(mouth["teeth-low"][0])
        if lower > 0.1:
            rise = min(0.06 / gap, 0.5)
            teeth = np.concatenate([(rise * top + (1 - rise) * low)[3:-3], low[3:-3][::-1]])
            canvas.fill(teeth, (214, 206, 194), min(lower, 1.0), 0.008, inside=inside)
        canvas.ribbon(top, 0.045, (40, 14, 14), 0.5, 0.016, inside=inside)
    canvas.fill(mouth["upper"], lip * 0.9, 0.95, 0.008)
    canvas.fill(mouth["lower"], lip * 1.04, 0.95, 0.012)
    canvas.ribbon(mouth["shine"], _taper(mouth["shine"], 0.035), lip * 1.25 + 12, 0.5, 0.02)
    if gap <= 0.02:
        canvas.ribbon(mouth["top-line"], _taper(mouth["top-line"], 0.03), lip * (0.42, 0.3, 0.32), 0.9, 0.008)
    for corner in mouth["corners"]:
        canvas.fill(_circle(corner, 0.025), lip * (0.4, 0.3, 0.3), 0.6, 0.014)


def _behind(canvas: Canvas, body: Anatomy, style: int, skin: Colour, hair: Colour, clothes: Colour) -> None:
    wide = np.abs(body.outline[:, 0]).max()
    low = body.outline[:, 1].max()
    if style in (2, 3):
        drop = 2.6 if style == 2 else 1.35
        back = [(0, -1.85), (0.8, -1.6), (1.25 * wide, -0.8), (1.36 * wide, 0.3)]
        back += [(1.3 * wide, drop), (0.5, drop + 0.15)]
        canvas.solid(body.project(smooth(both(back), True), -0.9), hair * 0.62)
    neck = both([(-0.62 * wide, 0.9), (-0.62 * wide, low + 0.3), (-0.9, low + 0.62)])
    canvas.solid(np.array(neck), skin * 0.92)
    shade = both([(-0.66 * wide, 0.9), (-0.6 * wide, low - 0.05), (0, low + 0.32)])
    canvas.fill(smooth(shade), skin * (0.58, 0.48, 0.45), 0.7, 0.05)
    collar = both([(-0.75, low + 0.3), (-0.45, low + 0.52), (0, low + 0.62)])
    cloth = both([(1.3, low + 0.5), (2.1, low + 0.85), (2.6, low + 3.0)])
    canvas.solid(smooth(collar + cloth, True), clothes)
    for ear in body.ears:
        canvas.solid(ear, skin * (0.93, 0.86, 0.84))
        inner = ear.mean(axis=0) + 0.55 * (ear - ear.mean(axis=0))
        canvas.fill(inner, skin * (0.6, 0.48, 0.45), 0.45, 0.03)


def _front_hair(canvas: Canvas, body: Anatomy, person: Identity, style: int, hair: Colour, rng) -> None:
    wide = np.abs(body.outline[:, 0]).max()
    crown = body.outline[:, 1].min() - 0.1 - 0.25 * person.traits["volume"]
    line = {0: -1.02, 1: -0.98, 2: -1.0, 3: -0.9, 4: -1.38, 5: -0.98}[style]
    sides = {0: -0.15, 1: -0.05, 2: 0.2, 3: 0.5, 4: -0.35, 5: -0.15}[style]
    outer = [(-1.06, sides), (-1.14, -0.55), (-0.93, -1.1), (-0.52, 0.9 * crown), (0, crown)]
    part = 0.35 if style in (1, 2) else 0.0
    inner = [(1.0, sides), (0.95, -0.5), (0.78, line + 0.2), (0.35, line + 0.02), (-0.1, line - part * 0.3)]
    inner += [(-0.5, line + 0.06), (-0.82, line + 0.24), (-0.95, -0.5), (-1.0, sides)]
    if style == 4:
        inner = both([(0.98, sides), (0.86, -0.7), (0.68, -1.05), (0.32, line + 0.13), (0, line + 0.08)])
    top = body.project(smooth([(x * wide, y) for x, y in both(outer)], False, 8), -0.2)
    edge = body.project(smooth([(x * wide, y) for x, y in inner], False, 8), -0.05)
    if style == 5:
        for at in top[::3]:
            canvas.solid(_circle(at, rng.uniform(0.09, 0.17)), hair * rng.uniform(0.75, 1.0))
    cap = np.concatenate([top, edge])
    canvas.fill(cap + np.array([0, 0.03]), hair * 0.4, 0.4, 0.05)
    canvas.solid(cap, hair)
    count = 46
    start = edge[::-1][np.linspace(1, len(edge) - 2, count).astype(int)]
    end = top[np.linspace(1, len(top) - 2, count).astype(int)]
    bend = rng.normal(0, 0.035, (count, 1, 2))
    middle = np.linspace(0, 1, 24)
    band = 0.45 * edge[::-1][(middle * (len(edge) - 1)).astype(int)] + 0.55 * top[(middle * (len(top) - 1)).astype(int)]
    canvas.ribbon(band, _taper(band, 0.2), np.minimum(hair * 1.7 + 10, 235), 0.35, 0.06, inside=cap)
    canvas.ribbon(edge, 0.12, hair * 0.5, 0.45, 0.05, inside=cap)
    t = np.linspace(-0.025, 0.97, 5)[None, :, None]
    curves = (1 - t) * start[:, None] + t * end[:, None] + bend * np.sin(np.pi * t)
    if style == 5:
        curves = curves + 0.03 * np.sin(9 * t + rng.random((count, 1, 1)) * 6)
    canvas.hairs(list(curves), np.clip(hair * rng.uniform(0.65, 1.35, (count, 1)) + 4, 0, 255), 0.022)


def _beard(canvas: Canvas, body: Anatomy, hair: Colour, fullness: float) -> None:
    outline, (_, y), reach = body.outline, body.mouth["centre"], body.mouth["reach"][0]
    jaw = outline[outline[:, 1] > 0.72]
    jaw = jaw[np.argsort(np.arctan2(jaw[:, 0], jaw[:, 1]))]
    hole = both([(0.72, 0.95), (reach + 0.17, y - 0.12), (0.22, y - 0.19), (0, y - 0.17)])
    beard = np.concatenate([jaw, body.project(smooth(hole), 0.0)])
    canvas.fill(beard, hair * 0.9 + 8, 0.25 + 0.55 * fullness, 0.05, inside=outline)


def _glasses(canvas: Canvas, body: Anatomy) -> None:
    frame, lenses = (38, 34, 36), []
    for eye in body.eyes:
        centre = eye["lids"].mean(axis=0)
        lens = smooth(
            centre + np.array([(-0.34, -0.2), (0, -0.235), (0.34, -0.2), (0.34, 0.13), (0, 0.26), (-0.34, 0.13)]), True
        )
        canvas.ribbon(np.concatenate([lens, lens[:2]]), 0.032, frame, 0.9, 0.005)
        canvas.fill(lens, (255, 255, 255), 0.06)
        lenses.append(centre)
    bridge = np.stack([lenses[0] + (0.34, -0.06), (lenses[0] + lenses[1]) / 2 - (0, 0.1), lenses[1] - (0.34, 0.06)])
    canvas.ribbon(smooth(bridge), 0.035, frame, 0.9, 0.005)
