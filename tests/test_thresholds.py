"""Thresholds of pseudo labels against plain loops, by hand, and in the methods that have them as an option."""

from __future__ import annotations

import math

import loops
import pytest
import torch
from tiny import Tiny, batch_for, draw, pictures, sure

from fercli.errors import SpecError
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.base import Method, Progress
from fercli.methods.thresholds import Thresholds, confident_labels, remember
from fercli.models import FEATURE_SIZE
from fercli.spec import Adapt

RULES = ["fixed", "flexmatch", "freematch", "softmatch"]
WEIGHTS = [5.0, 1, 1, 2, 1, 1, 7]


def answers(step: int, faces: int = 5, heads: int = 7) -> torch.Tensor:
    return (2 * draw(faces, heads, 7, seed=step)).softmax(-1)


class Loop:
    """Each rule, face by face and head by head, from the papers' equations."""

    def __init__(self, rule: str, threshold: float, decay: float):
        self.rule, self.threshold, self.decay, self.seen = rule, threshold, decay, []

    def averages(self, head: int, value) -> float:
        """The average of a number per batch over all batches so far, where a batch weighs `decay` times the next."""
        weights = [self.decay ** (len(self.seen) - 1 - k) for k in range(len(self.seen))]
        rows = ([row[head] for row in batch] for batch in self.seen)
        return sum(w * value(batch) for w, batch in zip(weights, rows, strict=True)) / sum(weights)

    def __call__(self, probabilities: torch.Tensor, status: torch.Tensor) -> list[list[float]]:
        faces = probabilities.tolist()
        self.seen.append(faces)
        return [[self.weight(p, h, status[h].tolist()) for h, p in enumerate(face)] for face in faces]

    def weight(self, p: list[float], head: int, status: list[float]) -> float:
        top, c = max(p), p.index(max(p))

        def mean(batch) -> float:
            return sum(max(q) for q in batch) / len(batch)

        def variance(batch) -> float:
            return sum((max(q) - mean(batch)) ** 2 for q in batch) / max(1, len(batch) - 1)

        if self.rule == "fixed":
            return float(top >= self.threshold)
        if self.rule == "flexmatch":
            return float(top >= self.threshold * ((status[c] + 1) / 2) ** 2)
        middle = self.averages(head, mean)
        if self.rule == "freematch":
            shares = [self.averages(head, lambda batch, k=k: sum(q[k] for q in batch) / len(batch)) for k in range(7)]
            return float(top >= middle * shares[c] / max(shares))
        return math.exp(-((top - middle) ** 2) / (2 * self.averages(head, variance))) if top < middle else 1.0


@pytest.mark.parametrize("decay", [0.999, 0.5, 0.0])
@pytest.mark.parametrize("rule", RULES)
def test_thresholds_equal_a_loop(rule: str, decay: float) -> None:
    ours, plain, status = Thresholds(rule, 7, 0.5, decay), Loop(rule, 0.5, decay), draw(7, 7, seed=99).sigmoid()
    for step in range(4):
        weights = ours(answers(step), status)
        expected = torch.tensor(plain(answers(step), status))
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
        assert 0 < weights.sum() < weights.numel()


def test_softmatch_by_hand() -> None:
    # Confidences 1/2 and 1: mean 3/4, variance 1/8 with Bessel's correction; the lower one is 1/4 below the mean.
    faces = torch.zeros(2, 1, 7)
    faces[0, 0, :2] = 0.5
    faces[1, 0, 3] = 1
    weights = Thresholds("softmatch", 1, 0.95, 0.999)(faces, torch.zeros(1, 7))
    assert weights.flatten().tolist() == pytest.approx([math.exp(-1 / 4), 1])


def test_freematch_by_hand() -> None:
    # Mean confidence 0.7. Class 0 has 0.9 + 0.1 of 2, class 1 has 0.5, class 2 has 0.5: thresholds 0.7, 0.35, 0.35.
    faces = torch.zeros(2, 1, 7)
    faces[0, 0, 0], faces[0, 0, 1] = 0.9, 0.1
    faces[1, 0, 0], faces[1, 0, 1], faces[1, 0, 2] = 0.1, 0.4, 0.5
    thresholds = Thresholds("freematch", 1, 0.95, 0.5)
    assert thresholds(faces, torch.zeros(1, 7)).flatten().tolist() == [1, 1]
    # In the second batch, with weights 1/2 and 1: mean confidence (0.35 + 0.6) / 1.5; class 0 has the largest share.
    second = torch.full((1, 1, 7), 0.4 / 6)
    second[0, 0, 0] = 0.6
    assert thresholds(second, torch.zeros(1, 7)).item() == 0
    assert (thresholds.confidence / thresholds.batches).item() == pytest.approx(0.95 / 1.5)


@pytest.mark.parametrize("rule", RULES)
def test_degenerate_batches_give_weights_from_0_to_1(rule: str) -> None:
    certain = torch.eye(7)[None, [2] * 7]
    for faces in (torch.full((4, 7, 7), 1 / 7), certain.repeat(4, 1, 1), certain, answers(0, 1)):
        weights = Thresholds(rule, 7, 0.95, 0.999)(faces, torch.zeros(7, 7))
        assert weights.shape == faces.shape[:2]
        assert ((weights >= 0) & (weights <= 1)).all()
        if rule in ("freematch", "softmatch"):
            assert (weights == 1).all()  # none is below the mean


def test_confident_labels_and_the_bank_by_hand() -> None:
    faces = torch.tensor([[[0.6, 0.4], [0.1, 0.9]], [[0.9, 0.1], [0.5, 0.5]]])
    confident = confident_labels(faces, 0.6)
    assert confident.tolist() == [[0, 1], [0, -1]]
    bank = torch.tensor([[-1, 1, -1], [0, -1, 1]])
    remember(bank, torch.tensor([0, 2]), confident)
    assert bank.tolist() == [[0, 1, 0], [1, -1, 1]]


# In the methods


def made(name: str, **options) -> Method:
    torch.manual_seed(0)
    kind = method_class(name)
    options = {"hidden": 16, **options} if name == "aglrls" else options
    return kind(Adapt(head_weights=WEIGHTS), kind.read_options(options), FEATURE_SIZE, 12).eval()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["aglrls", "fixmatch"])
def test_the_option_weighs_a_method_s_pseudo_labels(name: str, rule: str) -> None:
    method, network, plain = made(name, thresholds=rule, threshold=0.6), Tiny(), Loop(rule, 0.6, 0.999)
    bank = torch.full((7, 12), -1)
    for step in range(3):
        batch = batch_for(method)
        batch = batch._replace(indices=torch.arange(4) + 2 * step)
        losses, logs = method(network, batch, Progress(step, 1))
        weak, strong = network(*batch.weak.inputs).logits, network(*batch.strong.inputs).logits
        probabilities = weak.detach().softmax(-1)
        heads = range(7) if name == "aglrls" else [6]
        chosen = plain(probabilities, loops.learning_status(bank))
        expected = sum(
            WEIGHTS[h] * chosen[i][h] * loops.cross_entropy(strong[i : i + 1, h], weak[i : i + 1, h].argmax(-1)) / 4
            for i in range(4)
            for h in heads
        )
        torch.testing.assert_close(losses["pseudo"], expected, rtol=1e-4, atol=1e-5)
        rate = logs["pseudo-rate/fused" if name == "aglrls" else "pseudo-rate"].item()
        assert rate == pytest.approx(sum(row[6] for row in chosen) / 4, rel=1e-4)
        remember(bank, batch.indices, confident_labels(probabilities, 0.6))
    if name == "aglrls":  # GLPC's bank, with any rule
        assert torch.equal(method.bank, bank)


@pytest.mark.parametrize(
    ("name", "rule", "kept"),
    [
        ("aglrls", "flexmatch", {"bank"}),
        ("aglrls", "fixed", {"bank"}),
        ("aglrls", "freematch", {"bank", "thresholds.batches", "thresholds.confidence", "thresholds.shares"}),
        ("fixmatch", "fixed", set()),
        ("fixmatch", "flexmatch", {"bank"}),
        ("fixmatch", "softmatch", {"thresholds.batches", "thresholds.confidence", "thresholds.spread"}),
    ],
)
def test_moving_averages_are_kept_in_the_state_and_older_checkpoints_still_fit(name: str, rule: str, kept: set) -> None:
    method, other = made(name, thresholds=rule, threshold=0.5), made(name, thresholds=rule, threshold=0.5)
    assert {key for key in method.state_dict() if not key.startswith("discriminators.")} == kept
    batch = batch_for(method)
    method(Tiny(), batch, Progress(0, 1))
    other.load_state_dict(method.state_dict())
    one, two = (m(Tiny(), batch, Progress(1, 1)).losses["pseudo"] for m in (method, other))
    assert torch.equal(one, two)


def test_fixmatch_with_flexmatch_lowers_the_threshold_of_unlearned_classes() -> None:
    # Probability 1/2 for class 3, never seen before: too little for a fixed threshold, enough for 0.95 / 4.
    view = pictures(sure(3, 1.5), sure(5))
    batch = Batch(view, torch.tensor([3, 5]), None, view, view, torch.arange(2))
    assert 0.95 / 4 < Tiny()(*view.inputs).logits[0, 6].softmax(-1).max() < 0.95
    for rule, rate in (("fixed", 0.5), ("flexmatch", 1.0)):
        method = made("fixmatch", thresholds=rule)
        assert method(Tiny(), batch, Progress(0, 1)).logs["pseudo-rate"].item() == rate
        method.begin_epoch(None)
        assert method.bank.tolist() == [[] if rule == "fixed" else [-1, 5, *[-1] * 10]]  # kept across epochs


@pytest.mark.parametrize("name", ["aglrls", "fixmatch"])
def test_bad_thresholds_are_reported(name: str) -> None:
    kind = method_class(name)
    assert kind.read_options({}).thresholds == {"aglrls": "flexmatch", "fixmatch": "fixed"}[name]
    for options, told in (
        ({"thresholds": "dash"}, "adapt.options.thresholds: 'dash' is not allowed"),
        ({"threshold_decay": 1}, "adapt.options.threshold_decay: 1"),
    ):
        with pytest.raises(SpecError) as caught:
            kind.read_options(options)
        assert told in str(caught.value)
