"""SHOT: source hypothesis transfer (Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, arXiv
2002.08546).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.batches import Batch
from fercli.methods.base import Evaluator, Method, Outputs, Progress, Step
from fercli.methods.losses import head_cross_entropy
from fercli.methods.source_free import head_features, information_maximisation
from fercli.spec import Optimisation, Section

#: Keeps the centroid of a class without faces finite; the authors' code's value.
MASS_FLOOR = 1e-8


class SHOT(Method):
    """The classifiers are frozen; the features train until every head is confident on each face and uses all classes.

    The paper's sections 3.2 and 3.3, for each of the seven heads: information maximisation
    (`fercli.methods.source_free.information_maximisation`), and ``pseudo_weight`` times the cross-entropy with
    `centroid_labels`, which are computed from all target faces before each epoch. Both are multiplied by the head's
    weight.

    The paper has one head. Here a face has one label for all seven: the class that is nearest over all heads. As in the
    authors' code (commit 07d0c71), a 1 is appended to a feature, which is then scaled to unit length, classes that are
    predicted for no face are left out, and labels are computed once per epoch. Not adopted: the weight-normalised
    classifier and the batch norm before it, which belong to the authors' source model, and the decaying learning rate.
    """

    name = "shot"
    needs_source = False
    reaches_all = True
    wants = frozenset({"weak"})

    class Options(Section):
        """``adapt.options`` of SHOT."""

        pseudo_weight: Annotated[float, Field(ge=0)] = 0.3
        """Weight of the pseudo labels' loss."""
        information_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of information maximisation."""

    def __init__(self, settings: Optimisation, options: SHOT.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.register_buffer("labels", torch.zeros(target_size, dtype=torch.long))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.labels.copy_(centroid_labels(evaluator.target(), self.head_weights))

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return network.classifiers.parameters()

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits, options = network(*batch.weak.inputs).logits, self.options
        labels = self.labels[batch.indices]
        information = information_maximisation(logits, self.head_weights)
        losses = {
            "information": options.information_weight * information,
            "pseudo": options.pseudo_weight * head_cross_entropy(logits, labels, self.head_weights),
        }
        return Step(losses, {"pseudo-agreement": (logits[:, -1].argmax(-1) == labels).float().mean()})


@torch.no_grad()
def centroid_labels(seen: Outputs, weights: Tensor) -> Tensor:
    """Label each face with the class of the nearest centroid (SHOT, section 3.3), over all heads.

    There are two rounds. The first one's centroids are means over all faces, weighted by their probability of the
    class; the second one's are means over the faces that the first round labelled. The similarity is the cosine between
    a head's feature, with a 1 appended, and the centroid, averaged over the heads with `weights`. A class that no face
    had before a round gets no face in it; before the first round, a face has the class of the heads' mean probability.

    Args:
        seen: the outputs for N >= 1 faces.
        weights: [H] >= 0, not all zero.

    Returns:
        int64 [N], 0..C-1.
    """
    weights = weights.to(seen.probabilities)  # on the CPU, where the evaluator's outputs are
    weights = weights / weights.sum()
    each = [
        F.normalize(F.pad(feature.to(weights), (0, 1), value=1.0), dim=1) for feature in head_features(seen.features)
    ]
    shares = list(seen.probabilities.unbind(1))
    labels = torch.einsum("nhc,h->nc", seen.probabilities, weights).argmax(1)
    for _ in range(2):
        known = torch.bincount(labels, minlength=NUM_EXPRESSIONS) > 0
        near = torch.zeros_like(shares[0])
        for weight, feature, share in zip(weights, each, shares, strict=True):
            centroids = share.T @ feature / (share.sum(0)[:, None] + MASS_FLOOR)
            near += weight * (feature @ F.normalize(centroids, dim=1).T)
        labels = near.masked_fill(~known, -torch.inf).argmax(1)
        shares = [F.one_hot(labels, NUM_EXPRESSIONS).to(weights)] * len(each)
    return labels
