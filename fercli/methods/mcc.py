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
    """How much a batch of target answers confuses the classes with each other (Jin et al., ECCV 2020, section 3).

    With Y [B, C] the softmax of `logits` / `temperature` and W the faces' weights 1 + exp(-entropy of Y), brought to
    mean 1 and without gradient, the confusion of the classes is Y^T W Y [C, C], each of its rows brought to sum 1. The
    loss is what stands off the diagonal, summed and divided by C.

    Args:
        logits: [B, C].
        temperature: > 0; more of it counts the small probabilities for more.

    Returns:
        A scalar in 0..1: 0 where every face is certain, (C - 1) / C where none knows anything. A class that no face
        gives any probability, in the precision of floats, confuses nothing.
    """
    chances = (at_least_float32(logits) / temperature).softmax(-1)
    sureness = 1 + torch.exp(-entropy(chances.detach()))
    weights = sureness / sureness.mean()
    confusion = chances.T @ (weights[:, None] * chances)
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(confusion.dtype).tiny)
    return (shares.sum() - shares.trace()) / shares.shape[1]


class MCC(Method):
    """The fused head shall not confuse the classes on the target: `class_confusion` of its answers.

    It is multiplied by the fused head's weight, so that its ratio to the source's loss on that head is ``weight``, the
    paper's mu, 1 in the authors' code (github.com/thuml/Versatile-Domain-Adaptation, commit 47ec4cb). It lets no face
    that is certain change its mind, and so rests on a source model that is mostly right.

    Where we differ from that code: source and target pass the network together, as for all methods here, and there one
    after the other, each normalised by its own batch statistics. It divides the confusion's columns where the paper
    divides its rows; the matrix is symmetric, so that the loss is the same.
    """

    name = "mcc"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of MCC."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        temperature: Annotated[float, Field(gt=0)] = 2.5

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        _, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        confusion = class_confusion(target.logits[:, -1], self.options.temperature)
        losses["confusion"] = self.head_weights[-1] * self.options.weight * confusion
        logs["confusion"] = confusion.detach()
        return Step(losses, logs)
