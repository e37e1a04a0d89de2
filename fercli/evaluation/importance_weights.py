"""Deep embedded validation: the risk on the target, estimated from labelled source faces weighed by density ratio.

You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019. Arrays are float64;
M source training faces, N target faces, K held-out source faces, D features.
"""

from __future__ import annotations

import numpy as np

#: Weight of |w|^2 / 2 beside the mean logistic loss, on standardised features. Weaker ones separate a few hundred faces
#: by their 384 features perfectly, and the ratios run to thousands; stronger ones only draw the ratios towards 1.
PENALTY = 0.1


def density_ratio(train: np.ndarray, target: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Target density over source density at the held-out faces, by logistic regression of the domain.

    w(x) = (M / N) P(target | x) / P(source | x). Features are standardised over both domains together; one that is
    constant counts for nothing. The penalty is per face, so repeating every face changes nothing. (The authors fit a
    small network instead, and choose its decay by domain accuracy on a random fifth; this is one convex fit.)

    Args:
        train: [M, D], M >= 1.
        target: [N, D], N >= 1.
        held: [K, D], none of them in `train`: the classifier would know them.

    Returns:
        [K], > 0 (0 and inf only on overflow); all 1 where the features do not tell the domains apart.
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
        The estimated risk: within 0..1 for a 0-1 loss up to sampling error, which may carry it below or above.
    """
    weighted, eta = weights * losses, 0.0
    spread = weights.var()
    if spread > 1e-12 * weights.mean() ** 2:  # below, it is rounding
        eta = -((weighted - weighted.mean()) * (weights - weights.mean())).mean() / spread
    return float(weighted.mean() + eta * (weights.mean() - 1))
