"""The parts of AGRA: two stacked graph networks over twelve nodes, and the means that initialise half of the nodes.

Nodes 0 to 5 are the source's (global, five local), nodes 6 to 11 the target's. Papers: Xie et al., ACM MM 2020 (arXiv
2008.00859); Chen et al., TPAMI 2022 (arXiv 2008.00923). The numbers are those of the authors' code
(github.com/HCPLab-SYSU/CD-FER-Benchmark, commit 7385d33, AGRA/GraphConvolutionNetwork.py and AGRA/Model.py).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fercli.machine import one_thread
from fercli.models.heads import NUM_FEATURES

#: Initial weights of the edges: within a domain, and across domains (where two nodes of the same place have an edge).
GLOBAL_LOCAL, LOCAL_LOCAL = 0.8, 0.5
SAME_PLACE, GLOBAL_LOCAL_ACROSS, LOCAL_LOCAL_ACROSS = 0.9, 0.4, 0.25

#: Keeps the division by a standard deviation finite, as in batch norm.
SPREAD_FLOOR = 1e-5

#: k-means keeps the best of `RESTARTS` starts of at most `STEPS` steps each (scikit-learn's defaults at that time).
RESTARTS, STEPS = 10, 300


def edges(same: float, global_local: float, local_local: float) -> Tensor:
    """Edge weights [6, 6] between two sets of global and local nodes; `same` is for nodes of the same place."""
    weights = torch.full((NUM_FEATURES, NUM_FEATURES), local_local)
    weights[0, :] = weights[:, 0] = global_local
    return weights.fill_diagonal_(same)


def intra_edges() -> Tensor:
    """The initial intra-domain adjacency [6, 6]: 1 for a node to itself, then `GLOBAL_LOCAL` and `LOCAL_LOCAL`."""
    return edges(1.0, GLOBAL_LOCAL, LOCAL_LOCAL)


def inter_edges() -> Tensor:
    """The initial inter-domain adjacency [12, 12]: 1 for a node to itself, other edges only across the domains."""
    own, across = torch.eye(NUM_FEATURES), edges(SAME_PLACE, GLOBAL_LOCAL_ACROSS, LOCAL_LOCAL_ACROSS)
    return torch.cat([torch.cat([own, across], 1), torch.cat([across, own], 1)])


def row_normalised(adjacency: Tensor, allowed: Tensor) -> Tensor:
    """Set edges that are negative or not `allowed` to 0, and scale each row to sum 1, or leave it 0 if none is left.

    Args:
        adjacency: [N, N], any numbers.
        allowed: [N, N] of 0 and 1.
    """
    kept = (adjacency * allowed).clamp_min(0)
    return kept / kept.sum(1, keepdim=True).clamp_min(1e-12)


class GraphConvolution(nn.Module):
    """A (X W + b), with X [B, N, inputs], the adjacency A [N, N] and the result [B, N, outputs].

    Initially W is Xavier normal and b is zero.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ self.linear(nodes)


class StackedGraphs(nn.Module):
    """The intra-domain graph network on each domain's six nodes, followed by the inter-domain one on its result.

    Intra-domain: two convolutions (width, 2 width, width) on one adjacency that both domains share, with ReLU and
    dropout 0.5 between them. Inter-domain: one convolution (width, width). Nothing follows it, so the result may be
    negative. Both adjacencies are learned. Before each forward pass in training they are `row_normalised` in place,
    which is a projection and not part of the gradient.
    """

    def __init__(self, width: int):
        super().__init__()
        self.intra = nn.Parameter(intra_edges())
        self.inter = nn.Parameter(inter_edges())
        self.intra_layers = nn.ModuleList([GraphConvolution(width, 2 * width), GraphConvolution(2 * width, width)])
        self.inter_layer = GraphConvolution(width, width)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("across", (inter_edges() > 0).float(), persistent=False)

    def forward(self, nodes: Tensor) -> Tensor:
        """Refine nodes [B, 12, width]; the result has their shape."""
        intra = self._projected(self.intra, torch.ones_like(self.intra))
        inter = self._projected(self.inter, self.across)
        halves = []
        for half in nodes.split(NUM_FEATURES, 1):
            hidden = self.dropout(self.intra_layers[0](half, intra).relu())
            halves.append(self.intra_layers[1](hidden, intra))
        return self.inter_layer(torch.cat(halves, 1), inter)

    def _projected(self, adjacency: nn.Parameter, allowed: Tensor) -> Tensor:
        if not self.training:
            return row_normalised(adjacency, allowed)
        with torch.no_grad():
            adjacency.copy_(row_normalised(adjacency, allowed))
        return adjacency


class ClassMeans(nn.Module):
    """Means of the features of one domain, one per class or cluster, that follow training as a moving average.

    The moments of all features of the domain are also updated with every batch. With them, a face of the other domain
    is matched with the mean at its relative position in this domain (`standardise`, `matching`). All state is in
    buffers. Before `start` the means are zero and the moments 0 and 1.

    Args:
        classes: the number of means.
        width: the width of a feature.
        rate: how far a mean moves towards the mean of the features gathered for it, 0..1.
        wait: a mean moves when more than `wait` features have been gathered for it, which are then cleared.
    """

    def __init__(self, classes: int, width: int, rate: float, wait: int):
        super().__init__()
        self.rate, self.wait = rate, wait
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("sums", torch.zeros(classes, width))
        self.register_buffer("counts", torch.zeros(classes))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def start(self, means: Tensor, features: Tensor) -> None:
        """Restart from `means` [classes, width] and the moments of `features` [N, width], with nothing gathered."""
        self.means.copy_(means)
        self.sums.zero_()
        self.counts.zero_()
        for moment, value in zip((self.centre, self.variance), moments(features), strict=True):
            moment.copy_(value)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> Tensor:
        """Standardise features [B, width] of this domain to mean 0 and variance 1, without gradient."""
        return (features - self.centre) / (self.variance + SPREAD_FLOOR).sqrt()

    def matching(self, standardised: Tensor) -> Tensor:
        """Return for each of `standardised` [B, width] the mean [B, width] that is nearest to it after standardisation.

        Distances are Euclidean.
        """
        return self.means[nearest(standardised, self.standardise(self.means))]

    @torch.no_grad()
    def gather(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Gather features [B, width] for the means of `labels` int64 [B], or for their nearest means.

        Means with enough features move. The moments always move, by `rate`.
        """
        for moment, value in zip((self.centre, self.variance), moments(features), strict=True):
            moment.lerp_(value, self.rate)
        which = nearest(features, self.means) if labels is None else labels
        # not one_hot, which reads the largest label back from the device
        belongs = (which[:, None] == torch.arange(len(self.means), device=which.device)).to(features.dtype)
        # A plain sum, since autocast would round a matrix product.
        self.sums += (belongs[:, :, None] * features[:, None]).sum(0)
        self.counts += belongs.sum(0)
        due = (self.counts > self.wait)[:, None]
        moved = self.means.lerp(self.sums / self.counts.clamp_min(1)[:, None], self.rate)
        self.means.copy_(torch.where(due, moved, self.means))
        self.sums.masked_fill_(due, 0)
        self.counts.masked_fill_(due[:, 0], 0)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index int64 [N] of the centre [K, D] with the least Euclidean distance to each point [N, D]."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (biased) variance, [D] each, of points [N, D]; 0 for N = 0."""
    count = max(1, len(points))
    mean = points.sum(0) / count
    return mean, (points - mean).square().sum(0) / count


def carried_over(points: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Transform points [K, D] from the moments of the source [N, D] to those of the target [M, D].

    A dimension without variance in the source gets the target's mean.
    """
    (mean, variance), (new_mean, new_variance) = moments(source), moments(target)
    return (points - mean) / (variance + SPREAD_FLOOR).sqrt() * new_variance.sqrt() + new_mean


def class_means(points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the means [classes, D] of the points [N, D] of each label; a label without points gets the mean of all.

    Labels are 0..classes-1. All means are 0 for N = 0.
    """
    whole = points.sum(0) / max(1, len(points))
    return torch.stack([points[labels == c].mean(0) if (labels == c).any() else whole for c in range(classes)])


def k_means(points: Tensor, clusters: int) -> Tensor:
    """Return the centres [clusters, D] of k-means on points [N, D], with k-means++ and the best of `RESTARTS` starts.

    The seed is drawn with torch's global CPU generator. If there are fewer distinct points than clusters, some centres
    coincide; without any points all are 0.
    """
    if not len(points):
        return points.new_zeros(clusters, points.shape[1])
    seed, different = int(torch.randint(2**31 - 1, ())), points.unique(dim=0)
    if len(different) <= clusters:
        return different[torch.arange(clusters) % len(different)]
    return _fit(points, n_clusters=clusters, n_init=RESTARTS, random_state=seed)


def k_means_from(points: Tensor, centres: Tensor) -> Tensor:
    """Return the centres [K, D] of k-means on points [N, D], started at `centres`.

    A starting centre that is not the nearest of any point stays where it is.
    """
    begun, centres = nearest(points, centres).unique(), centres.clone()
    if len(begun):
        start = centres[begun].cpu().numpy()
        centres[begun] = _fit(points, n_clusters=len(begun), n_init=1, init=start)
    return centres


def _fit(points: Tensor, **how: Any) -> Tensor:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with one_thread(), warnings.catch_warnings():
        # Distinct points that are equal up to rounding.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        found = KMeans(max_iter=STEPS, tol=0, **how).fit(points.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(points)
