"""Self-training of the heads with class-aware pseudo labels (AGLRLS), and the bank of these labels."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fercli.methods.base import NUM_HEADS, Evaluator, Method
from fercli.methods.losses import at_least_float32, learning_status, pseudo_label_loss
from fercli.methods.thresholds import Thresholds, confident_labels, remember
from fercli.models import HEADS
from fercli.spec import Optimisation, Section


class PseudoLabelling(Method):
    """Base of methods that store each head's confident predictions, from which its learning status is computed.

    AGLRLS's thresholds are ``flexmatch``; the other ``thresholds`` are not part of it
    (`fercli.methods.thresholds.Thresholds`; ``threshold_decay`` is its ``decay``). Whichever rule chooses the pseudo
    labels, the bank keeps the predictions that reach ``threshold``. GLPC uses the bank and ``threshold``, as published.

    Attributes:
        bank: int64 [7 heads, N], the head's last confident prediction for each target face in this epoch; -1 for none
            yet.
    """

    class Options(Section):
        """The options in ``adapt.options`` that these methods share."""

        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
        """Probability from which the bank stores a prediction; ``flexmatch`` lowers it for hard classes."""
        thresholds: Literal["flexmatch", "fixed", "freematch", "softmatch"] = "flexmatch"
        """Which faces get a pseudo label: a fixed threshold, one for each class, or the rule of the named paper."""
        threshold_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
        """Decay of the moving averages of ``freematch`` and ``softmatch``."""

    def __init__(self, settings: Optimisation, options: PseudoLabelling.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.thresholds = Thresholds(options.thresholds, NUM_HEADS, options.threshold, options.threshold_decay)
        self.register_buffer("bank", torch.full((NUM_HEADS, target_size), -1, dtype=torch.long))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.bank.fill_(-1)

    def status(self) -> Tensor:
        return learning_status(self.bank)

    def pseudo_loss(self, weak_logits: Tensor, strong_logits: Tensor, indices: Tensor) -> tuple[Tensor, dict]:
        """Train the strong views on the pseudo labels of the weak ones, and store the confident ones in the bank.

        Args:
            weak_logits: [B, 7, C]; no gradient passes through them.
            strong_logits: [B, 7, C].
            indices: int64 [B], the positions of these target faces.

        Returns:
            `fercli.methods.losses.pseudo_label_loss`, and the mean weight of each head's pseudo labels for the log.
        """
        probabilities = at_least_float32(weak_logits.detach()).softmax(-1)
        chosen = self.thresholds(probabilities, self.status())
        loss = pseudo_label_loss(strong_logits, probabilities.max(-1).indices, chosen, self.head_weights)
        remember(self.bank, indices, confident_labels(probabilities, self.options.threshold))
        return loss, {f"pseudo-rate/{name}": chosen[:, h].float().mean() for h, name in enumerate(HEADS)}
