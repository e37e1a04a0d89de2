"""Metrics equal scikit-learn's where it defines them, and are None where nothing is defined."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fercli.evaluation.metrics import accuracy_interval, confusion, scores
from fercli.expressions import EXPRESSIONS


@pytest.mark.parametrize("seed", range(50))
def test_equals_scikit_learn_for_any_absent_classes(seed):
    """Values equal scikit-learn's, and None exactly where it has none, for 1 to 7 true and predicted classes."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    true, answered = (rng.choice(7, classes, replace=False) for classes in (1 + seed % 7, 1 + seed // 7 % 7))
    labels, guess = (rng.choice(classes, 5 + 8 * seed) for classes in (true, answered))
    predictions = np.where((rng.random(len(labels)) < 0.5) & np.isin(labels, answered), labels, guess)
    matrix = confusion(labels, predictions)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predictions, labels=range(7)))
    assert matrix.dtype == np.int64
    got = scores(matrix)

    present = np.unique(labels)
    recall = sk.recall_score(labels, predictions, labels=present, average="macro")
    assert got["mean_recall"] == pytest.approx(recall, abs=1e-12)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions), abs=1e-12)
    f1 = sk.f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert got["macro_f1"] == pytest.approx(f1, abs=1e-12)

    theirs = sk.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=np.nan)
    for i, row in enumerate(got["per_expression"]):
        precision, recall, f1, support = (values[i] for values in theirs)
        # scikit-learn gives F1 0 to a class that is predicted but never true; here it is not defined.
        expected = {"precision": precision, "recall": recall, "f1": f1 if support else np.nan}
        for name, value in expected.items():
            assert row[name] is None if np.isnan(value) else row[name] == pytest.approx(value, abs=1e-12)
        assert (row["expression"], row["support"]) == (EXPRESSIONS[i], support)


def test_by_hand():
    """4 of class 0 (3 correct, 1 predicted as 1), 2 of 1 (both as 0), none of 2, 1 of 3 (as 4), none of 4."""
    matrix = confusion([0, 0, 0, 0, 1, 1, 3], [0, 0, 0, 1, 0, 0, 4], classes=5)
    assert matrix.tolist() == [[3, 1, 0, 0, 0], [2, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [0] * 5]
    got = scores(matrix, "abcde")
    assert [tuple(row.values()) for row in got["per_expression"]] == [
        ("a", 3 / 5, 3 / 4, pytest.approx(2 / 3), 4),
        ("b", 0.0, 0.0, 0.0, 2),
        ("c", None, None, None, 0),  # neither true nor predicted
        ("d", None, 0.0, 0.0, 1),  # true but never predicted: zero, not undefined
        ("e", 0.0, None, None, 0),  # predicted but never true
    ]
    assert list(got["per_expression"][0]) == ["expression", "precision", "recall", "f1", "support"]
    assert got["accuracy"] == 3 / 7
    assert got["macro_f1"] == pytest.approx(2 / 9)
    assert got["mean_recall"] == pytest.approx(1 / 4)


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
    found = [got[name] for name in ("accuracy", "macro_f1", "mean_recall")]
    assert found == pytest.approx([accuracy, macro_f1, mean_recall], abs=1e-12)
    assert json.loads(json.dumps(got, allow_nan=False)) == got  # plain values only


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, -1], [0, 0], "labels must be in 0..6"),
        ([0, 7], [0, 0], "labels must be in 0..6"),
        ([0, 0], [0, -1], "predictions must be in 0..6"),
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
    with pytest.raises(ValueError, match="3 correct of 2"):
        accuracy_interval(3, 2)
