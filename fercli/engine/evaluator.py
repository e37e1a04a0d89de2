"""Passes over all faces: before an epoch, for methods that need them, and after it, for the scores.

After each epoch of an adaptation the outputs of all heads are written to its folder, without any label
(`fercli.evaluation.outputs`). Any later question about an epoch is answered from these files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fercli.engine import distributed
from fercli.engine.data import Source
from fercli.engine.predict import predict
from fercli.evaluation import selection
from fercli.evaluation.decision import FUSED
from fercli.evaluation.outputs import (
    FOLDER,
    EpochOutputs,
    epoch_file,
    prune,
    rounded,
    start_file,
    watched_fused,
    write_outputs,
)
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import ViewSettings
from fercli.loading.face_dataset import FaceDataset
from fercli.methods.base import NUM_HEADS, Method, Outputs
from fercli.models import FEATURE_SIZE
from fercli.models.heads import NUM_FEATURES
from fercli.spec import Adapt
from fercli.store import Store


def no_outputs() -> Outputs:
    """The outputs for zero faces."""
    return Outputs(torch.zeros(0, NUM_HEADS, NUM_EXPRESSIONS), torch.zeros(0, NUM_FEATURES, FEATURE_SIZE))


class SourceEvaluator:
    """Stage 1: only the labelled source. This is the `Evaluator` that methods receive."""

    def __init__(self, network: nn.Module, method: Method, settings: ViewSettings, batch: int, source: Source | None):
        self._network, self._method, self._settings, self._batch = network, method, settings, batch
        self._source = source

    def source(self) -> Outputs:
        """See `fercli.methods.base.Evaluator`."""
        return self._predict(self._source.train, plain=True)._replace(labels=torch.from_numpy(self._source.labels))

    def validate(self, epoch: int) -> dict[str, float]:
        """Scores of the selection rules after `epoch`; higher is better."""
        held = self._predict(self._source.held)
        return self._source_scores(epoch, held)

    def afterwards(self) -> dict[int, float]:
        """Scores of all epochs by a post-hoc rule; no such rule reads only the source."""
        raise NotImplementedError

    def prune(self, keep: int | None, best: int) -> None:
        """Remove the outputs of all epochs except the latest `keep` (None: all stay) and the best; here none exist."""

    def _source_scores(self, epoch: int, held: Outputs) -> dict[str, float]:
        found = selection.last_score(epoch)
        if len(held.probabilities):  # empty where data.validation holds no faces out
            found.update(selection.source_score(held.probabilities, torch.from_numpy(self._source.held_labels)))
        return found

    def _predict(self, faces: FaceDataset, plain: bool = False) -> Outputs:
        """The network's outputs on faces; `plain` leaves out the method's transformation of them."""
        output_transform = self._method.transform_output if self._method.transforms_output and not plain else None
        training = self._method.training
        self._method.eval()
        outputs = predict(self._network, faces, self._settings, self._batch, output_transform)
        self._method.train(training)
        return outputs


class TargetEvaluator(SourceEvaluator):
    """Stage 2: also the target, without its labels; and only the target for a method that needs no source."""

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        settings: ViewSettings,
        batch: int,
        source: Source | None,
        train: FaceDataset,
        scored: FaceDataset,
        plan: Adapt,
        folder: Path,
        store: Store,
    ):
        super().__init__(network, method, settings, batch, source)
        self._train, self._scored, self._folder, self._store = train, scored, folder, store
        self._watched = train.subsampled(plan.select_images)
        # A target without its own split (JAFFE) watches and scores the same faces: one pass serves both.
        self._same = self._watched.same_as(scored)
        self._dev_faces = None
        if source is not None and "dev" in (plan.select, *plan.also_score):
            self._dev_faces = source.train.subsampled(plan.select_images)
        for name in (FOLDER, *(["candidates"] if plan.select == "ensv" else [])):
            distributed.on_rank_zero((folder / name).mkdir, exist_ok=True)

    def target(self) -> Outputs:
        """See `fercli.methods.base.Evaluator`."""
        return self._predict(self._train, plain=True)

    def validate(self, epoch: int) -> dict[str, float]:
        """Scores of the selection rules after `epoch`; writes the epoch's outputs to the folder."""
        watched, held = self._leave(epoch_file(self._folder, epoch))
        # Scores use the outputs rounded as in the file, so that they can be computed again from it.
        held, watched = (one._replace(probabilities=rounded(one.probabilities)) for one in (held, watched))
        scores = {**self._source_scores(epoch, held), **selection.target_scores(watched.probabilities)}
        if self._dev_faces is not None:
            train = self._predict(self._dev_faces)
            labels = torch.from_numpy(self._source.held_labels)
            fused = (s.features.flatten(1) for s in (train, watched, held))
            scores.update(selection.dev_score(*fused, held.probabilities[:, FUSED], labels))
        return scores

    def keep_start(self) -> None:
        """Write the outputs of the starting model, for comparison (`fercli.evaluation.outputs.start_file`)."""
        path = start_file(self._folder)
        if not distributed.on_rank_zero(path.exists):
            self._leave(path)

    def _leave(self, path: Path) -> tuple[Outputs, Outputs]:
        """Write the outputs on scored, watched and held-out faces; return the latter two."""
        scored = self._predict(self._scored)
        watched = scored if self._same else self._predict(self._watched)
        held = no_outputs() if self._source is None else self._predict(self._source.held)
        found = {"scored": scored.probabilities, "held": held.probabilities}
        if not self._same:
            found["watched"] = watched.probabilities
        status = self._method.status()
        if status is not None:
            found["status"] = status
        distributed.on_rank_zero(write_outputs, path, found, {"faces": self._store.faces_digest})
        return watched, held

    def prune(self, keep: int | None, best: int) -> None:
        """See `SourceEvaluator`."""
        distributed.on_rank_zero(prune, self._folder, keep, best)

    def afterwards(self) -> dict[int, float]:
        """Scores of all epochs by EnsV, the only rule that compares them with each other."""
        last = max(EpochOutputs(self._folder).paths, default=0)
        outputs = watched_fused(EpochOutputs(self._folder, range(1, last + 1)))
        return dict(zip(outputs, selection.ensemble_scores(list(outputs.values())), strict=True))
