"""Domains of procedural faces: who is photographed, how, and how strongly they show what they feel.

Each is one frozen dataclass of knobs; `dataclasses.replace(LAB, noise=(3, 6))` makes another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fercli.synthetic.anatomy import Proportions

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """A way of photographing a population. Ranges are (least, greatest) of a uniform draw per image unless said.

    Attributes:
        size: width and height of the image in pixels.
        grey: one grey channel, repeated three times.
        saturation: factor on colour, 0 grey. Pale images in a source make grey targets less strange to it.
        supersample: how many times finer the image is drawn than kept.
        face_width: width of the head as a fraction of the image's width.
        wander: greatest offset of the face from the middle, as a fraction of the image.
        roll, yaw, pitch: standard deviation of the head's angles in degrees, cut at 2.2 of them.
        blur: sigma of the lens's Gaussian, in pixels of the finished image.
        noise: standard deviation of the sensor's noise in grey levels 0..255.
        contrast, gamma, brightness: factor around mid-grey, exponent (above 1 darkens), grey levels added.
        jpeg: range of quality, or None for none.
        tint: standard deviation of the light's colour cast, a factor a channel.
        light_side, light_above: greatest share of light from the side, range from above (0 frontal, 1 at 45 degrees).
        ambient: share of light without direction; the less, the harder the shadows.
        relief: factor on the height of nose, cheeks, lips as the light sees them.
        gloss: strength of the skin's highlights.
        background: range of the background's grey level; `clutter`: how many shapes and people out of focus in it.
        proportions: of the population.
        melanin: range of skin tone, 0 light to 1 dark.
        line: factor on the width and strength of wrinkles, lids and lashes.
        intensity: strength of an image's expression, 1 the prototype.
        au_jitter: standard deviation of each action unit's own factor.
        au_noise: probability that one unrelated action unit joins in, of strength `au_noise_strength`.
        gains: the population's habits, (unit, factor) pairs; `rest`: (unit, strength) pairs its faces show at rest.
        glasses, beard: share of identities who wear one.
    """

    name: str
    size: tuple[int, int]
    grey: bool = False
    saturation: Range = (1.0, 1.0)
    supersample: int = 2
    face_width: Range = (0.5, 0.6)
    wander: float = 0.04
    roll: float = 5.0
    yaw: float = 6.0
    pitch: float = 4.0
    blur: Range = (0.3, 0.6)
    noise: Range = (1.0, 3.0)
    contrast: Range = (0.95, 1.05)
    gamma: Range = (0.95, 1.05)
    brightness: Range = (-5, 5)
    jpeg: tuple[int, int] | None = None
    tint: float = 0.02
    light_side: float = 0.5
    light_above: Range = (0.2, 0.6)
    ambient: Range = (0.4, 0.55)
    relief: float = 1.0
    gloss: float = 0.10
    background: Range = (90, 190)
    clutter: int = 0
    proportions: Proportions = field(default_factory=Proportions)
    melanin: Range = (0.05, 0.85)
    line: float = 1.0
    intensity: Range = (0.7, 1.0)
    au_jitter: float = 0.15
    au_noise: float = 0.2
    au_noise_strength: Range = (0.2, 0.45)
    gains: tuple[tuple[int, float], ...] = ()
    rest: tuple[tuple[int, float], ...] = ()
    glasses: float = 0.12
    beard: float = 0.12


#: Colour portraits under soft light; the demo's source.
STUDIO = Domain(name="studio", size=(220, 240), saturation=(0.1, 1.1), au_noise=0.12)

#: Small, grey, soft and noisy images of people otherwise built, whose faces move otherwise; as JAFFE, 256x256.
LAB = Domain(
    name="lab",
    size=(256, 256),
    grey=True,
    face_width=(0.52, 0.6),
    wander=0.03,
    roll=2.0,
    yaw=3.0,
    pitch=3.0,
    blur=(1.5, 2.3),
    noise=(4, 8),
    contrast=(0.65, 0.85),
    gamma=(1.0, 1.4),
    light_side=0.25,
    light_above=(0.5, 0.9),
    relief=0.8,
    background=(60, 110),
    proportions=Proportions(
        eye_distance=(1.06, 0.03),
        eye_size=(0.88, 0.05),
        face_width=(1.1, 0.04),
        brow_height=(1.1, 0.06),
        brow_thickness=(0.7, 0.15),
        nose_length=(0.92, 0.05),
        mouth_width=(0.88, 0.05),
        lip_thickness=(1.2, 0.15),
    ),
    melanin=(0.1, 0.4),
    line=0.8,
    intensity=(0.5, 0.8),
    gains=((26, 0.8), (12, 0.9), (4, 1.1)),
    rest=((15, 0.1),),
    au_noise=0.12,
    glasses=0.0,
    beard=0.0,
)


def between(one: Domain, other: Domain, share: float, name: str) -> Domain:
    """The domain that has gone `share` of the way from `one` (0) to `other` (1), or beyond it (above 1).

    Measures and ranges go in a straight line and stay at or above zero where both ends do; habits of the population
    fade in likewise; what has no middle (size of the image, grey or colour, jpeg, counts) is `other`'s from a half
    on.
    """

    def mixed(a: Any, b: Any) -> Any:
        if isinstance(a, float) and isinstance(b, float | int):
            value = a + share * (b - a)
            return max(value, 0.0) if min(a, b) >= 0 else value
        if isinstance(a, tuple) and len(a) == 2 and isinstance(b, tuple) and all(isinstance(x, float | int) for x in a):
            return tuple(mixed(float(x), y) for x, y in zip(a, b, strict=True))
        return a if share < 0.5 else b

    def habits(a: tuple[tuple[int, float], ...], b: tuple[tuple[int, float], ...], rest: float) -> Any:
        first, second = dict(a), dict(b)
        units = dict.fromkeys([*first, *second])
        return tuple((unit, mixed(float(first.get(unit, rest)), second.get(unit, rest))) for unit in units)

    def knobs(a: Domain | Proportions, b: Domain | Proportions) -> dict[str, Any]:
        return {name: mixed(value, getattr(b, name)) for name, value in vars(a).items()}

    made = knobs(one, other)
    made["size"] = one.size if share < 0.5 else other.size
    made["proportions"] = Proportions(**knobs(one.proportions, other.proportions))
    made["gains"], made["rest"] = habits(one.gains, other.gains, 1.0), habits(one.rest, other.rest, 0.0)
    return Domain(**{**made, "name": name})
