"""CGLRL: which target faces are labelled, when labels are renewed, the losses, and the oracle's gate."""

from __future__ import annotations

import math

import loops
import pytest
import torch
from tiny import Tiny, draw, view

from fercli.errors import FercliError
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods.adversarial import HeadDiscriminators
from fercli.methods.base import Outputs, Progress
from fercli.methods.cglrl import CGLRL, CGLRLOracle, consistent_labels, holds_up
from fercli.methods.losses import reversal_coefficient
from fercli.models import FEATURE_SIZE, GlobalLocal, Output
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt

B, STEP, LIMIT = 4, 700, 0.19459
WEIGHTS = [7.0, 1, 1, 1, 1, 1, 7]


def made(kind: type[CGLRL] = CGLRL, targets: int = 6, **options) -> CGLRL:
    torch.manual_seed(0)
    method = kind(Adapt(head_weights=WEIGHTS), kind.read_options({"hidden": 16, **options}), FEATURE_SIZE, targets)
    return method.eval()  # without dropout, as in the reference


def answering(*labels: int, sharpness: float = 12.0) -> torch.Tensor:
    """Probabilities [N, 7, 7] of faces on which all heads are confident of a label; -1: of none."""
    logits = torch.zeros(len(labels), 7, 7)
    for i, label in enumerate(labels):
        if label >= 0:
            logits[i, :, label] = sharpness
    return logits.softmax(-1)


class Survey:
    """An evaluator of target faces whose probabilities are known."""

    def __init__(self, probabilities: torch.Tensor):
        self.probabilities = probabilities

    def target(self) -> Outputs:
        return Outputs(self.probabilities, torch.zeros(len(self.probabilities), 6, FEATURE_SIZE))


def evaluator(*labels: int) -> Survey:
    return Survey(answering(*labels))


# Which faces are labelled


@pytest.mark.parametrize("sharpness", [2.0, 6.0, 12.0])
def test_consistent_labels_equal_a_loop(sharpness: float) -> None:
    logits, favoured = draw(300, 7, 7), torch.arange(300)[:, None] % 7
    logits[torch.arange(300)[:, None], torch.arange(7), favoured] += sharpness
    probabilities = logits.softmax(-1).double()
    limit, expected = 1.2, []
    for face in probabilities:
        answers = [int(face[h].argmax()) for h in range(6)]
        entropies = [-sum(float(v) * math.log(float(v) + 1e-5) for v in face[h]) for h in range(7)]
        expected.append(answers[0] if len(set(answers)) == 1 and max(entropies) < limit else -1)
    assert consistent_labels(probabilities, limit).tolist() == expected
    assert sharpness < 6 or max(expected) >= 0


def test_which_faces_are_labelled_by_hand() -> None:
    p = answering(3, 3, 3, 3, 3)
    p[1, 4] = answering(2)[0, 4]  # one local head disagrees
    p[2, 6] = answering(5)[0, 6]  # the fused head disagrees, which does not count
    p[3, 6] = 1 / 7  # but it must be confident
    p[4, 2] = torch.tensor([0.05, 0, 0, 0.95, 0, 0, 0])  # 0.199 nats: just too uncertain
    assert consistent_labels(p, LIMIT).tolist() == [3, -1, 3, -1, -1]
    p[4, 2] = torch.tensor([0.04, 0, 0, 0.96, 0, 0, 0])  # 0.168 nats
    assert consistent_labels(p, LIMIT).tolist() == [3, -1, 3, -1, 3]


def test_odd_probabilities_are_not_labelled() -> None:
    assert consistent_labels(torch.full((2, 7, 7), math.nan), LIMIT).tolist() == [-1, -1]
    assert consistent_labels(torch.zeros(0, 7, 7), LIMIT).tolist() == []
    assert consistent_labels(answering(4), LIMIT).tolist() == [4]


# When new labels replace the old ones


@pytest.mark.parametrize(
    ("old", "new", "accepted"),
    [
        ([-1, -1, -1, -1], [-1, -1, -1, -1], False),  # there are no new labels
        ([-1, -1, -1, -1], [-1, 2, -1, -1], True),  # the first set, however small
        ([-1, -1, -1, -1], [5, 5, 5, 5], True),  # all of one class: nothing shows that it is wrong
        ([1, 2, 3, -1], [-1, -1, -1, -1], False),  # the old set is kept
        ([1, 2, 3, -1], [1, 2, 3, 4], True),  # one more face
        ([1, 2, 3, 4], [1, 2, 3, -1], True),  # 3/4 is just enough
        ([1, 2, 3, 4], [1, 2, -1, -1], False),  # too small
        ([1, 2, 3, 4], [1, 2, 3, 0], True),  # 3/4 kept their label
        ([1, 2, 3, 4], [1, 2, 0, 0], False),  # too many changed it
        ([1, 2, 3, -1], [1, 0, -1, 4], False),  # one of the two in both sets changed
        ([1, 2, -1, -1], [-1, -1, 3, 4], False),  # no face in both sets: nothing to compare
        ([6], [6], True),
        ([6], [0], False),
    ],
)
def test_when_new_labels_hold_up(old: list[int], new: list[int], accepted: bool) -> None:
    assert holds_up(torch.tensor(new), torch.tensor(old), 0.75, 0.75) is accepted


def test_labels_are_renewed_epoch_by_epoch() -> None:
    method = made()
    assert method.pseudo_labelled().tolist() == []
    for labels, in_force in (
        ((-1,) * 6, [-1] * 6),  # no head is confident yet
        ((0, 1, 2, 3, -1, -1), [0, 1, 2, 3, -1, -1]),
        ((0, 1, 2, 3, 4, -1), [0, 1, 2, 3, 4, -1]),
        ((5, 5, 5, 5, 5, 5), [0, 1, 2, 3, 4, -1]),  # a collapse: rejected
        ((0, -1, -1, -1, -1, -1), [0, 1, 2, 3, 4, -1]),  # uncertainty: rejected
        ((0, 1, 2, 3, 4, 5), [0, 1, 2, 3, 4, 5]),
    ):
        before = method.pseudo.tolist()
        method.begin_epoch(evaluator(*labels))
        assert method.pseudo.tolist() == in_force
        assert bool(method.renewed) == (in_force != before)
        assert method.pseudo_labelled().tolist() == [i for i, label in enumerate(in_force) if label >= 0]


def test_the_gate_follows_its_options() -> None:
    for options, accepted in (({}, False), ({"min_agreement": 0}, True), ({"min_agreement": 0, "min_size": 2}, False)):
        method = made(targets=2, **options)
        for labels in ((1, 1), (2, 2)):
            method.begin_epoch(evaluator(*labels))
        assert (method.pseudo.tolist() == [2, 2]) == accepted


def test_the_set_is_kept_in_the_state() -> None:
    method, other = made(), made()
    method.begin_epoch(evaluator(0, 1, 2, -1, -1, 6))
    other.load_state_dict(method.state_dict())
    assert other.pseudo_labelled().tolist() == [0, 1, 2, 5]
    assert other.renewed


# The losses


def batch_of(pseudo_labelled: int, positions: list[int]) -> Batch:
    labels = torch.randint(0, 7, (B,), generator=torch.Generator().manual_seed(3))
    picked = view(9, pseudo_labelled, 1.0) if pseudo_labelled else None
    return Batch(
        view(1, B, 1.0),
        labels,
        view(2, B, 1.0),
        pseudo_labelled=picked,
        pseudo_labelled_indices=torch.tensor(positions) if pseudo_labelled else None,
    )


@pytest.mark.parametrize("discriminators", ["shared", "separate"])
@pytest.mark.parametrize("positions", [[], [3], [0, 1, 3], [0, 3, 3, 1]])
def test_the_loss_is_the_sum_of_the_equations(positions: list[int], discriminators: str) -> None:
    method, network = made(discriminators=discriminators), Tiny()
    method.begin_epoch(evaluator(6, 2, -1, 4, -1, -1))
    batch = batch_of(len(positions), positions)
    losses, logs = method(network, batch, Progress(STEP, 1))
    source, target = (network(*v.inputs) for v in (batch.source, batch.target))
    expected = {
        "source": loops.head_cross_entropy(source.logits, batch.labels, WEIGHTS),
        "adversarial": loops.head_adversarial(method.discriminators, source, target),
    }
    if positions:
        labels = torch.tensor([{0: 6, 1: 2, 3: 4}[i] for i in positions])
        logits = network(*batch.pseudo_labelled.inputs).logits
        expected["pseudo"] = loops.head_cross_entropy(logits, labels, [1.0] * 7)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)
        if name != "adversarial":
            ours = torch.autograd.grad(losses[name], network.gain, retain_graph=True)
            torch.testing.assert_close(ours, torch.autograd.grad(value, network.gain), rtol=1e-4, atol=1e-5)
    assert set(logs) == {"source-accuracy", "reversal", "pseudo-labelled", "pseudo-renewed"}
    assert logs["pseudo-labelled"].item() == pytest.approx(0.5)
    assert logs["pseudo-renewed"] == 1


def test_weights_scale_their_terms() -> None:
    network, batch = Tiny(), batch_of(2, [0, 1])
    steps = []
    for options in ({}, {"adversarial_weight": 0.5, "pseudo_weight": 3}):
        method = made(**options)
        method.begin_epoch(evaluator(6, 2, -1, 4, -1, -1))
        steps.append(method(network, batch, Progress(STEP, 1)).losses)
    for name, factor in (("source", 1), ("adversarial", 0.5), ("pseudo", 3)):
        torch.testing.assert_close(steps[1][name], factor * steps[0][name])


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_head_discriminators_sum_the_heads_terms(sharing: str) -> None:
    torch.manual_seed(0)
    discriminators = HeadDiscriminators(8, sharing, hidden=16).eval()
    assert len(discriminators) == {"shared": 3, "separate": 7}[sharing]
    assert [d.layers[0].in_features for d in discriminators][-1] == 7 * 6 * 8
    source = Output(draw(3, 7, 7, seed=1).requires_grad_(), draw(3, 6, 8, seed=2).requires_grad_())
    target = Output(draw(2, 7, 7, seed=3).requires_grad_(), draw(2, 6, 8, seed=4).requires_grad_())
    wanted = [*source, *target, *discriminators.parameters()]
    expected = loops.head_adversarial(discriminators, source, target, reversal_coefficient(STEP).item())
    loops.assert_same(discriminators(source, target, STEP), expected, wanted)


def test_the_reversal_grows_with_the_steps() -> None:
    method, network = made(reversal_steps=1000), Tiny()
    for step in (0, STEP):
        losses, logs = method(network, batch_of(0, []), Progress(step, 1))
        (gradient,) = torch.autograd.grad(losses["adversarial"], network.mix)
        assert bool(gradient.any()) == (step > 0)
        assert logs["reversal"].item() == pytest.approx(reversal_coefficient(step, 1000))


def test_a_pool_of_one_face_trains_the_real_network() -> None:
    # Batch norm in training mode rejects a channel with one value; a single face has more.
    torch.manual_seed(0)
    network, method = GlobalLocal(build_backbone("ir-small", 4)).train(), made(targets=1).train()
    method.begin_epoch(evaluator(5))
    source, target, pseudo_labelled = (
        View(draw(n, 3, 112, 112, seed=n), torch.full((n, 5, 2), 50.0)) for n in (2, 3, 1)
    )
    batch = Batch(
        source,
        torch.tensor([0, 1]),
        target,
        pseudo_labelled=pseudo_labelled,
        pseudo_labelled_indices=method.pseudo_labelled(),
    )
    sum(method(network, batch, Progress(STEP, 1)).losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# The oracle


def test_the_published_gate_reads_the_true_labels() -> None:
    truth = torch.arange(200) % 7
    right, wrong = truth.clone(), truth.clone()
    wrong[:3] = (wrong[:3] + 1) % 7
    almost = truth.clone()
    almost[:2] = (almost[:2] + 1) % 7
    for labels, accepted in ((right, True), (wrong, False), (almost, True), (torch.full((200,), -1), False)):
        method = made(CGLRLOracle, targets=200)
        method.give_labels(truth)
        method.begin_epoch(evaluator(*labels.tolist()))
        assert bool(method.renewed) is accepted
        assert torch.equal(method.pseudo, labels if accepted else torch.full((200,), -1))


@pytest.mark.parametrize(
    ("truth", "accepted"),
    [([1, -1, -1], True), ([2, -1, 3], False), ([-1, -1, 3], False)],
)
def test_only_known_labels_are_checked(truth: list[int], accepted: bool) -> None:
    method = made(CGLRLOracle, targets=3)
    method.give_labels(torch.tensor(truth))
    method.begin_epoch(evaluator(1, 2, -1))
    assert bool(method.renewed) is accepted


def test_the_oracle_needs_labels_and_does_not_store_them() -> None:
    assert CGLRLOracle.oracle
    assert not CGLRL.oracle
    assert not hasattr(CGLRL, "give_labels")
    method = made(CGLRLOracle, targets=2)
    with pytest.raises(FercliError, match="true labels, but there are none"):
        method.begin_epoch(evaluator(1, 1))
    with pytest.raises(FercliError, match="3 labels for 2 target faces"):
        method.give_labels(torch.tensor([0, 1, 2]))
    keys = set(method.state_dict())
    method.give_labels(torch.tensor([-1, -1]))
    with pytest.raises(FercliError, match="true labels, but there are none"):
        method.begin_epoch(evaluator(1, 1))
    method.give_labels(torch.tensor([1, 1]))
    assert set(method.state_dict()) == keys == set(made(CGLRL, targets=2).state_dict())


@pytest.mark.parametrize("rule", ["fused", "global+fused"])
def test_the_decision_can_be_chosen(rule: str) -> None:
    assert made(decision=rule).decision == rule
