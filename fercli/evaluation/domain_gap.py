"""The gap between two sets of features: their energy distance, and a t-SNE map to look at.

Features are float [N, D] of source faces and [M, D] of target faces. No label is read. Everything runs on one thread,
because sums over several threads round differently from run to run and t-SNE amplifies the difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fercli.machine import one_thread

#: Minimum number of faces of a domain for its distance.
LEAST_COMPARED = 10

#: Number of draws that compare source faces with other source faces, and the share of their distances below ``no_gap``.
DRAWS, BELOW = 100, 0.95

#: Squared distance below which two unit vectors differ only by rounding.
ROUNDING = 1e-13

#: Principal components that t-SNE starts from.
COMPONENTS = 50

#: Minimum number of faces for a map.
LEAST_MAPPED = 5


def energy_distance(source: ArrayLike, target: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Normalised energy distance of two domains (Székely & Rizzo, J. Stat. Plan. Inference 2013).

    1 - (E|x - x'| + E|y - y'|) / (2 E|x - y|), with x and x' two source faces and y and y' two target faces. It
    measures how much nearer faces of one domain are to each other than faces of different domains, as a share. It is
    the squared maximum mean discrepancy (Gretton et al., JMLR 2012) with the negative distance as its kernel
    (Sejdinovic et al., Ann. Stat. 2013), divided by the largest value it could have, so it needs no bandwidth. Features
    are first scaled to length 1. Apart from its bias, a linear classifier's prediction depends only on their direction,
    and models of any scale become comparable. A feature vector of zeros is left unchanged.

    Means within a domain leave out each face's distance 0 to itself. The estimate therefore does not grow as the number
    of faces falls, and it may be slightly below 0 where there is no gap.

    Args:
        source: [N, D].
        target: [M, D].
        seed: of the draws.

    Returns:
        ``energy_distance``: at most 1 (each domain is a single point), 0 where all features are equal. ``no_gap``: the
        value that the distance stays below in 95 of 100 draws without a gap, each of K random source faces against K
        others, where K is the smaller of N // 2 and M. Where N < 2 M, K is smaller than N and M, and ``no_gap`` is more
        likely too large than too small. ``faces``: [N, M]. Both distances are None where a domain has fewer than
        `LEAST_COMPARED` faces.

    Raises:
        ValueError: the features differ in length, or one is not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    both, (n, m) = _joined(source, target), (len(source), len(target))
    document: dict[str, Any] = {"energy_distance": None, "no_gap": None, "faces": [n, m]}
    if min(n, m) < LEAST_COMPARED:
        return document
    drawn, count = np.random.default_rng(seed), min(n // 2, m)
    some, others = np.zeros((2, DRAWS, n))
    for row in range(DRAWS):
        faces = drawn.permutation(n)
        some[row, faces[:count]] = others[row, faces[count : 2 * count]] = 1
    with one_thread():
        apart = _distances(both)
        domains = np.repeat(np.eye(2), [n, m], axis=1)
        (gap,) = _energy(apart, domains[:1], domains[1:])
        without = _energy(apart[:n, :n], some, others)
    return {**document, "energy_distance": float(gap), "no_gap": float(np.quantile(without, BELOW))}


def why_unmeasured(source: int, target: int) -> str | None:
    """Why no distance is computed for domains of these sizes, in words; None where one is computed."""
    if source == 0:
        return "the source has no test faces, and none were held out of training (data.validation)"
    counts = {"source": source, "target": target}
    few = [f"{count} of the {name}" for name, count in counts.items() if count < LEAST_COMPARED]
    return f"too few faces to compare ({' and '.join(few)}; at least {LEAST_COMPARED} are needed)" if few else None


def embed(source: ArrayLike, target: ArrayLike, seed: int = 0) -> dict[str, Any] | None:
    """Both domains' features on one plane by t-SNE (van der Maaten & Hinton, JMLR 2008), source faces first.

    The first 50 principal components are mapped, starting from the first two. Perplexity is 30, or a third of the other
    faces where there are fewer than 90. Near faces stay near. The clusters' distances and sizes have no meaning.

    Args:
        source: [N, D].
        target: [M, D].
        seed: of t-SNE.

    Returns:
        ``x`` and ``y``, N + M floats each, scaled to 0..1 and rounded to 4 digits (0.5 for an axis without spread),
        ``domain`` (0 source, 1 target) and ``perplexity``. None for fewer than 5 faces in total and
        where all features are equal.

    Raises:
        ValueError: the features differ in length, or one is not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    both = _joined(source, target)
    if len(both) < LEAST_MAPPED or not np.ptp(both, axis=0).any():
        return None

    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(both) - 1) / 3)
    with one_thread():
        components = PCA(min(COMPONENTS, *both.shape), svd_solver="full").fit_transform(both)
        start = np.zeros((len(both), 2), np.float32)
        start[:, : components.shape[1]] = components[:, :2] / components[:, 0].std() * 1e-4
        plane = TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(components)
    low, spread = plane.min(0), np.ptp(plane, axis=0)
    scaled = np.where(spread > 0, (plane - low) / np.where(spread > 0, spread, 1), 0.5)
    x, y = scaled.astype(np.float64).round(4).T.tolist()
    return {"x": x, "y": y, "domain": [0] * len(source) + [1] * len(target), "perplexity": perplexity}


def _distances(features: np.ndarray) -> np.ndarray:
    """Euclidean distances [N, N] between the features' directions."""
    lengths = np.abs(features).max(1, keepdims=True)  # first by the largest value: its square may overflow
    directions = features / np.where(lengths > 0, lengths, 1)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions / np.where(lengths > 0, lengths, 1)
    squares = (directions**2).sum(1)
    squared = directions @ directions.T
    squared *= -2
    squared += squares[:, None]
    squared += squares
    squared[squared < ROUNDING] = 0
    return np.sqrt(squared, out=squared)


def _energy(apart: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Normalised energy distances [R] of R pairs of sets.

    Args:
        apart: distances [N, N] of all faces.
        some, others: [R, N], 1 for the faces in a set and 0 for all others; each set has at least two faces.
    """
    count, other_count = some.sum(1), others.sum(1)
    to_some = some @ apart
    between = (to_some * others).sum(1) / (count * other_count)
    within = (to_some * some).sum(1) / (count * (count - 1))
    within += (others @ apart * others).sum(1) / (other_count * (other_count - 1))
    return np.where(between > 0, 1 - within / np.where(between > 0, 2 * between, 1), 0.0)


def _joined(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Source rows, then target rows. An empty domain does not determine the feature length."""
    given = [features for features in (source, target) if len(features)]
    if not given:
        return np.zeros((0, 0))
    if len({features.shape[1] for features in given}) > 1:
        raise ValueError(f"source features have length {source.shape[1]} but target features {target.shape[1]}")
    both = np.concatenate(given)
    if not np.isfinite(both).all():
        raise ValueError("a feature is not a finite number")
    return both
