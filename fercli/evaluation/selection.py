"""Choosing the best epoch without target labels. Higher is better for each rule; `RULES` lists names and inputs.

Every score is a finite number or NaN, never infinite, and NaN never wins. A score is NaN where the rule is not defined
(no images, or too few) and where the model's outputs contain a NaN or an infinity. An argmax over NaNs would count as a
prediction like any other, and a broken model whose heads "agree" would win.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fercli.evaluation import predictions
from fercli.evaluation.decision import FUSED
from fercli.evaluation.importance_weights import density_ratio, weighted_risk
from fercli.spec.registry import RULES


def target_scores(probabilities: Tensor) -> dict[str, float]:
    """The rules that use the model's outputs on (unlabelled) target images; all are in `predictions`.

    Args:
        probabilities: [N, 7 heads, 7 expressions].

    Returns:
        ``entropy`` (-ln 7..0), ``infomax`` (0..ln 7), ``agreement`` of the heads (0..1), ``bnm`` (1/7..1), ``snd``
        (0..ln(N - 1)) and ``corr-c`` (sqrt(1/7)..1). All are NaN for N = 0 or outputs that are not finite; ``snd`` is
        NaN for N = 1.
    """
    if not _usable(probabilities):
        return dict.fromkeys(("entropy", "infomax", "agreement", "bnm", "snd", "corr-c"), math.nan)
    fused, answers = probabilities[:, FUSED].double(), probabilities.argmax(-1)
    return {
        "entropy": predictions.certainty(fused),
        "infomax": predictions.infomax(fused),
        "agreement": predictions.agreement(answers[:, :FUSED], answers[:, FUSED]),
        "bnm": predictions.bnm(fused),
        "snd": predictions.soft_neighbourhood_density(fused),
        "corr-c": predictions.corr_c(fused),
    }


def source_score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """``source-val``: accuracy of the fused head on held-out source faces.

    Args:
        probabilities: [K, 7 heads, 7 expressions].
        labels: int64 [K].

    Returns:
        0..1. NaN without faces and where outputs are not finite.
    """
    if not _usable(probabilities):
        return {"source-val": math.nan}
    return {"source-val": (probabilities[:, FUSED].argmax(-1) == labels).double().mean().item()}


def last_score(epoch: int) -> dict[str, float]:
    """``last``: the latest epoch wins."""
    return {"last": float(epoch)}


def dev_score(
    train_features: Tensor,
    target_features: Tensor,
    held_features: Tensor,
    held_probabilities: Tensor,
    held_labels: Tensor,
) -> dict[str, float]:
    """``dev``: minus the 0-1 risk on the target that deep embedded validation estimates (You et al., ICML 2019).

    The held-out source faces' errors are weighted by `density_ratio` and averaged by `weighted_risk`.

    Args:
        train_features: [M, 384], of source faces used in training: flattened features of the fused head, in eval mode.
        target_features: [N, 384].
        held_features: [K, 384], of held-out source faces.
        held_probabilities: [K, 7 expressions], the fused head's.
        held_labels: int64 [K].

    Returns:
        About -1..0, except for sampling error. Minus the plain error rate where the features do not separate the
        domains. NaN where M, N or K is 0 and where an input is not finite. Held-out faces of only a few classes
        describe only those.
    """
    given = (train_features, target_features, held_features, held_probabilities)
    if not all(map(_usable, given)):
        return {"dev": math.nan}
    train, target, held = (features.detach().cpu().double().numpy() for features in given[:3])
    wrong = (held_probabilities.argmax(-1) != held_labels).cpu().double().numpy()
    risk = weighted_risk(density_ratio(train, target, held), wrong)
    return {"dev": -risk if math.isfinite(risk) else math.nan}


def ensemble_scores(probabilities: Sequence[Tensor]) -> list[float]:
    """``ensv``: each candidate's agreement with the mean of all (`predictions.ensemble_agreement`), after the run.

    Args:
        probabilities: the fused head's [N, 7 expressions] per candidate, for the same target images in the same order.

    Returns:
        0..1 per candidate, in their order. NaN for a candidate whose outputs are not finite (it is also left out of the
        ensemble), and for all where N = 0. Empty without candidates.

    Raises:
        ValueError: the candidates differ in shape.
    """
    if len({tuple(candidate.shape) for candidate in probabilities}) > 1:
        raise ValueError(f"candidates of different shapes: {[tuple(p.shape) for p in probabilities]}")
    usable = [candidate for candidate in probabilities if _usable(candidate)]
    scores = iter(predictions.ensemble_agreement(usable) if usable else [])
    return [next(scores) if _usable(candidate) else math.nan for candidate in probabilities]


def best_epoch(scores: Mapping[int, float]) -> int | None:
    """The earliest epoch with the highest finite score, or None where no score is finite."""
    best = None
    for epoch in sorted(scores):
        if math.isfinite(scores[epoch]) and (best is None or scores[epoch] > scores[best]):
            best = epoch
    return best


def chosen_by_rule(
    history: Mapping[int, Mapping[str, float]], outputs: Mapping[int, Tensor] | None = None
) -> dict[str, int]:
    """The epoch that each rule would choose, in the order of `fercli.spec.registry.RULES`.

    Args:
        history: epoch -> rule -> score. An epoch may lack a rule; that rule then cannot choose it.
        outputs: epoch -> the fused head's probabilities [N, 7 expressions] on the same target images. ``ensv`` is
            computed from them over these epochs. Without them it is taken from the history, like any other rule.

    Returns:
        rule -> epoch. A rule without a finite score is left out.
    """
    by_rule = {rule: {e: scores[rule] for e, scores in history.items() if rule in scores} for rule in RULES}
    if outputs:
        by_rule["ensv"] = dict(zip(outputs, ensemble_scores(list(outputs.values())), strict=True))
    chosen = {rule: best_epoch(scores) for rule, scores in by_rule.items()}
    return {rule: epoch for rule, epoch in chosen.items() if epoch is not None}


def _usable(outputs: Tensor) -> bool:
    return len(outputs) > 0 and bool(torch.isfinite(outputs).all())
