"""The anatomy of a procedural face: the person, the action of the muscles, and the resulting position of every contour.

Lengths are in units of an average adult's eye distance (about 63 mm). x points to the right of the image and y down;
the origin is midway between the eyes. Proportions are round figures from craniofacial anthropometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

Points = np.ndarray
#: Strengths of action units, by the units' numbers.
Units = dict[int, float]


@dataclass(frozen=True)
class Proportions:
    """The proportions of a population: (mean, standard deviation) of factors on the average face; 1 is average."""

    eye_distance: tuple[float, float] = (1.0, 0.04)
    eye_size: tuple[float, float] = (1.0, 0.07)
    face_width: tuple[float, float] = (1.0, 0.05)
    face_length: tuple[float, float] = (1.0, 0.04)
    jaw_width: tuple[float, float] = (1.0, 0.06)
    brow_height: tuple[float, float] = (1.0, 0.08)
    brow_thickness: tuple[float, float] = (1.0, 0.2)
    nose_length: tuple[float, float] = (1.0, 0.06)
    nose_width: tuple[float, float] = (1.0, 0.1)
    mouth_width: tuple[float, float] = (1.0, 0.07)
    lip_thickness: tuple[float, float] = (1.0, 0.18)


@dataclass(frozen=True)
class Identity:
    """One person: standard scores of the proportions (clipped at 2), and traits as fractions 0..1 of their range."""

    scores: Mapping[str, float]
    traits: Mapping[str, float]

    @classmethod
    def of(cls, seed: int) -> Identity:
        """Return the person of this seed, always the same one. Populations only determine what the scores mean."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x1D]))
        names = [f.name for f in fields(Proportions)]
        scores = dict(zip(names, np.clip(rng.standard_normal(len(names)), -2, 2).tolist(), strict=True))
        traits = ("melanin", "hair", "hair_shade", "volume", "glasses", "beard", "iris", "age", "arch", "tilt", "lips")
        return cls(scores, dict(zip(traits, rng.random(len(traits)).tolist(), strict=True)))

    def factors(self, proportions: Proportions) -> dict[str, float]:
        """Return this person's factors within a population, none below 0.4."""
        ranges = {f.name: getattr(proportions, f.name) for f in fields(Proportions)}
        return {name: max(mean + sd * self.scores[name], 0.4) for name, (mean, sd) in ranges.items()}


def smooth(points: Points, closed: bool = False, steps: int = 6) -> Points:
    """Return the Catmull-Rom curve through `points` [n, 2], with `steps` points per span, as float [m, 2]."""
    points = np.asarray(points, dtype=float)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.arange(steps)[:, None] / steps
    basis = 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2])
    spans = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)])
    curve = np.einsum("tk,knd->ntd", basis, spans).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def both(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Complete one half of a symmetric contour with its mirror image, in reverse; points in the middle appear once."""
    return points + [(-x, y) for x, y in reversed(points) if x]


@dataclass
class Anatomy:
    """Every contour of one face, turned by its pose but not yet rolled, scaled or placed.

    Eye and brow lists begin with the image-left one. `creases` are (points, width, strength). `bumps` has rows of x, y,
    spread x, spread y, height.
    """

    outline: Points
    ears: list[Points]
    eyes: list[dict[str, Points]] = field(default_factory=list)
    brows: list[tuple[Points, np.ndarray]] = field(default_factory=list)
    nose: dict[str, Points] = field(default_factory=dict)
    mouth: dict[str, Points] = field(default_factory=dict)
    creases: list[tuple[Points, float, float]] = field(default_factory=list)
    bumps: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    landmarks: Points = field(default_factory=lambda: np.zeros((5, 2)))
    project: object = None


class _Pose:
    """Turns flat contours: each point is placed on an ellipsoid, raised by `extra`, and rotated by yaw and pitch."""

    def __init__(self, yaw: float, pitch: float):
        self.yaw, self.pitch = np.deg2rad(yaw), np.deg2rad(pitch)

    def __call__(self, points, extra: float = 0.0) -> Points:
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        x, y = points.T
        z = 0.85 * np.sqrt(np.maximum(1 - (x / 1.25) ** 2 - ((y - 0.2) / 1.9) ** 2, 0)) + extra
        turned = x * np.cos(self.yaw) + z * np.sin(self.yaw)
        return np.stack([turned, y * np.cos(self.pitch) + z * np.sin(self.pitch)], axis=1)


def build(person: Identity, factors: Mapping[str, float], au: Units, yaw: float, pitch: float, rng) -> Anatomy:
    """Return the contours of a person with these action units.

    Angles are in degrees; a positive yaw turns the head to the image's right. `rng` draws the small asymmetries and
    the gaze of one image.
    """
    pose = _Pose(yaw, pitch)
    f, age, trait = factors, person.traits["age"], person.traits
    lean = rng.normal(0, 0.06, 4)
    drop = 0.20 * au[26] + 0.03 * au[25] - 0.03 * au[17]
    wide, long, jaw = f["face_width"], f["face_length"], f["face_width"] * f["jaw_width"]
    half = [(0, -1.5), (0.55, -1.36), (0.92, -0.92), (1.09, -0.3), (1.09, 0.2)]
    half = [(x * wide, y * long) for x, y in half]
    half += [
        (x * (wide if y < 1 else jaw), y * long + drop * w)
        for x, y, w in ((1.01, 0.70, 0.05), (0.88, 1.18, 0.4), (0.58, 1.60, 0.9), (0.26, 1.79, 1), (0, 1.82, 1))
    ]
    outline = both(half)
    ear = [(1.0, -0.2), (1.17, -0.26), (1.23, -0.05), (1.17, 0.3), (1.04, 0.52), (0.96, 0.3)]
    ears = [pose(smooth([(s * x * wide, y) for x, y in ear], True, 4), -0.55) for s in (-1, 1)]
    body = Anatomy(pose(smooth(outline, True), -0.1), ears, project=pose)
    gaze = np.clip(rng.normal(0, [0.022, 0.01]), -0.04, 0.04)
    for side in (-1, 1):
        _eye_and_brow(body, pose, side, f, trait, au, 1 + side * lean[0], gaze)
    _nose(body, pose, f, au)
    _mouth(body, pose, f, au, lean, long, drop)
    _wrinkles(body, pose, f, au, age)
    _relief(body, pose, f, au, long, drop)
    corners = [pts["lids"][[0, len(pts["lids"]) // 2]].mean(axis=0) for pts in body.eyes]
    body.landmarks = np.stack([*corners, body.nose["tip"][0], *body.mouth["corners"]])
    return body


def _eye_and_brow(body: Anatomy, pose, side: int, f, trait, au: Units, lean: float, gaze) -> None:
    cx, size = 0.5 * f["eye_distance"], f["eye_size"]
    w, tilt = 0.235 * size, 0.035 * (trait["tilt"] - 0.35)
    open_by = 0.095 + 0.055 * au[5] - 0.025 * au[7] - 0.02 * au[6] - 0.055 * au[43] - 0.03 * au[9] - 0.015 * au[4]
    up = size * lean * open_by
    low = size * (0.06 + 0.012 * au[5] - 0.025 * au[7] - 0.032 * au[6] - 0.02 * au[9] + 0.01 * au[26])
    up, low = max(up, 0.022), max(low, 0.014)
    sad = 0.02 * au[43] * (1 - au[5])
    upper = [
        (-w, 0.005),
        (-0.6 * w, -0.66 * up - sad),
        (-0.05 * w, -up),
        (0.55 * w, -0.8 * up + sad),
        (w, -0.01 - tilt + sad),
    ]
    lower = [(0.55 * w, 0.75 * low), (0, low), (-0.55 * w, 0.7 * low)]
    place = lambda pts: [(side * (cx + x), y) for x, y in pts]  # noqa: E731
    steps = 5
    lids = pose(smooth(place(upper + lower), True, steps), 0.0)
    upper_px = pose(smooth(place(upper), False, steps), 0.02)
    lift = 0.055 * size - 0.02 * au[5] * (1 - au[4]) + 0.01 * au[43]
    fold = pose(smooth(place([(x * 1.06, y - lift * (1 - (x / w / 1.3) ** 2)) for x, y in upper]), False, steps), 0.03)
    bag = pose(smooth(place([(x * 1.02, y + 0.07 - 0.012 * au[6]) for x, y in reversed(lower)]), False, steps), 0.02)
    middle = pose([(side * cx + gaze[0], -0.018 + gaze[1])], 0.02)
    body.eyes.append({"lids": lids, "upper": upper_px, "fold": fold, "bag": bag, "iris": middle})
    h = f["brow_height"]
    arch = 0.03 + 0.06 * trait["arch"]
    squeeze = 0.055 * au[4] + 0.02 * au[9]
    inner = -0.33 * h - 0.15 * au[1] + 0.13 * au[4] * (1 - 0.65 * min(au[1], 1)) + 0.09 * au[9]
    peak = -0.37 * h - arch - 0.05 * au[1] - 0.14 * au[2] + 0.09 * au[4] * (1 - 0.5 * min(au[1], 1)) + 0.05 * au[9]
    tail = -0.30 * h - 0.12 * au[2] + 0.025 * au[4] + 0.015 * au[1] + 0.02 * au[6] + 0.02 * au[43]
    base = cx - 0.5
    line = [
        (0.19 - squeeze, inner + 0.01),
        (0.34 - 0.7 * squeeze, 0.62 * inner + 0.38 * peak - 0.015),
        (0.58 - 0.2 * squeeze, peak),
        (0.74, 0.5 * (peak + tail) - 0.012),
        (0.87, tail),
    ]
    points = pose(smooth([(side * (base + x), y) for x, y in line], False, 5), 0.06)
    taper = np.interp(np.linspace(0, 1, len(points)), [0, 0.12, 0.5, 1], [0.7, 1, 0.9, 0.25])
    body.brows.append((points, 0.085 * f["brow_thickness"] * taper))


def _nose(body: Anatomy, pose, f, au: Units) -> None:
    n, w = f["nose_length"], f["nose_width"]
    up = 0.05 * au[9] + 0.02 * au[10]
    flare = 1 + 0.12 * au[9] + 0.06 * au[10] + 0.05 * au[12]
    tip, base = 0.60 * n - up, 0.74 * n - up
    body.nose["tip"] = pose([(0, tip)], 0.32)
    for name, side in (("left", -1), ("right", 1)):
        hole = [(0.05, 0.0), (0.11, -0.028), (0.165, -0.008), (0.13, 0.018), (0.08, 0.02)]
        wing = [(0.205, -0.13), (0.262, -0.06), (0.255, 0.02), (0.20, 0.035)]
        body.nose[f"hole-{name}"] = pose(smooth([(side * x * w * flare, base + y) for x, y in hole], True, 4), 0.16)
        body.nose[f"wing-{name}"] = pose(smooth([(side * x * w * flare, base + y) for x, y in wing], False, 5), 0.1)
    under = [(-0.09 * w, base + 0.02), (0, base + 0.045), (0.09 * w, base + 0.02)]
    body.nose["under"] = pose(smooth(under, False, 4), 0.18)


def _mouth(body: Anatomy, pose, f, au: Units, lean, long: float, drop: float) -> None:
    reach = 0.40 * f["mouth_width"] + 0.10 * au[12] + 0.075 * au[20] - 0.05 * au[23] - 0.03 * au[24]
    reach -= 0.08 * au[26] * (1 - au[12])
    y = 1.13 * long - 0.045 * au[17] - 0.03 * au[9] - 0.02 * au[10] + 0.03 * au[26]
    bend = -0.125 * au[12] + 0.10 * au[15] + 0.035 * au[20] + 0.02 * au[10] + 0.02 * au[17]
    lip = f["lip_thickness"]
    thin = 1 - 0.4 * au[23] - 0.45 * au[24] - 0.22 * au[12] - 0.18 * au[20]
    top = 0.085 * lip * max(thin - 0.15 * au[10], 0.3)
    low = 0.115 * lip * max(thin + 0.12 * au[17], 0.3)
    part = au[25] * (1 - 0.7 * min(au[24], 1))
    gap_up = 0.035 * part + 0.03 * part * au[12] + 0.05 * part * au[10] + 0.03 * au[26]
    gap_low = 0.045 * part + 0.03 * part * (au[12] + au[20] + au[23]) + 0.27 * au[26]
    rise = 0.055 * au[10] + 0.03 * au[9]
    square = 1.6 + 1.2 * min(au[20] + 0.8 * part * au[23] + 0.5 * au[12], 1)
    t = np.linspace(-1, 1, 25)
    a = np.abs(t)
    ends = np.where(t < 0, bend * (1 + lean[1]), bend * (1 + lean[2]))
    # The corners are tied to the cheeks and the middle moves with the jaw, so most of the bend is near the corners.
    line = y + 0.35 * bend * -1 + 1.35 * ends * a**1.7 + 0.03 * au[26] * a
    bow = 1 - a**1.9 - 0.16 * np.exp(-((t / 0.13) ** 2)) + 0.05 * np.exp(-(((a - 0.3) / 0.16) ** 2))
    open_up = gap_up * (1 - a**square)
    x = reach * t
    # Lips that talk or smile open in the shape of a lens. A dropped jaw rounds them.
    round_low = 0.27 * au[26] / (gap_low + 1e-9)
    open_low = gap_low * ((1 - round_low) * (1 - a**square) + round_low * (1 - a**2) ** 0.7)
    inner_top = line - open_up - rise * (1 - a**2)
    inner_low = line + open_low - (0 if gap_low + gap_up > 0.02 else rise) * (1 - a**2)
    outer_top = inner_top - top * np.maximum(bow, 0)
    outer_low = inner_low + low * (1 - a**2.4)

    def both_ways(first: np.ndarray, second: np.ndarray) -> Points:
        return np.concatenate([np.stack([x, first], 1), np.stack([x, second], 1)[::-1]])

    # The jaw swings back as it opens, so the lower lip loses depth. This matters only for turned heads.
    body.mouth = {
        "upper": pose(both_ways(outer_top, inner_top), 0.12),
        "lower": pose(both_ways(inner_low, outer_low), 0.11),
        "inside": pose(both_ways(inner_top, inner_low), 0.10),
        "top-line": pose(np.stack([x, inner_top], 1), 0.12),
        "low-line": pose(np.stack([x, inner_low], 1), 0.11),
        "shine": pose(np.stack([0.5 * x, inner_low + 0.5 * low * (1 - a**2)], 1), 0.13),
        "corners": pose([(x[0], line[0]), (x[-1], line[-1])], 0.10),
        "gap": np.array([gap_up + gap_low + max(rise - 0.02, 0) * (gap_low + gap_up > 0.02)]),
        "centre": np.array([0.0, y]),
        "reach": np.array([reach]),
        "bottom": np.array([outer_low[12]]),
        "teeth-low": np.array([0.5 * au[20] * part + 0.8 * au[23] * part]),
    }


def _wrinkles(body: Anatomy, pose, f, au: Units, age: float) -> None:
    def crease(points, width, strength, extra=0.04, mirrored=True):
        if strength > 0.06:
            for side in (-1, 1) if mirrored else (1,):
                curve = pose(smooth([(side * x, y) for x, y in points], False, 4), extra)
                body.creases.append((curve, width, min(float(strength), 1.0)))

    cx, nose, wing = 0.5 * f["eye_distance"], 0.74 * f["nose_length"] - 0.05 * au[9], 0.27 * f["nose_width"]
    reach, y = body.mouth["reach"][0], body.mouth["centre"][1]
    corner = y - 0.14 * au[12] + 0.1 * au[15]
    fold = 0.10 + 0.25 * age + 0.5 * au[12] + 0.45 * au[10] + 0.4 * au[9] + 0.25 * au[20]
    out = reach + 0.13 + 0.03 * au[12]
    cheek = [(wing, nose - 0.1), (0.5 * (wing + out) + 0.05, 0.55 * nose + 0.45 * corner), (out, corner + 0.02)]
    crease(cheek, 0.035, fold)
    across, raised = 0.6 * (0.25 + 0.75 * au[2]), 0.15 * age + 0.75 * max(0.7 * au[1], au[2])
    for k, height in enumerate((-0.72, -0.85, -0.97)):
        rise = height - 0.05 * au[1]
        dip = (-0.3 * across, rise - 0.02 - 0.03 * au[1] * (1 - au[2]))
        line = [(-across, rise + 0.02), dip, (0.4 * across, rise), (across, rise + 0.02)]
        crease(line, 0.022, raised * (1 - 0.2 * k), mirrored=False)
    crease([(0.10 - 0.03 * au[4], -0.42), (0.075, -0.3), (0.085, -0.17)], 0.03, 0.1 * age + 0.85 * au[4] + 0.3 * au[9])
    for k in range(3):
        crease([(0.05, 0.02 + 0.08 * k), (0.15, 0.0 + 0.09 * k), (0.2, -0.07 + 0.09 * k)], 0.026, 0.9 * au[9], 0.15)
    crease([(-0.12, -0.09), (0, -0.06), (0.12, -0.09)], 0.028, 0.8 * au[9], 0.12, mirrored=False)
    for angle in (-0.09, 0.0, 0.09):
        crease([(cx + 0.27, 0.01 + 0.3 * angle), (cx + 0.42, 0.03 + 1.2 * angle)], 0.018, 0.12 * age + 0.6 * au[6])
    hanging = [(reach + 0.04, corner + 0.04), (reach + 0.08, corner + 0.16), (reach + 0.05, corner + 0.28)]
    crease(hanging, 0.03, 0.1 * age + 0.6 * au[15])
    pressed = [(reach + 0.035, corner - 0.05), (reach + 0.05, corner + 0.04)]
    crease(pressed, 0.03, 0.25 + 0.4 * au[12] + 0.3 * au[24], 0.08)
    bottom = body.mouth["bottom"][0]
    chin = both([(-0.2, bottom + 0.13), (0, bottom + 0.09)])
    crease(chin, 0.045, 0.25 + 0.5 * au[17] + 0.15 * au[24], 0.08, mirrored=False)
    for k in range(3):
        crease([(0.05 + 0.06 * k, bottom + 0.2), (0.04 + 0.06 * k, bottom + 0.3)], 0.022, 0.6 * au[17] - 0.1)


def _relief(body: Anatomy, pose, f, au: Units, long: float, drop: float) -> None:
    """Set the bumps and hollows for the lighting. The values were chosen by eye on contact sheets."""
    e, n, w = 0.5 * f["eye_distance"], f["nose_length"], f["nose_width"]
    y, reach, bottom = body.mouth["centre"][1], body.mouth["reach"][0], body.mouth["bottom"][0]
    lift = 0.10 * au[12] + 0.07 * au[6]
    rows = [
        (0, -0.02, 0.10, 0.22, 0.05), (0, 0.3 * n, 0.125 * w, 0.2, 0.11),
        (0, 0.58 * n - 0.04 * au[9], 0.14 * w, 0.11, 0.155),
        (0, -0.85, 0.62, 0.35, 0.08), (0, 1.03 * long, 0.36, 0.26, 0.08), (0, 0.90, 0.035, 0.09, -0.012),
        (0, y - 0.07, 0.24, 0.05, 0.025), (0, bottom - 0.05, 0.2, 0.055, 0.04), (0, bottom + 0.11, 0.22, 0.055, -0.045),
        (0, 1.64 * long + drop, 0.24, 0.16, 0.11 + 0.04 * au[17]), (0, -0.3, 0.12, 0.12, 0.02 * au[4]),
    ]  # fmt: skip
    for s in (-1, 1):
        rows += [
            (s * 0.2 * w, 0.66 * n - 0.05 * au[9], 0.075, 0.07, 0.07 + 0.02 * au[9]),
            (s * (e - 0.04), -0.31 - 0.08 * au[2] + 0.06 * au[4], 0.32, 0.11, 0.05 + 0.02 * au[4]),
            (s * 0.13, -0.33 - 0.1 * au[1] + 0.1 * au[4], 0.08, 0.09, 0.045 * au[4]),
            (s * e, -0.05, 0.26, 0.15, -0.085), (s * e, 0.0, 0.15, 0.10, 0.05),
            (s * (e - 0.26), 0.04, 0.1, 0.12, -0.05),
            (s * (e + 0.12), 0.56 - lift, 0.27, 0.22, 0.09 + 0.10 * lift + 0.05 * au[12]),
            (s * e, 0.19 - 0.03 * au[6], 0.2, 0.05, 0.012 + 0.025 * au[6] + 0.012 * au[7]),
            (s * 0.97, -0.45, 0.13, 0.3, -0.05), (s * 0.8, 1.05, 0.2, 0.28, -0.05),
            (s * (reach + 0.11), y - 0.12 * au[12] + 0.02, 0.07, 0.1, -0.03 - 0.02 * au[12]),
            (s * 0.12, 0.12, 0.08, 0.1, 0.05 * au[9]),
            (s * 0.36, 0.72, 0.08, 0.1, -0.03 - 0.04 * au[10] - 0.03 * au[9]),
        ]  # fmt: skip
    table = np.array(rows, dtype=float)
    table[:, :2] = pose(table[:, :2], 0.1)
    body.bumps = table
