"""Selection rules that use only predictions on unlabelled target images. Pure functions; higher is better.

Shapes: N images, C classes. `fused` is float [N, C], the fused head's probabilities; rows are in the simplex. The order
of the images never matters, nor does the order of the classes. The rules measure how sure and how varied the
predictions are, not whether they are correct. Where classes are absent from the target (or never predicted), `infomax`,
`bnm` and `corr_c` stay below their upper bound. The limit is the same for all epochs of a run, so their ranking holds.

Callers ensure that N >= 1 and that every number is finite (`fercli.evaluation.selection` returns NaN otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fercli.methods.losses import entropy


def certainty(fused: Tensor) -> float:
    """Minus the mean entropy of the rows, in nats (Grandvalet and Bengio, NeurIPS 2004; as a validator, Morerio et
    al., ICLR 2018).

    Returns:
        -ln C (uniform) .. 0 (one-hot). The upper end is missed by about 1e-5, because of the floor in `entropy`'s
        logarithm. Blind to collapse: one certain prediction for all images gives 0.
    """
    return -entropy(fused).mean().item()


def infomax(fused: Tensor) -> float:
    """Entropy of the mean row minus the mean entropy of the rows, in nats (Bridle et al., NeurIPS 1991): the mutual
    information of image and prediction.

    Returns:
        0 (all rows equal: uniform, collapsed, or a single image) .. ln C (one-hot, classes in equal shares).
    """
    return entropy(fused.mean(0)).item() + certainty(fused)


def agreement(answers: Tensor, answer: Tensor) -> float:
    """Mean share of heads that predict the same as the fused head (fercli's own rule).

    Args:
        answers: int64 [N, H], predictions of the other heads.
        answer: int64 [N], predictions of the fused head.

    Returns:
        0..1. Blind to collapse: heads that all predict one class agree.
    """
    return (answers == answer.unsqueeze(1)).double().mean().item()


def bnm(fused: Tensor) -> float:
    """Batch nuclear norm (Cui et al., CVPR 2020) of all predictions: ||P||_* / sqrt(C N), the sum of P's singular
    values over the largest possible sum.

    The paper divides by N. For a fixed N the ranking is the same. Dividing by sqrt(C N) also keeps the value the same
    when every image is repeated: ||P||_F <= ||P||_* <= sqrt(min(N, C)) ||P||_F and sqrt(N / C) <= ||P||_F <= sqrt(N).

    Returns:
        1/C (uniform) .. 1 (one-hot, classes in equal shares). Collapsed one-hot predictions give sqrt(1/C).
        One-hot predictions in equal shares over m classes give sqrt(m/C). With fewer images than classes the maximum is
        sqrt(N/C).
    """
    images, classes = fused.shape
    return (torch.linalg.svdvals(fused).sum() / math.sqrt(classes * images)).item()


def soft_neighbourhood_density(fused: Tensor, temperature: float = 0.05, block: int = 2**20) -> float:
    """SND (Saito et al., ICCV 2021): a soft count of an image's near neighbours.

    With f the rows of `fused` at unit length, Q_ij = softmax over j != i of f_i . f_j / temperature. The score is the
    mean over i of -sum_j Q_ij ln Q_ij, without a floor in the logarithm (EnsV's code has 1e-5).

    Args:
        temperature: > 0; 0.05 is the paper's.
        block: similarities held in memory at once (numbers, not bytes). Time is O(N^2 C), memory O(block + N C).

    Returns:
        0..ln(N - 1) nats, so comparable only for the same N: 0 where each image has one neighbour nearer than all
        others, ln(N - 1) where all images look alike. Blind to collapse: uniform and collapsed predictions reach the
        upper end. One-hot predictions in equal shares over m classes give about ln(N/m - 1). NaN for one image, which
        has no neighbour; 0 for two.
    """
    images = len(fused)
    if images < 2:
        return math.nan
    unit = F.normalize(fused, dim=1)
    total, rows = 0.0, max(1, block // images)
    for start in range(0, images, rows):
        similarity = unit[start : start + rows] @ unit.T / temperature
        similarity.diagonal(start).fill_(-math.inf)
        total += torch.special.entr(similarity.softmax(1)).sum().item()
    return total / images


def corr_c(fused: Tensor) -> float:
    """Class correlation, Corr-C or SoftmaxCorr (Tu et al., ICLR 2023 submission and TMLR 2024, arXiv 2406.09908).

    With K = P^T P / N, the [C, C] correlation of classes, the score is its cosine with the identity,
    trace(K) / (sqrt(C) ||K||_F). Tu et al. find that accuracy rises with it: off-diagonal mass is confusion between
    classes, and an uneven diagonal is collapse. So higher is better here. EnsV's code (Hu et al., NeurIPS 2024) prints
    trace(K) / ||K||_F, which is the same up to the constant sqrt(C), and takes its minimum as the best. That
    contradicts the paper it cites; this code follows the paper.

    Returns:
        sqrt(1/C) (uniform, collapsed, or a single image: K has rank one) .. 1 (one-hot, classes in equal shares).
        One-hot predictions in equal shares over m classes give sqrt(m/C).
    """
    correlation = fused.T @ fused
    return (correlation.trace() / (correlation.norm() * math.sqrt(fused.shape[1]))).item()


def ensemble_agreement(candidates: Sequence[Tensor]) -> list[float]:
    """EnsV (Hu et al., NeurIPS 2024 Datasets and Benchmarks, "Towards Reliable Model Selection for Unsupervised Domain
    Adaptation"): the share of images on which a candidate predicts the class that the candidates' mean predicts.

    Args:
        candidates: at least one; each is `fused` for the same N >= 1 images in the same order.

    Returns:
        0..1 per candidate. A single candidate scores 1, as do identical candidates.
    """
    verdict = torch.stack([fused.double() for fused in candidates]).mean(0).argmax(-1)
    return [(fused.argmax(-1) == verdict).double().mean().item() for fused in candidates]
