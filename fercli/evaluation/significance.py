"""Whether chance alone makes one of two models so much better on the same faces.

Faces of one subject are alike. Where every face has a subject and there are at least two, models are compared subject
by subject (`sign_flip`). Else McNemar's test takes the faces as independent, and finds differences too often where they
are not (docs/statistics.md says how often). Both speak of other subjects or faces of this kind, not of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fercli.evaluation.subjects import subjects_of

#: Below this many discordant faces McNemar's test is exact.
EXACT_BELOW = 25
#: With fewer subjects the sign-flip test's p cannot lie below 0.05.
FEW_SUBJECTS = 6


class McNemar(NamedTuple):
    """The test's p, and which form it took: ``exact`` or ``chi-square``."""

    p: float
    form: str


def mcnemar(fixed: int, broken: int) -> McNemar:
    """Two-sided p that two classifiers with one error rate differ so much on the same, independent faces.

    Of the n = fixed + broken faces that only one of the two gets right, either wins with probability 1/2 (McNemar,
    Psychometrika 1947). Below `EXACT_BELOW` of them p is that of the binomial test, else P(X > (|fixed - broken| -
    1)^2 / n), X chi-square with one degree of freedom (continuity correction of Edwards, Psychometrika 1948; a
    difference of less than 1 counts as none).

    Args:
        fixed, broken: faces that only the other, and only the reference, gets right; >= 0.

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

    The statistic is the sum of the differences, which is the difference of right answers over all faces: faces weigh
    alike, as in the accuracy. Were the two models equal, each subject's difference could as well have the other sign.
    p is the share of all 2^S choices of signs whose sum lies at least as far from 0. It is exact for any number of
    subjects and any correlation within one: differences are integers, so that the sums' distribution is built up one
    subject after the other instead of choice by choice (Pagano & Tritchler, JASA 1983), in time S x sum |d|.

    Args:
        differences: integers [S], a subject's right answers by one model less those by the other.

    Returns:
        p in [2^(1 - k), 1] with k the subjects whose difference is not 0; 1 where there is none.
    """
    sizes = np.abs(np.asarray(differences, np.int64))
    sizes, total, seen = np.sort(sizes[sizes > 0]), int(sizes.sum()), abs(int(np.sum(differences)))
    chances, reach = np.zeros(total + 1), 0  # of sum s, those with a plus: the signed sum is 2 s - total
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
        reference, other: which faces each answers rightly, bool [N].
        subjects: who is on each face, N strings, empty where not known; None: not known of any.

    Returns:
        ``name``: "sign-flip" or "mcnemar"; ``form``: "exact" or "chi-square"; ``p``, None without a face; ``by``:
        "subjects" or "images", and ``units``, how many of those; ``subjects``: how many there are, None where not
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
    """What a test of `compare_right` is, and what it takes for independent: ``sign-flip test over 10 subjects``."""
    if test["name"] == "sign-flip":
        least = f" (p is {2.0 ** (1 - test['units']):.3g} at least)" if test["units"] < FEW_SUBJECTS else ""
        return f"sign-flip test over {test['units']} subjects{least}"
    of = "one subject’s faces" if test["subjects"] == 1 else "faces"
    return f"McNemar’s {'exact ' if test['form'] == 'exact' else ''}test, {of} taken as independent"
