"""DALN: discriminator-free adversarial learning (Chen et al., CVPR 2022, arXiv 2204.03838)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import fused_feature, joint_pass
from fercli.methods.losses import nuclear_norm, reversal_coefficient, reverse_gradient
from fercli.spec import Section


def nuclear_discrepancy(source: Tensor, target: Tensor) -> Tensor:
    """Nuclear-norm Wasserstein discrepancy of two batches of answers (Chen et al., CVPR 2022, section 3).

    The nuclear norm of the source's probabilities divided by B, minus the target's divided by M.

    Args:
        source: probabilities [B, C].
        target: likewise, [M, C].

    Returns:
        A scalar in -1..1: above 0 where the source's answers are more certain and varied than the target's.
    """
    return nuclear_norm(source) / len(source) - nuclear_norm(target) / len(target)


class DALN(Method):
    """The fused classifier is its own discriminator: it raises `nuclear_discrepancy`, and the features lower it.

    A gradient reversal stands before the classifier, so that one loss, minus the discrepancy, does both: the
    classifier gives the source certain and varied answers and the target vague ones, and the features, by which the
    reversed gradient arrives, make the target's answers certain and varied too. There are no parameters beside the
    network's.

    All is multiplied by the fused head's weight, the classifier's part too, for the classifier learns the source at
    that weight. ``weight`` is the paper's lambda, 1. The reversal grows by 2 / (1 + exp(-10 p)) - 1 with
    p = step / ``reversal_steps``; 10,000 is what the authors' code has (github.com/xiaoachen98/DALN, commit e40ca55).
    That code divides both norms by the target's number of faces; the two are as many there.
    """

    name = "daln"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of DALN."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        source, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        coefficient = reversal_coefficient(progress.step, self.options.reversal_steps)
        features = reverse_gradient(torch.cat([fused_feature(source), fused_feature(target)]), coefficient)
        answers = network.classifiers[-1](features).float().softmax(-1)
        discrepancy = nuclear_discrepancy(*answers.split([len(batch.labels), len(answers) - len(batch.labels)]))
        losses["discrepancy"] = -self.head_weights[-1] * self.options.weight * discrepancy
        logs["discrepancy"] = discrepancy.detach()
        logs["reversal"] = coefficient
        return Step(losses, logs)
