"""How far two sets of features lie apart: the proxy A-distance, and a t-SNE map to look at.

Features are float [N, D] of source faces and [M, D] of target faces; no label is read. Everything runs on one thread,
because sums over several round differently from run to run and t-SNE multiplies the difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fercli.machine import one_thread
from fercli.store import subsample

#: Strength of the classifier's L2 penalty, a face: weights w cost PENALTY * |w|^2 / 2 against its mean log loss.
PENALTY = 0.01

#: Principal components that t-SNE starts from.
COMPONENTS = 50

#: Fewest faces that are mapped.
LEAST_MAPPED = 5


def a_distance(source: ArrayLike, target: ArrayLike, folds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Proxy A-distance 2 (1 - 2 e) (Ben-David et al., NeurIPS 2006), e the error of telling the domains apart.

    The classifier is linear: logistic regression on standardised features. Of the larger domain as many faces as the
    smaller one has are taken, evenly spread, so that guessing errs on half of them. e is the share of faces named
    wrongly by a classifier that did not see them, over stratified folds.

    Args:
        source: [N, D].
        target: [M, D].
        folds: >= 2.
        seed: of the division into folds.

    Returns:
        ``a_distance`` from 0 (not to be told apart; worse than guessing counts as that) to 2 (told apart without
        error), ``error`` e in 0..1, and ``faces`` [N, M]. Distance and error are None where a domain has fewer faces
        than there are folds.

    Raises:
        ValueError: the features differ in length, or one is not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    document: dict[str, Any] = {"a_distance": None, "error": None, "faces": [len(source), len(target)]}
    fewer = min(len(source), len(target))
    if fewer < folds:
        return document
    both = _joined(source[subsample(len(source), fewer)], target[subsample(len(target), fewer)])
    domain = np.repeat([0, 1], fewer)

    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    wrong = 0
    with one_thread():
        for known, unseen in StratifiedKFold(folds, shuffle=True, random_state=seed).split(both, domain):
            scaler = StandardScaler().fit(both[known])
            model = LogisticRegression(C=1 / (PENALTY * len(known)), tol=1e-3, max_iter=1000)
            model.fit(scaler.transform(both[known]), domain[known])
            wrong += int((model.predict(scaler.transform(both[unseen])) != domain[unseen]).sum())
    error = wrong / len(both)
    return {**document, "a_distance": min(2.0, max(0.0, 2 * (1 - 2 * error))), "error": error}


def embed(source: ArrayLike, target: ArrayLike, seed: int = 0) -> dict[str, Any] | None:
    """Both domains' features on one plane by t-SNE (van der Maaten & Hinton, JMLR 2008), source faces first.

    The first 50 principal components are mapped, starting from the first two; perplexity is 30, or a third of the other
    faces where they are fewer than 90. Near faces stay near; distances between clusters, and their sizes, mean nothing.

    Args:
        source: [N, D].
        target: [M, D].
        seed: of t-SNE.

    Returns:
        ``x`` and ``y``, N + M floats each, scaled to 0..1 and rounded to 4 digits (0.5 for an axis without spread),
        ``domain`` (0 source, 1 target) and ``perplexity``. None below 5 faces in all, and where all features are equal.

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


def _joined(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Both, one below the other; an empty domain has no length of its own."""
    given = [features for features in (source, target) if len(features)]
    if not given:
        return np.zeros((0, 0))
    if len({features.shape[1] for features in given}) > 1:
        raise ValueError(f"source features have length {source.shape[1]} but target features {target.shape[1]}")
    both = np.concatenate(given)
    if not np.isfinite(both).all():
        raise ValueError("a feature is not a finite number")
    return both
