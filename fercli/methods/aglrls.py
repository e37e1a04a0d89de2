"""AGLRLS: adaptive global-local representation learning and selection (Gao et al., IEEE TMM 2024, arXiv 2401.11085).

Three parts, each of which can be switched off for an ablation: separate global-local adversarial learning
(``adversarial``), semantic-aware pseudo labels (``pseudo_labels``) and the decision by global-local prediction
consistency (``glpc``).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.base import NUM_HEADS, Batch, Clock, Method, Step
from fercli.methods.losses import (
    Discriminator,
    conditional_adversarial,
    head_cross_entropy,
    learning_status,
    pseudo_label_loss,
    reversal_coefficient,
)
from fercli.models import HEADS
from fercli.spec import Optimisation, Section
from fercli.views import cat


class AGLRLS(Method):
    """The published method; defaults are the released code's.

    ``passes: published`` draws the target faces of the adversarial term and of the pseudo labels separately and runs
    [source + target], [weak], [strong], each with its own batch-norm statistics. ``passes: shared`` lets the weak view
    serve both, [source + weak], [strong]: three batches' worth of forward passes instead of four.
    """

    name = "aglrls"

    class Options(Section):
        """``adapt.options`` of AGLRLS."""

        adversarial: bool = True
        adversarial_weight: Annotated[float, Field(ge=0)] = 0.5
        entropy_conditioning: bool = True
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        discriminators: Literal["shared", "separate"] = "shared"
        hidden: Annotated[int, Field(gt=0)] = 512
        pseudo_labels: bool = True
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
        glpc: bool = True
        passes: Literal["published", "shared"] = "published"

    def __init__(self, settings: Optimisation, options: AGLRLS.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.decision = "glpc" if options.glpc and options.pseudo_labels else "fused"
        # "weak" doubles as the adversarial term's batch where passes are shared.
        self.shared_view = options.passes == "shared" and options.pseudo_labels
        wants = set()
        if options.adversarial and not self.shared_view:
            wants.add("target")
        if options.pseudo_labels:
            wants |= {"weak", "strong"}
        self.wants = frozenset(wants)

        widths = [feature_dim] * (NUM_HEADS - 1) + [feature_dim * (NUM_HEADS - 1)]
        shared = options.discriminators == "shared"
        # Which discriminator serves which head: one for the global, one for all local, one for the fused; or seven.
        self.discriminator_of = [0, 1, 1, 1, 1, 1, 2] if shared else list(range(NUM_HEADS))
        first_head = [self.discriminator_of.index(d) for d in range(max(self.discriminator_of) + 1)]
        self.discriminators = nn.ModuleList(
            Discriminator(NUM_EXPRESSIONS * widths[head], options.hidden)
            for head in (first_head if options.adversarial else [])
        )
        self.register_buffer("bank", torch.full((NUM_HEADS, target_size), -1, dtype=torch.long))

    def begin_epoch(self) -> None:
        self.bank.fill_(-1)

    def status(self) -> Tensor:
        return learning_status(self.bank)

    def forward(self, network: nn.Module, batch: Batch, clock: Clock) -> Step:
        options = self.options
        logs: dict[str, Tensor] = {}
        aligned = batch.weak if self.shared_view else batch.target
        together = batch.source if aligned is None or not options.adversarial else cat([batch.source, aligned])
        output = network(*together.inputs)
        count = len(batch.labels)
        losses = {"source": head_cross_entropy(output.logits[:count], batch.labels, self.head_weights)}
        logs["source-accuracy"] = (output.logits[:count, -1].argmax(-1) == batch.labels).float().mean()

        if options.adversarial:
            coefficient = reversal_coefficient(clock.step, options.reversal_steps)
            is_source = torch.arange(len(output.logits), device=batch.labels.device) < count
            terms = [
                conditional_adversarial(
                    self._head_features(output.features, head),
                    output.logits[:, head],
                    is_source,
                    self.discriminators[self.discriminator_of[head]],
                    coefficient,
                    options.entropy_conditioning,
                )
                for head in range(NUM_HEADS)
            ]
            losses["adversarial"] = options.adversarial_weight * torch.stack(terms).sum()
            logs["reversal"] = losses["adversarial"].new_tensor(coefficient)

        if options.pseudo_labels:
            if self.shared_view and options.adversarial:
                weak_logits = output.logits[count:]
            else:
                with torch.no_grad():  # only the labels are wanted; batch norm still sees the weak view, as published
                    weak_logits = network(*batch.weak.inputs).logits
            strong_logits = network(*batch.strong.inputs).logits
            loss, confident, passed = pseudo_label_loss(
                weak_logits, strong_logits, self.status(), self.head_weights, options.threshold
            )
            losses["pseudo"] = options.pseudo_weight * loss
            self._remember(batch.indices, confident)
            logs.update({f"pseudo-rate/{name}": passed[:, h].float().mean() for h, name in enumerate(HEADS)})
        return Step(losses, logs)

    @staticmethod
    def _head_features(features: Tensor, head: int) -> Tensor:
        """Feature [B, D] of a global or local head, [B, 6 D] of the fused one."""
        return features.flatten(1) if head == NUM_HEADS - 1 else features[:, head]

    def _remember(self, indices: Tensor, confident: Tensor) -> None:
        """Put the confident predictions [B, H] of target images `indices` [B] into the bank."""
        # An image that is not confident now keeps what it was before; of an image that stands twice in the batch, only
        # the confident view may write.
        view, head = (confident >= 0).nonzero(as_tuple=True)
        self.bank[head, indices[view]] = confident[view, head]
