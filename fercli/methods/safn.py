"""SAFN and HAFN: adaptive feature norm (Xu et al., *Larger Norm More Transferable*, ICCV 2019, arXiv 1811.07456)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.alignment import hard_feature_norm, stepwise_feature_norm
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import fused_feature, joint_pass
from fercli.spec import Section


class SAFN(Method):
    """Raises the norm of both domains' fused features [B, 384]: stepwise by ``step``, or to ``radius`` on average.

    ``variant: stepwise`` is SAFN and reads ``step``; ``variant: hard`` is HAFN and reads ``radius``. The two domains'
    losses are added, each with ``weight``, as in the authors' code. The paper writes SAFN's as one mean over the images
    of both domains, which is half as much if they have equally many. SAFN's loss is constant by construction: watch the
    logged norms instead. Both losses are multiplied by the fused head's weight (``adapt.head_weights``), so that their
    ratio to its cross-entropy is as in the authors' code.

    Not adopted: in the paper the norm is that of an extra layer in the classifier, with a dropout that preserves it.
    Here it is the norm of the fused head's input, without dropout. ``radius`` is the paper's value for its layer.
    """

    name = "safn"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of SAFN."""

        variant: Literal["stepwise", "hard"] = "stepwise"
        """``stepwise`` raises norms step by step (SAFN), ``hard`` pulls their mean to a radius (HAFN)."""
        weight: Annotated[float, Field(ge=0)] = 0.05
        """Weight of each domain's feature-norm loss."""
        step: Annotated[float, Field(gt=0)] = 1.0
        """By how much ``stepwise`` raises a norm."""
        radius: Annotated[float, Field(gt=0)] = 25.0
        """The mean norm that ``hard`` aims at."""

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options = self.options
        source, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        for domain, output in (("source", source), ("target", target)):
            feature = fused_feature(output)
            if options.variant == "stepwise":
                loss = stepwise_feature_norm(feature, options.step)
            else:
                loss = hard_feature_norm(feature, options.radius)
            losses[f"norm-{domain}"] = self.head_weights[-1] * options.weight * loss
            logs[f"mean-norm/{domain}"] = feature.detach().norm(dim=1).mean()
        return Step(losses, logs)
