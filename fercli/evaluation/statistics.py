"""Statistics over seeds: mean and deviation, a paired test, Holm's correction, ties with the best.

Conventions, stated once:

- A value is a score (a fraction in [0, 1], or a difference of two), or None where it is not defined. NaN and infinity
  count as None. None is left out, never treated as 0.
- A series is a mapping seed -> value, so two methods are compared seed by seed (same source model, same draws).
- A result that cannot be known is None: a deviation from one seed, or a test of differences that do not vary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fercli.evaluation.metrics import number

#: Deviations of scores below this are rounding (one image in a billion) and count as no variance.
_NO_VARIANCE = 1e-12


class Summary(NamedTuple):
    """Mean and sample standard deviation of `n` defined values; None where they are not defined."""

    mean: float | None
    sd: float | None
    n: int


def summary(values: Iterable[float | None]) -> Summary:
    """Mean m = sum(x) / n and sample standard deviation s = sqrt(sum((x - m)^2) / (n - 1)).

    Source: Bessel's correction; n - 1 because the mean is estimated from the same values.

    Args:
        values: any number of values, None for undefined ones.

    Returns:
        `Summary` with s >= 0. Degenerate: without a defined value, mean and s are None; with one, s is None.
    """
    defined = [value for value in map(number, values) if value is not None]
    n = len(defined)
    if n == 0:
        return Summary(None, None, 0)
    return Summary(statistics.fmean(defined), statistics.stdev(defined) if n > 1 else None, n)


def paired_differences(
    ours: Mapping[Hashable, float | None], reference: Mapping[Hashable, float | None]
) -> dict[Hashable, float]:
    """Differences d[seed] = ours[seed] - reference[seed] over the seeds that both have.

    Args:
        ours, reference: seed -> value or None.

    Returns:
        seed -> difference, in the order of `ours`; empty where no seed is defined on both sides.
    """
    pairs = ((seed, number(value), number(reference.get(seed))) for seed, value in ours.items())
    return {seed: a - b for seed, a, b in pairs if a is not None and b is not None}


def standard_error(differences: Sequence[float]) -> float | None:
    """Standard error of a mean difference, s / sqrt(n), with s the sample deviation of the paired differences.

    Args:
        differences: n paired differences.

    Returns:
        A number > 0. Degenerate: None for n < 2 and where the differences do not vary, because their error cannot
        then be estimated.
    """
    _, sd, n = summary(differences)
    return None if sd is None or sd < _NO_VARIANCE else sd / math.sqrt(n)


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t-test: how often chance alone gives a mean difference at least this large.

    t = m / (s / sqrt(n)) with m and s the mean and sample deviation of the differences; p = 2 P(T > |t|), T following
    Student's distribution with n - 1 degrees of freedom (Student, Biometrika 1908). It assumes normal
    differences and independent seeds. It generalises to other seeds, not to other datasets.

    Args:
        differences: n paired differences, one per seed.

    Returns:
        p in [0, 1]. Degenerate: None for n < 2 and where the differences do not vary (also where all are 0).
    """
    if standard_error(differences) is None:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0).pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for several tests at once (Holm, Scandinavian Journal of Statistics 1979).

    The m defined p values are sorted, p_(1) <= ... <= p_(m). Adjusted p_(i) = max over j <= i of
    min(1, (m - j + 1) p_(j)). Rejecting the adjusted values below a level keeps the probability of any false rejection
    below that level, whatever the dependence between the tests.

    Args:
        ps: p values in [0, 1]; None for a test that could not be made, which does not count towards m.

    Returns:
        The adjusted values, in the order of `ps`, each >= its p and <= 1. None stays None. No p gives an empty list.
    """
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    adjusted: list[float | None] = [None] * len(ps)
    floor = 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = floor
    return adjusted


def within_error(ours: Mapping[Hashable, float | None], best: Mapping[Hashable, float | None]) -> bool | None:
    """Whether a series is within the error of the best one: m <= s / sqrt(n) of the differences best - ours.

    The error is that of the seed-by-seed difference, not that of either mean (the one-standard-error rule of Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3, applied to paired differences).

    Args:
        ours, best: seed -> value or None; seeds that only one has are left out.

    Returns:
        True or False. Degenerate: True where all pairs are equal (at least two). None with fewer than two pairs and
        where the differences are constant but not 0.
    """
    differences = list(paired_differences(best, ours).values())
    mean, sd, _ = summary(differences)
    if sd is None:
        return None
    error = standard_error(differences)
    if error is None:
        return True if abs(mean) < _NO_VARIANCE else None
    return mean <= error
