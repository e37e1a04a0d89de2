"""GLPC and the oracle against plain loops and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fercli.evaluation.decision import RUNGS, decide, fused, glpc
from fercli.evaluation.oracle import oracle_epoch


def probabilities(count: int, seed: int, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(count, 7, 7, generator=generator)).softmax(-1)


def glpc_loop(p: torch.Tensor, b: torch.Tensor) -> tuple[list[int], list[str]]:
    """AGLRLS, arXiv 2401.11085: image by image."""
    answers, rungs = [], []
    for i in range(len(p)):
        for head, rung in ((6, "fused"), (0, "global")):
            c = int(p[i, head].argmax())
            if p[i, head, c] >= 0.95 * ((b[head, c] + 1) / 2) ** 2:
                answers.append(c)
                rungs.append(rung)
                break
        else:
            totals = [sum(float(p[i, h, c]) for h in range(7) if p[i, h, c] >= b[h, c]) for c in range(7)]
            if max(totals) == 0:
                totals = [sum(float(p[i, h, c]) for h in range(7)) for c in range(7)]
            answers.append(totals.index(max(totals)))
            rungs.append("sum")
    return answers, rungs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_glpc_equals_a_loop(seed: int, level: float) -> None:
    p = probabilities(200, seed)
    b = level * torch.rand(7, 7, generator=torch.Generator().manual_seed(seed))
    decision = glpc(p, b)
    answers, rungs = glpc_loop(p, b)
    assert decision.answers.tolist() == answers
    assert [RUNGS[r] for r in decision.rungs] == rungs


def test_every_rung_occurs() -> None:
    assert set(glpc(probabilities(300, 0), torch.full((7, 7), 0.7)).rungs.tolist()) == {0, 1, 2}


def test_glpc_by_hand() -> None:
    b = torch.ones(7, 7)  # thresholds 0.95
    b[6, 3] = 0  # but 0.2375 for the fused head's happiness
    p = torch.full((3, 7, 7), 1 / 7)
    p[0, 6] = torch.tensor([0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1])  # fused: 0.4 >= 0.2375 -> happiness
    p[1, 0] = torch.tensor([0.0, 0, 0, 0, 0, 0.97, 0.03])  # fused even, global 0.97 >= 0.95 -> anger
    p[1, 6] = torch.tensor([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1])
    # image 2: nothing is sure; b[:, 1] = 0.1 lets fear alone count, where 1/7 of all seven heads adds up to 1
    p[2, 6] = torch.tensor([0.3, 1 / 7, 0.2, 0.1, 0.1, 0.1, 0.1])
    b[:, 1] = 0.1
    decision = glpc(p, b)
    assert decision.answers.tolist() == [3, 5, 1]
    assert [RUNGS[r] for r in decision.rungs] == ["fused", "global", "sum"]


def test_glpc_where_no_probability_counts_falls_back_to_the_plain_sum() -> None:
    p = probabilities(20, 1, sharpness=0.1)
    b = torch.ones(7, 7)
    assert glpc(p, b).answers.tolist() == p.sum(1).argmax(-1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_global_and_fused_is_the_argmax_of_the_summed_logits(seed: int) -> None:
    logits = 2 * torch.randn(100, 7, 7, generator=torch.Generator().manual_seed(seed))
    answers = decide("global+fused", logits.softmax(-1), None).answers.tolist()
    for i in range(100):
        sums = [float(logits[i, 0, c] + logits[i, 6, c]) for c in range(7)]
        assert answers[i] == sums.index(max(sums))
    assert answers != fused(logits.softmax(-1)).answers.tolist()


def test_global_and_fused_with_probabilities_of_zero() -> None:
    p = torch.zeros(2, 7, 7)
    p[0, 0, 5] = p[0, 6, 2] = 1  # each certain of another class: a tie, and the lower one answers
    p[1, 0, 4] = 1
    p[1, 6, 4] = p[1, 6, 1] = 0.5
    assert decide("global+fused", p, torch.ones(7, 7)).answers.tolist() == [2, 4]


def test_decide_without_status_is_the_fused_head() -> None:
    p = probabilities(30, 2)
    assert torch.equal(decide("glpc", p, None).answers, fused(p).answers)
    assert torch.equal(decide("fused", p, torch.ones(7, 7)).answers, p[:, 6].argmax(-1))


@pytest.mark.parametrize("rule", ["fused", "global+fused", "glpc"])
def test_the_probabilities_of_a_decision_sum_to_one_and_the_answer_has_the_largest(rule: str) -> None:
    b = torch.rand(7, 7, generator=torch.Generator().manual_seed(5))
    p = torch.cat([probabilities(200, 3), probabilities(50, 4, sharpness=0.1)])
    decision = decide(rule, p, b)
    assert torch.allclose(decision.probabilities.sum(-1), torch.ones(len(p)), atol=1e-5)
    assert torch.equal(decision.probabilities.argmax(-1), decision.answers)
    if rule == "glpc":  # each rung's own words
        for rung, head in (("fused", 6), ("global", 0)):
            by_it = decision.rungs == RUNGS.index(rung)
            assert by_it.any() and torch.equal(decision.probabilities[by_it], p[by_it, head])


def test_oracle_takes_the_earliest_best_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "decisions"
    folder.mkdir()
    for epoch, digits in ((1, "0123"), (2, "0113"), (3, "3113")):
        (folder / f"epoch-{epoch:04d}.txt").write_text(digits + "\n")
    labels = np.array([0, 1, 1, -1])  # the last is unlabelled and does not count
    epoch, answers = oracle_epoch(tmp_path, labels)
    assert epoch == 2
    assert answers.tolist() == [0, 1, 1, 3]
    assert oracle_epoch(tmp_path, np.array([-1] * 4)) is None
    assert oracle_epoch(tmp_path, labels[:3]) is None
    assert oracle_epoch(tmp_path / "nowhere", labels) is None
