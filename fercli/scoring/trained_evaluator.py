"""Trained models at work on prepared faces: one network, which takes each model's weights in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli.engine.data import view_settings
from fercli.engine.fabric import make_fabric
from fercli.engine.network import empty_network, load_network
from fercli.engine.predict import predict
from fercli.engine.trained import Trained
from fercli.evaluation.domain_gap import a_distance, embed
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.held_out import labels_of, training_and_validation
from fercli.methods.base import NUM_HEADS, Outputs
from fercli.models import Output
from fercli.report.pictures import Picture
from fercli.scoring.explain import grad_cam, picture_of
from fercli.scoring.results import Results, scored_part
from fercli.spec import Spec
from fercli.store import Store, subsample

#: Most faces of a domain that its distance to the other is computed from, and most that are mapped.
GAP_FACES, MAPPED_FACES = 1000, 400


class TrainedEvaluator:
    """Trained models over prepared faces. `take` a model first; the rest is about it until another is taken.

    Args:
        spec: the run's.
        sources: the stores of its source datasets, opened with labels; none where they are not prepared: then no
            temperature is fitted (it stays 1), and `gap` cannot be asked for.

    Attributes:
        device: what it runs on.
    """

    def __init__(self, spec: Spec, sources: Sequence[Store]):
        self._spec, self._sources = spec, sources
        fabric = make_fabric(spec.engine)
        self.device: torch.device = fabric.device
        self._network = fabric.setup_module(empty_network(spec))
        if not sources:
            return
        train, held = zip(*(training_and_validation(store, spec.data.validation) for store in sources), strict=True)
        train = _thinned(train, GAP_FACES)
        self._train, self._train_labels = self._faces(sources, train), labels_of(sources, train)
        self._held, self._held_labels = self._faces(sources, held), labels_of(sources, held)
        self._model: Trained
        self._output_transform: Callable[[Output], Output] | None
        self._held_outputs: Outputs
        self._train_features: Tensor

    def take(self, model: Trained) -> None:
        """Put a model's weights into the network and answer the source's training and held-out faces, if any.

        Raises:
            FercliError: it is of another architecture than the spec's, or its method of another version.
        """
        load_network(self._network.module, model.state, self._spec, model.path)
        self._model, self._output_transform = model, model.output_transform(self.device)
        if not self._sources:
            self._held_outputs = Outputs(
                torch.zeros(0, NUM_HEADS, NUM_EXPRESSIONS), torch.zeros(0), torch.zeros(0).long()
            )
            return
        held = self._predict(self._held, self._output_transform)
        self._held_outputs = held._replace(labels=torch.from_numpy(self._held_labels))
        self._train_features = self._predict(self._train).features.flatten(1)

    def score(self, store: Store) -> tuple[Results, Tensor]:
        """Have the model answer a dataset's scored part.

        Returns:
            What the model answers, and the features float32 [N, 384] that the gap is computed from: the network's own,
            also where a method refines them before it answers, so that all models are compared alike.
        """
        is_source = store.name in self._spec.data.source
        splits, indices, expected = scored_part(self._spec, store, is_source)
        faces = self._faces([store], [indices])
        outputs = self._predict(faces, self._output_transform)
        rows = subsample(len(indices), GAP_FACES)
        if self._output_transform is None or is_source:
            features = outputs.features[rows]
        else:
            features = self._predict(self._faces([store], [indices[rows]])).features
        source = "+".join(self._spec.data.source)
        held = self._held_outputs
        scored = Results(self._model, store, source, is_source, splits, indices, expected, outputs.probabilities, held)
        return scored, features.flatten(1)

    def gap(self, scored: Results, features: Tensor, mapped: bool) -> dict[str, Any]:
        """How far the source's training faces and a target's scored ones lie apart under the model.

        Args:
            scored, features: from `score`; at most `GAP_FACES` of either domain count, evenly spread.
            mapped: whether to make the t-SNE map too, of at most `MAPPED_FACES` of either. Its points carry the true
                labels (-1 unknown), for their colours only.
        """
        source, target = self._train_features.numpy(), features.numpy()
        embedding = None
        if mapped:
            ours, theirs = subsample(len(source), MAPPED_FACES), subsample(len(target), MAPPED_FACES)
            embedding = embed(source[ours], target[theirs])
        if embedding is not None:
            labels = scored.labels[subsample(len(scored.labels), GAP_FACES)]
            embedding["label"] = [*self._train_labels[ours].tolist(), *labels[theirs].tolist()]
        return {
            "folder": self._model.folder.name,
            "model": self._model.method,
            **a_distance(source, target),
            "embedding": embedding,
        }

    def pictures(self, scored: Results, positions: Iterable[int]) -> dict[tuple[str, str, int], Picture]:
        """Pictures of faces of the scored part, with the heat of the answer each got.

        Args:
            positions: in the store.

        Returns:
            (stage folder, dataset, position) -> picture.
        """
        chosen = np.array(sorted(positions), np.int64)
        if not len(chosen):
            return {}
        settings = view_settings(self._spec)
        view = self._faces([scored.store], [chosen]).plain(np.arange(len(chosen)), settings)
        answers = torch.from_numpy(scored.answers[np.searchsorted(scored.indices, chosen)])
        heat = grad_cam(self._network.module, view.inputs, answers, self._output_transform).numpy()
        about = (self._model.folder.name, scored.store.name)
        return {
            (*about, int(position)): picture_of(scored.store, int(position), settings.size, own)
            for position, own in zip(chosen, heat, strict=True)
        }

    def _faces(self, stores: Sequence[Store], indices: Sequence[np.ndarray]) -> FaceDataset:
        return FaceDataset(stores, indices, self.device, self._spec.model.reads_crops)

    def _predict(self, faces: FaceDataset, output_transform: Callable[[Output], Output] | None = None) -> Outputs:
        return predict(
            self._network, faces, view_settings(self._spec), self._spec.engine.evaluate_batch, output_transform
        )


def _thinned(parts: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """At most `limit` of the positions in all parts together, evenly spread over them laid end to end."""
    which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = subsample(len(which), limit)
    joined = np.concatenate(parts)[rows]
    return [joined[which[rows] == number] for number in range(len(parts))]
