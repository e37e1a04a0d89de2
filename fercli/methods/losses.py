"""The losses that methods share, each a pure function.

Shapes: B images, H = 7 heads (global, five local, fused), C = 7 expressions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Keeps the logarithm finite at probability zero; the released code's value.
LOG_FLOOR = 1e-5


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def head_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Weighted sum over the heads of the mean cross-entropy (AGLRLS, arXiv 2401.11085, the source term).

    Args:
        logits: [B, H, C].
        labels: int64 [B], 0..C-1; or float [B, C] >= 0, class probabilities times the face's weight. They sum to 1 for
            a face of normal weight.
        weights: [H].
        label_smoothing: 0..1.

    Returns:
        A scalar >= 0, or NaN for an empty batch.
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
    def forward(ctx, x: Tensor, coefficient: Tensor | float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * gradient, None


def reverse_gradient(x: Tensor, coefficient: Tensor | float) -> Tensor:
    """Identity in the forward pass; the gradient is multiplied by -`coefficient`, a scalar (Ganin et al., JMLR
    2016)."""
    return _Reverse.apply(x, coefficient)


def reversal_coefficient(step: Tensor | int, horizon: float = 10_000) -> Tensor:
    """Strength of the gradient reversal: 2 / (1 + exp(-10 step / horizon)) - 1, rising from 0 to 1 (CDAN, NeurIPS
    2018).

    Args:
        step: >= 0, of any shape.
        horizon: > 0, in steps.

    Returns:
        float64 of that shape, on the device of `step`.
    """
    # the same function in one operation
    return torch.tanh(torch.as_tensor(step, dtype=torch.float64) * (5 / horizon))


def conditional_adversarial(
    features: Tensor,
    logits: Tensor,
    is_source: Tensor,
    discriminator: nn.Module,
    coefficient: Tensor | float,
    entropy_conditioning: bool = True,
    entropy_coefficient: Tensor | float | None = None,
) -> Tensor:
    """Conditional adversarial loss of a head, CDAN+E (Long et al., NeurIPS 2018, eq. 8; AGLRLS, one term per head).

    The discriminator receives the outer product of the softmax (detached) and the feature, after a gradient reversal,
    and distinguishes source (1) from target (0). Each sample has the weight 1 + exp(-H(softmax)), also after a gradient
    reversal. The weights are normalised to sum 1 within a domain, and the two domains are then averaged.

    Args:
        features: [B, D]; or [B, H, D] for H heads that share the discriminator, whose losses are summed.
        logits: [B, C], or [B, H, C].
        is_source: bool [B]; both domains must be present.
        discriminator: maps [N, C * D] to logits [N] (before the sigmoid).
        coefficient: strength of the reversal, 0..1; a scalar, or [H].
        entropy_conditioning: False gives all samples of a domain the same weight (plain CDAN).
        entropy_coefficient: strength of the reversal of the weights, a scalar; None for `coefficient`.

    Returns:
        A scalar >= 0; H ln 2 if the discriminator cannot distinguish the domains.
    """
    if logits.dim() == 2:
        features, logits = features[:, None], logits[:, None]
    probabilities = at_least_float32(logits).softmax(-1)
    joint = (probabilities.detach()[..., None] * at_least_float32(features)[:, :, None]).flatten(2)
    apart = isinstance(coefficient, Tensor) and coefficient.dim() == 1
    joint = reverse_gradient(joint, coefficient[:, None] if apart else coefficient)
    verdict = at_least_float32(discriminator(joint.flatten(0, 1))).view(logits.shape[:2])
    each = F.binary_cross_entropy_with_logits(
        verdict, is_source.to(verdict)[:, None].expand_as(verdict), reduction="none"
    )
    if entropy_conditioning:
        own = coefficient if entropy_coefficient is None else entropy_coefficient
        weight = 1 + torch.exp(-reverse_gradient(entropy(probabilities), own))
    else:
        weight = torch.ones_like(each)
    loss = each.new_zeros(())
    for domain in (is_source[:, None], ~is_source[:, None]):
        inside = weight * domain
        # The normaliser is a constant, as in the released code: only the weights themselves carry a gradient.
        loss = loss + (inside / inside.sum(0).detach() * each).sum() / 2
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
        bank: int64 [H, N]: each target image's last confident prediction, or -1 for none yet.

    Returns:
        float [H, C] in 0..1: the number of images of class c, divided by the largest such number among the classes and
        "none yet". All zero as long as no image has been predicted confidently, and for N = 0.
    """
    counts = torch.zeros(bank.shape[0], classes + 1, device=bank.device)
    counts.scatter_add_(1, bank + 1, torch.ones_like(bank, dtype=counts.dtype))
    return counts[:, 1:] / counts.amax(1, keepdim=True).clamp_min(1)


def class_thresholds(status: Tensor, threshold: float = 0.95) -> Tensor:
    """The threshold of each class: threshold * ((b + 1) / 2) ** 2, from a quarter of `threshold` up to all of it.

    Accepts any shape; `status` is b, in 0..1 (AGLRLS code, "convex2").
    """
    return threshold * ((status + 1) / 2) ** 2


class DistributionAlignment(nn.Module):
    """Aligns the distribution of expressions that the network predicts on target faces with that on source faces.

    On a new target, a source model is biased to some expressions, and its pseudo labels increase the bias. Here each
    probability is multiplied by the running mean of its class over source faces and divided by the one over target
    faces (AdaMatch, Berthelot et al., ICLR 2022, section 3.2; ReMixMatch, ICLR 2020, section 3.1). No label is read.
    """

    def __init__(self, heads: int, classes: int = 7, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        # Decaying sums: only their ratio counts, so the first step needs no correction.
        self.register_buffer("of_source", torch.zeros(heads, classes))
        self.register_buffer("of_target", torch.zeros(heads, classes))

    @torch.no_grad()
    def forward(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """Update the running means with one step's logits and return the target's aligned log-probabilities [M, H, C].

        Args:
            source_logits: [B, H, C].
            target_logits: [M, H, C].
        """
        target = at_least_float32(target_logits).log_softmax(-1)
        self.of_source.mul_(self.decay).add_(at_least_float32(source_logits).softmax(-1).mean(0))
        self.of_target.mul_(self.decay).add_(target.exp().mean(0))
        return (target + self.of_source.log() - self.of_target.log()).log_softmax(-1)


#: Singular values below this fraction of the largest count as zero in `nuclear_norm`.
LEAST_SHARE = 1e-7


def _halley_weights(least: float) -> list[tuple[float, float, float]]:
    """Compute the weights (a, b, c) of the iterations of `_polar_factor` that bring singular values of `least` to 1.

    Nakatsukasa, Bai and Gygi, *Optimizing Halley's iteration for computing the matrix polar decomposition*, SIAM J.
    Matrix Anal. Appl. 31 (2010), eq. 3.
    """
    weights = []
    while 1 - least > 1e-15:
        square = least**2
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        root = math.sqrt(1 + d)
        a = root + math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * root)) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        weights.append((a, b, c))
        least = min(1.0, least * (a + b * square) / (1 + c * square))
    return weights


_HALLEY_WEIGHTS = _halley_weights(LEAST_SHARE)


@torch.no_grad()
def _polar_factor(matrix: Tensor) -> Tensor:
    """Return U V^T of the singular vectors of a matrix [N, M], float64, without the vectors of zero singular values.

    Uses the weighted Halley iteration (`_halley_weights`): a few products and Cholesky factorisations of the size of
    the shorter side. A library decomposition would make an accelerator wait for the host.
    """
    tall = len(matrix) >= matrix.shape[1]
    x = (matrix if tall else matrix.T).double()
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for a, b, c in _HALLEY_WEIGHTS:
        factor, _ = torch.linalg.cholesky_ex(torch.addmm(one, x.T, x, alpha=c))
        x = torch.add(b / c * x, torch.cholesky_solve(x.T, factor).T, alpha=a - b / c)
    return x if tall else x.T


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of the singular values of a matrix [N, M], a scalar >= 0.

    Its gradient is U V^T over the singular values that are not zero up to rounding (`LEAST_SHARE`). It is always
    finite. If the matrix is rank-deficient, for example with equal rows, it is the subgradient of least norm. NaN or
    infinite entries give NaN.
    """
    return (matrix * _polar_factor(matrix.detach()).to(matrix)).sum()


def pseudo_label_loss(strong_logits: Tensor, labels: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Self-training loss of each head: cross-entropy of the strong views with the labels of the weak views.

    The mean is over all images of the batch, each multiplied by its label's weight (FixMatch, Sohn et al., NeurIPS
    2020, eq. 4; AGLRLS, for seven heads).

    Args:
        strong_logits: [B, H, C].
        labels: int64 [B, H].
        chosen: [B, H] in 0..1, the weights of the labels (`fercli.methods.thresholds.Thresholds`).
        weights: [H], the weights of the heads.

    Returns:
        A scalar >= 0; exactly zero if all labels have zero weight.
    """
    strong = at_least_float32(strong_logits.flatten(0, 1))
    each = F.cross_entropy(strong, labels.flatten(), reduction="none").view_as(chosen)
    return ((each * chosen).mean(0) * weights).sum()
