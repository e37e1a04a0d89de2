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
    """Trains the fused head to predict the same for neighbouring target faces and differently for all other faces.

    The paper's objective, where p_i are the probabilities of face i of the batch:

        mean over i of ( - sum over k in neighbours(i) of p_i . p_k  +  l sum over the batch's others j of p_i . p_j )

    p_k come from the bank (`fercli.methods.source_free.FaceBank`), without gradient. The batch is stored in the bank
    first, as in the authors' code (commit 1853b13). The second sum has the weight
    l = ``alpha`` (1 + 10 t / ``decay_steps``) ^ -``beta``, where t is the number of steps done. Both sums are
    multiplied by the fused head's weight. As in that code, all parameters train, including the classifier. The
    classifiers of the other six heads have no loss and stay unchanged.

    In the authors' code l falls until the last step, which a method does not know here, so ``decay_steps`` is an
    option. That code has beta 5 for VisDA and 0.75 for Office-Home, and 3 to 5 neighbours. It assumes that the first of
    the nearest faces is the face itself and drops it. Here the face is excluded by its index, which makes a difference
    if two faces are equal.
    """

    name = "aad"

    class Options(Section):
        """``adapt.options`` of AaD."""

        neighbours: Annotated[int, Field(ge=1)] = 3
        """Number of nearest target faces that count as neighbours."""
        alpha: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the dispersion at the first step."""
        beta: Annotated[float, Field(ge=0)] = 0.75
        """How fast that weight falls; 0 keeps it constant."""
        decay_steps: Annotated[int, Field(gt=0)] = 1000
        """Training steps over which the weight falls to ``alpha`` / 11^``beta``."""

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
