"""Source-only: cross-entropy on the labelled source and nothing else. It is every method's stage 1 and baseline."""

from __future__ import annotations

from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.losses import head_cross_entropy
from fercli.spec import Optimisation, Section


class SourceOnly(Method):
    """Weighted cross-entropy of the seven heads, as in stage 1."""

    name = "source-only"
    reaches_all = True

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.label_smoothing = getattr(settings, "label_smoothing", 0.0)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        output = network(*batch.source.inputs)
        wanted = batch.labels if batch.soft_labels is None else batch.soft_labels
        loss = head_cross_entropy(output.logits, wanted, self.head_weights, self.label_smoothing)
        fused = output.logits[:, -1].argmax(-1)
        return Step({"source": loss}, {"source-accuracy": (fused == batch.labels).float().mean()})
