"""Heads that teach themselves by class-aware pseudo labels, and the bank of those, which methods share (AGLRLS)."""

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
    """Base of methods that remember what each head is sure of; how much it has learned of each class follows from it.

    AGLRLS's thresholds are ``flexmatch``; the other ``thresholds`` are not part of it
    (`fercli.methods.thresholds.Thresholds`; ``threshold_decay`` is its ``decay``). Whichever chooses the pseudo labels,
    the bank keeps the answers that reach ``threshold``, and GLPC asks by the bank and by ``threshold``, as published.

    Attributes:
        bank: int64 [7 heads, N], of each target face what the head was last sure of in this epoch; -1 for nothing yet.
    """

    class Options(Section):
        """What the methods have in common of ``adapt.options``."""

        threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
        thresholds: Literal["flexmatch", "fixed", "freematch", "softmatch"] = "flexmatch"
        threshold_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def __init__(self, settings: Optimisation, options: PseudoLabelling.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.thresholds = Thresholds(options.thresholds, NUM_HEADS, options.threshold, options.threshold_decay)
        self.register_buffer("bank", torch.full((NUM_HEADS, target_size), -1, dtype=torch.long))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.bank.fill_(-1)

    def status(self) -> Tensor:
        return learning_status(self.bank)

    def pseudo_loss(self, weak_logits: Tensor, strong_logits: Tensor, indices: Tensor) -> tuple[Tensor, dict]:
        """Let the weak views teach the strong ones, and put into the bank what they are sure of.

        Args:
            weak_logits: [B, 7, C]; no gradient passes through them.
            strong_logits: [B, 7, C].
            indices: int64 [B], which target faces these are.

        Returns:
            `fercli.methods.losses.pseudo_label_loss`, and to be logged the mean weight of each head's pseudo labels.
        """
        probabilities = at_least_float32(weak_logits.detach()).softmax(-1)
        chosen = self.thresholds(probabilities, self.status())
        loss = pseudo_label_loss(strong_logits, probabilities.max(-1).indices, chosen, self.head_weights)
        remember(self.bank, indices, confident_labels(probabilities, self.options.threshold))
        return loss, {f"pseudo-rate/{name}": chosen[:, h].float().mean() for h, name in enumerate(HEADS)}
