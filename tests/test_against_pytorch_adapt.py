"""Our losses against pytorch-adapt's (K. Musgrave et al., 0.0.83), values and gradients; skipped without it."""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("pytorch_adapt")

from fercli.evaluation import predictions
from fercli.methods.alignment import domain_adversarial, stepwise_feature_norm
from fercli.methods.losses import Discriminator, conditional_adversarial, entropy
from fercli.methods.mcd import classifier_discrepancy
from fercli.methods.swd import sliced_wasserstein

# Entropies differ by the 1e-5 inside our logarithm.
FLOOR = 1e-4


def layer(module: str, name: str) -> Any:
    """A class of pytorch_adapt.layers, or skip."""
    # The package's __init__ ends with torchmetrics, which needs pkg_resources, and newer setuptools lack it. The
    # modules that were loaded before can still be used.
    with contextlib.suppress(Exception):
        importlib.import_module("pytorch_adapt.layers")
    try:
        return getattr(importlib.import_module(f"pytorch_adapt.layers.{module}"), name)
    except Exception as problem:
        pytest.skip(f"pytorch_adapt.layers.{module} cannot be imported: {problem}")


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def same(ours: torch.Tensor, theirs: torch.Tensor, wanted: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Equal values, and equal gradients by each of `wanted`."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    one, other = (torch.autograd.grad(x, wanted, retain_graph=True) for x in (ours, theirs))
    assert any(gradient.any() for gradient in one)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 6])
def test_entropy(batch: int) -> None:
    logits = random(batch, 7)
    theirs = layer("entropy_loss", "EntropyLoss")(return_mean=False)(logits)
    torch.testing.assert_close(entropy(logits.softmax(-1)), theirs, rtol=0, atol=FLOOR)
    same(entropy(logits.softmax(-1)).mean(), theirs.mean(), [logits], FLOOR)


def test_certainty_and_infomax() -> None:
    # Ours are scores (higher is better), theirs are losses, so the sign differs. InfoMax is the sum of their diversity
    # and entropy losses.
    logits = random(40, 7, seed=1).detach()
    probabilities = logits.softmax(-1).double()
    sure = layer("entropy_loss", "EntropyLoss")()(logits).item()
    diverse = layer("diversity_loss", "DiversityLoss")()(logits).item()
    assert predictions.certainty(probabilities) == pytest.approx(-sure, abs=FLOOR)
    assert predictions.infomax(probabilities) == pytest.approx(-(sure + diverse), abs=FLOOR)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_batch_nuclear_norm(batch: int) -> None:
    # Theirs is minus the norm divided by N, ours is the norm divided by its largest possible value, sqrt(C N).
    logits = random(batch, 7, seed=2).detach()
    theirs = layer("bnm_loss", "BNMLoss")()(logits).item()
    assert predictions.bnm(logits.softmax(-1).double()) == pytest.approx(-theirs * math.sqrt(batch / 7), rel=1e-5)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_domain_adversarial(coefficient: float) -> None:
    # With domains of equal size, the average of the two means is their BCE over all.
    torch.manual_seed(0)
    discriminator = Discriminator(12, hidden=8).eval()
    source, target = random(4, 12, seed=3), random(4, 12, seed=4)
    ours = domain_adversarial(source, target, discriminator, coefficient)
    reversed_ = layer("gradient_reversal", "GradientReversal")(coefficient)(torch.cat([source, target]))
    labels = torch.cat([torch.ones(4), torch.zeros(4)])
    theirs = F.binary_cross_entropy_with_logits(discriminator(reversed_), labels)
    same(ours, theirs, [source, target, *discriminator.parameters()])


class Reader(nn.Module):
    """A discriminator that stores its input."""

    def forward(self, joint: torch.Tensor) -> torch.Tensor:
        self.joint = joint
        return joint.sum(1)


def outer_product(features: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Theirs: the randomised product, with matrices that make it exact, and without its scale."""
    dimensions, classes = features.shape[1], probabilities.shape[1]
    product = layer("randomized_dot_product", "RandomizedDotProduct")([dimensions, classes], dimensions * classes)
    product.set_rand_mat(0, torch.eye(dimensions).repeat(1, classes))
    product.set_rand_mat(1, torch.eye(classes).repeat_interleave(dimensions, dim=1))
    return product(features, probabilities) * product.divisor


def test_the_outer_product_of_cdan() -> None:
    features, logits, reader = random(6, 5, seed=5), random(6, 7, seed=6), Reader()
    conditional_adversarial(features, logits, torch.arange(6) < 3, reader, 0.5)
    torch.testing.assert_close(reader.joint, outer_product(features, logits.softmax(-1)))


@pytest.mark.parametrize("coefficient", [0.3, 1.0])
@pytest.mark.parametrize("conditioned", [False, True])
def test_cdan(conditioned: bool, coefficient: float) -> None:
    # Their CDAN+E leaves the normaliser of the weights to the caller; ours is the sum within a domain, as a constant.
    # Only ours halves each domain's loss.
    torch.manual_seed(0)
    discriminator = Discriminator(5 * 7, hidden=8).eval()
    features, logits, sources = random(7, 5, seed=7), random(7, 7, seed=8), 4
    ours = conditional_adversarial(features, logits, torch.arange(7) < sources, discriminator, coefficient, conditioned)

    reversal = layer("gradient_reversal", "GradientReversal")(coefficient)
    normaliser = layer("normalizers", "SumNormalizer")(detach=True)
    weigh = layer("entropy_weights", "EntropyWeights")(normalizer=normaliser)
    verdict = discriminator(reversal(outer_product(features, logits.softmax(-1).detach())))
    theirs = torch.zeros(())
    for rows, label in ((slice(sources), 1.0), (slice(sources, None), 0.0)):
        each = F.binary_cross_entropy_with_logits(
            verdict[rows], torch.full_like(verdict[rows], label), reduction="none"
        )
        theirs = theirs + ((weigh(reversal(logits[rows])) * each).sum() if conditioned else each.mean()) / 2
    same(ours, theirs, [features, *([logits] if conditioned else []), *discriminator.parameters()], FLOOR)


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_adaptive_feature_norm(step: float) -> None:
    features = random(5, 12, seed=9)
    same(
        stepwise_feature_norm(features, step),
        layer("adaptive_feature_norm", "AdaptiveFeatureNorm")(step)(features),
        [features],
    )


def test_adaptive_feature_norm_of_zero_features() -> None:
    gradients = []
    for loss in (stepwise_feature_norm, layer("adaptive_feature_norm", "AdaptiveFeatureNorm")()):
        features = torch.zeros(2, 3, requires_grad=True)
        loss(features).backward()
        gradients.append(features.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("batch", [1, 6])
def test_classifier_discrepancy(batch: int) -> None:
    first, second = random(batch, 7, seed=10), random(batch, 7, seed=11)
    theirs = layer("mcd_loss", "MCDLoss")()(first, second)  # takes logits
    same(classifier_discrepancy(first.softmax(-1), second.softmax(-1)), theirs, [first, second])


@pytest.mark.parametrize("batch", [1, 6])
def test_sliced_wasserstein(batch: int) -> None:
    # Theirs draws its own 128 directions: the same seed gives the same ones.
    first, second = random(batch, 7, seed=12).softmax(-1), random(batch, 7, seed=13).softmax(-1)
    torch.manual_seed(0)
    theirs = layer("sliced_wasserstein", "SlicedWasserstein")()(first, second)
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(7, 128), dim=0)
    same(sliced_wasserstein(first, second, directions), theirs, [first, second])
