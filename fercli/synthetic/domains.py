"""Domains of procedural faces: who is photographed, how, and how strong their expressions are.

Each domain is a frozen dataclass of parameters. `dataclasses.replace(LAB, noise=(3, 6))` makes another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fercli.synthetic.anatomy import Proportions

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """A way of photographing a population. A range is (minimum, maximum) of a uniform draw per image unless noted.

    Attributes:
        size: width and height of the image in pixels.
        grey: whether images have one grey channel, repeated three times.
        saturation: factor on colour; 0 is grey. Pale images in a source bring it closer to grey targets.
        supersample: factor by which the image is drawn larger than its final size.
        face_width: width of the head as a fraction of the image's width.
        wander: maximum offset of the face from the middle, as a fraction of the image.
        roll, yaw, pitch: standard deviations of the head's angles in degrees, clipped at 2.2 standard deviations.
        blur: sigma of the lens's Gaussian blur, in pixels of the finished image.
        noise: standard deviation of the sensor's noise in grey levels 0..255.
        contrast, gamma, brightness: factor around mid-grey, exponent (above 1 darkens), grey levels added.
        jpeg: range of the JPEG quality, or None for no compression.
        tint: standard deviation of the light's colour cast, a factor per channel.
        light_side, light_above: maximum share of light from the side; range of the share from above (0 frontal, 1 at 45
            degrees).
        ambient: share of light without direction; the lower, the harder the shadows.
        relief: factor on the height of nose, cheeks and lips in the lighting.
        gloss: strength of the skin's highlights.
        background: range of the background's grey level; `clutter`: the number of blurred shapes and people in it.
        proportions: the population's proportions.
        melanin: range of skin tone, from 0 (light) to 1 (dark).
        line: factor on the width and strength of wrinkles, lids and lashes.
        intensity: strength of an image's expression, where 1 is the prototype.
        au_jitter: standard deviation of the random factor on each action unit.
        au_noise: probability of one additional unrelated action unit, of strength `au_noise_strength`.
        gains: the population's habits, as (unit, factor) pairs; `rest`: (unit, strength) pairs of its faces at rest.
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

#: Small, grey, soft and noisy images of people with other proportions and other facial movements; 256x256 like JAFFE.
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
    """Return the domain at the fraction `share` of the way from `one` (0) to `other` (1), or beyond it (above 1).

    Numbers and ranges are interpolated linearly, and stay at or above zero if both ends do. The population's habits are
    interpolated in the same way. Values that cannot be interpolated (size of the image, grey or colour, jpeg, counts)
    are those of `other` from a half on.
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
