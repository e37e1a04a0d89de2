"""Deep embedded validation: the risk on the target, estimated from labelled source faces weighted by density ratio.

You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019. Arrays are float64,
with M source training faces, N target faces, K held-out source faces and D features.
"""

from __future__ import annotations

import numpy as np

#: Weight of |w|^2 / 2 relative to the mean logistic loss, on standardised features. With a weaker penalty the 384
#: features separate a few hundred faces perfectly and the ratios reach thousands. A stronger penalty only pulls the
#: ratios towards 1.
PENALTY = 0.1


def density_ratio(train: np.ndarray, target: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Target density over source density at the held-out faces, from a logistic regression of the domain.

    w(x) = (M / N) P(target | x) / P(source | x). Features are standardised over both domains together; a constant
    feature has no effect. The penalty is per face, so repeating every face changes nothing. (The authors fit a small
    network instead, and choose its decay by domain accuracy on a random fifth; this is one convex fit.)

    Args:
        train: [M, D], M >= 1.
        target: [N, D], N >= 1.
        held: [K, D], none of them in `train`, because the classifier has already seen those.

    Returns:
        [K], > 0 (0 and inf only on overflow); all 1 where the features do not separate the domains.
    """
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([train, target])
    mean, deviation = both.mean(0), both.std(0)
    # Rounding leaves constant features a deviation of about 1e-17 times their size, not 0.
    deviation = np.where(deviation > 1e-9 * np.abs(both).max(0), deviation, np.inf)
    domain = np.repeat([1, 0], [len(train), len(target)])
    model = LogisticRegression(C=1 / (PENALTY * len(both)), tol=1e-6, max_iter=1000)
    model.fit((both - mean) / deviation, domain)
    with np.errstate(over="ignore"):
        return np.exp(-model.decision_function((held - mean) / deviation)) * len(train) / len(target)


def weighted_risk(weights: np.ndarray, losses: np.ndarray) -> float:
    """Importance-weighted mean loss with the control variate: mean(w l) + eta (mean(w) - 1).

    eta = -Cov(w l, w) / Var(w), as w has mean 1 in expectation; 0 where the weights do not vary, and for K = 1.

    Args:
        weights: [K], K >= 1.
        losses: [K].

    Returns:
        The estimated risk. For a 0-1 loss it is within 0..1, except that sampling error may push it below or above.
    """
    weighted, eta = weights * losses, 0.0
    spread = weights.var()
    if spread > 1e-12 * weights.mean() ** 2:  # a smaller spread is rounding
        eta = -((weighted - weighted.mean()) * (weights - weights.mean())).mean() / spread
    return float(weighted.mean() + eta * (weights.mean() - 1))
