"""Failure cases: the most confident mistakes of a model, and the faces it is least certain about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli.expressions import EXPRESSIONS, NUM_EXPRESSIONS
from fercli.scoring.explain import votes
from fercli.scoring.results import Results

#: Maximum number of faces of one kind.
LIMIT = 12


def failure_cases(scored: Results, limit: int = LIMIT) -> list[dict[str, Any]]:
    """The failure cases of one model on one dataset.

    Returns:
        One document each for ``mistakes`` (where any face has a label) and ``uncertain``: ``folder``, ``dataset``,
        ``kind``, ``faces`` (empty where the model makes no mistake). A face has ``position`` (in the store), ``id``,
        ``label`` (name, or None), ``answer`` (name), ``stage``, ``confidence`` and ``entropy`` (of the decision, see
        `entropy`), ``probabilities`` [7] of the decision, and ``votes`` of the model's heads.
    """
    said = scored.decision.probabilities
    unsure = entropy(said)
    kinds = {"uncertain": least_sure(unsure, limit)}
    if scored.known.any():
        kinds = {"mistakes": surest_mistakes(scored.labels, scored.answers, said, limit), **kinds}
    about = {"folder": scored.record.name, "dataset": scored.store.name}
    return [
        {**about, "kind": kind, "faces": [_face(scored, int(row), float(unsure[row])) for row in rows]}
        for kind, rows in kinds.items()
    ]


def surest_mistakes(labels: np.ndarray, answers: np.ndarray, said: Tensor, limit: int = LIMIT) -> np.ndarray:
    """Rows of wrong predictions, int64 [<= limit], the most confident first; on a tie the earlier row first.

    Args:
        labels: int64 [N]; a face without a label (-1) is not a mistake.
        answers: int64 [N], the predictions.
        said: [N, 7], the decision's probabilities; the confidence is that of the prediction.
    """
    wrong = np.flatnonzero((labels >= 0) & (answers != labels))
    confidence = said.double().numpy()[wrong, answers[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")][:limit]


def least_sure(unsure: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Rows, int64 [<= limit], with the largest entropy first, labelled or not; on a tie the earlier row first."""
    return np.argsort(-unsure, kind="stable")[:limit]


def entropy(probabilities: Tensor) -> np.ndarray:
    """Entropy of rows [N, 7] divided by log 7, float64 [N]: 0 (one-hot) .. 1 (uniform)."""
    found = torch.special.entr(probabilities.double()).sum(-1) / math.log(NUM_EXPRESSIONS)
    return found.clamp(0, 1).numpy()


def _face(scored: Results, row: int, unsure: float) -> dict[str, Any]:
    said, answer, label = scored.decision.probabilities[row].tolist(), scored.answers[row], scored.labels[row]
    position = int(scored.part.indices[row])
    # JSON and HTML cannot hold names that are not UTF-8; predictions/*.csv keeps their bytes.
    name = str(scored.store.ids[position]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {
        "position": position,
        "id": name,
        "label": EXPRESSIONS[label] if label >= 0 else None,
        "answer": EXPRESSIONS[answer],
        "stage": scored.stage(row),
        "confidence": said[answer],
        "entropy": unsure,
        "probabilities": said,
        "votes": [vote for vote in votes(scored.probabilities[row]) if vote["head"] in scored.record.heads],
    }
