"""The seven basic expressions: their order in every array of this project, and the names people give them.

The order is the one of the cross-domain benchmark of Chen et al. (TPAMI 2022), so that label 3 is happiness in every
store, checkpoint, metric and report. Every dataset's codes are mapped here and nowhere else.
"""

from __future__ import annotations

EXPRESSIONS: tuple[str, ...] = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
NUM_EXPRESSIONS = len(EXPRESSIONS)

#: Label of an image whose expression is not known (an unlabelled set).
UNLABELLED = -1

_ALIASES: dict[str, tuple[str, ...]] = {
    "surprise": ("surprised", "su", "sur"),
    "fear": ("fearful", "afraid", "fe", "scared"),
    "disgust": ("disgusted", "di"),
    "happiness": ("happy", "joy", "ha"),
    "sadness": ("sad", "sa"),
    "anger": ("angry", "an"),
    "neutral": ("ne", "neutrality", "calm"),
}

#: Names of labels seen in the wild that are none of the seven: such images are counted and left out, never guessed.
OUTSIDE: frozenset[str] = frozenset({"contempt", "none", "uncertain", "no-face", "unknown", "nf"})

_BY_NAME = {name: i for i, name in enumerate(EXPRESSIONS)}
_BY_NAME.update({alias: EXPRESSIONS.index(name) for name, aliases in _ALIASES.items() for alias in aliases})

#: Codes of each dataset that numbers its expressions, as label of this project; codes outside the seven are None.
CODES: dict[str, dict[int, int | None]] = {
    # RAF-DB list_patition_label.txt: 1 surprise 2 fear 3 disgust 4 happiness 5 sadness 6 anger 7 neutral
    "raf-db": {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6},
    # FER2013: 0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral; ExpW uses the same
    "fer2013": {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6},
    "expw": {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6},
}


def label_of(name: str) -> int | None:
    """Return the label 0..6 that a class name stands for, or None if it is none of the seven.

    Case, surrounding blanks and `_` for `-` do not matter: ``Happy``, ``happiness`` and ``HA`` are all 3.
    """
    return _BY_NAME.get(name.strip().lower().replace("_", "-"))


def is_outside(name: str) -> bool:
    """Tell whether a class name is a known label outside the seven (contempt, none, ...)."""
    return name.strip().lower().replace("_", "-") in OUTSIDE
