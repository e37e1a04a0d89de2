"""How uncertain a score is for the choice of faces alone: bootstrap intervals of accuracy and macro F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fercli.evaluation.metrics import confusion
from fercli.expressions import NUM_EXPRESSIONS

#: Ends of the interval, as quantiles of the resampled scores: 95% lie between them.
QUANTILES = (0.025, 0.975)

#: Draws held in memory at once (8 bytes each).
_CHUNK = 2_000_000


def bootstrap(
    labels: ArrayLike, answers: ArrayLike, subjects: Sequence[str] | None, resamples: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """95% percentile bootstrap of accuracy and macro F1 (Efron & Tibshirani 1993, ch. 13).

    Pictures of one person are alike, so whole subjects are drawn where every face has one and there are at least two
    (the cluster bootstrap of Davison & Hinkley 1997, sec. 3.8); else images, as if they were independent, which gives
    an interval that is too narrow where they are not. Each resample draws as many units as there are, with replacement,
    and is scored as `fercli.evaluation.metrics.scores` does: macro F1 leaves out the classes the resample lacks.

    Args:
        labels: integers [N] in 0..6; the caller leaves unlabelled faces out.
        answers: integers [N] in 0..6.
        subjects: who is on each face, N strings, empty where not known; None: not known of any.
        resamples: how many, >= 1.
        seed: of the draws: the same faces in the same order and seed give the same interval.

    Returns:
        ``accuracy`` and ``macro_f1``, each [low, high] in 0..1, ``by`` ("images" or "subjects"), ``units`` (how many of
        those) and ``resamples``. None without faces. With one face, or where all are right, both ends are the score
        itself: resampling cannot show what it has not seen; `metrics.accuracy_interval` is wider there.

    Raises:
        ValueError: lengths differ, or a label or answer lies outside 0..6.
    """
    whole = confusion(labels, answers)  # also checks both
    count = int(whole.sum())
    if count == 0:
        return None
    matrices, by = _by_subject(np.asarray(labels), np.asarray(answers), subjects), "subjects"
    if matrices is None:
        by, units, chances, matrices = "images", count, whole.ravel() / count, np.eye(whole.size, dtype=np.int64)
    else:
        units = len(matrices)
        chances = np.full(units, 1 / units)
    generator = np.random.default_rng(seed)
    most = max(1, _CHUNK // len(chances))
    parts = []
    for start in range(0, resamples, most):
        # Images of one label and answer are interchangeable: how many of a kind are drawn is all that counts.
        drawn = generator.multinomial(units, chances, size=min(most, resamples - start))
        # In floats the product is BLAS's; counts below 2**53 stay exact.
        parts.append(drawn.astype(np.float64) @ matrices.astype(np.float64))
    accuracy, macro_f1 = _scores(np.concatenate(parts).reshape(-1, *whole.shape))
    return {
        "accuracy": np.quantile(accuracy, QUANTILES).tolist(),
        "macro_f1": np.quantile(macro_f1, QUANTILES).tolist(),
        "by": by,
        "units": units,
        "resamples": resamples,
    }


def _by_subject(labels: np.ndarray, answers: np.ndarray, subjects: Sequence[str] | None) -> np.ndarray | None:
    """A confusion matrix a subject, int64 [S, 49]; None where faces cannot be told apart by subject."""
    if subjects is None:
        return None
    if len(subjects) != len(labels):
        raise ValueError(f"{len(labels)} labels but {len(subjects)} subjects")
    if not all(subjects):
        return None
    names, owner = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    cells = NUM_EXPRESSIONS**2
    place = owner.ravel() * cells + labels.astype(np.int64) * NUM_EXPRESSIONS + answers.astype(np.int64)
    return np.bincount(place, minlength=len(names) * cells).reshape(len(names), cells)


def _scores(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and macro F1 of confusion matrices [R, 7, 7], none of them empty: each [R]."""
    correct = np.diagonal(matrices, axis1=1, axis2=2)
    support, predicted = matrices.sum(2), matrices.sum(1)
    there = support > 0
    f1 = np.where(there, 2 * correct / np.where(there, support + predicted, 1), 0.0)
    return correct.sum(1) / support.sum(1), f1.sum(1) / there.sum(1)
