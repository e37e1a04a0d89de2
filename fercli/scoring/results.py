"""What one model answers on the scored part of one dataset, and the figures that follow from it.

This is the final score: target labels are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli import console
from fercli.engine.trained import Trained
from fercli.errors import FercliError
from fercli.evaluation.calibration import calibration
from fercli.evaluation.decision import FUSED, STAGES, Decision
from fercli.evaluation.intervals import bootstrap
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.oracle import oracle_epoch
from fercli.loading.held_out import training_and_validation
from fercli.methods.base import Outputs
from fercli.models import HEADS
from fercli.report.headline_view import headline_row
from fercli.spec import Spec
from fercli.spec.registry import RULES
from fercli.store import Store


@dataclass(frozen=True)
class Results:
    """A model's answers on N faces.

    Attributes:
        model, store: whose, and on what.
        source: names of the source datasets, joined by +; is_source: whether the store is one of them.
        splits, indices, expected: see `scored_part`.
        probabilities: float32 [N, 7 heads, 7 expressions].
        held: the same model on the held-out source faces, with their labels: what the temperature is fitted on.
    """

    model: Trained
    store: Store
    source: str
    is_source: bool
    splits: list[str]
    indices: np.ndarray
    expected: int
    probabilities: Tensor
    held: Outputs

    @cached_property
    def decision(self) -> Decision:
        """By the model's own rule."""
        return self.model.rule(self.probabilities)

    @cached_property
    def answers(self) -> np.ndarray:
        """Of the decision, int64 [N]."""
        return self.decision.answers.numpy()

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N], -1 where not known."""
        return self.store.labels[self.indices]

    @cached_property
    def known(self) -> np.ndarray:
        """Which faces have a label, bool [N]."""
        return self.labels >= 0

    def stage(self, row: int) -> str:
        """Which stage of GLPC gave the answer; the rule's name where another rule decides."""
        return STAGES[self.decision.stages[row]] if self.model.decision == "glpc" else self.model.decision

    def entry(self) -> dict[str, Any]:
        """The entry of the results document, but for ``predictions``."""
        best, known = self.model.state["best"], self.known
        glpc = self.model.decision == "glpc"
        return {
            "dataset": self.store.name,
            "role": "source" if self.is_source else "target",
            "source": self.source,
            "model": self.model.method,
            "stage": self.model.stage,
            "folder": self.model.folder.name,
            "checkpoint": str(self.model.path),
            "epoch": best["epoch"],
            "selection": {"rule": best["rule"], "reads": list(RULES[best["rule"]].reads)},
            # A method that trains on target labels is an upper bound, whatever chose its epoch.
            "oracle": self.model.kind.oracle,
            "splits": self.splits,
            "counts": {"expected": self.expected, "found": len(self.indices), "scored": int(known.sum())},
            "heads": {
                name: metrics_of(self.labels, self.probabilities[:, head].argmax(-1).numpy())
                for head, name in enumerate(HEADS)
            },
            "decision": {
                "rule": self.model.decision,
                "metrics": metrics_of(self.labels, self.answers),
                "stages": self._stages() if glpc else None,
            },
            "intervals": self._intervals(self.answers),
            "calibration": self._calibration(),
        }

    def rows(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of the headline table: the model's own, and the oracle's where its epochs left their answers."""
        row = headline_row(entry)
        try:
            chosen = None if self.is_source else oracle_epoch(self.model.folder, self.store)
        except FercliError as problem:
            console.warn(f"{problem}; no oracle of {self.model.folder.name}")
            chosen = None
        if chosen is None:
            return [row]
        epoch, answers = chosen
        oracle = {"intervals": self._intervals(answers), "selection": "oracle", "epoch": epoch, "oracle": True}
        return [row, {**row, **headline_figures(self.labels, answers), **oracle}]

    def _intervals(self, answers: np.ndarray) -> dict[str, Any] | None:
        known = self.known
        return bootstrap(self.labels[known], answers[known], self.store.subjects[self.indices][known].tolist())

    def _calibration(self) -> dict[str, Any] | None:
        """Of the fused head. Where a source is scored on its held-out faces, those have fitted the temperature too."""
        labels = torch.from_numpy(self.labels.astype(np.int64))
        return calibration(self.probabilities[:, FUSED], labels, self.held.probabilities[:, FUSED], self.held.labels)

    def _stages(self) -> dict[str, dict[str, int | None]]:
        """How often each stage decided and how often rightly: of labelled faces, or of all where none has a label."""
        labelled = bool(self.known.any())
        counted = self.known if labelled else np.ones_like(self.known)
        right = (self.answers == self.labels)[counted]
        found = {}
        for number, name in enumerate(STAGES):
            here = self.decision.stages.numpy()[counted] == number
            found[name] = {"count": int(here.sum()), "correct": int(right[here].sum()) if labelled else None}
        return found


def scored_part(spec: Spec, store: Store, is_source: bool) -> tuple[list[str], np.ndarray, int]:
    """Which faces score: (what to call them, positions, how many the dataset lists).

    A source without a test part of its own is scored on the faces held out of training, which also chose the epoch.
    """
    if is_source and (set(store.score_splits) & set(store.adapt_splits) or not store.expected(store.score_splits)):
        _, held = training_and_validation(store, spec.data.validation)
        return ["held out of training"], held, len(held)
    return list(store.score_splits), store.indices(store.score_splits), store.expected(store.score_splits)


def metrics_of(labels: np.ndarray, answers: np.ndarray) -> dict[str, Any] | None:
    """All figures of the answers to faces with a label (not -1), or None where none has one."""
    known = labels >= 0
    if not known.any():
        return None
    counted = confusion(labels[known], answers[known])
    return {**scores(counted), "confusion": counted.tolist()}


def headline_figures(labels: np.ndarray, answers: np.ndarray) -> dict[str, float | None]:
    """Accuracy and macro F1 of `metrics_of`, None where no face has a label."""
    metrics = metrics_of(labels, answers)
    return {name: None if metrics is None else metrics[name] for name in ("accuracy", "macro_f1")}
