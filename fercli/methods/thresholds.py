"""Which pseudo labels count, and how much: the thresholds that the pseudo-label methods share.

Shapes: B images, H heads, C = 7 expressions. Every head is treated separately.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.losses import class_thresholds

#: Keeps a Gaussian of zero width finite: confidences below the mean then have zero weight.
VARIANCE_FLOOR = 1e-12


class Thresholds(nn.Module):
    """Computes weights in 0..1 for a batch's pseudo labels. Each label is the class of highest probability.

    - ``fixed``: 1 if that probability p reaches `threshold` (FixMatch, Sohn et al., NeurIPS 2020, eq. 4);
    - ``flexmatch``: 1 if p reaches the threshold of its class, which is lower for a class that the head has learned
      less (FlexMatch, Zhang et al., NeurIPS 2021; `fercli.methods.losses.class_thresholds` of the learning status);
    - ``freematch``: 1 if p reaches a threshold that follows the head's confidence. It is the moving average of p, times
      the class's moving average probability, divided by the largest one (FreeMatch, Wang et al., ICLR 2023,
      arXiv 2205.07246, section 4.1). The paper's fairness loss (section 4.2) is left out, as it is a separate loss;
    - ``softmatch``: no label is excluded. 1 if p reaches its moving mean m, otherwise exp(-(p - m)^2 / 2 v), where v is
      the moving variance (SoftMatch, Chen et al., ICLR 2023, arXiv 2301.10921, section 3.1). The paper's uniform
      alignment (section 3.2) is left out, since expressions are not equally frequent, in the wild or in the laboratory.

    The moving averages are updated with a batch before its weights are computed, as in both papers. The papers
    initialise them to the values of an untrained network (1 / C, variance 1), which fade over some thousands of steps.
    Here the network has already learned the source, and adaptation may be short. So an average has no initial value: it
    is the mean over the batches so far, where each batch weighs `decay` times the next. The authors' code
    (github.com/microsoft/Semi-supervised-learning, commits 6494385 and 5d09751) starts FreeMatch's averages at 1 and
    SoftMatch's as in the paper. It divides SoftMatch's v by 4; here v is as in the paper.

    Args:
        rule: one of the four.
        heads: H.
        threshold: 0..1, for ``fixed`` and ``flexmatch``; the others compute theirs.
        decay: 0..1, for ``freematch`` and ``softmatch``; 0.999 in both papers.
    """

    def __init__(self, rule: str, heads: int, threshold: float, decay: float, classes: int = NUM_EXPRESSIONS):
        super().__init__()
        self.rule, self.threshold, self.decay = rule, threshold, decay
        # Decaying sums; dividing them by `batches`, which decays in the same way, gives the average.
        if rule in ("freematch", "softmatch"):
            self.register_buffer("batches", torch.zeros(()))
            self.register_buffer("confidence", torch.zeros(heads))
        if rule == "freematch":
            self.register_buffer("shares", torch.zeros(heads, classes))
        if rule == "softmatch":
            self.register_buffer("spread", torch.zeros(heads))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, status: Tensor) -> Tensor:
        """Update the moving averages with a batch, and compute the weights of its pseudo labels.

        Args:
            probabilities: those of the weak views, [B, H, C].
            status: b, [H, C] in 0..1 (`fercli.methods.losses.learning_status`); only ``flexmatch`` reads it.

        Returns:
            [B, H], with the type of `probabilities`.
        """
        confidence, labels = probabilities.max(-1)
        if self.rule == "fixed":
            return above(confidence, labels, class_thresholds(torch.ones_like(probabilities[0]), self.threshold))
        if self.rule == "flexmatch":
            return above(confidence, labels, class_thresholds(status, self.threshold))
        self._follow(self.batches, torch.ones_like(self.batches))
        self._follow(self.confidence, confidence.mean(0))
        mean = self.confidence / self.batches
        if self.rule == "freematch":
            self._follow(self.shares, probabilities.mean(0))
            return above(confidence, labels, mean[:, None] * self.shares / self.shares.amax(1, keepdim=True))
        # the variance of a single face is zero
        self._follow(self.spread, confidence.var(0, correction=min(1, len(confidence) - 1)))
        return truncated_gaussian(confidence, mean, self.spread / self.batches)

    def _follow(self, total: Tensor, now: Tensor) -> None:
        total.mul_(self.decay).add_(now)


def above(confidence: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
    """Return 1 if a label's probability reaches the limit of its class, else 0.

    Args:
        confidence: [B, H].
        labels: int64 [B, H].
        limits: [H, C].

    Returns:
        [B, H], with the type of `confidence`.
    """
    own = limits.expand(len(labels), -1, -1).gather(2, labels.unsqueeze(2)).squeeze(2)
    return (confidence >= own).to(confidence)


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """SoftMatch's weights [B, H] in 0..1 for confidences [B, H], given each head's mean and variance [H]."""
    below = (confidence - mean).clamp_max(0)
    return (-below.square() / (2 * variance.clamp_min(VARIANCE_FLOOR))).exp().to(confidence)


def confident_labels(probabilities: Tensor, threshold: float) -> Tensor:
    """Return the labels for the bank: int64 [B, H], the most probable class if it reaches `threshold`, else -1.

    Args:
        probabilities: [B, H, C].
        threshold: 0..1.
    """
    confidence, labels = probabilities.max(-1)
    return torch.where(confidence >= threshold, labels, -1)


def remember(bank: Tensor, indices: Tensor, confident: Tensor) -> None:
    """Store a batch's confident labels in the bank, in place.

    An image without a confident label keeps its previous entry. If an image occurs several times in the batch, its last
    confident view counts.

    Args:
        bank: int64 [H, N], each target image's last confident label, -1 for none yet.
        indices: int64 [B], the positions of these images.
        confident: int64 [B, H], from `confident_labels`.
    """
    # All places of an image write the same values, so that it does not matter which one a device writes last.
    order = torch.arange(1, len(indices) + 1, device=indices.device)
    writers = (indices[:, None] == indices)[:, :, None] & (confident >= 0)  # [B, B, H]
    last = (writers * order[:, None]).amax(1)  # [B, H], 0 for none
    written = confident.gather(0, (last - 1).clamp_min(0))
    bank[:, indices] = torch.where(last > 0, written, bank[:, indices].T).T
