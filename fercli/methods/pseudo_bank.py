"""The bank of class-aware pseudo labels, which methods share whose heads teach themselves (AGLRLS)."""

from __future__ import annotations

import torch
from torch import Tensor

from fercli.methods.base import NUM_HEADS, Evaluator, Method
from fercli.methods.losses import learning_status
from fercli.spec import Optimisation, Section


class PseudoLabelling(Method):
    """Base of methods that remember what each head is sure of; how much it has learned of each class follows from it.

    Attributes:
        bank: int64 [7 heads, N], of each target face what the head was last sure of in this epoch; -1 for nothing yet.
    """

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.register_buffer("bank", torch.full((NUM_HEADS, target_size), -1, dtype=torch.long))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.bank.fill_(-1)

    def status(self) -> Tensor:
        return learning_status(self.bank)

    def _remember(self, indices: Tensor, confident: Tensor) -> None:
        """Put the confident predictions [B, H] of target images `indices` [B] into the bank."""
        # An image that is not confident now keeps what it was before; of an image that stands twice in the batch, only
        # the confident view may write.
        view, head = (confident >= 0).nonzero(as_tuple=True)
        self.bank[head, indices[view]] = confident[view, head]
