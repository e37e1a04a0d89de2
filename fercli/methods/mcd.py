"""MCD: maximum classifier discrepancy (Saito et al., CVPR 2018, arXiv 1712.02560)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.batches import Batch
from fercli.methods.base import NUM_HEADS, Evaluator, Method, Progress, Step
from fercli.methods.joint import fused_feature, joint_pass
from fercli.models.global_local import initialise
from fercli.spec import Optimisation, Section


def classifier_discrepancy(p1: Tensor, p2: Tensor) -> Tensor:
    """Mean absolute difference of two classifiers' probabilities (Saito et al., CVPR 2018, section 3.2).

    Args:
        p1, p2: softmax outputs [B, C] on the same faces.

    Returns:
        A scalar in 0..2 / C, or NaN for an empty batch. Its gradient is zero where the two are equal.
    """
    return (p1 - p2).abs().mean()


class MCD(Method):
    """Two classifiers on the fused feature [B, 384] learn to differ on the target; the feature learns to align them.

    F1 is the network's fused classifier and the only one used for predictions. F2 is the method's own linear layer. A
    batch is used 2 + n times (section 3.3):

    - update 0 (step A): everything learns the source: the seven heads, and F2 with cross-entropy;
    - update 1 (step B): only F1 and F2 are trained, to keep the source and to differ on the target;
    - updates 2.. (step C), n = ``generator_steps``, 4 in the authors' code: only the layers before the classifiers are
      trained, to make F1 and F2 agree on the target.

    All losses on the fused feature, including the discrepancy, are multiplied by the fused head's weight, so that the
    three steps have the same ratio as in the paper.

    Batch norm: every pass contains one domain, is normalised by its own statistics and updates the running ones, as in
    the authors' code (commit 159947b). Step A passes the source, B both domains, C the target. So the faces of a batch
    count several times in the running statistics, and the target counts more than the source. With both domains in one
    pass, as in the other methods, the predictions on the target collapsed into two classes (tested on procedural faces,
    IR small, 40 batches).

    Without a warm start, F2 would be noise next to an F1 that stage 1 has trained, and step C would pull the features
    towards that noise. So with ``warm_start`` F2 is first fitted to the network's features of the source faces, with
    cross-entropy and the run's weight decay (at most `FIT_STEPS` steps of L-BFGS). The paper trains everything from
    noise: ``warm_start: false``. F2 trains at F1's learning rate.
    """

    name = "mcd"
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of MCD."""

        generator_steps: Annotated[int, Field(ge=1)] = 4
        """Updates of the layers before the classifiers per batch (step C)."""
        warm_start: bool = True
        """Whether the second classifier is fitted to the source faces first."""

    def __init__(self, settings: Optimisation, options: MCD.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.updates = 2 + options.generator_steps
        self.second = nn.Linear(feature_dim * (NUM_HEADS - 1), NUM_EXPRESSIONS)
        initialise(self.second)
        self.weight_decay = settings.weight_decay
        self.register_buffer("fitted", torch.tensor(not options.warm_start))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        if not self.fitted:
            seen = evaluator.source()
            features = seen.features.flatten(1).to(self.second.weight)
            fit(self.second, features, seen.labels.to(features.device), self.weight_decay)
            self.fitted.fill_(True)

    def network_parameters(self) -> list[nn.Parameter]:
        return list(self.second.parameters())

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        if update == 0:
            return []
        if update == 1:
            free = set(network.classifiers[-1].parameters())
            return [parameter for parameter in network.parameters() if parameter not in free]
        return [*network.classifiers.parameters(), *self.parameters()]

    def discrepancy(self, p1: Tensor, p2: Tensor) -> Tensor:
        """Return the discrepancy of two classifiers' probabilities [B, C], a scalar >= 0."""
        return classifier_discrepancy(p1, p2)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        if progress.update == 0:
            return self._learn_source(network, batch)
        return self._part(network, batch) if progress.update == 1 else self._reconcile(network, batch)

    def _learn_source(self, network: nn.Module, batch: Batch) -> Step:
        alone = batch.target[:0]
        source, _, losses, logs = joint_pass(network, batch.source, alone, batch.labels, self.head_weights)
        second = self.second(fused_feature(source)).float()
        losses["source-second"] = self.head_weights[-1] * F.cross_entropy(second, batch.labels)
        return Step(losses, logs)

    def _part(self, network: nn.Module, batch: Batch) -> Step:
        with torch.no_grad():  # nothing before the classifiers is trained
            source, target = (fused_feature(network(*view.inputs)) for view in (batch.source, batch.target))
        kept = sum(F.cross_entropy(c(source).float(), batch.labels) for c in (network.classifiers[-1], self.second))
        apart = self._disagreement(network, target)
        weight = self.head_weights[-1]
        losses = {"source-pair": weight * kept, "discrepancy-raised": -weight * apart}
        return Step(losses, {"discrepancy": apart.detach()})

    def _reconcile(self, network: nn.Module, batch: Batch) -> Step:
        target = fused_feature(network(*batch.target.inputs))
        return Step({"discrepancy-lowered": self.head_weights[-1] * self._disagreement(network, target)}, {})

    def _disagreement(self, network: nn.Module, features: Tensor) -> Tensor:
        first, second = (c(features).float().softmax(-1) for c in (network.classifiers[-1], self.second))
        return self.discrepancy(first, second)


#: The most L-BFGS steps that `fit` takes.
FIT_STEPS = 50


@torch.enable_grad()
def fit(classifier: nn.Linear, features: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Fit a linear classifier, in place, to minimise mean cross-entropy + weight_decay / 2 * |parameters|^2.

    Args:
        classifier: D to C; the search starts from its current parameters.
        features: [N, D]; N >= 1. A single face or class is predicted with certainty, as far as the decay allows.
        labels: int64 [N], 0..C-1.
        weight_decay: >= 0.
    """
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        size = sum(parameter.square().sum() for parameter in classifier.parameters())
        loss = F.cross_entropy(classifier(features), labels) + weight_decay / 2 * size
        loss.backward()
        return loss

    optimizer.step(closure)
    classifier.zero_grad(set_to_none=True)
