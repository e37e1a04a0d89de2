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
    def forward(ctx, x: Tensor, coefficient: Tensor | float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * gradient, None


def reverse_gradient(x: Tensor, coefficient: Tensor | float) -> Tensor:
    """Identity forward; the gradient is multiplied by -`coefficient`, a scalar (Ganin et al., JMLR 2016)."""
    return _Reverse.apply(x, coefficient)


def reversal_coefficient(step: Tensor | int, horizon: float = 10_000) -> Tensor:
    """Strength of the gradient reversal: 2 / (1 + exp(-10 step / horizon)) - 1, from 0 up to 1 (CDAN, NeurIPS 2018).

    Args:
        step: >= 0, of any shape.
        horizon: > 0, in steps.

    Returns:
        float64 of that shape, on the device of `step`.
    """
    # the same function, in one operation
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
    """Conditional adversarial loss of a head, CDAN+E (Long et al., NeurIPS 2018, eq. 8; AGLRLS, one term a head).

    The discriminator sees the outer product of the softmax (detached) and the feature, behind a gradient reversal, and
    tells source (1) from target (0). Each sample weighs 1 + exp(-H(softmax)), itself behind the reversal, normalised to
    sum 1 within its domain; the two domains are then averaged.

    Args:
        features: [B, D]; or [B, H, D] of H heads that share the discriminator, whose losses are summed.
        logits: [B, C], or [B, H, C].
        is_source: bool [B]; both domains must be present.
        discriminator: maps [N, C * D] to logits [N] (before the sigmoid).
        coefficient: strength of the reversal, 0..1; a scalar, or [H].
        entropy_conditioning: False weighs all samples of a domain alike (plain CDAN).
        entropy_coefficient: strength of the weights' own reversal, a scalar; None is `coefficient`.

    Returns:
        A scalar >= 0; H ln 2 where the discriminator cannot tell.
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
        # The normaliser is a constant, as in the released code: only the weights themselves carry gradient.
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


#: Singular values below this share of the largest count as none in `nuclear_norm`.
LEAST_SHARE = 1e-7


def _halley_weights(least: float) -> list[tuple[float, float, float]]:
    """The weights (a, b, c) of `_polar_factor`'s iterations, until singular values of `least` have become 1.

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
    """U V^T of the singular vectors of a matrix [N, M], float64; those of no singular value are left out.

    By the weighted Halley iteration (`_halley_weights`): a handful of products and Cholesky factors of the size of the
    shorter side. A decomposition of the library's would make an accelerator wait for its host.
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

    Its gradient is U V^T over the singular values that are not zero to rounding (`LEAST_SHARE`): finite always, and the
    shortest of those that would do where the matrix lacks rank, such as one of equal rows. NaN or infinite entries give
    NaN.
    """
    return (matrix * _polar_factor(matrix.detach()).to(matrix)).sum()


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
