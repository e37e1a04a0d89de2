"""Counts of pseudo labels: by hand and with a plain loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from loops import certain

from fercli.evaluation.pseudo_labels import pseudo_label_counts

KEYS = ["0.5", "0.8", "0.9", "0.95", "0.99", "class-aware"]


def _at(**counts: int) -> list[int]:
    return [counts.get(f"c{i}", 0) for i in range(7)]


def test_by_hand():
    """Of ten faces six are below 0.95 ("none yet"), three are class 0 (b = 3/6) and one class 1 (b = 1/6).

    Class-aware thresholds: 0.95 (3/4)^2 = 0.5344, 0.95 (7/12)^2 = 0.3233, and 0.95 / 4 = 0.2375 for the rest.
    """
    zero = [(0, 0.97), (0, 0.995), (0, 0.96), (0, 0.53)]
    one = [(1, 0.96), (1, 0.33), (1, 0.32)]
    rest = [(2, 0.24), (2, 0.23), (3, 0.6)]
    labels = np.array([0, 0, 1, 0, 1, 1, 1, 2, 2, -1])
    (got,) = pseudo_label_counts({4: certain(*zero, *one, *rest)}, labels, 0.95)
    counts = [
        ("0.5", _at(c0=4, c1=1, c3=1), _at(c0=4, c1=1), _at(c0=3, c1=1)),
        ("0.8", _at(c0=3, c1=1), _at(c0=3, c1=1), _at(c0=2, c1=1)),
        ("0.9", _at(c0=3, c1=1), _at(c0=3, c1=1), _at(c0=2, c1=1)),
        ("0.95", _at(c0=3, c1=1), _at(c0=3, c1=1), _at(c0=2, c1=1)),
        ("0.99", _at(c0=1), _at(c0=1), _at(c0=1)),
        ("class-aware", _at(c0=3, c1=2, c2=1, c3=1), _at(c0=3, c1=2, c2=1), _at(c0=2, c1=2, c2=1)),
    ]
    assert got["epoch"] == 4
    assert list(got["counts"]) == KEYS
    for key, count, known, correct in counts:
        assert (got["counts"][key], got["known"][key], got["correct"][key]) == (count, known, correct), key
    assert json.loads(json.dumps(got)) == got


def test_faces_without_a_confident_label_lower_the_status():
    """One confident face of four: b is 1/3, since three "none yet" are the larger number (FlexMatch's warm-up)."""
    (got,) = pseudo_label_counts({1: certain((0, 0.96), (0, 0.43), (0, 0.42), (0, 0.41))}, None, 0.95)
    assert got["counts"]["class-aware"] == _at(c0=2)  # 0.95 * ((1/3 + 1) / 2)^2 = 0.4222


def _loop(probabilities: np.ndarray, labels: np.ndarray) -> tuple[dict[str, list[int]], ...]:
    confident, unsure = [0] * 7, 0
    for row in probabilities:
        if row.max() >= np.float32(0.95):
            confident[row.argmax()] += 1
        else:
            unsure += 1
    most = max([*confident, unsure, 1])
    aware = [0.95 * ((n / most + 1) / 2) ** 2 for n in confident]
    counts, known, correct = ({key: [0] * 7 for key in KEYS} for _ in range(3))
    for row, label in zip(probabilities, labels, strict=True):
        answer = int(row.argmax())
        for key in KEYS:
            if row.max() >= (aware[answer] if key == "class-aware" else np.float32(key)):
                counts[key][answer] += 1
                known[key][answer] += label >= 0
                correct[key][answer] += label == answer
    return counts, known, correct


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("count", [1, 20, 300])
def test_equals_a_plain_loop(count, sharpness):
    generator = torch.Generator().manual_seed(count)
    outputs = {
        epoch: (sharpness * epoch * torch.randn(count, 7, generator=generator)).softmax(-1).half().float()
        for epoch in (3, 1, 2)
    }
    labels = np.random.default_rng(count).integers(-1, 7, count)
    labels[0] = 0
    got = pseudo_label_counts(outputs, labels, 0.95)
    assert [row["epoch"] for row in got] == [1, 2, 3]
    unlabelled = [pseudo_label_counts(outputs, none, 0.95) for none in (None, np.full(count, -1, np.int8))]
    for row, *without in zip(got, *unlabelled, strict=True):
        counts, known, correct = _loop(outputs[row["epoch"]].numpy(), labels)
        assert row == {"epoch": row["epoch"], "counts": counts, "known": known, "correct": correct}
        assert without == [{**row, "known": None, "correct": None}] * 2


def test_without_faces_counts_are_zero_and_without_epochs_there_are_none():
    (row,) = pseudo_label_counts({1: torch.zeros(0, 7)}, np.zeros(0, np.int64), 0.95)
    assert row == {"epoch": 1, "counts": {key: [0] * 7 for key in KEYS}, "known": None, "correct": None}
    assert pseudo_label_counts({}, None, 0.95) == pseudo_label_counts({}, np.array([1]), 0.95) == []


def test_labels_of_other_faces_are_an_error():
    with pytest.raises(ValueError, match="outputs of 3 faces after epoch 2, but 2 labels"):
        pseudo_label_counts({2: torch.full((3, 7), 1 / 7)}, np.array([0, 1]), 0.95)
