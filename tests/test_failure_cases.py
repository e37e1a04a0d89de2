"""Which faces are shown, and with which values: plain rules on plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loops import certain
from stores import changeable
from trained_runs import record, scored

from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS
from fercli.scoring.failure_cases import entropy, failure_cases, least_sure, surest_mistakes
from fercli.scoring.results import Results
from fercli.store import Store


def test_mistakes_are_the_surest_first_and_ties_by_position() -> None:
    probabilities = certain((0, 0.9), (1, 0.6), (2, 0.8), (3, 0.8), (4, 0.99), (5, 0.8))
    answers, labels = np.array([0, 1, 2, 3, 4, 5]), np.array([0, 2, 1, 1, -1, 0])
    assert surest_mistakes(labels, answers, probabilities).tolist() == [2, 3, 5, 1]  # 0 is correct, 4 has no label
    assert surest_mistakes(labels, answers, probabilities, 2).tolist() == [2, 3]
    assert surest_mistakes(answers, answers, probabilities).tolist() == []
    assert surest_mistakes(np.full(6, -1), answers, probabilities).tolist() == []


def test_the_least_sure_have_the_largest_entropy() -> None:
    unsure = entropy(certain((0, 0.9), (1, 1 / 7), (2, 1.0), (3, 0.9), (4, 0.5)))
    assert least_sure(unsure).tolist() == [1, 4, 0, 3, 2]
    assert least_sure(unsure, 3).tolist() == [1, 4, 0]


def test_entropy_lies_in_the_unit_interval() -> None:
    by_hand = -(0.9 * math.log(0.9) + 6 * (0.1 / 6) * math.log(0.1 / 6)) / math.log(7)
    np.testing.assert_allclose(entropy(certain((0, 1.0), (1, 1 / 7), (2, 0.9))), [0, 1, by_hand], atol=1e-12)
    rows = torch.rand(200, 7).softmax(-1)
    plain = [-sum(p * math.log(p) for p in row) / math.log(7) for row in rows.double().tolist()]
    np.testing.assert_allclose(entropy(rows), plain, atol=1e-12)


@pytest.fixture
def make(prepared, tmp_path):
    """Give a function (labels, probabilities [N, 7, 7], rule) -> a model's results on JAFFE's last N faces."""

    def made(labels: list[int], probabilities: torch.Tensor, rule: str = "fused", status=None) -> Results:
        store = changeable(Store.open(prepared / "jaffe"))
        indices = np.arange(len(store) - len(labels), len(store))
        store.labels[indices] = labels
        return scored(record(tmp_path / "source", rule, status), store, indices, probabilities)

    return made


def heads(*tops: tuple[int, float]) -> torch.Tensor:
    """Probabilities [N, 7, 7] in which all heads are equal."""
    return certain(*tops)[:, None].expand(-1, 7, -1).float().contiguous()


def test_failure_cases_have_all_values_of_a_face(make) -> None:
    probabilities = heads((0, 0.9), (1, 0.6), (2, 0.8))
    probabilities[1, 0] = heads((6, 0.95))[0, 0]
    one = make([0, 3, -1], probabilities)
    mistakes, uncertain = failure_cases(one)
    assert (mistakes["folder"], mistakes["dataset"], mistakes["kind"]) == ("source", "jaffe", "mistakes")
    assert [face["position"] for face in uncertain["faces"]] == [one.part.indices[row] for row in (1, 2, 0)]
    assert [face["label"] for face in uncertain["faces"]] == ["happiness", None, "surprise"]
    (face,) = mistakes["faces"]
    assert face == uncertain["faces"][0]
    assert face["id"] == one.store.ids[one.part.indices[1]]
    assert (face["label"], face["answer"], face["stage"]) == ("happiness", "fear", "fused")
    assert face["confidence"] == pytest.approx(0.6)
    assert face["entropy"] == pytest.approx(entropy(certain((1, 0.6)))[0])
    np.testing.assert_allclose(face["probabilities"], certain((1, 0.6))[0], rtol=1e-6)
    assert [vote["head"] for vote in face["votes"]] == list(HEADS)
    assert [vote["expression"] for vote in face["votes"]] == ["neutral"] + ["fear"] * 6


@pytest.mark.parametrize(
    ("labels", "tops", "expected"),
    [
        ([-1] * 3, [(0, 0.9), (1, 0.6), (2, 0.8)], {"uncertain": 3}),
        ([0, 1], [(0, 0.9), (1, 0.6)], {"mistakes": 0, "uncertain": 2}),
        ([1] * 20, [(0, 0.5)] * 20, {"mistakes": 12, "uncertain": 12}),
    ],
    ids=["without labels", "without mistakes", "at most a dozen of each"],
)
def test_the_number_of_cases_of_each_kind(labels, tops, expected, make) -> None:
    assert {one["kind"]: len(one["faces"]) for one in failure_cases(make(labels, heads(*tops)))} == expected


def test_only_glpc_has_stages(make) -> None:
    probabilities = heads((0, 0.99), (1, 0.3))
    probabilities[1, 0] = heads((3, 0.99))[0, 0]
    told = failure_cases(make([0, 0], probabilities, "glpc", torch.ones(7, 7)))[1]["faces"]
    assert {(face["stage"], face["answer"]) for face in told} == {("fused", "surprise"), ("global", "happiness")}
    told = failure_cases(make([0, 0], probabilities, "global+fused"))[1]["faces"]
    assert {face["stage"] for face in told} == {"global+fused"}


def test_a_name_that_is_not_utf8_can_be_shown(make) -> None:
    one = make([0], heads((1, 0.6)))
    one.store.ids[one.part.indices[0]] = "\udcff.png"
    name = failure_cases(one)[0]["faces"][0]["id"]
    assert name.encode() == "�.png".encode()
    assert EXPRESSIONS[one.labels[0]] == "surprise"
