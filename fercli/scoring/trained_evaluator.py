"""Run trained models on prepared faces: stored outputs, and everything else that needs the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli.engine.data import view_settings
from fercli.engine.fabric import make_fabric
from fercli.engine.folder import digest
from fercli.engine.network import check_architecture, empty_network, load_network
from fercli.engine.predict import predict
from fercli.engine.trained import Trained
from fercli.errors import FercliError
from fercli.evaluation.domain_gap import embed, energy_distance
from fercli.evaluation.outputs import FOLDER, read_outputs, write_outputs
from fercli.expressions import NUM_EXPRESSIONS
from fercli.files import remove_half_written
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.held_out import labels_of, training_and_validation
from fercli.methods.base import NUM_HEADS, Outputs
from fercli.models import Output
from fercli.report.pictures import Picture
from fercli.scoring.explain import grad_cam, picture_of
from fercli.scoring.results import Results, scored_part
from fercli.spec import Spec
from fercli.store import Store, subsample

#: Maximum number of faces per domain for the distance between domains, and for the map.
GAP_FACES, MAPPED_FACES = 1000, 400


class TrainedEvaluator:
    """Run trained models on prepared faces, with one network that loads each model's weights when needed.

    Args:
        spec: the run's.
        sources: the stores of its source datasets, opened with labels. Empty where they are not prepared; then no
            temperature is fitted (it stays 1), and `gap` must not be called.

    Attributes:
        held_labels: int64 [K], of the held-out source faces.
        source_splits: the source faces that `gap` compares, in words: those that a source is scored on. None was used
            in training.
    """

    def __init__(self, spec: Spec, sources: Sequence[Store]):
        self._spec, self._sources = spec, sources
        self._loaded: Trained | None = None
        self._compared = self._held = None
        self.held_labels, self.source_splits = torch.zeros(0).long(), []
        if sources:
            parts = [scored_part(spec, store, is_source=True) for store in sources]
            self.source_splits = list(dict.fromkeys(name for part in parts for name in part.splits))
            self._compared = _subsampled([part.indices for part in parts], GAP_FACES)
            self._held = [training_and_validation(store, spec.data.validation)[1] for store in sources]
            self.held_labels = torch.from_numpy(labels_of(sources, self._held))

    def outputs(self, model: Trained, store: Store, folder: Path) -> dict[str, Tensor]:
        """A model's outputs on a dataset's scored part, read from `folder`, or computed and written there.

        Returns:
            ``scored`` [N, 7, 7] and ``held`` [K, 7, 7] probabilities; ``features`` [<= GAP_FACES, 384] of the scored
            faces, evenly spaced; and for a target also ``source_features`` of the source's faces. `gap` compares the
            features. They are the network's own, even where a method transforms them before it predicts, so that all
            models are compared in the same way.

        Raises:
            FercliError: the model's architecture differs from the spec's, or its method has another version.
        """
        check_architecture(model.state, self._spec, model.path)
        path = folder / FOLDER / f"dataset-{store.name}.safetensors"
        about = {"faces": store.faces_digest, "model": model.digest, "made": self._made(model, store)}
        if path.exists():
            with suppress(FercliError):  # an unreadable file is computed again
                found, then = read_outputs(path)
                due = {"features", *(["source_features"] if self._is_compared(store) else [])}
                if about.items() <= then.items() and due <= found.keys():
                    return found
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_half_written(path.parent, f"{path.name}.*")
        write_outputs(path, self._compute(model, store), about)
        return read_outputs(path)[0]

    def gap(self, scored: Results, outputs: dict[str, Tensor], mapped: bool) -> dict[str, Any]:
        """The distance between the source's and a target's scored faces under the model.

        Args:
            scored, outputs: of one model on one dataset.
            mapped: whether to also make the t-SNE map, of at most `MAPPED_FACES` of each domain. Its points carry the
                true labels (-1 unknown), for their colours only.
        """
        source, target = outputs["source_features"].numpy(), outputs["features"].numpy()
        embedding = None
        if mapped:
            ours, theirs = subsample(len(source), MAPPED_FACES), subsample(len(target), MAPPED_FACES)
            embedding = embed(source[ours], target[theirs])
        if embedding is not None:
            labels = scored.labels[subsample(len(scored.labels), GAP_FACES)]
            known = [store.labels[chosen] for store, chosen in zip(self._sources, self._compared, strict=True)]
            embedding["label"] = [*np.concatenate(known)[ours].tolist(), *labels[theirs].tolist()]
        about = {"folder": scored.record.name, "method": scored.record.method}
        return {**about, **energy_distance(source, target), "embedding": embedding}

    def pictures(
        self, model: Trained, scored: Results, positions: Iterable[int]
    ) -> dict[tuple[str, str, int], Picture]:
        """Images of faces in the scored part, each with the heat map of its prediction.

        Args:
            positions: the faces' positions in the store.

        Returns:
            (stage folder, dataset, position) -> image.
        """
        chosen = np.array(sorted(positions), np.int64)
        if not len(chosen):
            return {}
        network, transform, device = self._load(model)
        settings = view_settings(self._spec)
        view = self._faces([scored.store], [chosen], device).plain(np.arange(len(chosen)), settings)
        answers = torch.from_numpy(scored.answers[np.searchsorted(scored.part.indices, chosen)])
        heat = grad_cam(network.module, view.inputs, answers, transform).numpy()
        about = (scored.record.name, scored.store.name)
        return {
            (*about, int(position)): picture_of(scored.store, int(position), settings.size, own)
            for position, own in zip(chosen, heat, strict=True)
        }

    def _compute(self, model: Trained, store: Store) -> dict[str, Tensor]:
        network, transform, device = self._load(model)

        def outputs_of(stores: Sequence[Store], indices: Sequence[np.ndarray], transform: Any = None) -> Outputs:
            faces = self._faces(stores, indices, device)
            return predict(network, faces, view_settings(self._spec), self._spec.engine.evaluate_batch, transform)

        is_source = store.name in self._spec.data.source
        indices = scored_part(self._spec, store, is_source).indices
        scored, rows = outputs_of([store], [indices], transform), subsample(len(indices), GAP_FACES)
        features = scored.features[rows]
        if transform is not None and not is_source:
            features = outputs_of([store], [indices[rows]]).features
        found = {"scored": scored.probabilities, "held": torch.zeros(0, NUM_HEADS, NUM_EXPRESSIONS)}
        if self._sources:
            found["held"] = outputs_of(self._sources, self._held, transform).probabilities
        if self._is_compared(store):
            found["source_features"] = outputs_of(self._sources, self._compared).features.flatten(1)
        return {**found, "features": features.flatten(1)}

    def _is_compared(self, store: Store) -> bool:
        """Whether `gap` will compare a dataset with the source."""
        return bool(self._sources) and store.name not in self._spec.data.source

    def _made(self, model: Trained, store: Store) -> str:
        """Digest of everything that the outputs depend on, apart from the weights and the names of the faces."""
        sources = [one.content_digest(labels=True) for one in self._sources]
        state = digest(model.state["method"]) if model.kind.transforms_output else ""
        how = [self._spec.model.test_flip, self._spec.engine.precision, self._spec.data.validation]
        compared = [one.score_splits for one in self._sources]
        spec = [store.content_digest(), store.score_splits, sources, compared, state, *how]
        return hashlib.sha256(json.dumps(spec).encode()).hexdigest()

    @cached_property
    def _empty(self) -> tuple[Any, torch.device]:
        fabric = make_fabric(self._spec.engine)
        return fabric.setup_module(empty_network(self._spec)), fabric.device

    def _load(self, model: Trained) -> tuple[Any, Callable[[Output], Output] | None, torch.device]:
        """The network with a model's weights, its method's transform of the network's output, and the device."""
        network, device = self._empty
        if self._loaded is not model:
            load_network(network.module, model.state, self._spec, model.path)
            self._loaded = model
        return network, model.output_transform(device), device

    def _faces(self, stores: Sequence[Store], indices: Sequence[np.ndarray], device: torch.device) -> FaceDataset:
        return FaceDataset(stores, indices, device, self._spec.model.reads_crops)


def _subsampled(parts: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """At most `limit` positions from all parts together, evenly spaced over the concatenated parts."""
    which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = subsample(len(which), limit)
    joined = np.concatenate(parts)[rows]
    return [joined[which[rows] == number] for number in range(len(parts))]
