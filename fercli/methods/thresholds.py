"""Which pseudo labels count, and how much: the thresholds that the pseudo-label methods share.

Shapes: B images, H heads, C = 7 expressions. Every head is judged by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.losses import class_thresholds

#: Keeps a Gaussian of no width finite: then what is below the mean weighs nothing.
VARIANCE_FLOOR = 1e-12


class Thresholds(nn.Module):
    """Weights in 0..1 of a batch's pseudo labels, each label the class of highest probability.

    - ``fixed``: 1 where that probability p reaches `threshold` (FixMatch, Sohn et al., NeurIPS 2020, eq. 4);
    - ``flexmatch``: 1 where it reaches the threshold of its class, lower for a class that the head has learned less
      (FlexMatch, Zhang et al., NeurIPS 2021; `fercli.methods.losses.class_thresholds` of the learning status);
    - ``freematch``: 1 where it reaches a threshold that follows the head's confidence: the moving average of p, times
      the class's moving average probability over the largest such (FreeMatch, Wang et al., ICLR 2023,
      arXiv 2205.07246, section 4.1). The paper's fairness loss (section 4.2) is left out: it is a loss of its own;
    - ``softmatch``: nobody is shut out. 1 where p reaches its moving mean m, below that exp(-(p - m)^2 / 2 v), v its
      moving variance (SoftMatch, Chen et al., ICLR 2023, arXiv 2301.10921, section 3.1). The paper's uniform alignment
      (section 3.2) is left out: expressions are not equally frequent, neither in the wild nor in the laboratory.

    The moving averages take a batch in before it is judged, as in both papers. Both begin them as a network that knows
    nothing would have them (1 / C, variance 1), and forget that over some thousands of steps. Here the network has
    learned the source already, and adaptation may be short. So an average is the mean over the batches so far, each
    weighing `decay` times the next, without a beginning of its own. The authors' code
    (github.com/microsoft/Semi-supervised-learning, commits 6494385 and 5d09751) begins FreeMatch's at 1 and SoftMatch's
    as the paper does; it divides SoftMatch's v by 4, here it stays as in the paper.

    Args:
        rule: one of the four.
        heads: H.
        threshold: 0..1, of ``fixed`` and ``flexmatch``; the others find theirs.
        decay: 0..1, of ``freematch`` and ``softmatch``; 0.999 in both papers.
    """

    def __init__(self, rule: str, heads: int, threshold: float, decay: float, classes: int = NUM_EXPRESSIONS):
        super().__init__()
        self.rule, self.threshold, self.decay = rule, threshold, decay
        # Sums that fade; their ratio to `batches`, which fades alike, is the average.
        if rule in ("freematch", "softmatch"):
            self.register_buffer("batches", torch.zeros(()))
            self.register_buffer("confidence", torch.zeros(heads))
        if rule == "freematch":
            self.register_buffer("shares", torch.zeros(heads, classes))
        if rule == "softmatch":
            self.register_buffer("spread", torch.zeros(heads))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, status: Tensor) -> Tensor:
        """Take a batch's answers in, and weigh them.

        Args:
            probabilities: of the weak views, [B, H, C].
            status: b, [H, C] in 0..1 (`fercli.methods.losses.learning_status`); only ``flexmatch`` reads it.

        Returns:
            [B, H], of the type of `probabilities`.
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
        # one face varies from nothing
        self._follow(self.spread, confidence.var(0, correction=min(1, len(confidence) - 1)))
        return truncated_gaussian(confidence, mean, self.spread / self.batches)

    def _follow(self, total: Tensor, now: Tensor) -> None:
        total.mul_(self.decay).add_(now)


def above(confidence: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
    """1 where a label's probability reaches the limit of its class, else 0.

    Args:
        confidence: [B, H].
        labels: int64 [B, H].
        limits: [H, C].

    Returns:
        [B, H], of the type of `confidence`.
    """
    own = limits.expand(len(labels), -1, -1).gather(2, labels.unsqueeze(2)).squeeze(2)
    return (confidence >= own).to(confidence)


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """SoftMatch's weights [B, H] in 0..1 of confidences [B, H], by each head's mean and variance [H]."""
    below = (confidence - mean).clamp_max(0)
    return (-below.square() / (2 * variance.clamp_min(VARIANCE_FLOOR))).exp().to(confidence)


def confident_labels(probabilities: Tensor, threshold: float) -> Tensor:
    """What goes into the bank: int64 [B, H], the class of highest probability where it reaches `threshold`, else -1.

    Args:
        probabilities: [B, H, C].
        threshold: 0..1.
    """
    confidence, labels = probabilities.max(-1)
    return torch.where(confidence >= threshold, labels, -1)


def remember(bank: Tensor, indices: Tensor, confident: Tensor) -> None:
    """Put a batch's confident labels into the bank, in place.

    An image that is not confident now keeps what it was before; of one that stands several times in the batch the last
    confident view counts.

    Args:
        bank: int64 [H, N], of each target image the last confident label, -1 for none yet.
        indices: int64 [B], which images these are.
        confident: int64 [B, H], from `confident_labels`.
    """
    # All places of an image write the same, so that it does not matter which of them a device writes last.
    order = torch.arange(1, len(indices) + 1, device=indices.device)
    writers = (indices[:, None] == indices)[:, :, None] & (confident >= 0)  # [B, B, H]
    last = (writers * order[:, None]).amax(1)  # [B, H], 0 for none
    written = confident.gather(0, (last - 1).clamp_min(0))
    bank[:, indices] = torch.where(last > 0, written, bank[:, indices].T).T
