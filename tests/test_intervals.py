"""Bootstrap intervals: equal to a plain loop on the same draws, and to quantiles that are known."""

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
@pytest.mark.parametrize(
    ("count", "subjects"), [(5, 2), (40, 6), (40, 40), (90, 11), (1, None), (2, None), (9, None), (60, None)]
)
def test_equals_a_plain_loop(count, subjects, chunk, monkeypatch):
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    labels, answers = _answered(count, 0.5, seed=count)
    if subjects:
        names = [f"s{(i * 7) % subjects:03d}" for i in range(count)]
        groups = [[i for i in range(count) if names[i] == name] for name in sorted(set(names))]
        by, units, chances = "subjects", len(groups), [1 / subjects] * subjects
    else:  # drawn is a kind of image (label and answer), of which any one stands for all
        names, kinds = None, labels * 7 + answers
        groups = [np.flatnonzero(kinds == kind)[:1].tolist() for kind in range(49)]
        by, units, chances = "images", count, np.bincount(kinds, minlength=49) / count
    got = bootstrap(labels, answers, names, resamples=60, seed=count)
    draws = np.random.default_rng(count).multinomial(units, chances, size=60)
    expected = _loop(labels, answers, groups, draws)
    np.testing.assert_allclose([got["accuracy"], got["macro_f1"]], expected, rtol=0, atol=1e-12)
    assert (got["by"], got["units"], got["resamples"]) == (by, units, 60)


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
    ("labels", "answers", "subjects", "ends"),
    [
        pytest.param([2], [2], None, [1, 1], id="one face, right"),
        pytest.param([2], [3], None, [0, 0], id="one face, wrong"),
        pytest.param([0, 1, 2], [0, 1, 2], None, [1, 1], id="all right, absent classes left out"),
        pytest.param([0, 1, 2], [1, 2, 0], None, [0, 0], id="all wrong"),
        pytest.param([3, 3], [3, 0], None, [0, 1], id="two faces: both ends are drawn"),
        pytest.param([0] * 6, [0, 0, 0, 1, 1, 1], [*"aaabbb"], [0, 1], id="one subject all right, one all wrong"),
    ],
)
def test_by_hand(labels, answers, subjects, ends):
    """Accuracy and macro F1 alike."""
    got = bootstrap(labels, answers, subjects)
    assert got["accuracy"] == got["macro_f1"] == ends
    assert json.loads(json.dumps(got)) == got


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


@pytest.mark.parametrize("faces", [1, 10])
def test_accuracy_is_binomial_in_what_is_drawn(faces):
    """The number of units right is binomial, whose quantiles are known; more faces of a subject say no more of it."""
    labels, answers = (np.repeat(each, faces) for each in _answered(400, 0.7, seed=5))
    subjects = [f"s{i}" for i in np.repeat(np.arange(400), faces)] if faces > 1 else None
    got = bootstrap(labels, answers, subjects, resamples=20_000)
    known = binom.ppf([0.025, 0.975], 400, (labels == answers).mean()) / 400
    np.testing.assert_allclose(got["accuracy"], known, atol=2 / 400)


@pytest.mark.parametrize("subjects", [None, [f"s{i}" for i in range(10_000)]])
def test_ten_thousand_faces_need_little_memory(subjects):
    labels, answers = _answered(10_000, 0.7)
    tracemalloc.start()
    bootstrap(labels, answers, subjects)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
