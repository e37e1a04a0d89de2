"""Code that methods without a source share: information maximisation, head features, batch norms and neighbours.

Shapes: B faces, N target faces, H = 7 heads (global, five local, fused), C = 7 expressions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.base import NUM_HEADS, Evaluator, Method
from fercli.methods.losses import at_least_float32, entropy
from fercli.spec import Optimisation, Section


def head_entropy(logits: Tensor) -> Tensor:
    """Return the entropy [B, H] of each head's prediction for each face, in nats, from logits [B, H, C]."""
    return entropy(at_least_float32(logits).softmax(-1))


def information_maximisation(logits: Tensor, weights: Tensor) -> Tensor:
    """The loss of SHOT (Liang et al., ICML 2020, section 3.2): confident predictions, balanced over the classes.

    It is the negative mutual information of face and prediction, summed over the heads.

    Args:
        logits: [B, H, C].
        weights: [H].

    Returns:
        A scalar in -ln C..0 times the sum of the weights: the mean entropy minus the entropy of the mean. It is zero
        for a single face, and if all faces have the same prediction.
    """
    probabilities = at_least_float32(logits).softmax(-1)
    return ((entropy(probabilities).mean(0) - entropy(probabilities.mean(0))) * weights).sum()


def head_features(features: Tensor) -> list[Tensor]:
    """Return the input of each of the seven heads, in the order of `HEADS`: six times [B, 64], then all of it, [B,
    384].

    Args:
        features: [B, 6, 64].
    """
    return [*features.unbind(1), features.flatten(1)]


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return a network's batch norms by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def norm_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return weights and biases of a network's batch norms, by their names in the network."""
    return {
        f"{norm}.{name}": parameter
        for norm, module in batch_norms(network).items()
        for name, parameter in module.named_parameters(recurse=False)
    }


def all_but_norms(network: nn.Module) -> Iterable[nn.Parameter]:
    """Return a network's parameters except `norm_parameters`."""
    norms = set(norm_parameters(network).values())
    return [parameter for parameter in network.parameters() if parameter not in norms]


class FaceBank(nn.Module):
    """The fused head's feature and prediction for every target face, from when the face was last seen.

    Attributes:
        features: float [N, D], of unit length.
        probabilities: float [N, C].
        filled: bool, whether `fill` has been called.
    """

    def __init__(self, faces: int, feature_dim: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(faces, feature_dim * (NUM_HEADS - 1)))
        self.register_buffer("probabilities", torch.zeros(faces, NUM_EXPRESSIONS))
        self.register_buffer("filled", torch.tensor(False))

    def fill(self, evaluator: Evaluator) -> None:
        """Fill the bank with all target faces as the current network sees them, on the first call only."""
        if not self.filled:
            seen = evaluator.target()
            self.features.copy_(F.normalize(seen.features.flatten(1), dim=1))
            self.probabilities.copy_(seen.probabilities[:, -1])
            self.filled.fill_(True)

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor, probabilities: Tensor) -> None:
        """Store a batch: positions int64 [B], features [B, D] of any length, probabilities [B, C]."""
        # If a face occurs twice in the batch, all its places write the last one's values, so that the order of the
        # writes does not matter.
        order = torch.arange(1, len(indices) + 1, device=indices.device)
        last = ((indices[:, None] == indices) * order).argmax(1)
        self.features[indices] = F.normalize(features, dim=1)[last].to(self.features)
        self.probabilities[indices] = probabilities[last].to(self.probabilities)

    def nearest(self, indices: Tensor, count: int) -> Tensor:
        """Find the faces nearest to each of the faces `indices` int64 [...], by cosine similarity of their features.

        Returns:
            int64 [..., min(count, N - 1)], nearest first; no face is its own neighbour.
        """
        alike = self.features[indices] @ self.features.T
        alike.scatter_(-1, indices[..., None], -torch.inf)
        return alike.topk(min(count, len(self.features) - 1), -1).indices


class NeighbourMethod(Method):
    """Base of methods in which a face learns from its neighbours among all target faces, with only the fused head.

    Attributes:
        bank: the bank of all target faces, filled before the first step.
    """

    needs_source = False
    reaches_all = True
    wants = frozenset({"weak"})

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.bank = FaceBank(target_size, feature_dim)

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.bank.fill(evaluator)

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return network.classifiers[:-1].parameters()
