"""Batch norms that do not count batches.

Torch's batch norms add one to ``num_batches_tracked`` in every pass, as a separate operation. For IR-50 that is about a
hundred kernel launches per pass, each as expensive on a GPU as the norm itself. Only a norm without momentum
(``momentum=None``, a mean over all batches) reads that number, and no norm here does. Nothing else differs: names,
numbers and state are torch's, so checkpoints fit in both directions. Counters from a checkpoint keep their values.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Uncounted(_BatchNorm):
    """The common base class. It takes torch's arguments; `momentum` must be a number."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return F.batch_norm(
            *(x, self.running_mean, self.running_var, self.weight, self.bias),
            *(self.training, self.momentum, self.eps),
        )


class BatchNorm1d(Uncounted, nn.BatchNorm1d):
    """Batch norm of features [B, C] or [B, C, L]."""


class BatchNorm2d(Uncounted, nn.BatchNorm2d):
    """Batch norm of maps [B, C, H, W]."""
