"""AaD (Yang et al., Attracting and Dispersing: A Simple Approach for Source-free Domain Adaptation, NeurIPS 2022, arXiv
2205.04183).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Progress, Step
from fercli.methods.joint import fused_feature
from fercli.methods.source_free import NeighbourMethod
from fercli.spec import Section


class AaD(NeighbourMethod):
    """Neighbours among the target faces shall get the same answer of the fused head, all other faces another.

    The paper's objective, p_i being the probabilities of face i of the batch:

        mean over i of ( - sum over k in neighbours(i) of p_i . p_k  +  l sum over the batch's others j of p_i . p_j )

    p_k are as the bank has them (`fercli.methods.source_free.FaceBank`), without gradient; the batch goes into the bank
    first, as in the authors' code (commit 1853b13). The second sum is weighed by
    l = ``alpha`` (1 + 10 t / ``decay_steps``) ^ -``beta``, t the steps done; both by the fused head's weight. All
    parameters train, the classifier too, as there; the classifiers of the other six heads, which have no loss, stay.

    Their l falls until the last step, which a method does not know here: so ``decay_steps`` is an option. Their code
    has beta 5 for VisDA and 0.75 for Office-Home, and 3 to 5 neighbours. It takes the first of the nearest faces for
    the face itself and drops it; here the face is left out by its number, which is another where two faces are alike.
    """

    name = "aad"

    class Options(Section):
        """``adapt.options`` of AaD."""

        neighbours: Annotated[int, Field(ge=1)] = 3
        alpha: Annotated[float, Field(ge=0)] = 1.0
        beta: Annotated[float, Field(ge=0)] = 0.75
        decay_steps: Annotated[int, Field(gt=0)] = 1000

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        output, options = network(*batch.weak.inputs), self.options
        p = output.logits[:, -1].softmax(-1)
        self.bank.update(batch.indices, fused_feature(output), p)
        near = self.bank.probabilities[self.bank.nearest(batch.indices, options.neighbours)]
        attraction = torch.einsum("bc,bkc->b", p, near).mean()
        dispersion = (p @ p.T).fill_diagonal_(0).sum(1).mean()
        done = torch.as_tensor(progress.step, dtype=torch.float64) / options.decay_steps
        strength = (options.alpha * (1 + 10 * done) ** -options.beta).to(p)
        weight = self.head_weights[-1]
        losses = {"attraction": -weight * attraction, "dispersion": weight * strength * dispersion}
        return Step(losses, {"dispersion-weight": strength})
