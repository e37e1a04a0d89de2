"""GLPC and the oracle against plain loops and by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
from exporting import as_given, evaluated, prepared_faces
from loops import seven_heads
from trained_runs import answers as in_training

from fercli.engine.trained import find_trained
from fercli.errors import SpecError
from fercli.evaluation.decision import STAGES, DecisionRule, by_head, glpc
from fercli.evaluation.oracle import oracle_epoch
from fercli.export.graph import deploy
from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS
from fercli.predict.recognizer import Recognizer
from fercli.store import read_manifest


def glpc_loop(p: torch.Tensor, b: torch.Tensor, threshold: float = 0.95) -> tuple[list[int], list[str]]:
    """GLPC on many faces, image by image."""
    answers, stages = zip(*(loops.glpc(face, b, threshold) for face in p), strict=True)
    return list(answers), list(stages)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 0.3), (0, 1), (0.7, 0.7), (1, 1)])
@pytest.mark.parametrize("threshold", [0.95, 0.6, 1.0])
def test_glpc_equals_a_loop(seed: int, least: float, most: float, threshold: float) -> None:
    """Where b is 1 no probability counts, and the plain sum decides."""
    p = torch.cat([seven_heads(200, seed), seven_heads(20, seed, sharpness=0.1)])
    b = least + (most - least) * torch.rand(7, 7, generator=torch.Generator().manual_seed(seed))
    decision = DecisionRule("glpc", b, threshold)(p)
    answers, stages = glpc_loop(p, b, threshold)
    assert decision.answers.tolist() == answers
    assert [STAGES[r] for r in decision.stages] == stages
    if (least, threshold) == (0.7, 0.95):
        assert set(stages) == set(STAGES)


def test_glpc_by_hand() -> None:
    b = torch.ones(7, 7)  # thresholds 0.95
    b[6, 3] = 0  # but 0.2375 for the fused head's happiness
    p = torch.full((3, 7, 7), 1 / 7)
    p[0, 6] = torch.tensor([0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1])  # fused: 0.4 >= 0.2375 -> happiness
    p[1, 0] = torch.tensor([0.0, 0, 0, 0, 0, 0.97, 0.03])  # fused is uniform, global 0.97 >= 0.95 -> anger
    p[1, 6] = torch.tensor([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1])
    # image 2: no head is confident; with b[:, 1] = 0.1 only fear counts, and 1/7 from all seven heads sums to 1
    p[2, 6] = torch.tensor([0.3, 1 / 7, 0.2, 0.1, 0.1, 0.1, 0.1])
    b[:, 1] = 0.1
    decision = glpc(p, b, 0.95)
    assert decision.answers.tolist() == [3, 5, 1]
    assert [STAGES[r] for r in decision.stages] == ["fused", "global", "sum"]


@pytest.mark.parametrize("seed", range(3))
def test_global_and_fused_is_the_argmax_of_the_summed_logits(seed: int) -> None:
    logits = 2 * torch.randn(100, 7, 7, generator=torch.Generator().manual_seed(seed))
    answers = DecisionRule("global+fused")(logits.softmax(-1)).answers.tolist()
    for i in range(100):
        sums = [float(logits[i, 0, c] + logits[i, 6, c]) for c in range(7)]
        assert answers[i] == sums.index(max(sums))
    assert answers != by_head(logits.softmax(-1)).answers.tolist()


def test_global_and_fused_with_probabilities_of_zero() -> None:
    p = torch.zeros(2, 7, 7)
    p[0, 0, 5] = p[0, 6, 2] = 1  # each is certain of a different class: a tie, and the lower class wins
    p[1, 0, 4] = 1
    p[1, 6, 4] = p[1, 6, 1] = 0.5
    assert DecisionRule("global+fused", torch.ones(7, 7))(p).answers.tolist() == [2, 4]


@pytest.mark.parametrize("rule", ["fused", "global+fused", "glpc"])
def test_a_decisions_probabilities_sum_to_one_and_the_prediction_has_the_largest(rule: str) -> None:
    b = torch.rand(7, 7, generator=torch.Generator().manual_seed(5))
    p = torch.cat([seven_heads(200, 3), seven_heads(50, 4, sharpness=0.1)])
    decision = DecisionRule(rule, b)(p)
    assert torch.allclose(decision.probabilities.sum(-1), torch.ones(len(p)), atol=1e-5)
    assert torch.equal(decision.probabilities.argmax(-1), decision.answers)
    if rule == "glpc":  # the probabilities of the stage that decided
        for stage, head in (("fused", 6), ("global", 0)):
            by_it = decision.stages == STAGES.index(stage)
            assert by_it.any() and torch.equal(decision.probabilities[by_it], p[by_it, head])


def test_a_run_decides_by_the_threshold_it_was_trained_with(make_adapting, prepared: Path, tmp_path: Path) -> None:
    """In training, evaluation, use and export. With 0.95, which the options do not set, predictions would differ."""
    bench = make_adapting("run", {"adapt.options": {"threshold": 0.2}, "adapt.lr": 0.05})
    bench.done("adapt", "--quiet")
    bench.done("evaluate", "--quiet")
    trained = find_trained(bench.runs)
    faces = prepared_faces(trained.spec, "jaffe")
    heads = evaluated(trained, faces)[3]
    (answers, stages), (others, other_stages) = (glpc_loop(heads, trained.rule.status, t) for t in (0.2, 0.95))
    assert (answers, stages) != (others, other_stages)

    assert in_training(trained.folder, trained.state["best"]["epoch"]) == answers
    with (bench.runs / "report/predictions/adapt-jaffe--jaffe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["answer"], row["stage"]) for row in rows] == [
        (EXPRESSIONS[answer], stage) for answer, stage in zip(answers, stages, strict=True)
    ]
    exported = deploy(trained)(*(torch.from_numpy(each) for each in as_given(trained, faces, 42).values()))
    assert exported[0].tolist() == answers and [STAGES[r] for r in exported[2]] == stages
    pictures = [prepared.parent / "data/jaffe" / row["path"] for row in read_manifest(prepared / "jaffe")]
    found = [face for (face,) in Recognizer.of(trained, "cpu").many(pictures)]
    assert [(face.expression, face.stage) for face in found] == [(row["answer"], row["stage"]) for row in rows]


def test_oracle_takes_the_earliest_best_epoch() -> None:
    labels = np.array([0, 1, 1, -1])  # the last face is unlabelled and does not count
    answers = {3: [3, 1, 1, 3], 1: [0, 1, 2, 3], 2: [0, 1, 1, 3], 4: [0, 1, 1, 0]}
    epochs = {epoch: np.array(given) for epoch, given in answers.items()}
    assert oracle_epoch(epochs, labels) == 2
    assert oracle_epoch(epochs, np.full(4, -1)) is None
    assert oracle_epoch({}, labels) is None


def test_every_rule_has_a_name_and_glpc_a_threshold() -> None:
    p, own = seven_heads(50, 4), DecisionRule("glpc", torch.full((7, 7), 0.5), 0.9)
    for head, name in enumerate(HEADS):
        assert torch.equal(own.named(name)(p).answers, p[:, head].argmax(-1))
    assert own.named("glpc") == own
    assert torch.equal(DecisionRule("glpc")(p).answers, p[:, 6].argmax(-1))  # not adapted: the fused head
    assert own.named("glpc:0.5")(p).answers.tolist() == glpc_loop(p, own.status, 0.5)[0]
    for wrong in ("glpcc", "fused:0.5", "glpc:x", "glpc:0", "glpc:1.5", "glpc:nan", ""):
        with pytest.raises(SpecError, match="is not a decision rule"):
            own.named(wrong)
