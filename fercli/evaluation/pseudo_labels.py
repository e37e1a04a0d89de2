"""Count the pseudo labels that each threshold would have admitted after each epoch, and how many were correct."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.losses import class_thresholds, learning_status

#: Fixed thresholds that are compared with the class-aware one.
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)

CLASS_AWARE = "class-aware"


def pseudo_label_counts(
    outputs: dict[int, Tensor], labels: np.ndarray | None, threshold: float
) -> list[dict[str, Any]]:
    """Count the faces of each predicted class that reach each fixed threshold and the class-aware one, epoch by epoch.

    The class-aware threshold of class c is t ((b_c + 1) / 2)^2 (AGLRLS, arXiv 2401.11085), with b from the number of
    faces that reach t in that same epoch (`learning_status`). In training, b comes from each face's last confident
    prediction on its weak view. Here it comes from the watched view, which is what the files contain.

    Args:
        outputs: epoch -> probabilities [N, 7] on the same N target faces (see `fercli.engine.evaluator.read_outputs`).
        labels: integers [N], -1 where not known, or None. Oracle: for the final score only.
        threshold: t, 0..1, as the model was trained; 0.95 as published.

    Returns:
        One document per epoch, in order: ``epoch``; ``counts``, keyed by ``str(threshold)`` and "class-aware", the
        number of faces [7] by predicted class; ``known``, how many of those have a label; and ``correct``, how many of
        these were predicted correctly. Accuracy is correct / known. Both are None where no face has a label. Without
        epochs [].

    Raises:
        ValueError: an epoch's number of faces differs from the number of labels.
    """
    truth = None if labels is None else torch.as_tensor(np.asarray(labels).astype(np.int64))
    epochs = []
    for epoch in sorted(outputs):
        if truth is not None and len(truth) != len(outputs[epoch]):
            raise ValueError(f"outputs of {len(outputs[epoch])} faces after epoch {epoch}, but {len(truth)} labels")
        passed, answers = _passed(outputs[epoch], threshold)
        document = {"epoch": epoch, "counts": _count(passed, answers), "known": None, "correct": None}
        if truth is not None and (truth >= 0).any():
            document["known"] = _count(passed, answers, truth >= 0)
            document["correct"] = _count(passed, answers, truth == answers)
        epochs.append(document)
    return epochs


def _passed(probabilities: Tensor, threshold: float) -> tuple[dict[str, Tensor], Tensor]:
    """Which faces reach each threshold (bool [N] each), and their predictions."""
    confidence, answers = probabilities.max(-1)
    passed = {str(fixed): confidence >= fixed for fixed in THRESHOLDS}
    bank = torch.where(confidence >= threshold, answers, -1)
    limits = class_thresholds(learning_status(bank[None], NUM_EXPRESSIONS)[0], threshold)
    passed[CLASS_AWARE] = confidence >= limits[answers]
    return passed, answers


def _count(passed: dict[str, Tensor], answers: Tensor, among: Tensor | None = None) -> dict[str, list[int]]:
    """Number of faces that passed, by predicted class, among the faces in `among` (by default all)."""
    kept = {key: where if among is None else where & among for key, where in passed.items()}
    return {key: torch.bincount(answers[where], minlength=NUM_EXPRESSIONS).tolist() for key, where in kept.items()}
