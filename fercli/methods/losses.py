"""The losses that methods share, each a pure function.

Shapes: B images, H = 7 heads (global, five local, fused), C = 7 expressions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Keeps log finite at probability zero; the value of the released code.
LOG_FLOOR = 1e-5


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def head_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Weighted sum over the heads of the mean cross-entropy (AGLRLS, arXiv 2401.11085, the source term).

    Args:
        logits: [B, H, C].
        labels: int64 [B], 0..C-1; or float [B, C] >= 0, shares of the classes times the face's weight, 1 in all for a
            face that weighs as any other.
        weights: [H].
        label_smoothing: 0..1.

    Returns:
        A scalar >= 0. NaN for an empty batch, as a mean over nothing.
    """
    batch, heads, classes = logits.shape
    if labels.is_floating_point():
        spread = labels.sum(-1, keepdim=True) / classes
        wanted = (1 - label_smoothing) * labels + label_smoothing * spread
        each = -(wanted[:, None] * at_least_float32(logits).log_softmax(-1)).sum(-1)
        return (each.mean(0) * weights).sum()
    each = F.cross_entropy(
        at_least_float32(logits.flatten(0, 1)),
        labels.repeat_interleave(heads),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return (each.view(batch, heads).mean(0) * weights).sum()


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis, in 0..ln C, with `LOG_FLOOR` inside the logarithm."""
    return -(probabilities * (probabilities + LOG_FLOOR).log()).sum(-1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * gradient, None


def reverse_gradient(x: Tensor, coefficient: float) -> Tensor:
    """Identity forward; the gradient is multiplied by -`coefficient` (Ganin et al., JMLR 2016)."""
    return _Reverse.apply(x, coefficient)


def reversal_coefficient(step: int, horizon: float = 10_000) -> float:
    """Strength of the gradient reversal: 2 / (1 + exp(-10 step / horizon)) - 1, from 0 up to 1 (CDAN, NeurIPS 2018)."""
    return 2 / (1 + math.exp(-10 * step / horizon)) - 1


def conditional_adversarial(
    features: Tensor,
    logits: Tensor,
    is_source: Tensor,
    discriminator: nn.Module,
    coefficient: float,
    entropy_conditioning: bool = True,
    entropy_coefficient: float | None = None,
) -> Tensor:
    """Conditional adversarial loss of one head, CDAN+E (Long et al., NeurIPS 2018, eq. 8; AGLRLS, one term a head).

    The discriminator sees the outer product of the softmax (detached) and the feature, behind a gradient reversal, and
    tells source (1) from target (0). Each sample weighs 1 + exp(-H(softmax)), itself behind the reversal, normalised to
    sum 1 within its domain; the two domains are then averaged.

    Args:
        features: [B, D].
        logits: [B, C].
        is_source: bool [B]; both domains must be present.
        discriminator: maps [B, C * D] to logits [B] (before the sigmoid).
        coefficient: strength of the reversal, 0..1.
        entropy_conditioning: False weighs all samples of a domain alike (plain CDAN).
        entropy_coefficient: strength of the weights' own reversal; None is `coefficient`.

    Returns:
        A scalar >= 0; ln 2 where the discriminator cannot tell.
    """
    probabilities = at_least_float32(logits).softmax(-1)
    joint = (probabilities.detach().unsqueeze(2) * at_least_float32(features).unsqueeze(1)).flatten(1)
    verdict = at_least_float32(discriminator(reverse_gradient(joint, coefficient)))
    each = F.binary_cross_entropy_with_logits(verdict, is_source.to(verdict), reduction="none")
    if entropy_conditioning:
        own = coefficient if entropy_coefficient is None else entropy_coefficient
        weight = 1 + torch.exp(-reverse_gradient(entropy(probabilities), own))
    else:
        weight = torch.ones_like(each)
    loss = each.new_zeros(())
    for domain in (is_source, ~is_source):
        inside = weight * domain
        # The normaliser is a constant, as in the released code: only the weights themselves carry gradient.
        loss = loss + (inside / inside.sum().detach() * each).sum() / 2
    return loss


class Discriminator(nn.Module):
    """Three linear layers in-hidden-hidden-1 with LeakyReLU 0.2 and dropout 0.5; Xavier-normal weights, zero biases.

    Maps [B, in_features] to logits [B]; the published sigmoid is part of the loss, where it is computed stably.
    """

    def __init__(self, in_features: int, hidden: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(hidden, 1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def learning_status(bank: Tensor, classes: int = 7) -> Tensor:
    """How well each head has learned each class, b (FlexMatch, Zhang et al., NeurIPS 2021, eq. 6 with warm-up).

    Args:
        bank: int64 [H, N]: for each target image its last confident prediction, or -1 for none yet.

    Returns:
        float [H, C] in 0..1: images of class c over the largest such number among the classes and "none yet". All zero
        while no image has been predicted confidently, and for N = 0.
    """
    counts = torch.zeros(bank.shape[0], classes + 1, device=bank.device)
    counts.scatter_add_(1, bank + 1, torch.ones_like(bank, dtype=counts.dtype))
    return counts[:, 1:] / counts.amax(1, keepdim=True).clamp_min(1)


def class_thresholds(status: Tensor, threshold: float = 0.95) -> Tensor:
    """Confidence asked of each class: threshold * ((b + 1) / 2) ** 2, from a quarter of `threshold` up to all of it.

    Works on any shape; `status` in 0..1 (AGLRLS code, "convex2").
    """
    return threshold * ((status + 1) / 2) ** 2


class DistributionAlignment(nn.Module):
    """Give target faces, together, the expressions' shares that source faces have in the network's answers.

    A source model leans to some expressions on a new target, and its pseudo labels teach it to lean further. Here each
    probability is multiplied by the running mean of its class over source faces, divided by the one over target faces
    (AdaMatch, Berthelot et al., ICLR 2022, section 3.2; ReMixMatch, ICLR 2020, section 3.1). No label is read.
    """

    def __init__(self, heads: int, classes: int = 7, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        # Sums that fade: only their ratio counts, so that the first step needs no correction.
        self.register_buffer("of_source", torch.zeros(heads, classes))
        self.register_buffer("of_target", torch.zeros(heads, classes))

    @torch.no_grad()
    def forward(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """Take one step's answers in, and return the target's log-probabilities [M, H, C], aligned.

        Args:
            source_logits: [B, H, C].
            target_logits: [M, H, C].
        """
        target = at_least_float32(target_logits).log_softmax(-1)
        self.of_source.mul_(self.decay).add_(at_least_float32(source_logits).softmax(-1).mean(0))
        self.of_target.mul_(self.decay).add_(target.exp().mean(0))
        return (target + self.of_source.log() - self.of_target.log()).log_softmax(-1)


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of the singular values of a matrix [N, M], a scalar >= 0.

    Its gradient is U V^T over the singular values that are not zero to rounding: finite always, and the shortest of
    those that would do where the matrix lacks rank, such as one of equal rows. Those of zero have no direction of their
    own; without the cut their gradient would be any that the library happens to find. NaN or infinite entries give NaN.
    """
    if not matrix.isfinite().all():  # which the decomposition itself refuses with an error of its own
        return matrix.sum() * math.nan
    values = torch.linalg.svdvals(matrix)
    least = values.detach().amax() * max(matrix.shape) * torch.finfo(values.dtype).eps
    return values[values > least].sum()


def pseudo_label_loss(strong_logits: Tensor, labels: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Each head teaches itself: cross-entropy of the strong views to the labels of the weak ones.

    The mean is over all images of the batch, each times what its label weighs (FixMatch, Sohn et al., NeurIPS 2020,
    eq. 4; AGLRLS, of seven heads).

    Args:
        strong_logits: [B, H, C].
        labels: int64 [B, H].
        chosen: [B, H] in 0..1, what the labels weigh (`fercli.methods.thresholds.Thresholds`).
        weights: [H], of the heads.

    Returns:
        A scalar >= 0, exactly zero where no label weighs anything.
    """
    strong = at_least_float32(strong_logits.flatten(0, 1))
    each = F.cross_entropy(strong, labels.flatten(), reduction="none").view_as(chosen)
    return ((each * chosen).mean(0) * weights).sum()
