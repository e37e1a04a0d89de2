"""Passes over all faces: before an epoch, for methods that want them, and after it, for the scores.

After each epoch of an adaptation two small files without any label are left in its folder, from which epochs can be
compared later without the network:

- ``decisions/epoch-NNNN.txt``: the answers on the target's scored part (`fercli.evaluation.answers`);
- ``outputs/epoch-NNNN.npy``: the fused head's probabilities on the watched target faces, float16 [N, 7].
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fercli.engine import distributed
from fercli.engine.data import Source
from fercli.engine.predict import predict
from fercli.errors import FercliError
from fercli.evaluation import selection
from fercli.evaluation.answers import by_epoch, write_answers
from fercli.evaluation.decision import FUSED, DecisionRule
from fercli.expressions import NUM_EXPRESSIONS
from fercli.files import write_atomically
from fercli.loading.augment import ViewSettings
from fercli.loading.face_dataset import FaceDataset
from fercli.methods.base import Method, Outputs
from fercli.spec import Adapt
from fercli.store import Store, read_array


class SourceEvaluator:
    """Stage 1: the labelled source alone. It is the `Evaluator` that methods are given."""

    def __init__(self, network: nn.Module, method: Method, settings: ViewSettings, batch: int, source: Source):
        self._network, self._method, self._settings, self._batch = network, method, settings, batch
        self._source = source

    def source(self) -> Outputs:
        """See `fercli.methods.base.Evaluator`."""
        return self._predict(self._source.train, plain=True)._replace(labels=torch.from_numpy(self._source.labels))

    def validate(self, epoch: int) -> dict[str, float]:
        """Scores of the rules after `epoch`, higher is better."""
        held = self._predict(self._source.held)
        return self._source_scores(epoch, held)

    def afterwards(self) -> dict[int, float]:
        """Scores of all epochs by a post-hoc rule; there is none that reads the source only."""
        raise NotImplementedError

    def _source_scores(self, epoch: int, held: Outputs) -> dict[str, float]:
        labels = torch.from_numpy(self._source.held_labels)
        return {**selection.last_score(epoch), **selection.source_score(held.probabilities, labels)}

    def _predict(self, faces: FaceDataset, plain: bool = False) -> Outputs:
        """What the network says of faces; `plain` leaves out what the method makes of the network's output."""
        output_transform = self._method.transform_output if self._method.transforms_output and not plain else None
        training = self._method.training
        self._method.eval()
        outputs = predict(self._network, faces, self._settings, self._batch, output_transform)
        self._method.train(training)
        return outputs


class TargetEvaluator(SourceEvaluator):
    """Stage 2: the target too, without its labels."""

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        settings: ViewSettings,
        batch: int,
        source: Source,
        train: FaceDataset,
        scored: FaceDataset,
        plan: Adapt,
        folder: Path,
        store: Store,
    ):
        super().__init__(network, method, settings, batch, source)
        self._train, self._scored, self._folder, self._store = train, scored, folder, store
        self._watched = train.subsampled(plan.select_images)
        # A target without a split of its own (JAFFE) watches and scores the same faces: one pass serves both.
        self._same = self._watched.same_as(scored)
        self._dev_faces = None
        if "dev" in (plan.select, *plan.also_score):
            self._dev_faces = source.train.subsampled(plan.select_images)
        names = ("decisions", "outputs", "candidates") if plan.select == "ensv" else ("decisions", "outputs")
        for name in names:
            distributed.on_rank_zero((folder / name).mkdir, exist_ok=True)

    def target(self) -> Outputs:
        """See `fercli.methods.base.Evaluator`."""
        return self._predict(self._train, plain=True)

    def validate(self, epoch: int) -> dict[str, float]:
        """Scores of the rules after `epoch`; leaves the epoch's answers and outputs in the folder."""
        scored = self._predict(self._scored)
        method = self._method
        rule = DecisionRule(method.decision, method.status(), **method.decision_options(method.options))
        answers = rule(scored.probabilities).answers
        watched = scored if self._same else self._predict(self._watched)
        distributed.on_rank_zero(self._write, epoch, answers, watched.probabilities[:, FUSED])
        held = self._predict(self._source.held)
        scores = {**self._source_scores(epoch, held), **selection.target_scores(watched.probabilities)}
        if self._dev_faces is not None:
            train = self._predict(self._dev_faces)
            labels = torch.from_numpy(self._source.held_labels)
            fused = (s.features.flatten(1) for s in (train, watched, held))
            scores.update(selection.dev_score(*fused, held.probabilities[:, FUSED], labels))
        return scores

    def afterwards(self) -> dict[int, float]:
        """Scores of all epochs by EnsV, the one rule that compares them with each other."""
        outputs = read_outputs(self._folder)
        return dict(zip(outputs, selection.ensemble_scores(list(outputs.values())), strict=True))

    def _write(self, epoch: int, answers: Tensor, probabilities: Tensor) -> None:
        write_answers(self._folder / "decisions" / f"epoch-{epoch:04d}.txt", answers, self._store)
        buffer = io.BytesIO()
        np.save(buffer, probabilities.half().numpy())
        write_atomically(self._folder / "outputs" / f"epoch-{epoch:04d}.npy", buffer.getvalue())


def read_outputs(folder: Path) -> dict[int, Tensor]:
    """Epoch -> fused probabilities float32 [N, 7] that an adaptation left in its folder.

    Raises:
        FercliError: one of its files cannot be read, or they are of different faces.
    """
    outputs: dict[int, Tensor] = {}
    for epoch, path in by_epoch(folder / "outputs", ".npy").items():
        try:
            array = read_array(path)
            if array.dtype != np.float16 or array.shape[1:] != (NUM_EXPRESSIONS,) or not np.isfinite(array).all():
                raise ValueError(f"it holds other numbers than probabilities, {array.dtype} {list(array.shape)}")
            outputs[epoch] = torch.from_numpy(array).float()
        except (OSError, ValueError) as problem:
            raise FercliError(f"{path} cannot be read ({getattr(problem, 'strerror', None) or problem})") from None
    if len({len(one) for one in outputs.values()}) > 1:
        raise FercliError(f"the epochs in {folder / 'outputs'} are of different numbers of faces")
    return outputs
