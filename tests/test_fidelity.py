"""Fidelity to the released AGLRLS code, in float64: two whole steps of stage 2 against its numbers, GLPC against a
plain loop, and the counts of the gradient reversal.

``fixtures/aglrls_step.json`` holds numbers that the released code computed (github.com/yao-papercodes/AGLRLS, commit
85b875d, IR-18, without the discriminators' dropout). Inputs and weights follow from rules and a seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
from released_files import fill
from torch import Tensor

from fercli.engine.training import TrainingModule, make_optimizer
from fercli.evaluation.decision import STAGES, DecisionRule
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods.adversarial import HeadDiscriminators
from fercli.methods.aglrls import AGLRLS
from fercli.methods.base import Progress
from fercli.models import FEATURE_SIZE, Output
from fercli.models.build import build_network
from fercli.models.names import from_published_names, to_published_names
from fercli.spec import Adapt, Model

STEPS = json.loads((Path(__file__).parent / "fixtures" / "aglrls_step.json").read_text())
RELATIVE = 1e-9


@pytest.fixture
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.slow
def test_two_steps_of_stage_2_are_those_of_the_released_code(float64: None) -> None:
    network = build_network(Model(backbone="ir18")).train()
    weights = fill(to_published_names(network.state_dict()), np.float64)
    weights = {
        name: 8 * value if name.startswith("classifiers.") and name.endswith(".weight") else value
        for name, value in weights.items()
    }
    network.load_state_dict(from_published_names(weights))
    (backbone, momentum), (new, *_), (of_discriminators, *_) = (
        (group[0], group[1:]) for group in (*STEPS["optimizer"]["network"], *STEPS["optimizer"]["discriminators"])
    )
    plan = Adapt(lr=backbone, discriminator_lr=of_discriminators)
    assert (new / backbone, momentum) == (pytest.approx(plan.head_lr_multiplier), [plan.weight_decay, plan.momentum])
    options = AGLRLS.Options(reversal_counts="forwards")
    method = AGLRLS(plan, options, FEATURE_SIZE, STEPS["target_faces"]).train()
    for number, discriminator in enumerate(method.discriminators):
        discriminator.eval()  # no dropout
        linear = {
            f"discriminator.{number}.ad_layer{i + 1}.{name}": getattr(layer, name)
            for i, layer in enumerate(discriminator.layers[::3])
            for name in ("weight", "bias")
        }
        given = fill({name: parameter.detach() for name, parameter in linear.items()}, np.float64)
        for name, parameter in linear.items():
            parameter.data.copy_(given[name])
    module = TrainingModule(network, method)
    optimizer = make_optimizer(module, plan)
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * group["rates"][1]
    before = {name: value.clone() for name, value in to_published_names(dict(network.named_parameters())).items()}
    first_layers = [discriminator.layers[0].weight for discriminator in method.discriminators]
    first_before = [layer.detach().clone() for layer in first_layers]

    for number, batch in enumerate(released_batches()):
        status = method.status()  # before the batch enters the bank
        losses, _ = module(batch, Progress(STEPS["start_step"] + number, 1))
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        named = to_published_names(dict(network.named_parameters()))
        assert total.item() == pytest.approx(STEPS["total_loss"][number], rel=RELATIVE)
        for name, norm in STEPS["gradient_norm"][number].items():
            assert named[name].grad.norm().item() == pytest.approx(norm, rel=RELATIVE), name
        if number == len(STEPS["total_loss"]) - 1:
            expected = torch.tensor(STEPS["status_b_in_last_step"])
            torch.testing.assert_close(status, expected, rtol=RELATIVE, atol=0)
        optimizer.step()

    for name, norm in STEPS["parameter_norm_after"].items():
        assert named[name].norm().item() == pytest.approx(norm, rel=RELATIVE), name
    for name, move in STEPS["parameter_move"].items():
        assert (named[name] - before[name]).norm().item() == pytest.approx(move, rel=RELATIVE), name
    statistics = to_published_names(network.state_dict())
    for name, norm in STEPS["running_mean_norm_after"].items():
        assert statistics[name].norm().item() == pytest.approx(norm, rel=RELATIVE), name
    for layer, start, norm, move in zip(
        *(first_layers, first_before, STEPS["discriminator_weight_norm_after"], STEPS["discriminator_move"]),
        strict=True,
    ):
        assert layer.norm().item() == pytest.approx(norm, rel=RELATIVE)
        assert (layer - start).norm().item() == pytest.approx(move, rel=RELATIVE)


def released_batches() -> Iterator[Batch]:
    """The two batches, drawn in the order of the fixture's rule."""
    rng = np.random.RandomState(7)

    def pictures() -> Tensor:
        return torch.from_numpy(rng.standard_normal((3, 3, 112, 112)))

    def landmarks() -> Tensor:
        """Window centres on the 28x28 map, in pixels of the image."""
        return 4 * torch.from_numpy(rng.randint(3, 25, (3, 5, 2))).float()

    for indices in ([0, 1, 2], [3, 4, 5]):
        source, labels = View(pictures(), landmarks()), torch.from_numpy(rng.randint(0, 7, 3)).long()
        target, weak = View(pictures(), landmarks()), View(pictures(), landmarks())
        strong = View(weak.images + 0.1 * pictures(), weak.landmarks)
        yield Batch(source, labels, target, weak, strong, torch.tensor(indices))


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_a_reversal_that_counts_forward_passes(sharing: str) -> None:
    """Simulated pass by pass: each discriminator counts the passes of training and of logging, its own included."""
    heads = [0, 1, 1, 1, 1, 1, 2] if sharing == "shared" else range(7)
    discriminators = HeadDiscriminators(4, sharing, 8, reversal_steps=100, reversal_counts="forwards")
    passes = dict.fromkeys(heads, 0)
    for step in range(30):
        expected = []
        for one in heads:
            passes[one] += 1
            expected.append(2 / (1 + math.exp(-10 * passes[one] / 100)) - 1)
        for one in heads:
            passes[one] += 1
        assert discriminators.coefficients(step) == pytest.approx(expected)
    assert HeadDiscriminators(4, sharing, 8, 100).coefficients(7) == pytest.approx([2 / (1 + math.exp(-0.7)) - 1] * 7)


def test_each_reversal_reaches_its_own_gradient() -> None:
    """The discriminators' inputs are reversed according to their own counts, the entropy weights by the steps."""
    torch.manual_seed(0)
    discriminators = HeadDiscriminators(4, "shared", 8, 100, "forwards").double().eval()
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    source, target = Output(draw(3, 7, 7), draw(3, 6, 4)), Output(draw(2, 7, 7), draw(2, 6, 4))
    at_step, counted = (
        2 / (1 + math.exp(-1)) - 1,
        [2 / (1 + math.exp(-n / 10)) - 1 for n in (21, *range(101, 106), 21)],
    )
    expected = loops.head_adversarial(discriminators, source, target, counted, of_entropy=at_step)
    loops.assert_same(discriminators(source, target, 10), expected, [*source, *target], 1e-9)


def test_glpc_equals_the_released_rule_on_ten_thousand_faces_even_at_a_threshold() -> None:
    rng = np.random.default_rng(0)
    count = 10_000
    b = (rng.integers(0, 21, (7, 7)) / 20).astype(np.float32)
    b[6, :3] = [0, 0.5, 1]
    p = rng.standard_normal((count, 7, 7)) * rng.uniform(0.2, 4, (count, 1, 1))
    p = (np.exp(p) / np.exp(p).sum(-1, keepdims=True)).astype(np.float32)
    # A third of them is exactly at its threshold, or one float32 away, in the head that is used first or second.
    for face in range(0, count, 3):
        head = (6, 0)[face % 2]
        top = int(p[face, head].argmax())
        on_it = np.float32(0.95 * ((float(b[head, top]) + 1) / 2) ** 2)
        p[face, head, top] = (np.nextafter(on_it, np.float32(0)), on_it, np.nextafter(on_it, np.float32(1)))[
            face // 6 % 3
        ]
    rule = DecisionRule("glpc", torch.from_numpy(b), empty_sum="class-0")
    decision = rule(torch.from_numpy(p))
    expected = [loops.glpc(face, b, empty_sum="class-0") for face in p]
    assert list(zip(decision.answers.tolist(), (STAGES[i] for i in decision.stages), strict=True)) == expected
    assert {stage for _, stage in expected} == set(STAGES)
    in_float32 = (
        torch.from_numpy(p)[:, 6].amax(-1)
        >= (0.95 * ((torch.from_numpy(b)[6] + 1) / 2) ** 2)[torch.from_numpy(p)[:, 6].argmax(-1)]
    )
    assert (
        in_float32 != (decision.stages == 0)
    ).any()  # float32 thresholds predict differently: the cases are hard enough


def test_an_empty_sum_predicts_by_all_heads_or_as_released_the_first_class() -> None:
    p = torch.full((1, 7, 7), 0.1)
    p[:, :, 4] = 0.4
    status = torch.ones(7, 7)
    assert DecisionRule("glpc", status)(p).answers.tolist() == [4]
    released = DecisionRule("glpc", status, empty_sum="class-0")(p)
    assert released.answers.tolist() == [0] and STAGES[released.stages[0]] == "sum"
