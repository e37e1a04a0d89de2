"""AGLRLS: adaptive global-local representation learning and selection (Gao et al., IEEE TMM 2024, arXiv 2401.11085).

Three parts, each of which can be switched off for an ablation: separate global-local adversarial learning
(``adversarial``), semantic-aware pseudo labels (``pseudo_labels``) and the decision rule of global-local prediction
consistency (``glpc``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.adversarial import HeadDiscriminators
from fercli.methods.base import NUM_HEADS, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import DistributionAlignment
from fercli.methods.pseudo_bank import PseudoLabelling
from fercli.spec import Optimisation


class AGLRLS(PseudoLabelling):
    """The published method, with the released code's defaults.

    ``passes: published`` draws separate target faces for the adversarial term and the pseudo labels, and runs
    [source + target], [weak], [strong], each with its own batch-norm statistics. ``passes: shared`` uses the weak view
    for both, and runs [source + weak], [strong]: the forward passes cover three batches instead of four. The weak view
    is then normalised together with the source faces, and pseudo labels drift if the domains differ much. On real
    photographs this cost 13 points (docs/measurements.md, the starter model).

    Three options reproduce what the released code does differently. With ``reversal_counts: forwards`` the gradient
    reversal grows as it does there (`fercli.methods.adversarial.HeadDiscriminators`). ``glpc_empty_sum: class-0``
    predicts class 0 if no probability counts (`fercli.evaluation.decision.glpc`). ``drop_last`` draws the faces of the
    pseudo labels in whole batches. ``faithful: published`` sets all three.

    ``alignment`` is not part of the method. It computes pseudo labels from probabilities that are aligned with the
    source's distribution of expressions (`fercli.methods.losses.DistributionAlignment`), for targets on which the
    source model is biased to one expression.
    """

    name = "aglrls"
    reaches_all = True

    class Options(PseudoLabelling.Options):
        """``adapt.options`` of AGLRLS."""

        adversarial: bool = True
        """Whether to train the separate global-local adversarial learning."""
        adversarial_weight: Annotated[float, Field(ge=0)] = 0.5
        """Weight of each head's adversarial loss."""
        entropy_conditioning: bool = True
        """Whether confident faces weigh more in the adversarial loss, as in CDAN+E."""
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        """Training steps after which the gradient reversal is nearly complete."""
        reversal_counts: Literal["steps", "forwards"] = "steps"
        """What the reversal counts: steps, or a discriminator's forward passes as in the released code."""
        discriminators: Literal["shared", "separate"] = "shared"
        """``separate``: one for each head. ``shared``: one for the five local heads, as in the released code."""
        hidden: Annotated[int, Field(gt=0)] = 512
        """Width of the discriminators' hidden layers."""
        pseudo_labels: bool = True
        """Whether to train with semantic-aware pseudo labels."""
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the pseudo labels' loss."""
        alignment: bool = False
        """Whether to align target probabilities with the source's distribution of expressions first; not published."""
        glpc: bool = True
        """Whether to predict by global-local prediction consistency; otherwise the fused head predicts."""
        glpc_empty_sum: Literal["all", "class-0"] = "all"
        """If no probability counts: sum them all, or predict class 0 as the released code does."""
        passes: Literal["published", "shared"] = "published"
        """Separate target faces for the adversarial loss and the pseudo labels, or the weak view for both."""
        drop_last: bool = False
        """Whether the last, incomplete batch of pseudo-labelled faces of an epoch is left out."""

    published_options: ClassVar[dict[str, Any]] = {
        "reversal_counts": "forwards",
        "glpc_empty_sum": "class-0",
        "drop_last": True,
    }

    def __init__(self, settings: Optimisation, options: AGLRLS.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.decision = "glpc" if options.glpc and options.pseudo_labels else "fused"
        self.drop_last = options.drop_last
        # If passes are shared, "weak" is also the batch of the adversarial term.
        self.shared_view = options.passes == "shared" and options.pseudo_labels
        wants = set()
        if options.adversarial and not self.shared_view:
            wants.add("target")
        if options.pseudo_labels:
            wants |= {"weak", "strong"}
        self.wants = frozenset(wants)

        self.discriminators = nn.ModuleList()
        if options.adversarial:
            self.discriminators = HeadDiscriminators(
                feature_dim, options.discriminators, options.hidden, options.reversal_steps, options.reversal_counts
            )
        self.aligner = None
        if options.alignment and options.pseudo_labels:
            self.aligner = DistributionAlignment(NUM_HEADS)

    @classmethod
    def decision_options(cls, options: AGLRLS.Options) -> dict[str, Any]:
        # GLPC uses FlexMatch's class thresholds, whichever thresholds chose the pseudo labels.
        return {"threshold": options.threshold, "empty_sum": options.glpc_empty_sum}

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options = self.options
        aligned = batch.source[:0]  # none
        if options.adversarial:
            aligned = batch.weak if self.shared_view else batch.target
        source, target, losses, logs = joint_pass(network, batch.source, aligned, batch.labels, self.head_weights)

        if options.adversarial:
            adversarial = self.discriminators(source, target, progress.step, options.entropy_conditioning)
            losses["adversarial"] = options.adversarial_weight * adversarial
            logs["reversal"] = self.discriminators.coefficients(progress.step)[-1]

        if options.pseudo_labels:
            if self.shared_view and options.adversarial:
                weak_logits = target.logits
            else:
                with torch.no_grad():  # only the labels are needed; batch norm still sees the weak view, as published
                    weak_logits = network(*batch.weak.inputs).logits
            if self.aligner is not None:
                weak_logits = self.aligner(source.logits, weak_logits)
            strong_logits = network(*batch.strong.inputs).logits
            loss, rates = self.pseudo_loss(weak_logits, strong_logits, batch.indices)
            losses["pseudo"] = options.pseudo_weight * loss
            logs.update(rates)
        return Step(losses, logs)
