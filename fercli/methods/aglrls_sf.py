"""AGLRLS without a source: class-aware pseudo labels of each head, and information maximisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Progress, Step
from fercli.methods.pseudo_bank import PseudoLabelling
from fercli.methods.source_free import information_maximisation
from fercli.spec import Optimisation


class AGLRLSSourceFree(PseudoLabelling):
    """A method of this project that combines two published parts.

    From AGLRLS (Gao et al., IEEE TMM 2024, `fercli.methods.aglrls`) come the semantic-aware pseudo labels, with which
    each head trains on a face's strong view with the label of its weak view, and the decision rule of global-local
    prediction consistency (``glpc``). The source's cross-entropy and the adversary are replaced as in SHOT (Liang et
    al., ICML 2020, section 3.2): by information maximisation of every head on the weak view, times
    ``information_weight``, and by frozen source classifiers (``freeze_classifiers``). Every term is multiplied by its
    head's weight. The two views pass through the network one after the other, each with its own batch-norm statistics.
    """

    name = "aglrls-sf"
    needs_source = False
    reaches_all = True
    wants = frozenset({"weak", "strong"})

    class Options(PseudoLabelling.Options):
        """``adapt.options`` of AGLRLS without a source."""

        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the pseudo labels' loss."""
        information_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of information maximisation."""
        glpc: bool = True
        """Whether to predict by global-local prediction consistency; otherwise the fused head predicts."""
        freeze_classifiers: bool = True
        """Whether the source's classifiers stay unchanged."""

    def __init__(self, settings: Optimisation, options: AGLRLSSourceFree.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.decision = "glpc" if options.glpc else "fused"

    @classmethod
    def decision_options(cls, options: AGLRLSSourceFree.Options) -> dict[str, Any]:
        # GLPC uses FlexMatch's class thresholds, whichever thresholds chose the pseudo labels.
        return {"threshold": options.threshold}

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return network.classifiers.parameters() if self.options.freeze_classifiers else ()

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options = self.options
        weak, strong = (network(*view.inputs).logits for view in (batch.weak, batch.strong))
        loss, rates = self.pseudo_loss(weak, strong, batch.indices)
        information = information_maximisation(weak, self.head_weights)
        losses = {"information": options.information_weight * information, "pseudo": options.pseudo_weight * loss}
        return Step(losses, rates)
