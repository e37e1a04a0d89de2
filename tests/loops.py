"""Losses and scores as plain loops, written from the papers' equations, for comparison in tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fercli.models import Output


def seven_heads(count: int, seed: int, sharpness: float = 2.0) -> Tensor:
    """Probabilities [count, 7 heads, 7 expressions] drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(count, 7, 7, generator=generator)).softmax(-1)


def certain(*tops: tuple[int, float]) -> Tensor:
    """Probabilities: one row for each pair (class, its probability); the other six classes share the rest."""
    return torch.tensor([[p if c == k else (1 - p) / 6 for c in range(7)] for k, p in tops], dtype=torch.float64)


def softmax(row: Tensor) -> Tensor:
    return row.exp() / row.exp().sum()


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """For one head, logits [N, C], face by face."""
    total = logits.new_zeros(())
    for row, label in zip(logits, labels, strict=True):
        wanted = torch.full_like(row, smoothing / len(row)).detach()
        wanted[label] += 1 - smoothing
        total = total - (wanted * softmax(row).log()).sum() / len(labels)
    return total


def head_cross_entropy(logits: Tensor, labels: Tensor, weights: Sequence[float], smoothing: float = 0.0) -> Tensor:
    """For seven heads, logits [N, 7, C], each with its weight."""
    return sum(weights[h] * cross_entropy(logits[:, h], labels, smoothing) for h in range(7))


def reverse(z: Tensor, coefficient: float) -> Tensor:
    """The same value, and minus `coefficient` times its gradient."""
    return z.detach() - coefficient * (z - z.detach())


def domain_loss(discriminator: nn.Module, seen: Tensor, coefficient: float, is_source: bool) -> Tensor:
    """The loss of a discriminator on one face."""
    chance = torch.sigmoid(discriminator(reverse(seen, coefficient)[None]))[0]
    return -(chance if is_source else 1 - chance).log()


def conditional_adversarial(
    features: Tensor,
    logits: Tensor,
    is_source: Tensor,
    discriminator: nn.Module,
    coefficient: float = 1.0,
    conditioned: bool = True,
    of_entropy: float | None = None,
) -> Tensor:
    """CDAN (NeurIPS 2018, eq. 8; CDAN+E where `conditioned`) face by face, features [N, D], logits [N, C].

    The entropy is reversed by `of_entropy` if given, else like everything else.
    """
    own = coefficient if of_entropy is None else of_entropy
    total = logits.new_zeros(())
    for domain in (True, False):
        weights, losses = [], []
        for i in [i for i in range(len(features)) if bool(is_source[i]) is domain]:
            p = softmax(logits[i])
            joint = torch.stack([chance.detach() * value for chance in p for value in features[i]])
            losses.append(domain_loss(discriminator, joint, coefficient, domain))
            entropy = -(p * (p + 1e-5).log()).sum()
            weights.append(1 + (-reverse(entropy, own)).exp() if conditioned else torch.ones_like(entropy))
        norm = sum(weights).detach()
        total = total + sum(w / norm * x for w, x in zip(weights, losses, strict=True)) / 2
    return total


def head_adversarial(
    discriminators: Sequence[nn.Module],
    source: Output,
    target: Output,
    coefficient: float | Sequence[float] = 1.0,
    conditioned: bool = True,
    of_entropy: float | None = None,
) -> Tensor:
    """The same for seven heads, each with its coefficient: one discriminator each, or three (global, local, fused)."""
    each = [coefficient] * 7 if isinstance(coefficient, float) else coefficient
    logits, features = torch.cat([source.logits, target.logits]), torch.cat([source.features, target.features])
    is_source = torch.arange(len(logits)) < len(source.logits)
    total = logits.new_zeros(())
    for h in range(7):
        which = discriminators[h if len(discriminators) == 7 else {0: 0, 6: 2}.get(h, 1)]
        feature = features.flatten(1) if h == 6 else features[:, h]
        seen = feature, logits[:, h], is_source, which
        total = total + conditional_adversarial(*seen, each[h], conditioned, of_entropy)
    return total


def glpc(
    p: Tensor | np.ndarray, b: Tensor | np.ndarray, threshold: float = 0.95, empty_sum: str = "all"
) -> tuple[int, str]:
    """AGLRLS's decision for one face, p and b [7 heads, C], in Python floats as in its released code.

    Returns the prediction and the stage that made it. `empty_sum`: see `fercli.evaluation.decision.glpc`.
    """
    p, b = ([[float(value) for value in row] for row in rows] for rows in (p, b))
    for head, stage in ((6, "fused"), (0, "global")):
        top = p[head].index(max(p[head]))
        if p[head][top] >= threshold * ((b[head][top] + 1) / 2) ** 2:
            return top, stage
    sums = [math.fsum(p[h][c] for h in range(7) if p[h][c] >= b[h][c]) for c in range(7)]
    if max(sums) == 0 and empty_sum == "all":
        sums = [math.fsum(p[h][c] for h in range(7)) for c in range(7)]
    return sums.index(max(sums)), "sum"


def learning_status(bank: Tensor) -> Tensor:
    """FlexMatch's b [7, C] for a bank [7, faces] (-1: not filled yet), counted one by one."""
    status = torch.zeros(len(bank), 7)
    for h, row in enumerate(bank.tolist()):
        most = max(row.count(c) for c in range(-1, 7))
        for c in range(7):
            status[h, c] = row.count(c) / most
    return status


def pseudo_label_loss(
    weak: Tensor, strong: Tensor, status: Tensor, weights: Sequence[float], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, 7, C] of both views: the loss, the confident labels [N, 7] (-1: none), and which were used."""
    loss, sure = strong.new_zeros(()), torch.full(weak.shape[:2], -1)
    used = torch.zeros(weak.shape[:2], dtype=torch.bool)
    for i in range(len(weak)):
        for h in range(7):
            p = softmax(weak[i, h].detach())
            c = int(p.argmax())
            if p[c] >= threshold:
                sure[i, h] = c
            if p[c] >= threshold * ((status[h, c] + 1) / 2) ** 2:
                used[i, h] = True
                loss = loss - weights[h] * softmax(strong[i, h])[c].log() / len(weak)
    return loss, sure, used


def ensemble_agreement(candidates: Sequence[list[list[float]]]) -> list[float]:
    """EnsV by image: how often each candidate's prediction is that of the sum of all; probabilities [K, N, C]."""
    agreed = [0] * len(candidates)
    images = len(candidates[0])
    for i in range(images):
        total = [sum(candidate[i][c] for candidate in candidates) for c in range(7)]
        for k, candidate in enumerate(candidates):
            agreed[k] += candidate[i].index(max(candidate[i])) == total.index(max(total))
    return [a / images for a in agreed]


def assert_same(
    value: Tensor, expected: Tensor, wanted: Sequence[Tensor], rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Equal values, and equal gradients with respect to each of `wanted`, or no gradient in both."""
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, check_dtype=False)
    both = [torch.autograd.grad(x, wanted, retain_graph=True, allow_unused=True) for x in (value, expected)]
    for ours, plain in zip(*both, strict=True):
        assert (ours is None) == (plain is None)
        if ours is not None:
            torch.testing.assert_close(ours, plain, rtol=rtol, atol=atol)
