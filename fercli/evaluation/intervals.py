"""95 % intervals of accuracy and macro F1, for the uncertainty that comes from the choice of faces alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fercli.evaluation.metrics import confusion
from fercli.evaluation.subjects import Subjects, subjects_of
from fercli.expressions import NUM_EXPRESSIONS

#: Ends of the interval, as quantiles: 95 % are between them.
QUANTILES = (0.025, 0.975)

#: Draws held in memory at once (8 bytes each).
_CHUNK = 2_000_000

#: A standard error below this is rounding (one image in a billion).
_ROUNDING = 1e-12


def score_intervals(
    labels: ArrayLike, answers: ArrayLike, subjects: Sequence[str] | None, resamples: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """95 % intervals of accuracy and macro F1, each scored as `fercli.evaluation.metrics.scores` does.

    Faces of one subject are alike. Where every face has a subject and there are at least two subjects, subjects are the
    units. The interval is then Student's t on the logit scale, with the jackknife's standard error (`jackknife`).
    Otherwise images are the units, taken as independent, and the interval is the percentile bootstrap (`_bootstrap`).
    It is too narrow where images are not independent. docs/statistics.md states how often each interval covers the true
    value.

    Args:
        labels: integers [N] in 0..6; the caller leaves unlabelled faces out.
        answers: integers [N] in 0..6.
        subjects: the subject of each face, N strings, empty where not known; None: not known for any face.
        resamples: number of bootstrap resamples, >= 1.
        seed: of the bootstrap's draws. The same faces in the same order with the same seed give the same interval.

    Returns:
        ``accuracy`` and ``macro_f1``, each [low, high] in 0..1; ``method`` ("jackknife t" or "bootstrap"); ``by``
        ("subjects" or "images") and ``units``, the number of those; ``subjects``, the number of subjects, None where
        not known; ``resamples``, None for the jackknife. None without faces. With one image, or where all units have
        the same score (all correct), both ends are the score itself, because the sample shows no variation.
        `metrics.accuracy_interval` is wider there.

    Raises:
        ValueError: lengths differ, or a label or prediction is outside 0..6.
    """
    whole = confusion(labels, answers)  # also validates both
    count = int(whole.sum())
    if count == 0:
        return None
    known = subjects_of(subjects, count)
    if known.several:
        ends = jackknife(_matrices(np.asarray(labels), np.asarray(answers), known))
        about = {"method": "jackknife t", "by": "subjects", "units": known.count}
    else:
        ends = _bootstrap(whole, resamples, seed)
        about = {"method": "bootstrap", "by": "images", "units": count}
    drawn = None if known.several else resamples
    accuracy, macro_f1 = (end.tolist() for end in ends)
    return {"accuracy": accuracy, "macro_f1": macro_f1, **about, "subjects": known.count, "resamples": drawn}


def interval_words(interval: Mapping[str, Any]) -> str:
    """Method and units of an interval from `score_intervals`, in words: ``jackknife t over 10 subjects``."""
    if interval["by"] == "subjects":
        return f"{interval['method']} over {interval['units']} subjects"
    of = " of one subject" if interval["subjects"] == 1 else ""
    return f"{interval['method']} over {interval['units']} images{of}, taken as independent"


def jackknife(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's t interval on the logit scale over S >= 2 subjects' confusion matrices, int64 [..., S, 7, 7].

    The standard error is that of the delete-one jackknife: s^2 = (S - 1) / S sum (x_i - mean x)^2, with x_i the score
    without subject i (Efron & Tibshirani 1993, ch. 11). It accounts for unequal numbers of faces. The interval is x +-
    t s / (x (1 - x)) on the scale log(x / (1 - x)) (delta method), so its ends are in 0..1 and it is skewed as the
    score is. t is the quantile at G - 1 degrees of freedom, at least 1, with G = (sum n_i)^2 / sum n_i^2, where n_i is
    the number of faces of subject i (Kish's effective sample size, Survey Sampling, 1965). Where a few subjects have
    most faces, Student's t at S - 1 is too narrow (Carter, Schnepel & Steigerwald, Review of Economics and Statistics
    2017; G is their effective number of clusters for contributions in proportion to n_i). With few clusters the
    percentile bootstrap is too narrow as well (Cameron, Gelbach & Miller, Review of Economics and Statistics 2008).

    Returns:
        [low, high] of accuracy and of macro F1, each [..., 2]. Degenerate: both ends are the score where leaving out a
        subject changes nothing.
    """
    from scipy.stats import t as student

    count, whole = matrices.shape[-3], matrices.sum(-3)
    faces = matrices.sum((-1, -2)).astype(np.float64)
    effective = faces.sum(-1) ** 2 / (faces**2).sum(-1)
    quantile = student.ppf(QUANTILES[1], np.maximum(effective - 1, 1))
    found = []
    for score, without in zip(_scores(whole), _scores(whole[..., None, :, :] - matrices), strict=True):
        error = without.std(-1) * math.sqrt(count - 1)
        varies = (score > 0) & (score < 1) & (error > _ROUNDING)
        inside = np.where(varies, score, 0.5)
        middle, reach = np.log(inside / (1 - inside)), quantile * error / (inside * (1 - inside))
        # The inverse logit, in a form that cannot overflow.
        ends = 0.5 * (1 + np.tanh(np.stack([middle - reach, middle + reach], -1) / 2))
        found.append(np.where(varies[..., None], ends, score[..., None]))
    return found[0], found[1]


def _bootstrap(whole: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """The percentile bootstrap over the images of a confusion matrix [7, 7] (Efron & Tibshirani 1993, ch. 13).

    Each resample draws the same number of images, with replacement. Its macro F1 leaves out classes without images.

    Returns:
        [low, high] of accuracy and of macro F1.
    """
    count = int(whole.sum())
    generator = np.random.default_rng(seed)
    most = max(1, _CHUNK // whole.size)
    parts = []
    for start in range(0, resamples, most):
        # Images with the same label and prediction are interchangeable, so it is enough to draw their counts.
        parts.append(generator.multinomial(count, whole.ravel() / count, size=min(most, resamples - start)))
    drawn = np.concatenate(parts).reshape(-1, *whole.shape)
    return [np.quantile(score, QUANTILES) for score in _scores(drawn)]


def _matrices(labels: np.ndarray, answers: np.ndarray, subjects: Subjects) -> np.ndarray:
    """One confusion matrix per subject, int64 [S, 7, 7]."""
    place = (subjects.owner * NUM_EXPRESSIONS + labels) * NUM_EXPRESSIONS + answers
    shape = (subjects.count, NUM_EXPRESSIONS, NUM_EXPRESSIONS)
    return np.bincount(place, minlength=math.prod(shape)).reshape(shape)


def _scores(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and macro F1, each [...], of non-empty confusion matrices [..., 7, 7]."""
    correct = np.diagonal(matrices, axis1=-2, axis2=-1)
    support, predicted = matrices.sum(-1), matrices.sum(-2)
    there = support > 0
    f1 = np.where(there, 2 * correct / np.where(there, support + predicted, 1), 0.0)
    return correct.sum(-1) / support.sum(-1), f1.sum(-1) / there.sum(-1)
