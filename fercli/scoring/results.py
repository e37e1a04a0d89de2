"""Predictions of one model on the scored part of one dataset, and the scores computed from them. Pure functions of
outputs, for a run, a single model and a sweep alike.

This is the final score: target labels are read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fercli import console
from fercli.engine.log import read_scores
from fercli.errors import FercliError, SpecError
from fercli.evaluation.calibration import calibration
from fercli.evaluation.decision import FUSED, STAGES, Decision, DecisionRule
from fercli.evaluation.drift import drift, verdict
from fercli.evaluation.intervals import score_intervals
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.oracle import oracle_epoch
from fercli.evaluation.outputs import EpochOutputs, fused_of_watched
from fercli.evaluation.results_table import serves
from fercli.evaluation.selection import chosen_by_rule
from fercli.evaluation.significance import compare_right
from fercli.loading.held_out import training_and_validation
from fercli.models import HEADS
from fercli.spec import Spec
from fercli.spec.registry import REFERENCE, reads
from fercli.store import Store

#: The fields that an entry takes from its model's record.
_TOLD = (
    *("source", "method", "registered", "seed", "keys", "oracle_method", "stage", "epoch", "selection", "decision"),
    "seconds",
)


@dataclass(frozen=True)
class ModelRecord:
    """What tables show about a trained model, and how it predicts.

    Attributes:
        folder: of its stage; name: the folder's name within the run folder.
        method: its label in tables; registered: its name in the registry; source: its source datasets, joined by +.
        seed, keys: of a sweep's cell; keys are the values of the grid's spec keys.
        epoch, selection: the chosen epoch, and the rule that chose it.
        rule: the model's own decision rule; decision: the name of the rule to use (`DecisionRule.named`).
        oracle_method: whether it was trained with target labels, or they had already chosen its epoch: an upper bound.
        keep_outputs: as the spec's ``engine.keep_outputs``.
        heads: those of the seven heads that it has.
    """

    folder: Path
    name: str
    checkpoint: Path
    stage: str
    method: str
    registered: str
    source: str
    seed: int
    epoch: int | None
    selection: str
    rule: DecisionRule
    decision: str
    oracle_method: bool
    seconds: float | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    keep_outputs: int | None = None
    heads: Sequence[str] = HEADS

    def deciding_by(self, name: str | None) -> ModelRecord:
        """The same model with another decision rule; None changes nothing.

        Raises:
            SpecError: there is no such rule, or it reads heads that the model does not have.
        """
        asked = self.rule.named(name) if name else None
        if asked and len(self.heads) < len(HEADS) and asked.key not in self.heads:
            raise SpecError(f"{self.checkpoint} cannot predict with {name}", f"its heads are: {', '.join(self.heads)}")
        return replace(self, decision=name if asked.key == "glpc" else asked.key) if asked else self

    def answering(self) -> DecisionRule:
        """The decision rule to use."""
        return self.rule.named(self.decision)


def model_record(spec: Spec, folder: Path, rule: DecisionRule, **told: Any) -> ModelRecord:
    """The record of a model trained by a spec; `told` holds its other attributes."""
    about = {"source": "+".join(spec.data.source), "seed": spec.engine.seed, "keep_outputs": spec.engine.keep_outputs}
    return ModelRecord(folder=folder, rule=rule, decision=rule.key, **about, **told)


class Part(NamedTuple):
    """The scored faces of a store: their name in tables, their positions, and how many the dataset lists."""

    splits: list[str]
    indices: np.ndarray
    expected: int


def scored_part(spec: Spec, store: Store, is_source: bool) -> Part:
    """The scored faces of a store.

    A source without its own test split is scored on the faces held out of training, which also chose the epoch.
    """
    if is_source and (set(store.score_splits) & set(store.adapt_splits) or not store.expected(store.score_splits)):
        _, held = training_and_validation(store, spec.data.validation)
        return Part(["held out of training"], held, len(held))
    return Part(list(store.score_splits), store.indices(store.score_splits), store.expected(store.score_splits))


class Right(NamedTuple):
    """Which of a store's labelled faces a model predicts correctly.

    Attributes:
        positions: of the faces in the store, int64 [M].
        right: whether each is correct, bool [M].
        subjects: the subject of each, M strings, empty where not known.
    """

    positions: np.ndarray
    right: np.ndarray
    subjects: list[str]


class Epochs:
    """The stored outputs of an adaptation's epochs, as far as they belong to the faces now in the target's store.

    Args:
        record: the adapted model's.
        store: its target, opened with labels.
        size: number of scored faces.
        history: epoch -> selection rule -> score.

    Attributes:
        watched: epoch -> the fused head's probabilities [N, 7] on the watched faces.
        answers: epoch -> predictions int64 [N] of the model's decision rule, with that epoch's learning status; empty
            where the outputs belong to other faces.
        same_faces: whether the outputs belong to the store's faces.

    Raises:
        FercliError: an output file is missing or damaged.
    """

    def __init__(self, record: ModelRecord, store: Store, size: int, history: Mapping[int, Mapping[str, float]]):
        self.outputs = EpochOutputs(record.folder, {record.epoch, *(history if record.keep_outputs is None else ())})
        self._history = history
        self.watched: dict[int, Tensor] = {}
        self.answers: dict[int, np.ndarray] = {}
        self._record, self.same_faces = record, True
        for epoch in self.outputs.paths:
            found, about = self.outputs[epoch]
            self.watched[epoch] = fused_of_watched(found)
            if about.get("faces") == store.faces_digest and len(found["scored"]) == size:
                decide = self.rule(found).named(record.decision)
                self.answers[epoch] = decide(found["scored"]).answers.numpy()
            else:
                self.same_faces = False
        if not self.same_faces:
            self.answers.clear()

    def rule(self, found: Mapping[str, Tensor]) -> DecisionRule:
        """The model's own decision rule, with an epoch's learning status."""
        return self._record.rule._replace(status=found.get("status"))

    @cached_property
    def chosen(self) -> dict[str, int]:
        """Selection rule -> the epoch that it would choose, among epochs with outputs; empty without scores."""
        history = {epoch: scores for epoch, scores in self._history.items() if epoch in self.watched}
        return chosen_by_rule(history, self.watched) if history else {}

    def selected_by(self, rule: str) -> tuple[ModelRecord, dict[str, Tensor]]:
        """The model at the epoch that a selection rule chooses, and its outputs.

        Raises:
            FercliError: the run has no score by this rule, or its outputs belong to other faces.
        """
        folder = self._record.folder
        if rule not in self.chosen or not self.same_faces:
            why = f"has no score for {rule}" if self.same_faces else "contains outputs of other faces"
            raise FercliError(
                f"{folder} {why}",
                "adapt again with --restart" + (" and --set adapt.also_score=dev" if rule == "dev" else ""),
            )
        epoch = self.chosen[rule]
        found, _ = self.outputs[epoch]
        return replace(self._record, epoch=epoch, selection=rule, rule=self.rule(found)), found


@dataclass(frozen=True)
class Results:
    """A model's outputs and predictions on N faces.

    Attributes:
        record, store: the model and the dataset.
        is_source: whether the store is one of the model's sources.
        part: the scored faces.
        probabilities: float32 [N, 7 heads, 7 expressions].
        held, held_labels: the same model's outputs on K held-out source faces [K, 7, 7], and their labels; the
            temperature is fitted on them.
        epochs: the outputs of its epochs, where it was adapted to this dataset.
        start: float32 [N, 7, 7], the starting model's outputs on the same faces. None where they were not computed, or
            the model was adapted to another dataset.
    """

    record: ModelRecord
    store: Store
    is_source: bool
    part: Part
    probabilities: Tensor
    held: Tensor
    held_labels: Tensor
    epochs: Epochs | None = None
    start: Tensor | None = None

    @cached_property
    def decision(self) -> Decision:
        """The decision by the rule in use."""
        return self.record.answering()(self.probabilities)

    @cached_property
    def answers(self) -> np.ndarray:
        """The decision's predictions, int64 [N]."""
        return self.decision.answers.numpy()

    @cached_property
    def labels(self) -> np.ndarray:
        """True labels, int64 [N], -1 where not known."""
        return self.store.labels[self.part.indices]

    @cached_property
    def known(self) -> np.ndarray:
        """Which faces have a label, bool [N]."""
        return self.labels >= 0

    @property
    def right(self) -> Right:
        """Which labelled faces the decision predicts correctly."""
        known = self.known
        return Right(self.part.indices[known], (self.answers == self.labels)[known], self._subjects())

    def stage(self, row: int) -> str:
        """The stage of GLPC that made the prediction, or the rule's name where another rule decides."""
        return STAGES[self.decision.stages[row]] if self._by_glpc else self.record.decision

    @property
    def _by_glpc(self) -> bool:
        return self.record.decision.startswith("glpc")

    def entry(self) -> dict[str, Any]:
        """The entry of the results document (`fercli.scoring.results_files`), without ``predictions``.

        ``against_reference`` is None until `with_reference` fills it in.
        """
        record, epochs = self.record, self.epochs
        answered = epochs is not None and bool(epochs.answers)
        oracle = oracle_epoch(epochs.answers, self.labels) if answered else None
        joint = ["global+fused"] if len(record.heads) == len(HEADS) else []
        joint += ["glpc"] if record.rule.status is not None else []
        rules = (*record.heads, *joint, record.decision)
        return {
            "dataset": self.store.name,
            "role": "source" if self.is_source else "target",
            **{name: getattr(record, name) for name in _TOLD},
            "folder": record.name,
            "checkpoint": str(record.checkpoint),
            "reads": list(reads(record.selection)),
            "splits": self.part.splits,
            "expected": self.part.expected,
            "found": len(self.part.indices),
            "scored": int(self.known.sum()),
            "heads": {
                name: metrics_of(self.labels, record.rule.named(name)(self.probabilities).answers.numpy())
                for name in rules
            },
            "stages": self._stages() if self._by_glpc else None,
            "intervals": self._intervals(self.answers),
            "against_reference": None,
            "calibration": self._calibration(),
            "oracle": None if oracle is None else self._at(oracle, intervals=True),
            "rules": {rule: self._at(epoch) for rule, epoch in (epochs.chosen if answered else {}).items()},
            "drift": None if self.start is None else self._drift(self.start),
        }

    def _drift(self, start: Tensor) -> dict[str, Any]:
        """How the predictions differ from the starting model's, with the verdict. No label is read."""
        moved = drift(start, self.probabilities)
        faces = self.part.indices
        told = {"found": len(faces), "listed": self.part.expected, "duplicates": self.store.copies(faces)}
        return {**moved, **told, "verdict": verdict(moved, **told, start_kept=self.record.epoch == 0)}

    def _at(self, epoch: int, intervals: bool = False) -> dict[str, Any]:
        answers = self.epochs.answers[epoch]
        metrics = metrics_of(self.labels, answers) or {}
        found = {"epoch": epoch, **{name: metrics.get(name) for name in ("accuracy", "macro_f1")}}
        return {**found, "intervals": self._intervals(answers)} if intervals else found

    def _intervals(self, answers: np.ndarray) -> dict[str, Any] | None:
        return score_intervals(self.labels[self.known], answers[self.known], self._subjects())

    def _subjects(self) -> list[str]:
        """Subjects of the faces with a label."""
        return self.store.subjects[self.part.indices][self.known].tolist()

    def _calibration(self) -> dict[str, Any] | None:
        """Calibration of the fused head. Where a source is scored on held-out faces, T is fitted on the same ones."""
        labels = torch.from_numpy(self.labels.astype(np.int64))
        return calibration(self.probabilities[:, FUSED], labels, self.held[:, FUSED], self.held_labels)

    def _stages(self) -> dict[str, dict[str, int | None]]:
        """How often each stage decided, and how often correctly: on labelled faces, or on all if none has a label."""
        labelled = bool(self.known.any())
        counted = self.known if labelled else np.ones_like(self.known)
        right = (self.answers == self.labels)[counted]
        found = {}
        for number, name in enumerate(STAGES):
            here = self.decision.stages.numpy()[counted] == number
            found[name] = {"count": int(here.sum()), "correct": int(right[here].sum()) if labelled else None}
        return found


def read_epochs(record: ModelRecord, store: Store, size: int) -> Epochs | None:
    """`Epochs` of an adapted model, without selection rules where its log is damaged. Returns None, with a warning,
    where its outputs are damaged or missing."""
    history = {}
    with suppress(FercliError):  # reported where its curves are left out
        history = read_scores(record.folder)
    try:
        epochs = Epochs(record, store, size, history)
    except FercliError as problem:
        console.warn(f"{problem}; no oracle, selection rules or pseudo labels of {record.name}")
        return None
    if not epochs.same_faces:
        console.warn(
            f"{store.path} was prepared again after {record.folder}, with other faces: the outputs of its epochs "
            "cannot be scored (no oracle, no accuracy of pseudo labels); to get these, run: fercli adapt --target "
            f"{store.name} --restart"
        )
    return epochs


def metrics_of(labels: np.ndarray, answers: np.ndarray) -> dict[str, Any] | None:
    """All scores of the predictions on faces with a label (not -1), or None where no face has one."""
    known = labels >= 0
    if not known.any():
        return None
    counted = confusion(labels[known], answers[known])
    return {**scores(counted), "confusion": counted.tolist()}


def with_reference(entries: Sequence[dict[str, Any]], right: Sequence[Right]) -> list[dict[str, Any]]:
    """The same entries, each with ``against_reference``: whether chance alone explains how much its predictions differ
    from those of the reference on the same faces.

    The reference is source-only on the same dataset with the same seed, as in the tables (`results_table.serves`). Of
    several, it is the one with the most keys.

    Returns:
        ``against_reference``: the reference's ``folder``, ``fixed`` and ``broken`` (faces that only the entry's model,
        and only the reference, predicts correctly), and the ``test`` (`fercli.evaluation.significance.compare_right`).
        None for the reference itself, without a reference, where their faces differ, and where no face has a label.
    """
    found = []
    for entry, own in zip(entries, right, strict=True):
        fitting = [
            (other, its)
            for other, its in zip(entries, right, strict=True)
            if other["method"] == REFERENCE != entry["method"]
            and (other["dataset"], other["seed"]) == (entry["dataset"], entry["seed"])
            and serves(other["keys"], entry["keys"])
        ]
        against = None
        if fitting and len(own.positions):
            other, its = max(fitting, key=lambda one: len(one[0]["keys"]))
            if np.array_equal(own.positions, its.positions):
                test = compare_right(its.right, own.right, own.subjects)
                fixed, broken = int((own.right & ~its.right).sum()), int((its.right & ~own.right).sum())
                against = {"folder": other["folder"], "fixed": fixed, "broken": broken, "test": test}
        found.append({**entry, "against_reference": against})
    return found


def with_own_labels(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same entries. Of entries with the same label, dataset, seed and keys, all but the first add their folder."""
    taken, found = set(), []
    for entry in entries:
        name = (entry["method"], entry["dataset"], entry["seed"], *map(str, entry["keys"].items()))
        label = f"{entry['method']} [{entry['folder']}]" if name in taken else entry["method"]
        found.append({**entry, "method": label})
        taken.add(name)
    return found
