"""Every loss of the methods against a plain loop written from the equations (values and gradients), and by hand.

Equations: AGLRLS, arXiv 2401.11085; CDAN, NeurIPS 2018, eq. 8; FlexMatch, NeurIPS 2021, eq. 6. Numbers that are only in
the released code (github.com/yao-papercodes/AGLRLS, commit e4ce8919) are those of `../shared/METHOD.md`.
"""

from __future__ import annotations

import math

import loops
import pytest
import torch
from torch import nn

from fercli.methods.losses import (
    Discriminator,
    DistributionAlignment,
    class_thresholds,
    conditional_adversarial,
    entropy,
    head_cross_entropy,
    learning_status,
    pseudo_label_loss,
    reversal_coefficient,
    reverse_gradient,
)
from fercli.methods.thresholds import Thresholds, confident_labels

WEIGHTS = torch.tensor([7.0, 1, 1, 1, 1, 1, 7])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)).requires_grad_()


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_head_cross_entropy_equals_a_loop(batch: int, smoothing: float) -> None:
    x = logits(batch, 7, 7)
    labels = torch.randint(0, 7, (batch,), generator=generator(1))
    expected = loops.head_cross_entropy(x, labels, WEIGHTS, smoothing)
    loops.assert_same(head_cross_entropy(x, labels, WEIGHTS, smoothing), expected, [x], 1e-5)


def test_head_cross_entropy_by_hand() -> None:
    # Equal logits: the loss of every head is ln 7, and the weights sum to 19.
    value = head_cross_entropy(torch.zeros(3, 7, 7), torch.tensor([0, 3, 6]), WEIGHTS)
    assert value.item() == pytest.approx(19 * math.log(7), rel=1e-6)


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sources", [1, 3])
def test_conditional_adversarial_equals_a_loop(conditioned: bool, coefficient: float, sources: int) -> None:
    torch.manual_seed(3)
    discriminator = Discriminator(7 * 4, hidden=16).double().eval()  # eval: dropout would differ from call to call

    def tell(joint: torch.Tensor) -> torch.Tensor:  # float32 inside the loss
        return discriminator(joint.double())

    features, x = logits(5, 4, seed=4), logits(5, 7, seed=5)
    given = features, x, torch.arange(5) < sources, tell, coefficient, conditioned
    wanted = [features, x, *discriminator.parameters()]
    loops.assert_same(conditional_adversarial(*given), loops.conditional_adversarial(*given), wanted, 1e-5)


def test_adversarial_by_hand() -> None:
    # The loss of a discriminator that always predicts one half is ln 2 for any weights.
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1) * 0

    value = conditional_adversarial(logits(6, 3), logits(6, 7), torch.arange(6) < 2, Half(), 0.5)
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)


def test_entropy_by_hand() -> None:
    same(entropy(torch.full((1, 7), 1 / 7)), torch.tensor([math.log(7)]), 1e-4)
    same(entropy(torch.eye(7)[:1]), torch.zeros(1), 1e-4)


def test_reversal() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([-0.25, -0.25]))
    assert reversal_coefficient(0) == 0
    # 2 / (1 + e^-1) - 1 at a tenth of the horizon
    assert reversal_coefficient(1000) == pytest.approx(0.46211715726)
    assert reversal_coefficient(10**6) == pytest.approx(1)


def test_discriminator_is_the_published_one() -> None:
    net = Discriminator(7 * 64)
    assert [tuple(p.shape) for p in net.parameters()] == [(512, 448), (512,), (512, 512), (512,), (1, 512), (1,)]
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for layer in linear:
        assert not layer.bias.any()
    # Xavier normal: standard deviation sqrt(2 / (in + out)).
    assert linear[1].weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    assert net(torch.randn(3, 448)).shape == (3,)


@pytest.mark.parametrize("seed", range(4))
def test_learning_status_equals_a_loop(seed: int) -> None:
    bank = torch.randint(-1, 7, (7, 40), generator=generator(seed))
    same(learning_status(bank), loops.learning_status(bank))


def test_learning_status_by_hand() -> None:
    # Three images of class 2, one of class 0, four without a class: b = 3/4 and 1/4. An empty bank or no images give
    # zero.
    bank = torch.tensor([[2, 2, 2, 0, -1, -1, -1, -1]])
    assert learning_status(bank)[0].tolist() == [0.25, 0, 0.75, 0, 0, 0, 0]
    assert not learning_status(torch.full((7, 9), -1)).any()
    assert not learning_status(torch.empty(7, 0, dtype=torch.long)).any()


def test_thresholds_by_hand() -> None:
    status = torch.tensor([0.0, 0.5, 1.0])
    same(class_thresholds(status), torch.tensor([0.2375, 0.534375, 0.95]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_pseudo_label_loss_equals_a_loop(seed: int, threshold: float) -> None:
    weak, strong = logits(6, 7, 7, seed=seed, scale=3), logits(6, 7, 7, seed=seed + 10)
    status = torch.rand(7, 7, generator=generator(seed), dtype=torch.float64)
    expected, bank, used = loops.pseudo_label_loss(weak, strong, status, WEIGHTS, threshold)
    probabilities = weak.softmax(-1)
    chosen = Thresholds("flexmatch", 7, threshold, 0.9)(probabilities, status)
    value = pseudo_label_loss(strong, probabilities.argmax(-1), chosen, WEIGHTS)
    loops.assert_same(value, expected, [strong, weak], 1e-5)
    assert torch.equal(confident_labels(probabilities, threshold), bank)
    assert torch.equal(chosen, used.double())
    assert used.any()


def test_distribution_alignment_equals_a_loop() -> None:
    """AdaMatch, section 3.2: p times the source's running mean over the target's, normalised to sum 1."""
    aligner = DistributionAlignment(7, decay=0.9)
    means = {"source": torch.zeros(7, 7, dtype=torch.float64), "target": torch.zeros(7, 7, dtype=torch.float64)}
    for step in range(3):
        answers = {"source": logits(5, 7, 7, seed=step), "target": logits(4, 7, 7, seed=step + 10)}
        aligned = aligner(answers["source"], answers["target"])
        assert not aligned.requires_grad
        for domain, rows in answers.items():
            for h in range(7):
                mean = sum(loops.softmax(row[h]) for row in rows.detach()) / len(rows)
                # the mean over all steps so far, weights 0.9 ** age
                whole = sum(0.9**age for age in range(step + 1))
                means[domain][h] = (means[domain][h] * (whole - 1) + mean) / whole
        for i in range(4):
            for h in range(7):
                p = loops.softmax(answers["target"].detach()[i, h]) * means["source"][h] / means["target"][h]
                same(aligned[i, h].exp(), p / p.sum())


def test_pseudo_label_loss_is_zero_when_nothing_passes() -> None:
    strong, vague = logits(4, 7, 7), torch.full((4, 7, 7), 1 / 7)
    chosen = Thresholds("flexmatch", 7, 0.95, 0.9)(vague, torch.ones(7, 7))
    value = pseudo_label_loss(strong, vague.argmax(-1), chosen, WEIGHTS)
    assert value.item() == 0
    assert not chosen.any()
    assert (confident_labels(vague, 0.95) == -1).all()
    assert not torch.autograd.grad(value, strong)[0].any()
