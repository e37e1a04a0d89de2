"""AdaBN: adaptive batch normalisation (Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, arXiv
1603.04779; Pattern Recognition 2018).
"""

from __future__ import annotations

import torch
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.source_free import batch_norms


class AdaBN(Method):
    """The target's means and variances replace the source's in the batch norms; no weight changes.

    The paper's algorithm 1. After step t the running statistics are the mean over all t target batches. Every batch has
    the same weight, in later epochs too, so one epoch is enough. The paper's variance also includes the spread of the
    batch means. Here it is the mean of the batch variances, as in torch's cumulative average. With random batches that
    are not tiny the difference is small.
    """

    name = "adabn"
    needs_source = False
    wants = frozenset({"target"})

    @torch.no_grad()
    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        norms = batch_norms(network).values()
        running = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
        before = [statistic.clone() for statistic in running]
        momenta = [norm.momentum for norm in norms for _ in range(2)]
        share = 1 / (torch.as_tensor(progress.step, dtype=torch.float64) + 1)
        # A training pass does not read running statistics. Set to zero, they become the batch's statistics times the
        # momentum, however the network runs its norms (`fercli.models.grouped`, in several processes, compiled).
        torch._foreach_zero_(running)
        network(*batch.target.inputs)
        for statistic, old, momentum in zip(running, before, momenta, strict=True):
            statistic.copy_(old.lerp(statistic / momentum, share.to(old)))
        return Step({}, {})
