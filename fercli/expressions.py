"""The seven basic expressions: their order in every array of this project, and their common names.

The order is that of the cross-domain benchmark of Chen et al. (TPAMI 2022), so that label 3 is happiness in every
store, checkpoint, metric and report. A dataset's own label codes are in its module in `fercli.datasets`.
"""

from __future__ import annotations

import re

EXPRESSIONS: tuple[str, ...] = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
NUM_EXPRESSIONS = len(EXPRESSIONS)

#: Label of an image whose expression is unknown (an unlabelled set).
UNLABELLED = -1

_ALIASES: dict[str, tuple[str, ...]] = {
    "surprise": ("surprised", "suprise", "su", "sur"),
    "fear": ("fearful", "afraid", "scared", "fe", "fea"),
    "disgust": ("disgusted", "di", "dis"),
    "happiness": ("happy", "joy", "ha", "hap"),
    "sadness": ("sad", "sa"),
    "anger": ("angry", "an", "ang"),
    "neutral": ("ne", "neu", "neutrality", "calm"),
}

#: Label names found in datasets that are outside the seven: such images are counted and left out, never guessed.
OUTSIDE: frozenset[str] = frozenset(
    {"contempt", "contemptuous", "none", "uncertain", "unknown", "other", "no-face", "noface", "non-face", "nf"}
)

#: A number before a class name, as in ``0_angry`` or ``1. happy``.
_NUMBERED = re.compile(r"^\d+[-.:)]+(?=[a-z])")

_BY_NAME = {name: i for i, name in enumerate(EXPRESSIONS)}
_BY_NAME.update({alias: EXPRESSIONS.index(name) for name, aliases in _ALIASES.items() for alias in aliases})


def label_of(name: str) -> int | None:
    """Return the label 0..6 of a class name, or None if it is none of the seven.

    Case, surrounding blanks, `_` or a blank instead of `-`, and a leading number do not matter: ``Happy``, ``HA`` and
    ``3_happiness`` are all 3.
    """
    return _BY_NAME.get(_plain(name))


def is_outside(name: str) -> bool:
    """Return whether a class name is a known label outside the seven (contempt, none, ...)."""
    return _plain(name) in OUTSIDE


def _plain(name: str) -> str:
    word = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _NUMBERED.sub("", word)
