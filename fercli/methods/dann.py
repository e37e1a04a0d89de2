"""DANN: domain-adversarial training of neural networks (Ganin et al., JMLR 2016, arXiv 1505.07818)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from fercli.loading.batches import Batch
from fercli.methods.alignment import domain_adversarial
from fercli.methods.base import NUM_HEADS, Method, Progress, Step
from fercli.methods.joint import fused_feature, joint_pass
from fercli.methods.losses import Discriminator, reversal_coefficient
from fercli.models import Output
from fercli.spec import Optimisation, Section


class DANN(Method):
    """A discriminator distinguishes source from target by the fused feature [B, 384], after a gradient reversal.

    The reversal grows from 0 to 1 with the paper's schedule, 2 / (1 + exp(-10 p)) - 1. In the paper p is the completed
    fraction of the training; here it is step / ``reversal_steps``, as in the code of CDAN and AGLRLS. The discriminator
    is AGLRLS's, so that the benchmark's methods differ in what they align and not in the discriminator.

    The source's cross-entropy has weight 7 on the fused head (``adapt.head_weights``), but 1 in the paper. So the
    gradient that reaches the features through the reversal is multiplied by that weight too. Its ratio to the
    cross-entropy is then as in the paper. The discriminator itself learns from the plain loss.
    """

    name = "dann"
    reaches_all = True
    wants = frozenset({"target"})
    #: The width of the discriminator's input, in fused features.
    input_width = 1

    class Options(Section):
        """``adapt.options`` of DANN, CDAN and CDAN+E."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the adversarial loss."""
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        """Training steps after which the gradient reversal is nearly complete."""
        hidden: Annotated[int, Field(gt=0)] = 512
        """Width of the discriminator's hidden layers."""

    def __init__(self, settings: Optimisation, options: DANN.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.fused_weight = settings.head_weights[-1]
        self.discriminator = Discriminator(self.input_width * feature_dim * (NUM_HEADS - 1), options.hidden)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        source, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        coefficient = reversal_coefficient(progress.step, self.options.reversal_steps)
        adversarial = self.adversarial(source, target, self.fused_weight * coefficient)
        losses["adversarial"] = self.options.weight * adversarial
        logs["reversal"] = coefficient
        return Step(losses, logs)

    def adversarial(self, source: Output, target: Output, coefficient: float) -> Tensor:
        """Return the adversarial loss of the two domains' outputs, a scalar >= 0."""
        return domain_adversarial(fused_feature(source), fused_feature(target), self.discriminator, coefficient)
