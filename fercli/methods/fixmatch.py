"""FixMatch: pseudo labels of weak views teach strong views (Sohn et al., NeurIPS 2020, arXiv 2001.07685)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from fercli.loading.augment import cat
from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import at_least_float32, learning_status, pseudo_label_loss
from fercli.methods.thresholds import Thresholds, confident_labels, remember
from fercli.spec import Optimisation, Section


class FixMatch(Method):
    """If the fused head is confident on a target face's weak view (p >= ``threshold``), its strong view learns that
    class.

    The paper's eq. 4: cross-entropy, averaged over all target faces of the batch, where faces below the threshold count
    as zero. It is multiplied by the fused head's weight, so that its ratio to the source's loss on that head is
    ``weight``, the paper's lambda. Source, weak and strong views pass through the network together, as in the authors'
    code.

    ``thresholds`` other than ``fixed`` turn it into the method of that name, as far as
    `fercli.methods.thresholds.Thresholds` describes (``threshold_decay`` is its ``decay``). For ``flexmatch`` each face
    keeps the last label that reached ``threshold``, across all epochs as in FlexMatch; ``freematch`` and ``softmatch``
    do not read ``threshold``.

    Not adopted: seven unlabelled images per labelled one (here both have ``adapt.batch``), the cosine learning rate and
    the moving average of the weights, which belong to the paper's schedule. The strong view is the project's
    RandAugment (``data.augment``), without the paper's Cutout.
    """

    name = "fixmatch"
    reaches_all = True
    wants = frozenset({"weak", "strong"})

    class Options(Section):
        """``adapt.options`` of FixMatch."""

        weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the pseudo labels' loss, the paper's lambda."""
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
        """Probability from which a prediction becomes a pseudo label, for ``fixed`` and ``flexmatch``."""
        thresholds: Literal["fixed", "flexmatch", "freematch", "softmatch"] = "fixed"
        """Which faces get a pseudo label: a fixed threshold, one for each class, or the rule of the named paper."""
        threshold_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
        """Decay of the moving averages of ``freematch`` and ``softmatch``."""

    def __init__(self, settings: Optimisation, options: FixMatch.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.thresholds = Thresholds(options.thresholds, 1, options.threshold, options.threshold_decay)
        faces = target_size if options.thresholds == "flexmatch" else 0
        # not part of the state if nothing is stored
        self.register_buffer("bank", torch.full((1, faces), -1, dtype=torch.long), persistent=faces > 0)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        _, target, losses, logs = joint_pass(
            network, batch.source, cat([batch.weak, batch.strong]), batch.labels, self.head_weights
        )
        weak, strong = target.logits[:, -1:].chunk(2)
        probabilities = at_least_float32(weak.detach()).softmax(-1)
        chosen = self.thresholds(probabilities, learning_status(self.bank))
        if self.bank.numel():
            remember(self.bank, batch.indices, confident_labels(probabilities, self.options.threshold))
        loss = pseudo_label_loss(strong, probabilities.max(-1).indices, chosen, self.head_weights[-1:])
        losses["pseudo"] = self.options.weight * loss
        logs["pseudo-rate"] = chosen.float().mean()
        return Step(losses, logs)
