"""Endless batches of views on a device, from prepared stores. The target yields images, landmarks and indices only.

Target labels are never read. Every batch is a pure function of (seed, step): which faces it contains, and how each is
cropped, flipped and augmented. No state needs to be saved to resume in the middle of an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import Shard, View, ViewSettings, strong_view, weak_view
from fercli.loading.face_dataset import FaceDataset, to_device
from fercli.loading.placement import Prefetcher, RawBatch, upload
from fercli.loading.samplers import ShuffledSampler, WeightedSampler, derive_seed, source_sampler
from fercli.spec.schema import TrainSource


class Batch(NamedTuple):
    """The faces of one step. No part of it has read a target label.

    If several processes train together (`fercli.engine.sharding`), the views hold this process's share of the faces.
    Labels, positions and the network's outputs are those of the whole batch: use their lengths for counting, never the
    length of a view. A view may be cut to nothing, and views may be joined, but no other cut is allowed.

    Attributes:
        source: B views of labelled source faces; None for a method that needs no source.
        labels: int64 [B], 0..6; None if `source` is None.
        target: views of unlabelled target faces for alignment, or None.
        weak, strong: two views of the same target faces, for pseudo labels, or None. With ``data.augment.shared_crop``
            they have the same crop and flip.
        indices: int64 [B], positions of the faces of `weak` in the target set, 0..N-1, or None.
        pseudo_labelled: weak views of B target faces chosen by the method (`Method.pseudo_labelled`), some of them
            repeated if it chose fewer; None if it chose none.
        pseudo_labelled_indices: int64 [B], their positions in the target set, or None.
        soft_labels: float [B, 7], the shares of the expressions times the face's weight, if the source is blended or
            weighted (``train_source.mixup``, ``class_balance``). They are then the training targets, and `labels` give
            the expression of the larger share. None if `labels` are the training targets.
    """

    source: View | None
    labels: Tensor | None
    target: View | None = None
    weak: View | None = None
    strong: View | None = None
    indices: Tensor | None = None
    pseudo_labelled: View | None = None
    pseudo_labelled_indices: Tensor | None = None
    soft_labels: Tensor | None = None


class SourceRecipe(NamedTuple):
    """How the source's faces are augmented and weighted: the keys of the same names in ``train_source``."""

    views: str = "weak"
    mixup: float = 0.0
    class_balance: float = 0.0

    @classmethod
    def of(cls, plan: TrainSource) -> SourceRecipe:
        """Return the recipe of the spec's section."""
        return cls(plan.views, plan.mixup, plan.class_balance)


def class_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """Return the weight of a face by its expression, float32 [7]: n_c^-power, scaled to a mean of 1 over all faces.

    With power 1, all expressions have the same total weight; with power 0, all faces have the same weight. Expressions
    without faces get 0.
    """
    counts = np.bincount(labels, minlength=NUM_EXPRESSIONS).astype(float)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -power, 0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


class Batches:
    """Maps a step number to a `Batch`. With several processes, each makes only the views of its own share.

    Args:
        source, labels: the labelled faces and their labels, int64 [len(source)]; None for a method without a source.
        target: the unlabelled faces, or None in stage 1.
        wants: the target views that the method needs.
        batch: number of faces per domain and view.
        seed: the run's seed.
        balance: how several sources share a batch, as ``data.balance``.
        prefetch: whether a thread fetches the faces of the next step. None prefetches only if it helps: if faces are in
            the host's memory and a CUDA device works meanwhile. It does not affect the batches.
        recipe: how the source's faces are augmented and weighted.
        shard: returns the slice of a batch that is this process's, given the batch size; by default, all faces.
        drop_last: whether a pass over the faces of `weak` and `strong`, or over the faces chosen by the method, omits
            an incomplete last batch.

    Attributes:
        waited: total seconds spent waiting for the faces of the batches.
    """

    def __init__(
        self,
        source: FaceDataset | None,
        labels: np.ndarray | None,
        target: FaceDataset | None,
        wants: frozenset[str],
        batch: int,
        seed: int,
        settings: ViewSettings,
        device: torch.device,
        balance: str = "images",
        prefetch: bool | None = None,
        recipe: SourceRecipe = SourceRecipe(),  # noqa: B008 (a tuple)
        shard: Callable[[int], slice] = slice,
        drop_last: bool = False,
    ):
        self._source, self._labels, self._target = source, labels, target
        self._wants, self._batch, self._seed, self._settings, self._device = wants, batch, seed, settings, device
        self._samplers: dict[str, ShuffledSampler | WeightedSampler] = {}
        self._drawn_from: dict[str, FaceDataset] = {}
        self._recipe, self._shard, self._multiple = recipe, shard, batch if drop_last else 1
        self._class_weights = None
        if recipe.class_balance:
            self._class_weights = torch.from_numpy(class_weights(labels, recipe.class_balance))
        if source is not None:
            self._samplers["source"] = source_sampler(source.counts, balance, derive_seed(seed, "source"))
            self._drawn_from["source"] = source
            if recipe.mixup:
                self._drawn_from["partner"] = source
        if target is not None:
            self._samplers["target"] = ShuffledSampler(len(target), derive_seed(seed, "target"))
            self._samplers["pseudo"] = ShuffledSampler(len(target), derive_seed(seed, "pseudo"), self._multiple)
            if "target" in wants:
                self._drawn_from["target"] = target
            if wants & {"weak", "strong"}:
                self._drawn_from["pseudo"] = target
        if prefetch is None:
            prefetch = any(faces.worth_fetching_ahead for faces in self._drawn_from.values())
        self._faces_of = Prefetcher(self._fetch_all) if prefetch else self._fetch_all
        self.waited = 0.0

    def __call__(self, step: int, pseudo_labelled: Tensor | None = None) -> Batch:
        """Return the batch of a step.

        Args:
            pseudo_labelled: int64 [M] on the CPU, target positions from which `Batch.pseudo_labelled` is drawn.
        """
        started = time.perf_counter()
        drawn = self._faces_of(step)
        self.waited += time.perf_counter() - started
        parts: dict[str, Any] = {"source": None, "labels": None}
        if "source" in drawn:
            parts = self._source_parts(drawn, step)
        if "target" in drawn:
            parts["target"] = self._view(weak_view, drawn["target"], "target", step)
        if "pseudo" in drawn:
            pseudo = drawn["pseudo"]
            pseudo = pseudo._replace(faces=to_device(pseudo.faces, self._device))
            if "weak" in self._wants:
                parts["weak"] = self._view(weak_view, pseudo, "weak", step)
            if "strong" in self._wants:
                shared = {"crop_generator": self._generator("weak", step)} if self._settings.shared_crop else {}
                parts["strong"] = self._view(partial(strong_view, **shared), pseudo, "strong", step)
            parts["indices"] = self._on_device(pseudo.positions)
        if pseudo_labelled is not None and len(pseudo_labelled):
            chosen = self._fetch(self._target, self._draw_pseudo_labelled(step, pseudo_labelled))
            parts["pseudo_labelled"] = self._view(weak_view, chosen, "pool", step)
            parts["pseudo_labelled_indices"] = self._on_device(chosen.positions)
        return Batch(**parts)

    def _source_parts(self, drawn: Mapping[str, _Drawn], step: int) -> dict[str, Any]:
        """Return the source's part of a batch."""
        faces, labels, parts = drawn["source"], torch.from_numpy(self._labels[drawn["source"].positions]), {}
        if self._recipe.mixup or self._class_weights is not None:
            own, soft = 1.0, F.one_hot(labels, NUM_EXPRESSIONS).float()
            if self._class_weights is not None:
                soft *= self._class_weights
            if "partner" in drawn:
                own = self._own_share(step)
                soft = own * soft + (1 - own) * soft.roll(1, 0)
                faces = faces._replace(faces=_blend(faces.faces, drawn["partner"].faces, own))
            parts["soft_labels"] = upload(soft, self._device)
        labels = upload(labels, self._device)
        source = self._view(strong_view if self._recipe.views == "strong" else weak_view, faces, "source", step)
        return {"source": source, "labels": labels, **parts}

    def names(self, step: int, pseudo_labelled: Tensor | None = None) -> dict[str, list[tuple[int, str, str]]]:
        """Return position, dataset and id of all faces in the batch of a step, by the purpose they are drawn for."""
        named = {name: faces.names(self._draw(name, step)) for name, faces in self._drawn_from.items()}
        if pseudo_labelled is not None and len(pseudo_labelled):
            named["pseudo_labelled"] = self._target.names(self._draw_pseudo_labelled(step, pseudo_labelled))
        return named

    def _fetch_all(self, step: int) -> dict[str, _Drawn]:
        return {name: self._fetch(faces, self._draw(name, step)) for name, faces in self._drawn_from.items()}

    def _fetch(self, faces: FaceDataset, positions: np.ndarray) -> _Drawn:
        rows = self._shard(len(positions))
        return _Drawn(positions, faces.fetch(positions[rows]), (len(positions), rows))

    def _draw_pseudo_labelled(self, step: int, pseudo_labelled: Tensor) -> np.ndarray:
        positions = pseudo_labelled.numpy()
        # This word is part of the seeds of existing runs, so it must not change.
        sampler = ShuffledSampler(len(positions), derive_seed(self._seed, "pool"), self._multiple)
        return positions[sampler.take(step * self._batch, self._batch)]

    def _draw(self, name: str, step: int) -> np.ndarray:
        if name == "partner":  # each face is blended with its neighbour: the batch's faces, shifted by one
            return np.roll(self._draw("source", step), 1)
        return self._samplers[name].take(step * self._batch, self._batch)

    def _own_share(self, step: int) -> float:
        """Return each blended face's own share, 0.5 to 1, so that its landmarks are those of the larger part."""
        share = np.random.default_rng(derive_seed(self._seed, "mixup", step)).beta(
            self._recipe.mixup, self._recipe.mixup
        )
        return float(max(share, 1 - share))

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return upload(torch.from_numpy(numbers), self._device)

    def _view(self, make: Callable[..., View], drawn: _Drawn, name: str, step: int) -> View:
        generator = self._generator(name, step)
        return make(*to_device(drawn.faces, self._device), self._settings, generator, drawn.share)

    def _generator(self, name: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, name, step))


def _blend(faces: RawBatch, partners: RawBatch, own: float) -> RawBatch:
    """Blend faces and crops, a share `own` of each and the rest of its partner, in integer levels; keep landmarks."""
    images, patches = (
        None if mine is None else torch.lerp(theirs.float(), mine.float(), own).round_().to(torch.uint8)
        for mine, theirs in ((faces[0], partners[0]), (faces[2], partners[2]))
    )
    return images, faces[1], patches


class _Drawn(NamedTuple):
    """Positions drawn for a whole batch, this process's faces among them (`FaceDataset.fetch`), and its share."""

    positions: np.ndarray
    faces: RawBatch
    share: Shard
