"""FixMatch: pseudo labels of weak views teach strong views (Sohn et al., NeurIPS 2020, arXiv 2001.07685)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fercli.loading.augment import cat
from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import pseudo_label_loss
from fercli.spec import Section


class FixMatch(Method):
    """Where the fused head is sure of a target face's weak view, p >= ``threshold``, its strong view learns that class.

    The paper's eq. 4: cross-entropy, averaged over all target faces of the batch, those below the threshold counting
    zero. It is `fercli.methods.losses.pseudo_label_loss` with every class fully learned, so that all thresholds are
    the same, and is scaled by the fused head's weight: its ratio to the source's loss on that head is ``weight``, the
    paper's lambda. Source, weak and strong views pass the network together, as in the authors' code.

    Not taken over: seven unlabelled images to a labelled one (here as many as ``adapt.batch``), the cosine rate and the
    moving average of the weights, which belong to the paper's schedule. The strong view is the
    project's RandAugment (``data.augment``), without the paper's Cutout.
    """

    name = "fixmatch"
    reaches_all = True
    wants = frozenset({"weak", "strong"})

    class Options(Section):
        """``adapt.options`` of FixMatch."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        _, target, losses, logs = joint_pass(
            network, batch.source, cat([batch.weak, batch.strong]), batch.labels, self.head_weights
        )
        weak, strong = target.logits[:, -1:].chunk(2)
        learned = torch.ones_like(weak[0])
        loss, _, passed = pseudo_label_loss(weak, strong, learned, self.head_weights[-1:], self.options.threshold)
        losses["pseudo"] = self.options.weight * loss
        logs["pseudo-rate"] = passed.float().mean()
        return Step(losses, logs)
