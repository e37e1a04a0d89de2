"""Batch norms that keep no count of the batches they have seen.

Torch's add one to ``num_batches_tracked`` in every pass, an operation of its own for each norm: about a hundred
launches a pass of IR-50, on a GPU as dear as the norm itself. Only a norm without momentum (``momentum=None``, a mean
over all batches) reads that number, and there is none here. Nothing else differs: names, numbers and state are torch's,
so that checkpoints fit in either direction. Counters that a checkpoint brings stay what they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Uncounted(_BatchNorm):
    """What is common to them. It takes torch's arguments, with a `momentum` that is a number."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return F.batch_norm(
            *(x, self.running_mean, self.running_var, self.weight, self.bias),
            *(self.training, self.momentum, self.eps),
        )


class BatchNorm1d(Uncounted, nn.BatchNorm1d):
    """Of features [B, C] or [B, C, L]."""


class BatchNorm2d(Uncounted, nn.BatchNorm2d):
    """Of maps [B, C, H, W]."""
