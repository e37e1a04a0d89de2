"""AGLRLS without its source: class-aware pseudo labels of each head, and information maximisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Progress, Step
from fercli.methods.losses import pseudo_label_loss
from fercli.methods.pseudo_bank import PseudoLabelling
from fercli.methods.source_free import information_maximisation
from fercli.models import HEADS
from fercli.spec import Optimisation, Section


class AGLRLSSourceFree(PseudoLabelling):
    """A method of this project, of two published parts.

    Of AGLRLS (Gao et al., IEEE TMM 2024, `fercli.methods.aglrls`) are the semantic-aware pseudo labels, by which the
    weak view of a face teaches its strong view, head by head, and the decision by global-local prediction consistency
    (``glpc``). In place of the source's cross-entropy and of the adversary stand what SHOT (Liang et al., ICML 2020,
    section 3.2) has for them: information maximisation of every head on the weak view, times ``information_weight``,
    and classifiers that stay as the source has left them (``freeze_classifiers``). Every term counts with its head's
    weight. The two views pass the network one after the other, each with its own batch-norm statistics.
    """

    name = "aglrls-sf"
    needs_source = False
    reaches_all = True
    wants = frozenset({"weak", "strong"})

    class Options(Section):
        """``adapt.options`` of AGLRLS without its source."""

        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        information_weight: Annotated[float, Field(ge=0)] = 1.0
        glpc: bool = True
        freeze_classifiers: bool = True

    def __init__(self, settings: Optimisation, options: AGLRLSSourceFree.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.decision = "glpc" if options.glpc else "fused"

    @classmethod
    def decision_options(cls, options: AGLRLSSourceFree.Options) -> dict[str, Any]:
        # GLPC asks of a class what its pseudo labels were asked for.
        return {"threshold": options.threshold}

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return network.classifiers.parameters() if self.options.freeze_classifiers else ()

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options = self.options
        weak, strong = (network(*view.inputs).logits for view in (batch.weak, batch.strong))
        loss, confident, passed = pseudo_label_loss(weak, strong, self.status(), self.head_weights, options.threshold)
        self._remember(batch.indices, confident)
        information = information_maximisation(weak, self.head_weights)
        losses = {"information": options.information_weight * information, "pseudo": options.pseudo_weight * loss}
        return Step(losses, {f"pseudo-rate/{name}": passed[:, h].float().mean() for h, name in enumerate(HEADS)})
