"""Intervals of accuracy and macro F1: equal to plain loops and to known quantiles, with the stated coverage."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student
from simulated import EQUAL, UNEQUAL, confusions

from fercli.evaluation import intervals
from fercli.evaluation.intervals import interval_words, jackknife, score_intervals
from fercli.evaluation.metrics import confusion, scores

#: Number of simulated datasets: the standard error of a coverage of 95 % is then 0.35 points.
SAMPLES = 4000


def _answered(count: int, right: float, seed: int = 0, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return labels, np.where(rng.random(count) < right, labels, rng.integers(0, 7, count))


def _loop(labels, answers, groups, draws):
    """Score every resample face by face; `groups[u]` are the faces of unit u, `draws[r, u]` how often it is drawn."""
    rows = []
    for counts in draws:
        faces = [i for unit, often in enumerate(counts) for _ in range(often) for i in groups[unit]]
        got = scores(confusion(labels[faces], answers[faces]))
        rows.append((got["accuracy"], got["macro_f1"]))
    return np.quantile(rows, [0.025, 0.975], axis=0).T


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_over_images_equals_a_plain_loop(count, chunk, monkeypatch):
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    labels, answers = _answered(count, 0.5, seed=count)
    kinds = labels * 7 + answers  # a draw is a kind of image (label and prediction); any of them represents it
    groups = [np.flatnonzero(kinds == kind)[:1].tolist() for kind in range(49)]
    got = score_intervals(labels, answers, None, resamples=60, seed=count)
    draws = np.random.default_rng(count).multinomial(count, np.bincount(kinds, minlength=49) / count, size=60)
    expected = _loop(labels, answers, groups, draws)
    np.testing.assert_allclose([got["accuracy"], got["macro_f1"]], expected, rtol=0, atol=1e-12)
    assert (got["method"], got["by"], got["units"], got["resamples"]) == ("bootstrap", "images", count, 60)


@pytest.mark.parametrize("sizes", [[1, 1], [3, 9], [4] * 6, [1] * 40, [2, 50, 7, 1, 1], [12] * 29, [9] * 60])
def test_over_subjects_equals_a_plain_loop(sizes):
    owner = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels, answers = _answered(len(owner), 0.5, seed=len(owner))
    got = score_intervals(labels, answers, [f"s{i}" for i in owner])
    effective = len(owner) ** 2 / sum(size**2 for size in sizes)
    quantile = student.ppf(0.975, max(effective - 1, 1))
    for name in ("accuracy", "macro_f1"):
        whole = scores(confusion(labels, answers))[name]
        without = [scores(confusion(labels[owner != i], answers[owner != i]))[name] for i in range(len(sizes))]
        mean = sum(without) / len(sizes)
        error = math.sqrt((len(sizes) - 1) / len(sizes) * sum((one - mean) ** 2 for one in without))
        odds, reach = math.log(whole / (1 - whole)), quantile * error / (whole * (1 - whole))
        expected = [1 / (1 + math.exp(-end)) for end in (odds - reach, odds + reach)]
        assert got[name] == pytest.approx(expected, abs=1e-9)
    assert (got["method"], got["by"], got["units"]) == ("jackknife t", "subjects", len(sizes))


@pytest.mark.parametrize(
    ("subjects", "by", "units"),
    [
        pytest.param(None, "images", 4, id="none known"),
        pytest.param(["a", "a", "b", "b"], "subjects", 2, id="two"),
        pytest.param(["a", "b", "c", "d"], "subjects", 4, id="a face each"),
        pytest.param(["a", "a", "a", "a"], "images", 4, id="one subject"),
        pytest.param(["a", "a", "b", ""], "images", 4, id="one face without"),
        pytest.param(["", "", "", ""], "images", 4, id="all empty"),
        pytest.param(np.array(["a", "bb", "a", "bb"]), "subjects", 2, id="as a store gives them"),
    ],
)
def test_units_and_method(subjects, by, units):
    got = score_intervals([0, 1, 2, 3], [0, 1, 2, 0], subjects, resamples=50)
    assert (got["by"], got["units"]) == (by, units)
    assert (got["resamples"] is None) == (by == "subjects")


def test_the_words_name_what_is_taken_as_independent():
    def words(subjects):
        return interval_words(score_intervals([0, 1, 2, 3], [0, 1, 2, 0], subjects))

    assert words([*"aabb"]) == "jackknife t over 2 subjects"
    assert words(None) == words([*"aab", ""]) == "bootstrap over 4 images, taken as independent"
    assert words([*"aaaa"]) == "bootstrap over 4 images of one subject, taken as independent"


@pytest.mark.parametrize(
    ("labels", "answers", "subjects", "ends"),
    [
        pytest.param([2], [2], None, [1, 1], id="one face, right"),
        pytest.param([2], [3], None, [0, 0], id="one face, wrong"),
        pytest.param([0, 1, 2], [0, 1, 2], None, [1, 1], id="all right, absent classes left out"),
        pytest.param([0, 1, 2], [1, 2, 0], None, [0, 0], id="all wrong"),
        pytest.param([3, 3], [3, 0], None, [0, 1], id="two faces: both ends are drawn"),
        pytest.param([0, 1, 2], [0, 1, 2], [*"aab"], [1, 1], id="two subjects, all right"),
    ],
)
def test_by_hand(labels, answers, subjects, ends):
    """Accuracy and macro F1 alike."""
    got = score_intervals(labels, answers, subjects)
    assert got["accuracy"] == got["macro_f1"] == ends
    assert json.loads(json.dumps(got)) == got


def test_nothing_labelled_has_no_interval():
    assert score_intervals([], [], None) is None
    assert score_intervals([], [], []) is None


@pytest.mark.parametrize(
    ("labels", "answers", "subjects", "message"),
    [
        ([-1], [0], None, "labels must be in 0..6"),
        ([0], [7], None, "predictions must be in 0..6"),
        ([0, 1], [0], None, "2 labels but 1 predictions"),
        ([0, 1], [0, 1], ["a"], "2 labels but 1 subjects"),
    ],
)
def test_bad_input_is_an_error(labels, answers, subjects, message):
    with pytest.raises(ValueError, match=message):
        score_intervals(labels, answers, subjects)


@pytest.mark.parametrize("subjects", [None, [f"s{i % 12}" for i in range(200)]])
def test_only_the_bootstrap_draws(subjects):
    labels, answers = _answered(200, 0.6)
    one, again, other = (score_intervals(labels, answers, subjects, seed=seed) for seed in (0, 0, 1))
    assert one == again and (one != other) == (subjects is None)
    point = scores(confusion(labels, answers))
    for name in ("accuracy", "macro_f1"):
        low, high = one[name]
        assert low < point[name] < high


def test_accuracy_of_images_is_binomial():
    """The number of correct images is binomial, with known quantiles."""
    labels, answers = _answered(400, 0.7, seed=5)
    got = score_intervals(labels, answers, None, resamples=20_000)
    known = binom.ppf([0.025, 0.975], 400, (labels == answers).mean()) / 400
    np.testing.assert_allclose(got["accuracy"], known, atol=2 / 400)


def test_more_equal_faces_of_a_subject_add_no_information():
    labels, answers = _answered(400, 0.7, seed=5)
    once = score_intervals(labels, answers, [f"s{i}" for i in range(400)])
    often = score_intervals(*(np.repeat(it, 10) for it in (labels, answers)), [f"s{i // 10}" for i in range(4000)])
    assert often["accuracy"] == pytest.approx(once["accuracy"])
    assert often["macro_f1"] == pytest.approx(once["macro_f1"])


def test_one_subject_right_and_one_wrong_give_no_information():
    got = score_intervals([0] * 6, [0, 0, 0, 1, 1, 1], [*"aaabbb"])
    for low, high in (got["accuracy"], got["macro_f1"]):
        assert 0 <= low < 1e-4 and 1 - 1e-4 < high <= 1


@pytest.mark.parametrize("subjects", [None, [f"s{i}" for i in range(10_000)]])
def test_ten_thousand_faces_need_little_memory(subjects):
    labels, answers = _answered(10_000, 0.7)
    tracemalloc.start()
    score_intervals(labels, answers, subjects)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


# Coverage


@pytest.mark.parametrize("faces", [EQUAL, UNEQUAL], ids=["as many faces each", "3 to 60 faces"])
@pytest.mark.parametrize("subjects", [10, 20, 29, 30, 50])
def test_the_interval_over_subjects_has_its_nominal_coverage(subjects, faces):
    rng = np.random.default_rng(subjects)
    truth = scores(confusions(rng, 1, 100_000, faces)[0].sum(0))
    found = jackknife(confusions(rng, SAMPLES, subjects, faces))
    for name, ends in zip(("accuracy", "macro_f1"), found, strict=True):
        covered = 100 * ((ends[:, 0] <= truth[name]) & (truth[name] <= ends[:, 1])).mean()
        print(f"{subjects} subjects of {'/'.join(map(str, faces))} faces: {name} {covered:.1f} %")
        assert 93.5 <= covered <= 96.5


@pytest.mark.parametrize(("right", "sd"), [(0.6, 0.3), (0.6, 1.0), (0.95, 1.0)], ids=["alike", "hard", "easy"])
def test_coverage_with_easy_and_hard_faces_and_with_similar_subjects(right, sd):
    rng = np.random.default_rng(0)
    truth = scores(confusions(rng, 1, 100_000, UNEQUAL, right, sd)[0].sum(0))
    found = jackknife(confusions(rng, SAMPLES, 20, UNEQUAL, right, sd))
    for name, ends in zip(("accuracy", "macro_f1"), found, strict=True):
        covered = 100 * ((ends[:, 0] <= truth[name]) & (truth[name] <= ends[:, 1])).mean()
        print(f"20 subjects of 3/7/14/21/35/60 faces: {name}, in truth {100 * truth[name]:.0f} %, {covered:.1f} %")
        assert 93.0 <= covered <= 97.0


@pytest.mark.parametrize("faces", [EQUAL, UNEQUAL], ids=["as many faces each", "3 to 60 faces"])
@pytest.mark.parametrize("subjects", [10, 30, 50])
def test_the_percentile_bootstrap_over_subjects_covers_less_often(subjects, faces):
    """The reason not to use it: it resamples the few subjects available."""
    rng = np.random.default_rng(subjects)
    truth = scores(confusions(rng, 1, 100_000, faces)[0].sum(0))["accuracy"]
    samples = confusions(rng, SAMPLES, subjects, faces)
    right, count = np.trace(samples, axis1=2, axis2=3), samples.sum((2, 3))
    drawn = rng.multinomial(subjects, np.full(subjects, 1 / subjects), 1000).astype(float)
    low, high = np.quantile((right @ drawn.T) / (count @ drawn.T), [0.025, 0.975], axis=1)
    covered = 100 * ((low <= truth) & (truth <= high)).mean()
    ours = jackknife(samples)[0]
    better = 100 * ((ours[:, 0] <= truth) & (truth <= ours[:, 1])).mean()
    print(f"{subjects} subjects of {'/'.join(map(str, faces))} faces: percentile bootstrap {covered:.1f} %")
    assert covered < better and (covered < 93.5 or subjects > 30)
