"""Tent: entropy minimisation by the batch norms (Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization,
ICLR 2021, arXiv 2006.10726).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.source_free import all_but_norms, head_entropy


class Tent(Method):
    """The heads become surer of the target's faces, by weights and biases of the batch norms alone.

    The paper's section 3: the mean entropy of the answers, here of the seven heads, each with its weight;
    ``head_weights`` of 0 take heads out. Nothing but the batch norms' affine parameters trains. Each batch is
    normalised by its own statistics, as there; there the model keeps no others, here the running ones move with the
    target's batches, and answer in use. The paper adapts while it answers, and sees each face once; here it is training
    like any other, and answers afterwards. The entropy has `fercli.methods.losses.LOG_FLOOR` in it, as everywhere here.
    """

    name = "tent"
    needs_source = False
    reaches_all = True
    wants = frozenset({"target"})

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return all_but_norms(network)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        uncertain = head_entropy(network(*batch.target.inputs).logits).mean(0)
        return Step({"entropy": (uncertain * self.head_weights).sum()}, {"entropy/fused": uncertain[-1].detach()})
