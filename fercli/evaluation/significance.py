"""Whether chance alone explains the difference between two models on the same faces.

Faces of one subject are alike. Where every face has a subject and there are at least two subjects, models are compared
subject by subject (`sign_flip`). Otherwise McNemar's test takes the faces as independent. It finds differences too
often where they are not (docs/statistics.md states how often). Both tests generalise to other subjects or faces of this
kind, not to other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fercli.evaluation.subjects import subjects_of

#: McNemar's test is exact below this number of discordant faces.
EXACT_BELOW = 25
#: With fewer subjects the sign-flip test's p cannot be below 0.05.
FEW_SUBJECTS = 6


class McNemar(NamedTuple):
    """The test's p and its form: ``exact`` or ``chi-square``."""

    p: float
    form: str


def mcnemar(fixed: int, broken: int) -> McNemar:
    """Two-sided p that two classifiers with the same error rate differ this much on the same, independent faces.

    On each of the n = fixed + broken faces that only one of the two gets right, either is the one with probability 1/2
    (McNemar, Psychometrika 1947). For n below `EXACT_BELOW`, p is that of the binomial test. Otherwise p is P(X >
    (|fixed - broken| - 1)^2 / n), with X chi-square with one degree of freedom (continuity correction of Edwards,
    Psychometrika 1948; a difference of less than 1 counts as none).

    Args:
        fixed, broken: faces that only the other model gets right, and that only the reference gets right; >= 0.

    Returns:
        p in [0, 1]; 1 where both are 0 or equal.
    """
    from scipy.stats import binomtest, chi2

    n = fixed + broken
    if n < EXACT_BELOW:
        return McNemar(float(binomtest(fixed, n, 0.5).pvalue) if n else 1.0, "exact")
    return McNemar(float(chi2.sf(max(abs(fixed - broken) - 1, 0) ** 2 / n, 1)), "chi-square")


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided p of the sign-flip test over subjects (Fisher, The Design of Experiments, 1935, sec. 21).

    The statistic is the sum of the differences, which is the difference in correct predictions over all faces. All
    faces have the same weight, as in the accuracy. If the two models were equal, each subject's difference could just
    as well have the other sign. p is the share of all 2^S choices of signs whose sum is at least as far from 0. It is
    exact for any number of subjects and any correlation within a subject. Differences are integers, so the distribution
    of the sums is built up subject by subject instead of choice by choice (Pagano & Tritchler, JASA 1983), in time S x
    sum |d|.

    Args:
        differences: integers [S], per subject the correct predictions of one model minus those of the other.

    Returns:
        p in [2^(1 - k), 1], with k the number of subjects whose difference is not 0; 1 where there are none.
    """
    sizes = np.abs(np.asarray(differences, np.int64))
    sizes, total, seen = np.sort(sizes[sizes > 0]), int(sizes.sum()), abs(int(np.sum(differences)))
    chances, reach = np.zeros(total + 1), 0  # index s: sum of sizes with a plus; signed sum: 2 s - total
    chances[0] = 1.0
    for size in sizes.tolist():
        flipped = 0.5 * chances[: reach + 1]
        chances[: reach + 1] = flipped
        chances[size : reach + size + 1] += flipped
        reach += size
    far = np.abs(2 * np.arange(total + 1) - total) >= seen
    return min(1.0, float(chances[far].sum()))


def compare_right(reference: ArrayLike, other: ArrayLike, subjects: Sequence[str] | None) -> dict[str, Any]:
    """Test two models on the same N labelled faces.

    Args:
        reference, other: which faces each model predicts correctly, bool [N].
        subjects: the subject of each face, N strings, empty where not known; None: not known for any face.

    Returns:
        ``name``: "sign-flip" or "mcnemar"; ``form``: "exact" or "chi-square"; ``p``, None without faces; ``by``:
        "subjects" or "images", and ``units``, the number of those; ``subjects``: the number of subjects, None where not
        known.
    """
    before, after = np.asarray(reference, bool), np.asarray(other, bool)
    known = subjects_of(subjects, len(before))
    differences = after.astype(np.int64) - before
    if known.several:
        p, form = sign_flip(known.sums(differences)), "exact"
        about = {"name": "sign-flip", "by": "subjects", "units": known.count}
    else:
        p, form = mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
        about = {"name": "mcnemar", "by": "images", "units": len(before)}
    return {**about, "form": form, "p": p if len(before) else None, "subjects": known.count}


def significance_words(test: Mapping[str, Any]) -> str:
    """Name and units of a test from `compare_right`, in words: ``sign-flip test over 10 subjects``."""
    if test["name"] == "sign-flip":
        least = f" (p is at least {2.0 ** (1 - test['units']):.3g})" if test["units"] < FEW_SUBJECTS else ""
        return f"sign-flip test over {test['units']} subjects{least}"
    of = "one subject’s faces" if test["subjects"] == 1 else "faces"
    return f"McNemar’s {'exact ' if test['form'] == 'exact' else ''}test, {of} taken as independent"
