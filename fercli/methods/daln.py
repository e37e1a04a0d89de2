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
    """Nuclear-norm Wasserstein discrepancy of two batches of predictions (Chen et al., CVPR 2022, section 3).

    The nuclear norm of the source's probabilities divided by B, minus the target's divided by M.

    Args:
        source: probabilities [B, C].
        target: probabilities [M, C].

    Returns:
        A scalar in -1..1: above 0 if the source's predictions are more certain and diverse than the target's.
    """
    return nuclear_norm(source) / len(source) - nuclear_norm(target) / len(target)


class DALN(Method):
    """The fused classifier is also the discriminator: it raises `nuclear_discrepancy`, and the features lower it.

    A gradient reversal before the classifier lets one loss, minus the discrepancy, do both. The classifier learns
    certain and diverse predictions on the source and vague ones on the target. The features, which receive the reversed
    gradient, make the target's predictions certain and diverse too. There are no parameters besides the network's.

    The loss is multiplied by the fused head's weight, for the classifier too, which learns the source with that weight.
    ``weight`` is the paper's lambda, 1. The reversal grows as 2 / (1 + exp(-10 p)) - 1 with
    p = step / ``reversal_steps``; 10,000 is the value of the authors' code (github.com/xiaoachen98/DALN, commit
    e40ca55). That code divides both norms by the number of target faces, which equals that of source faces there.
    """

    name = "daln"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of DALN."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the nuclear-norm discrepancy, the paper's lambda."""
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        """Training steps after which the gradient reversal is nearly complete."""

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
