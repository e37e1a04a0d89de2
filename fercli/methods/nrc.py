"""NRC: neighbourhood reciprocity clustering (Yang et al., Exploiting the Intrinsic Neighborhood Structure for
Source-free Domain Adaptation, NeurIPS 2021, arXiv 2110.04202).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fercli.loading.batches import Batch
from fercli.methods.base import Progress, Step
from fercli.methods.joint import fused_feature
from fercli.methods.losses import entropy
from fercli.methods.source_free import NeighbourMethod
from fercli.spec import Section


class NRC(NeighbourMethod):
    """Trains the fused head to predict the same for neighbouring faces; mutual neighbours count more.

    The paper's four terms, each over the faces i of the batch. p_i are their probabilities, b those of the bank
    (`fercli.methods.source_free.FaceBank`), which have no gradient. The first three terms are means:

    - neighbours: - sum over k in nearest ``neighbours`` of i of A_ik p_i . b_k, where A is 1 if i is among the nearest
      ``expanded`` of k, and ``affinity`` if not;
    - expanded: - sum over those k, and over m in nearest ``expanded`` of k, of ``affinity`` p_i . b_m; a face m that
      occurs twice counts twice, and i itself does not count;
    - self: - p_i . b_i, which keeps a prediction from following wrong neighbours;
    - diversity: sum over the classes of q log q, where q is the mean of all p_i of the batch.

    All terms are multiplied by the fused head's weight. As in the authors' code (commit e2a7e36), the batch is stored
    in the bank before neighbours are searched, and all parameters train, including the classifier. The classifiers of
    the other six heads have no loss and stay unchanged. The code keeps i among the expanded neighbours instead of
    having a separate self term; here it is as in the paper. The code assumes that the first of the nearest faces is the
    face itself; here the face is excluded by its index. The code's numbers of neighbours are 5 and 5 for VisDA, 4 and 3
    for Office-Home.
    """

    name = "nrc"

    class Options(Section):
        """``adapt.options`` of NRC."""

        neighbours: Annotated[int, Field(ge=1)] = 3
        """Number of nearest target faces that count as neighbours."""
        expanded: Annotated[int, Field(ge=1)] = 3
        """Number of neighbours of each neighbour."""
        affinity: Annotated[float, Field(ge=0, le=1)] = 0.1
        """Weight of a neighbour that is not mutual, and of the expanded neighbours."""

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        output, options, bank, own = network(*batch.weak.inputs), self.options, self.bank, batch.indices
        p = output.logits[:, -1].softmax(-1)
        bank.update(own, fused_feature(output), p)
        near = bank.nearest(own, options.neighbours)  # [B, K]
        further = bank.nearest(near, options.expanded)  # [B, K, M]
        itself = further == own[:, None, None]
        mutual = itself.any(-1)
        affinity = torch.where(mutual, 1.0, options.affinity).to(p)
        losses = {
            "neighbours": -torch.einsum("bc,bk,bkc->b", p, affinity, bank.probabilities[near]),
            "expanded": -options.affinity
            * torch.einsum("bc,bkm,bkmc->b", p, (~itself).to(p), bank.probabilities[further]),
            "self": -(p * bank.probabilities[own]).sum(1),
            "diversity": -entropy(p.mean(0)),
        }
        losses = {name: self.head_weights[-1] * loss.mean() for name, loss in losses.items()}
        return Step(losses, {"mutual-neighbours": mutual.float().mean() if mutual.numel() else p.new_zeros(())})
