"""The seven basic expressions: their order in every array of this project, and the names people give them.

The order is the one of the cross-domain benchmark of Chen et al. (TPAMI 2022), so that label 3 is happiness in every
store, checkpoint, metric and report. Every dataset's codes are mapped here and nowhere else.
"""

from __future__ import annotations

import re

EXPRESSIONS: tuple[str, ...] = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
NUM_EXPRESSIONS = len(EXPRESSIONS)

#: Label of an image whose expression is not known (an unlabelled set).
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

#: Names of labels seen in the wild that are none of the seven: such images are counted and left out, never guessed.
OUTSIDE: frozenset[str] = frozenset(
    {"contempt", "contemptuous", "none", "uncertain", "unknown", "other", "no-face", "noface", "non-face", "nf"}
)

#: The number that some put in front of a class's name, as in ``0_angry`` or ``1. happy``.
_NUMBERED = re.compile(r"^\d+[-.:)]+(?=[a-z])")

_BY_NAME = {name: i for i, name in enumerate(EXPRESSIONS)}
_BY_NAME.update({alias: EXPRESSIONS.index(name) for name, aliases in _ALIASES.items() for alias in aliases})

#: Codes of each dataset that numbers its expressions, as label of this project; codes outside the seven are None.
CODES: dict[str, dict[int, int | None]] = {
    # RAF-DB list_patition_label.txt: 1 surprise 2 fear 3 disgust 4 happiness 5 sadness 6 anger 7 neutral
    "raf-db": {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6},
    # FER2013: 0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral; ExpW uses the same
    "fer2013": {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6},
    "expw": {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6},
    # CK+ *_emotion.txt: 0 neutral 1 anger 2 contempt 3 disgust 4 fear 5 happy 6 sadness 7 surprise
    "ck+": {0: 6, 1: 5, 2: None, 3: 2, 4: 1, 5: 3, 6: 4, 7: 0},
    # AFE: 0 angry 1 disgust 2 fear 3 happy 4 neutral 5 sad 6 surprise
    "afe": {0: 5, 1: 2, 2: 1, 3: 3, 4: 6, 5: 4, 6: 0},
    # AffectNet: 0 neutral 1 happy 2 sad 3 surprise 4 fear 5 disgust 6 anger 7 contempt 8 none 9 uncertain 10 no face
    "affectnet": {0: 6, 1: 3, 2: 4, 3: 0, 4: 1, 5: 2, 6: 5, 7: None, 8: None, 9: None, 10: None},
    # MMI as numbered in the field's lists: 0 anger 1 disgust 2 fear 3 happiness 4 sadness 5 surprise
    "mmi": {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0},
}


def label_of(name: str) -> int | None:
    """Return the label 0..6 that a class name stands for, or None if it is none of the seven.

    Case, surrounding blanks, `_` or a blank for `-`, and a number in front do not matter: ``Happy``, ``HA`` and
    ``3_happiness`` are all 3.
    """
    return _BY_NAME.get(_plain(name))


def is_outside(name: str) -> bool:
    """Tell whether a class name is a known label outside the seven (contempt, none, ...)."""
    return _plain(name) in OUTSIDE


def _plain(name: str) -> str:
    word = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _NUMBERED.sub("", word)
