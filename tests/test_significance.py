"""Tests on the same faces: by hand, against plain loops, and their error rate between equal models."""

from __future__ import annotations

import itertools
import math
import time
from functools import cache

import numpy as np
import pytest
from simulated import UNEQUAL, right_answers

from fercli.evaluation.significance import EXACT_BELOW, compare_right, mcnemar, sign_flip, significance_words

#: Number of simulated comparisons: the standard error of an error rate of 5 % is then 0.25 points.
SAMPLES = 8000

# McNemar's


def plain_mcnemar(fixed: int, broken: int) -> float:
    """The definition, written out: a sum of binomial probabilities, or the tail of chi-square by the error function."""
    n = fixed + broken
    if n < EXACT_BELOW:
        tail = sum(math.comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n
        return min(1.0, 2 * tail)
    statistic = max(abs(fixed - broken) - 1, 0) ** 2 / n
    return math.erfc(math.sqrt(statistic / 2))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 24, 25, 26, 60, 400])
def test_mcnemar_is_as_defined(n: int) -> None:
    for fixed in {*range(0, n + 1, max(1, n // 10)), n}:
        p, form = mcnemar(fixed, n - fixed)
        assert form == ("exact" if n < 25 else "chi-square")
        assert p == pytest.approx(plain_mcnemar(fixed, n - fixed), abs=1e-12)


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 0.0625),  # 2 / 2^5
        (6, 1, 0.125),  # 2 * (1 + 7) / 2^7
        (8, 1, 0.0390625),  # 2 * (1 + 9) / 2^9
        (20, 20, 1.0),
        (32, 17, 0.0455003),  # (15 - 1)^2 / 49 = 4, the square of two standard deviations
    ],
)
def test_mcnemar_by_hand(fixed: int, broken: int, p: float) -> None:
    assert mcnemar(fixed, broken).p == pytest.approx(p, rel=1e-4)


# Sign-flip


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], 1),
        ([0, 0, 0], 1),
        ([3], 1),  # both signs are equally far from 0
        ([2, 2], 2 / 4),
        ([1, 1, 1, 1, 1], 2 / 32),
        ([5, 0, 1, 0, 1], 2 / 8),  # subjects without a difference have no effect
        ([4, -1], 1),  # sums 5, 3, -3, -5: all are at least 3 from 0
        ([4, -1, 1], 6 / 8),  # sums 6, 4, 4, 2 and their negatives: six are at least 4 from 0
        ([3, 2, -1], 4 / 8),  # sums 6, 4, 2, 0 and their negatives: four are at least 4 from 0
    ],
)
def test_sign_flip_by_hand(differences, p):
    assert sign_flip(differences) == p


@pytest.mark.parametrize("trial", range(30))
def test_sign_flip_counts_all_choices_of_signs(trial):
    random = np.random.default_rng(trial)
    differences = random.integers(-6, 7, int(random.integers(1, 13))).tolist()
    seen = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    assert sign_flip(differences) == sum(one >= seen for one in sums) / len(sums)
    assert sign_flip([-d for d in differences]) == sign_flip(differences[::-1]) == sign_flip(differences)


def test_sign_flip_of_single_faces_is_the_exact_mcnemar_test():
    for fixed, broken in ((8, 1), (3, 3), (20, 4), (0, 7)):
        assert sign_flip([1] * fixed + [-1] * broken) == pytest.approx(mcnemar(fixed, broken).p)


def test_sign_flip_is_exact_and_quick_with_thousands_of_subjects():
    """Against the normal limit: the sum of many random signs is normal."""
    differences = np.concatenate([np.full(2100, 3), np.full(1900, -3)])
    began = time.perf_counter()
    p = sign_flip(differences)
    assert time.perf_counter() - began < 5
    assert p == pytest.approx(math.erfc((200 - 1) / math.sqrt(4000) / math.sqrt(2)), rel=2e-3)
    assert p == pytest.approx(2 * sum(math.comb(4000, k) for k in range(1901)) / 2**4000, rel=1e-9)


# Which


RIGHT, OTHER = [True, False, False, True], [True, True, True, False]


@pytest.mark.parametrize(
    ("subjects", "about", "words"),
    [
        ([*"aabb"], ("sign-flip", "subjects", 2, 2), "sign-flip test over 2 subjects (p is at least 0.5)"),
        (None, ("mcnemar", "images", 4, None), "McNemar’s exact test, faces taken as independent"),
        ([*"aab", ""], ("mcnemar", "images", 4, None), "McNemar’s exact test, faces taken as independent"),
        ([*"aaaa"], ("mcnemar", "images", 4, 1), "McNemar’s exact test, one subject’s faces taken as independent"),
    ],
)
def test_the_subjects_decide_the_test(subjects, about, words):
    found = compare_right(RIGHT, OTHER, subjects)
    assert tuple(found[key] for key in ("name", "by", "units", "subjects")) == about
    assert significance_words(found) == words
    # By subject: the first gains one, the second gains and loses one. By face: two are gained and one is lost.
    assert found["p"] == (1 if about[0] == "sign-flip" else mcnemar(2, 1).p)
    assert compare_right([], [], [])["p"] is None


def test_faces_have_equal_weight_not_subjects():
    """One subject gains four of twelve faces, one gains its only face and one loses it: sums 4, 6, 4, 2 and negatives.

    With shares per subject (1/3, 1, -1) all sums would be at least as far from 0 as theirs.
    """
    subjects = ["many"] * 12 + [*"bc"]
    found = compare_right([False] * 12 + [False, True], [True] * 4 + [False] * 8 + [True, False], subjects)
    assert found["p"] == 6 / 8


def test_the_form_of_mcnemars_test():
    found = compare_right([False] * 40, [True] * 40, None)
    assert found["form"] == "chi-square" and significance_words(found).startswith("McNemar’s test,")


# Error


def errors(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The % of comparisons with p <= 0.05, by the sign-flip test and by McNemar's."""
    plain = cache(lambda fixed, broken: mcnemar(fixed, broken).p)
    counts = zip((second & ~first).sum((1, 2)).tolist(), (first & ~second).sum((1, 2)).tolist(), strict=True)
    flipped = [sign_flip(differences) <= 0.05 for differences in second.sum(2) - first.sum(2)]
    return 100 * np.mean(flipped), 100 * np.mean([plain(*count) <= 0.05 for count in counts])


@pytest.mark.parametrize("differ", [0.4, 0.5, 0.7])
def test_equal_models_differ_as_rarely_as_the_level_states(differ):
    """Ten subjects of 21 faces; each model is better on some of them, and neither is better overall."""
    flipped, told = errors(*right_answers(np.random.default_rng(7), SAMPLES, 10, 21, sd=differ))
    print(f"10 subjects of 21 faces that differ by {differ}: sign-flip {flipped:.1f} %, McNemar {told:.1f} %")
    assert 3.5 <= flipped <= 6.5
    assert 9 <= told <= 23


def test_subjects_with_unequal_numbers_of_faces_do_not_matter():
    random = np.random.default_rng(3)
    there = np.arange(60) < random.choice(UNEQUAL, (SAMPLES, 12))[..., None]
    flipped, told = errors(*(there & right for right in right_answers(random, SAMPLES, 12, 60, sd=0.5)))
    print(f"12 subjects of 3 to 60 faces that differ by 0.5: sign-flip {flipped:.1f} %, McNemar {told:.1f} %")
    assert 3.5 <= flipped <= 6.5


def test_a_real_difference_is_found():
    first, _ = right_answers(np.random.default_rng(5), 1000, 10, 21, right=0.6, sd=0.5)
    _, second = right_answers(np.random.default_rng(6), 1000, 10, 21, right=0.8, sd=0.5)
    flipped, _ = errors(first, second)
    print(f"10 subjects of 21 faces, 60 against 80 %: sign-flip finds {flipped:.0f} %")
    assert flipped > 60
