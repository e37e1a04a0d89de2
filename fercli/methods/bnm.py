"""BNM: batch nuclear-norm maximisation (Cui et al., CVPR 2020, arXiv 2003.12237)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import at_least_float32, nuclear_norm
from fercli.spec import Section


class BNM(Method):
    """Makes the fused head's predictions on a target batch confident and diverse by raising their nuclear norm.

    The paper's loss (section 3): minus the nuclear norm (`fercli.methods.losses.nuclear_norm`) of the batch's
    probabilities [B, 7], divided by B. Its least value is -sqrt(min(B, 7) / B), for certain predictions spread evenly
    over min(B, 7) classes. For uniform predictions it is -1 / sqrt(7 B). It is multiplied by the fused head's weight,
    so that its ratio to the source's loss on that head is ``weight``, the paper's lambda.

    Differences from the authors' code (github.com/cuishuhao/BNM, commit ba8de72): the code takes the mean of the
    singular values and thus divides by min(B, C), not by the paper's B, a divisor 2.3 times smaller if B is 16 and C is
    7. Its lambda is 1. Source and target pass through its network one after the other, here together.
    """

    name = "bnm"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of BNM."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the nuclear norm, the paper's lambda."""

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        _, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        chances = at_least_float32(target.logits[:, -1]).softmax(-1)
        norm = nuclear_norm(chances) / len(chances)
        losses["nuclear-norm"] = -self.head_weights[-1] * self.options.weight * norm
        logs["nuclear-norm"] = norm.detach()
        return Step(losses, logs)
