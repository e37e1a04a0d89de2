"""How reliable a model's confidence is: reliability diagram, and temperature scaling fitted on the source.

Probabilities are float [N, 7], with rows that sum to one. Labels are int64 [N]. Faces without a label (-1) are left out
everywhere. A probability of zero counts as the smallest positive float of its type, so every logarithm is finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Number of equal-width bins for the confidence.
BINS = 15

#: Smallest and largest temperature that `fit_temperature` returns.
T_RANGE = (0.05, 20.0)


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the mean of -log softmax(log p / T)[label] (Guo et al., ICML 2017, sec. 4.2).

    The loss is convex in 1/T. Its derivative is the mean of E[log p] - log p[label], with E under the scaled
    probabilities. It crosses zero once, and this function finds that root. T does not change the predictions, only the
    confidence: T > 1 lowers it.

    Args:
        probabilities: [N, 7].
        labels: int64 [N].

    Returns:
        T within `T_RANGE`. T is 1 where the faces do not determine it: without faces, where every prediction is correct
        (the loss falls until T = 0), where no confidence at all would be best, and where all probabilities are equal.
    """
    from scipy.optimize import brentq

    probabilities, labels = _labelled(probabilities, labels)
    if len(labels) == 0:
        return 1.0
    logs = _logs(probabilities)
    said = logs.gather(1, labels[:, None]).mean()

    def slope(log_inverse: float) -> float:
        scaled = (logs * math.exp(log_inverse)).softmax(-1)
        return float((scaled * logs).sum(-1).mean() - said)

    least, most = -math.log(T_RANGE[1]), -math.log(T_RANGE[0])
    at_least, at_most = slope(least), slope(most)
    rounding = 1e-12 * float(logs.abs().max())
    if at_most <= rounding or at_least >= -rounding:
        return 1.0
    return math.exp(-brentq(slope, least, most, xtol=1e-9))


def apply_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T), with the shape and type of `probabilities` [N, 7]; T = 1 changes them only by rounding."""
    return (_logs(probabilities) / temperature).softmax(-1).to(probabilities)


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Any]:
    """Confidence against accuracy in bins of equal width, and the calibration error over all bins.

    Confidence is the top probability. Bin m of M holds confidences in ((m - 1) / M, m / M]; the first bin includes
    zero. ECE is the sum over bins of count / N times |accuracy - confidence| (Naeini et al., AAAI 2015, as in Guo et
    al., ICML 2017, eq. 3). NLL is the mean of -log p[label], in nats.

    Args:
        probabilities: [N, 7].
        labels: int64 [N].
        bins: M, >= 1.

    Returns:
        A document of plain values: ``ece`` in 0..1 and ``nll`` >= 0 (None without faces), and ``bins``, a list of M
        dicts: ``low``, ``high``, ``count``, and the means ``confidence`` and ``accuracy`` over the bin's faces (None in
        an empty bin).
    """
    probabilities, labels = _labelled(probabilities, labels)
    confidence, answers = probabilities.double().max(-1)
    right = (answers == labels).double()
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    where = torch.bucketize(confidence, edges)
    count = torch.bincount(where, minlength=bins)
    sums = [torch.bincount(where, values, minlength=bins) / count for values in (confidence, right)]
    rows, error = [], 0.0
    for i, (faces, sure, accuracy) in enumerate(zip(count.tolist(), *(s.tolist() for s in sums), strict=True)):
        if faces:
            error += faces / len(labels) * abs(accuracy - sure)
        else:
            sure = accuracy = None
        rows.append({"low": i / bins, "high": (i + 1) / bins, "count": faces, "confidence": sure, "accuracy": accuracy})
    if len(labels) == 0:
        return {"ece": None, "nll": None, "bins": rows}
    nll = -_logs(probabilities).gather(1, labels[:, None]).mean()
    return {"ece": error, "nll": max(0.0, float(nll)), "bins": rows}


def calibration(
    probabilities: Tensor, labels: Tensor, held_probabilities: Tensor, held_labels: Tensor
) -> dict[str, Any] | None:
    """Reliability of one model on one dataset, before and after temperature scaling fitted on held-out source faces.

    Args:
        probabilities: [N, 7], on the dataset to describe. Its labels are used for scoring only, never for the fit.
        labels: int64 [N].
        held_probabilities: [K, 7], the same model's on the source's validation split.
        held_labels: int64 [K].

    Returns:
        ``temperature``, ``fitted_on`` (number of labelled held-out faces; 0 leaves T at 1), ``before`` and ``after``
        (see `reliability`). None where no face has a label.
    """
    if not (torch.as_tensor(labels) >= 0).any():
        return None
    temperature = fit_temperature(held_probabilities, held_labels)
    return {
        "temperature": temperature,
        "fitted_on": int((torch.as_tensor(held_labels) >= 0).sum()),
        "before": reliability(probabilities, labels),
        "after": reliability(apply_temperature(probabilities, temperature), labels),
    }


def _labelled(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    probabilities, labels = torch.as_tensor(probabilities), torch.as_tensor(labels).long()
    if len(probabilities) != len(labels):
        raise ValueError(f"probabilities of {len(probabilities)} faces but {len(labels)} labels")
    known = labels >= 0
    return probabilities[known], labels[known]


def _logs(probabilities: Tensor) -> Tensor:
    """The logarithms in float64, all finite."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).double().log()
