"""MCC: minimum class confusion (Jin et al., ECCV 2020, arXiv 1912.03699)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import at_least_float32, entropy
from fercli.spec import Section


def class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Measure how much a batch of target predictions confuses the classes (Jin et al., ECCV 2020, section 3).

    Y [B, C] is the softmax of `logits` / `temperature`. W holds the faces' weights 1 + exp(-entropy of Y), scaled to
    mean 1 and without gradient. The class confusion is Y^T W Y [C, C], with each row scaled to sum 1. The loss is the
    sum of its off-diagonal entries, divided by C.

    Args:
        logits: [B, C].
        temperature: > 0; higher values give more influence to small probabilities.

    Returns:
        A scalar in 0..1: 0 if every prediction is certain, (C - 1) / C if all are uniform. A class to which no face
        gives any probability, in floating-point precision, adds no confusion.
    """
    chances = (at_least_float32(logits) / temperature).softmax(-1)
    sureness = 1 + torch.exp(-entropy(chances.detach()))
    weights = sureness / sureness.mean()
    confusion = chances.T @ (weights[:, None] * chances)
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(confusion.dtype).tiny)
    return (shares.sum() - shares.trace()) / shares.shape[1]


class MCC(Method):
    """Minimises the `class_confusion` of the fused head's predictions on the target.

    It is multiplied by the fused head's weight, so that its ratio to the source's loss on that head is ``weight``, the
    paper's mu, which is 1 in the authors' code (github.com/thuml/Versatile-Domain-Adaptation, commit 47ec4cb). It never
    changes a certain prediction, and so relies on a source model that is mostly right.

    Differences from that code: source and target pass through the network together, as for all methods here. There they
    pass one after the other, each normalised by its own batch statistics. The code normalises the confusion's columns,
    the paper its rows; the matrix is symmetric, so the loss is the same.
    """

    name = "mcc"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of MCC."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the class confusion, the paper's mu."""
        temperature: Annotated[float, Field(gt=0)] = 2.5
        """Temperature of the softmax; higher values give small probabilities more influence."""

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        _, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        confusion = class_confusion(target.logits[:, -1], self.options.temperature)
        losses["confusion"] = self.head_weights[-1] * self.options.weight * confusion
        logs["confusion"] = confusion.detach()
        return Step(losses, logs)
