"""Scores of a classifier, all from its confusion matrix. Pure functions: integers in, float64 or None out.

Libraries differ in these conventions, so they are stated once, here:

- A confusion matrix is int64 [C, C], row = true class, column = predicted class. Every entry counts images.
- Scores are fractions in [0, 1]; higher is better. An undefined score is ``None``, never 0 or NaN: recall and F1 of a
  class without images, precision of a class that was never predicted, every score of an empty matrix.
- F1 of a class that has images but was never predicted is 0 (none was found), as in scikit-learn.
- Macro F1 and mean recall are plain means over the classes that have images. Absent classes do not count as 0. In
  scikit-learn, that is ``labels=`` the classes present in the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fercli.expressions import EXPRESSIONS, NUM_EXPRESSIONS


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int = NUM_EXPRESSIONS) -> np.ndarray:
    """Count images by true and by predicted class.

    Args:
        labels: integers [N] in 0..classes-1, the truth.
        predictions: integers [N] in 0..classes-1.
        classes: number of classes C.

    Returns:
        int64 [C, C], row = true, column = predicted; its sum is N. N = 0 gives a matrix of zeros.

    Raises:
        ValueError: the lengths differ, a value is not an integer, or a value is outside 0..classes-1. An unlabelled
            image (-1) has no score; the caller leaves it out and reports how many were left out.
    """
    truth, answer = _codes(labels, "labels", classes), _codes(predictions, "predictions", classes)
    if len(truth) != len(answer):
        raise ValueError(f"{len(truth)} labels but {len(answer)} predictions")
    counts = np.bincount(truth * classes + answer, minlength=classes * classes)
    return counts.astype(np.int64).reshape(classes, classes)


def scores(counts: np.ndarray, expressions: Sequence[str] = EXPRESSIONS) -> dict[str, Any]:
    """Derive every score the project reports from a confusion matrix.

    Args:
        counts: from `confusion`: int64 [C, C] >= 0, row = true, column = predicted.
        expressions: names of the C classes, in the matrix's order.

    Returns:
        A document of plain Python values, ready for JSON (fractions in [0, 1] as float, ``None`` = not defined):
        ``accuracy``: correct over all images; None for an empty matrix.
        ``macro_f1``: mean F1 of the classes with images; None for an empty matrix.
        ``mean_recall``: mean recall of the classes with images (average per-class accuracy); None for an empty matrix.
        ``per_expression``: a list of C dicts: ``expression`` (name), ``precision`` (None: never predicted), ``recall``
        (None: no images), ``f1`` (None: no images; 0: images, but none found), ``support`` (int, images).
    """
    correct, support, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    rows = []
    for i, name in enumerate(expressions):
        recall = _ratio(correct[i], support[i])
        rows.append(
            {
                "expression": name,
                "precision": _ratio(correct[i], predicted[i]),
                "recall": recall,
                # 2PR / (P + R) from counts; also defined where precision is not.
                "f1": None if recall is None else _ratio(2 * correct[i], support[i] + predicted[i]),
                "support": int(support[i]),
            }
        )
    return {
        "accuracy": _ratio(correct.sum(), support.sum()),
        "macro_f1": _mean([row["f1"] for row in rows]),
        "mean_recall": _mean([row["recall"] for row in rows]),
        "per_expression": rows,
    }


def accuracy_interval(correct: int, total: int) -> tuple[float, float] | None:
    """Wilson's 95% interval of an accuracy (Wilson, JASA 1927), for the uncertainty from the number of images alone.

    It takes the images as independent. Several images of one person are not, so the true interval is wider.

    Args:
        correct: images predicted correctly, 0..total.
        total: images scored.

    Returns:
        (low, high), fractions in [0, 1]; None where there are no images.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}")
    if total == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def number(value: Any) -> float | None:
    """Return a finite float, or None for everything that is not a score (None, NaN, infinity, text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _codes(values: ArrayLike, what: str, classes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{what} must be a list of integers, got an array of shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{what} must be integers, got {array.dtype}")
    array = array.astype(np.int64)
    if array.min() < 0 or array.max() >= classes:
        raise ValueError(f"{what} must be in 0..{classes - 1}, got {array.min()}..{array.max()}")
    return array


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(np.asarray(defined, np.float64))) if defined else None
