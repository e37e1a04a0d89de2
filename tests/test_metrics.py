"""Metrics: equal to scikit-learn's where it defines them, None where nothing is defined."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fercli.evaluation.metrics import accuracy_interval, confusion, scores
from fercli.expressions import EXPRESSIONS


def _draw(seed: int, count: int, true_classes: list[int], predicted_classes: list[int]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(true_classes, count)
    guess = rng.choice(predicted_classes, count)
    hit = (rng.random(count) < 0.5) & np.isin(labels, predicted_classes)
    return labels, np.where(hit, labels, guess)


CASES = {
    "all classes": (list(range(7)), list(range(7))),
    "two classes absent from the truth": ([0, 1, 3, 4, 6], list(range(7))),
    "two classes never predicted": (list(range(7)), [0, 1, 2, 3, 5]),
    "both, not the same ones": ([1, 2, 3], [3, 4, 5]),
    "one class": ([3], list(range(7))),
}


def _drawn_at_random(seed: int) -> tuple[np.ndarray, ...]:
    """Random classes in the truth and in the answers."""
    rng = np.random.default_rng(seed)
    classes = (rng.choice(7, rng.integers(1, 8), replace=False).tolist() for _ in range(2))
    return _draw(seed, int(rng.integers(1, 400)), *classes)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        *(_draw(seed, 5 + 97 * seed, *classes) for seed in range(4) for classes in CASES.values()),
        *(_drawn_at_random(seed) for seed in range(30)),
    ],
)
def test_equals_scikit_learn_whatever_classes_are_absent(labels, predictions):
    """Values as scikit-learn's, None exactly where it has nothing."""
    sk = pytest.importorskip("sklearn.metrics")
    matrix = confusion(labels, predictions)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predictions, labels=range(7)))
    assert matrix.dtype == np.int64
    got = scores(matrix)

    present = np.unique(labels)
    kept = np.isin(predictions, present)  # what is never true counts against recall only, as no answer
    balanced = np.mean([(predictions[labels == i] == i).mean() for i in present])
    assert got["mean_recall"] == pytest.approx(balanced, abs=1e-12)
    recall = sk.recall_score(labels, predictions, labels=present, average="macro")
    assert got["mean_recall"] == pytest.approx(recall, abs=1e-12)
    if kept.all():
        assert got["mean_recall"] == pytest.approx(sk.balanced_accuracy_score(labels, predictions), abs=1e-12)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions), abs=1e-12)
    f1 = sk.f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert got["macro_f1"] == pytest.approx(f1, abs=1e-12)

    theirs = sk.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=np.nan)
    for i, row in enumerate(got["per_expression"]):
        precision, recall, f1, support = (values[i] for values in theirs)
        # Of a class that is not in the truth scikit-learn says F1 0 once it was predicted; here it is not defined.
        expected = {"precision": precision, "recall": recall, "f1": f1 if support else np.nan}
        for name, value in expected.items():
            assert row[name] is None if np.isnan(value) else row[name] == pytest.approx(value, abs=1e-12)
        assert (row["expression"], row["support"]) == (EXPRESSIONS[i], support)


@pytest.mark.parametrize(
    ("labels", "predictions", "expression", "expected"),
    [
        *(([0, 1, 1], [1, 0, 1], i, (None, None, None, 0)) for i in range(2, 7)),  # neither true nor answered
        ([0, 1], [0, 0], 1, (None, 0.0, 0.0, 1)),  # true and never answered: zero, and not undefined
        ([0, 0], [0, 1], 1, (0.0, None, None, 0)),  # answered and never true
    ],
)
def test_figures_of_an_expression_that_is_absent(labels, predictions, expression, expected):
    row = scores(confusion(labels, predictions))["per_expression"][expression]
    assert (row["precision"], row["recall"], row["f1"], row["support"]) == expected


def test_by_hand():
    """Three classes: 4 of class 0 (3 right, 1 taken for 1), 2 of class 1 (both taken for 0), none of class 2."""
    matrix = confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0], classes=3)
    assert matrix.tolist() == [[3, 1, 0], [2, 0, 0], [0, 0, 0]]
    got = scores(matrix, ("a", "b", "c"))
    a, b, c = got["per_expression"]
    assert (a["precision"], a["recall"], a["support"]) == (3 / 5, 3 / 4, 4)
    assert a["f1"] == pytest.approx(2 / 3)
    assert (b["precision"], b["recall"], b["f1"], b["support"]) == (0.0, 0.0, 0.0, 2)
    assert c == {"expression": "c", "precision": None, "recall": None, "f1": None, "support": 0}
    assert got["accuracy"] == 0.5
    assert got["macro_f1"] == pytest.approx(1 / 3)
    assert got["mean_recall"] == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("labels", "predictions", "accuracy", "macro_f1", "mean_recall"),
    [
        pytest.param([], [], None, None, None, id="no images"),
        pytest.param([2], [2], 1.0, 1.0, 1.0, id="one image, right"),
        pytest.param([2], [3], 0.0, 0.0, 0.0, id="one image, wrong"),
        pytest.param(list(range(7)), list(range(7)), 1.0, 1.0, 1.0, id="perfect"),
        pytest.param(list(range(7)), [3] * 7, 1 / 7, 2 / 8 / 7, 1 / 7, id="always happy"),
        pytest.param([3] * 5, [3] * 5, 1.0, 1.0, 1.0, id="one class, right"),
    ],
)
def test_degenerate(labels, predictions, accuracy, macro_f1, mean_recall):
    got = scores(confusion(labels, predictions))
    for name, expected in (("accuracy", accuracy), ("macro_f1", macro_f1), ("mean_recall", mean_recall)):
        assert got[name] is None if expected is None else got[name] == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(got, allow_nan=False)) == got  # plain values only


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, -1], [0, 0], "labels must lie in 0..6"),
        ([0, 7], [0, 0], "labels must lie in 0..6"),
        ([0, 0], [0, -1], "predictions must lie in 0..6"),
        ([0, 1], [0], "2 labels but 1 predictions"),
        ([0.5], [0], "must be integers"),
        ([[0]], [0], "shape"),
    ],
)
def test_bad_labels_are_errors(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        confusion(labels, predictions)


def test_small_integer_types_do_not_overflow():
    labels = np.full(300, 6, np.uint8)
    assert confusion(labels, labels)[6, 6] == 300
    assert scores(confusion(labels, labels))["macro_f1"] == 1.0


def test_interval():
    low, high = accuracy_interval(81, 263)  # Newcombe 1998, table I: Wilson's score without correction, 0.2553..0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert accuracy_interval(0, 0) is None
    assert accuracy_interval(0, 10)[0] == 0.0 and accuracy_interval(10, 10)[1] == pytest.approx(1.0)
    assert accuracy_interval(50, 100)[1] - accuracy_interval(50, 100)[0] > 0.19
    with pytest.raises(ValueError, match="3 correct of 2"):
        accuracy_interval(3, 2)
