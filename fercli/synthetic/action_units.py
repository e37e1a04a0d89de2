"""Action units: which facial muscles each of the seven expressions moves, and how much in one image.

Based on Ekman and Friesen, Facial Action Coding System (1978). The prototypes follow their EMFACS. Strengths are 0..1.
"""

from __future__ import annotations

import numpy as np

from fercli.synthetic.anatomy import Units
from fercli.synthetic.domains import Domain

#: The muscle actions of each expression, in the order of `fercli.expressions.EXPRESSIONS`. The variants of an
#: expression are equally likely. 1 inner brow up, 2 outer brow up, 4 brow down, 5 upper lid up, 6 cheek up, 7 lids
#: tight, 9 nose wrinkle, 10 upper lip up, 12 corners up, 15 corners down, 17 chin up, 20 lips stretched, 23 lips tight,
#: 24 lips pressed, 25 lips part, 26 jaw drop, 43 lids drooping.
PROTOTYPES: tuple[tuple[Units, ...], ...] = (
    ({1: 1, 2: 1, 5: 0.9, 25: 0.7, 26: 1}, {1: 1, 2: 1, 5: 1, 25: 0.5, 26: 0.6}),
    ({1: 1, 2: 0.4, 4: 0.7, 5: 1, 20: 0.9, 25: 0.8, 26: 0.3}, {1: 0.9, 2: 0.4, 4: 0.8, 5: 1, 7: 0.3, 20: 1, 25: 0.9}),
    ({9: 1, 10: 0.8, 4: 0.5, 7: 0.6, 15: 0.5, 17: 0.6}, {9: 1, 10: 1, 4: 0.5, 6: 0.4, 7: 0.6, 25: 0.5}),
    ({6: 0.8, 12: 1, 25: 0.9}, {6: 0.7, 12: 0.9}, {6: 0.9, 12: 1, 25: 0.8, 26: 0.4}),
    ({1: 1, 4: 0.5, 15: 1, 17: 0.7, 43: 0.5}, {1: 1, 4: 0.6, 15: 0.9, 43: 0.7}),
    ({4: 1, 5: 0.4, 7: 0.6, 17: 0.3, 23: 0.8, 24: 0.7}, {4: 1, 5: 0.6, 7: 0.5, 10: 0.4, 23: 0.4, 25: 0.9}),
    ({},),
)

#: Units that may appear without an expression: 25 and 26 as in talking, 43 as at the start of a blink.
STRAY_UNITS = (1, 2, 4, 5, 6, 7, 10, 12, 15, 17, 20, 24, 25, 26, 43)
ALL_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 24, 25, 26, 43)


def draw_units(expression: int, rng: np.random.Generator, domain: Domain) -> Units:
    """Return the strength 0..1.2 of all action units for one image of an expression in a domain."""
    intensity, gains, rest = rng.uniform(*domain.intensity), dict(domain.gains), dict(domain.rest)
    variants = PROTOTYPES[expression]
    wanted = variants[int(rng.integers(len(variants)))]
    wobble = np.clip(rng.normal(1, domain.au_jitter, len(ALL_UNITS)), 0.3, 1.7)
    happens, which, how = rng.random(), int(rng.integers(len(STRAY_UNITS))), rng.uniform(*domain.au_noise_strength)
    units = {}
    for unit, factor in zip(ALL_UNITS, wobble, strict=True):
        strength = wanted.get(unit, 0) * intensity * factor * gains.get(unit, 1)
        units[unit] = float(np.clip(max(strength, rest.get(unit, 0) * factor), 0, 1.2))
    if happens < domain.au_noise:
        unit = STRAY_UNITS[which]
        units[unit] = max(units[unit], float(how))
    return units
