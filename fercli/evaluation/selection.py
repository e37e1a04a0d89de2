"""Choosing the best epoch without a target label. Each rule is higher-is-better; names and what they read: `rules`."""

from __future__ import annotations

from torch import Tensor

from fercli.evaluation.decision import FUSED
from fercli.methods.losses import entropy


def target_scores(probabilities: Tensor) -> dict[str, float]:
    """The rules that look at the model's outputs on (unlabelled) target images.

    Args:
        probabilities: [N, 7 heads, 7 expressions], N >= 1.

    Returns:
        ``entropy``: minus the mean entropy of the fused head in nats, -ln 7..0, blind to collapse.
        ``infomax``: entropy of the mean prediction minus the mean entropy, 0..ln 7; low both for unsure and for
        collapsed models (Bridle et al., NeurIPS 1991).
        ``agreement``: mean share of the global and five local heads that answer as the fused head does, 0..1.
    """
    fused = probabilities[:, FUSED].double()
    certainty = -entropy(fused).mean()
    answers = probabilities.argmax(-1)
    agreement = (answers[:, :FUSED] == answers[:, FUSED:]).double().mean()
    return {
        "entropy": certainty.item(),
        "infomax": (entropy(fused.mean(0)) + certainty).item(),
        "agreement": agreement.item(),
    }


def source_score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """``source-val``: accuracy of the fused head on held-out source faces, 0..1; NaN where there are none."""
    return {"source-val": (probabilities[:, FUSED].argmax(-1) == labels).double().mean().item()}


def last_score(epoch: int) -> dict[str, float]:
    """``last``: the latest epoch wins."""
    return {"last": float(epoch)}
