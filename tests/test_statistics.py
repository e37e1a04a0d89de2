"""Statistics over seeds: against plain loops, against cases computed by hand, and where nothing is defined."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import t as student

from fercli.evaluation.statistics import holm, paired_differences, paired_t_test, standard_error, summary, within_error

_DRAW = random.Random(0)
SERIES = [[_DRAW.uniform(0.3, 0.9) for _ in range(n)] for n in (2, 3, 5, 8, 20)]


@pytest.mark.parametrize("values", SERIES, ids=len)
def test_summary_and_test_equal_plain_loops(values):
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert summary(values) == pytest.approx((mean, sd, len(values)))
    differences = [value - 0.55 for value in values]
    error = sd / math.sqrt(len(values))
    assert standard_error(differences) == pytest.approx(error)
    two_sided = 2 * student.sf(abs(mean - 0.55) / error, len(values) - 1)
    assert paired_t_test(differences) == pytest.approx(two_sided)
    assert paired_t_test([-d for d in differences]) == pytest.approx(two_sided)


def test_a_case_computed_by_hand():
    # 1, 2, 3: mean 2, squares 1 + 0 + 1, sd 1, error 1/sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom, for which
    # P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)) = 1/2 - sqrt(12/14) / 2.
    assert summary([1.0, 2.0, 3.0]) == (2.0, 1.0, 3)
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert paired_t_test([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14))
    # two seeds, one degree of freedom (Cauchy): t = 3, p = 1 - 2 atan(3) / pi
    assert paired_t_test([1.0, 2.0]) == pytest.approx(1 - 2 * math.atan(3) / math.pi)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None, 0)),
        ([None, math.nan], (None, None, 0)),
        ([0.4], (0.4, None, 1)),
        ([0, 0], (0, 0, 2)),
        ([0.5, None, math.nan, 0.7, math.inf], (0.6, math.sqrt(0.02), 2)),
    ],
)
def test_summary_uses_the_defined_values(values, expected):
    assert summary(values) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[], [0.1], [0.0, 0.0, 0.0], [0.1, 0.1], [0.95 - 0.9, 0.85 - 0.8, 0.75 - 0.7]])
def test_no_test_and_no_error_without_variance(differences):
    assert paired_t_test(differences) is None and standard_error(differences) is None


def test_only_common_seeds_are_paired():
    ours = {0: 0.9, 1: 0.8, 2: None, 3: 0.7, "4": 0.6}
    reference = {3: 0.5, 0: 0.6, 2: 0.1, 4: 0.1, 1: math.nan}
    assert paired_differences(ours, reference) == pytest.approx({0: 0.3, 3: 0.2})
    assert paired_differences(ours, {}) == {} and paired_differences({}, reference) == {}


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.04; the last may not fall below 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]  # None is not a test: two remain
    assert holm([0.03]) == [0.03] and holm([]) == [] and holm([None]) == [None]
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])


def test_holm_is_the_plain_definition():
    for seed in range(20):
        draw = random.Random(seed)
        ps = [draw.random() ** 3 for _ in range(draw.randint(1, 12))]
        for i, p in enumerate(ps):
            smaller = sorted([q for j, q in enumerate(ps) if q < p or (q == p and j <= i)])
            expected = max(min(1.0, (len(ps) - j) * q) for j, q in enumerate(smaller))
            assert holm(ps)[i] == pytest.approx(expected) and holm(ps)[i] >= p


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({0: 0.90, 1: 0.80, 2: 0.70}, True),  # the best itself
        ({0: 0.86, 1: 0.82, 2: 0.69}, True),  # 4, -2, 1 points: mean 1, sd 3, error 1.73
        ({0: 0.86, 1: 0.78, 2: 0.67}, False),  # 4, 2, 3 points: mean 3, sd 1, error 0.58
        ({0: 0.88, 1: 0.82, 2: 0.72}, True),  # above the best on the seeds they share
        ({0: 0.86, 1: 0.82, 2: None}, True),  # 4, -2: mean 1, error 3
        ({0: 0.80, 1: 0.70, 2: 0.60}, None),  # always 10 points: no estimate of the error
        ({0: 0.90}, None),
        ({7: 0.90, 8: 0.90}, None),
        ({}, None),
    ],
)
def test_within_the_error_of_the_best(ours, expected):
    assert within_error(ours, {0: 0.90, 1: 0.80, 2: 0.70}) is expected
