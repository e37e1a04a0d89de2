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

#: Keeps the centroid of a class without faces finite; the value of the authors' code.
MASS_FLOOR = 1e-8


class SHOT(Method):
    """The classifiers stay; the features move until every head is sure of each face and the classes are all in use.

    The paper's sections 3.2 and 3.3, for each of the seven heads: information maximisation
    (`fercli.methods.source_free.information_maximisation`), and ``pseudo_weight`` times cross-entropy to
    `centroid_labels`, made of all target faces before each epoch. Both count with the head's weight.

    The paper has one head. Here a face has one label for all seven, that of the class which is nearest over all heads.
    As in the authors' code (commit 07d0c71) a feature gets a 1 at its end and then unit length, classes that no face is
    predicted to be take no part, and the labels are made once an epoch. Not taken over: their weight-normalised
    classifier and the batch norm before it, which belong to their source model, and their decaying rate.
    """

    name = "shot"
    needs_source = False
    reaches_all = True
    wants = frozenset({"weak"})

    class Options(Section):
        """``adapt.options`` of SHOT."""

        pseudo_weight: Annotated[float, Field(ge=0)] = 0.3
        information_weight: Annotated[float, Field(ge=0)] = 1.0

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
    """Label each face by the nearest of the classes' centroids (SHOT, section 3.3), over all heads.

    Twice: with centroids of all faces, each counting by its probability of the class, then with those of the faces that
    the first round labelled. Nearness is the cosine of the head's feature, with a 1 at its end, to its centroid, and of
    all heads the mean by `weights`. A class that no face had before a round, at first by the heads' mean probability,
    gets none in it.

    Args:
        seen: of N >= 1 faces.
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
