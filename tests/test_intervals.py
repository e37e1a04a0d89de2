"""Bootstrap intervals: equal to a plain loop on the same draws, and right as often as they promise."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom

from fercli.evaluation import intervals
from fercli.evaluation.intervals import bootstrap
from fercli.evaluation.metrics import confusion, scores


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
@pytest.mark.parametrize(("count", "subjects", "seed"), [(5, 2, 0), (40, 6, 1), (40, 40, 2), (90, 11, 3)])
def test_by_subjects_equals_a_plain_loop(count, subjects, seed, chunk, monkeypatch):
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    labels, answers = _answered(count, 0.5, seed)
    names = [f"s{(i * 7) % subjects:03d}" for i in range(count)]
    got = bootstrap(labels, answers, names, resamples=60, seed=seed)
    groups = [[i for i in range(count) if names[i] == name] for name in sorted(set(names))]
    assert len(groups) == subjects
    draws = np.random.default_rng(seed).multinomial(subjects, [1 / subjects] * subjects, size=60)
    expected = _loop(labels, answers, groups, draws)
    np.testing.assert_allclose([got["accuracy"], got["macro_f1"]], expected, rtol=0, atol=1e-12)
    assert (got["by"], got["units"], got["resamples"]) == ("subjects", subjects, 60)


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 1), (9, 2), (60, 3)])
def test_by_images_equals_a_plain_loop(count, seed, chunk, monkeypatch):
    """A unit is then a kind of image (label and answer), of which any one stands for all."""
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    labels, answers = _answered(count, 0.5, seed)
    got = bootstrap(labels, answers, None, resamples=60, seed=seed)
    kinds = labels * 7 + answers
    groups = [np.flatnonzero(kinds == kind)[:1].tolist() for kind in range(49)]
    chances = np.bincount(kinds, minlength=49) / count
    draws = np.random.default_rng(seed).multinomial(count, chances, size=60)
    expected = _loop(labels, answers, groups, draws)
    np.testing.assert_allclose([got["accuracy"], got["macro_f1"]], expected, rtol=0, atol=1e-12)
    assert (got["by"], got["units"]) == ("images", count)


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
def test_what_is_drawn(subjects, by, units):
    got = bootstrap([0, 1, 2, 3], [0, 1, 2, 0], subjects, resamples=50)
    assert (got["by"], got["units"]) == (by, units)


@pytest.mark.parametrize(
    ("labels", "answers", "accuracy", "macro_f1"),
    [
        pytest.param([2], [2], [1, 1], [1, 1], id="one face, right"),
        pytest.param([2], [3], [0, 0], [0, 0], id="one face, wrong"),
        pytest.param([0, 1, 2], [0, 1, 2], [1, 1], [1, 1], id="all right, absent classes left out"),
        pytest.param([0, 1, 2], [1, 2, 0], [0, 0], [0, 0], id="all wrong"),
        pytest.param([3, 3], [3, 0], [0, 1], [0, 1], id="two faces: both ends are drawn"),
    ],
)
def test_by_hand(labels, answers, accuracy, macro_f1):
    got = bootstrap(labels, answers, None)
    assert got["accuracy"] == accuracy and got["macro_f1"] == macro_f1
    assert json.loads(json.dumps(got)) == got


def test_two_subjects_by_hand():
    """One subject all right, one all wrong, three faces each: the accuracy is 0, 1/2 or 1, the ends are reached."""
    got = bootstrap([0] * 6, [0, 0, 0, 1, 1, 1], ["a"] * 3 + ["b"] * 3)
    assert got["accuracy"] == [0.0, 1.0]


def test_nothing_labelled_has_no_interval():
    assert bootstrap([], [], None) is None
    assert bootstrap([], [], []) is None


@pytest.mark.parametrize(
    ("labels", "answers", "subjects", "message"),
    [
        ([-1], [0], None, "labels must lie in 0..6"),
        ([0], [7], None, "predictions must lie in 0..6"),
        ([0, 1], [0], None, "2 labels but 1 predictions"),
        ([0, 1], [0, 1], ["a"], "2 labels but 1 subjects"),
    ],
)
def test_bad_input_is_an_error(labels, answers, subjects, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(labels, answers, subjects)


@pytest.mark.parametrize("subjects", [None, [f"s{i % 12}" for i in range(200)]])
def test_the_seed_decides(subjects):
    labels, answers = _answered(200, 0.6)
    one, again, other = (bootstrap(labels, answers, subjects, seed=seed) for seed in (0, 0, 1))
    assert one == again and one != other
    point = scores(confusion(labels, answers))
    for name in ("accuracy", "macro_f1"):
        low, high = one[name]
        assert low < point[name] < high


def test_accuracy_over_images_is_binomial():
    """Drawing images with replacement makes the number right binomial; its quantiles are known."""
    labels, answers = _answered(400, 0.7, seed=5)
    got = bootstrap(labels, answers, None, resamples=20_000)
    known = binom.ppf([0.025, 0.975], 400, (labels == answers).mean()) / 400
    np.testing.assert_allclose(got["accuracy"], known, atol=2 / 400)


def test_covers_the_truth_about_as_often_as_promised():
    """400 samples of 150 images, each right with probability 0.7: about 95% of the intervals hold 0.7."""
    inside = 0
    for seed in range(400):
        right = np.random.default_rng(seed).random(150) < 0.7
        low, high = bootstrap(np.zeros(150, int), np.where(right, 0, 1), None, resamples=300, seed=seed)["accuracy"]
        inside += low <= 0.7 <= high
    assert 0.91 <= inside / 400 <= 0.98


def test_faces_alike_within_a_subject_widen_it():
    """Twenty people, each answered all right or all wrong: a hundred times the pictures say no more about them."""
    fate = np.arange(20) % 3 > 0
    answers = np.where(np.repeat(fate, 100), 0, 1)
    names = [f"s{i:02d}" for i in np.repeat(np.arange(20), 100)]
    labels = np.zeros(2000, int)
    width = {by: np.ptp(bootstrap(labels, answers, who)["accuracy"]) for by, who in (("s", names), ("i", None))}
    assert width["s"] > 8 * width["i"]
    one_each = bootstrap(labels[::100], answers[::100], None)["accuracy"]
    assert width["s"] == pytest.approx(np.ptp(one_each), abs=0.06)


@pytest.mark.parametrize("subjects", [None, [f"s{i}" for i in range(10_000)]])
def test_ten_thousand_faces_need_little_memory(subjects):
    labels, answers = _answered(10_000, 0.7)
    tracemalloc.start()
    bootstrap(labels, answers, subjects)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
