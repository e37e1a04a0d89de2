"""Tent: entropy minimisation with the batch norms (Wang et al., Tent: Fully Test-Time Adaptation by Entropy
Minimization, ICLR 2021, arXiv 2006.10726).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.source_free import all_but_norms, head_entropy


class Tent(Method):
    """Makes the heads more confident on target faces by training only weights and biases of the batch norms.

    The paper's section 3: the loss is the mean entropy of the predictions, here of the seven heads, each with its
    weight; ``head_weights`` of 0 leave heads out. Only the batch norms' affine parameters train. As in the paper, each
    batch is normalised by its own statistics. The paper's model keeps no other statistics; here the running ones are
    updated with the target batches and used for predictions. The paper adapts while it predicts and sees each face
    once. Here the method trains like any other, and predictions are made afterwards. The entropy includes
    `fercli.methods.losses.LOG_FLOOR`, as everywhere in fercli.
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
