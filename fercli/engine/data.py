"""The data that a stage trains on and is scored on: prepared stores, opened as the run spec says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fercli import console
from fercli.datasets.protocol import overlap
from fercli.errors import Advice, FercliError
from fercli.expressions import EXPRESSIONS
from fercli.loading.augment import ViewSettings
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.held_out import labels_of, training_and_validation
from fercli.spec import Spec
from fercli.store import Store


def view_settings(spec: Spec) -> ViewSettings:
    """The augmentation settings of the spec."""
    return ViewSettings(size=spec.prepare.size, **spec.data.augment.model_dump())


def open_store(spec: Spec, name: str, labels: bool = True, as_aligned: bool = True) -> Store:
    """The prepared store of a dataset; opened without labels, it raises an error when they are read.

    Args:
        as_aligned: whether its faces must be aligned as the spec's ``prepare.align`` says.

    Raises:
        FercliError: it is not prepared, or was prepared for faces of another size or alignment.
    """
    store = Store.open(spec.store_path(name), labels, name=name)
    found = store.meta["parameters"]
    due = {"size": spec.prepare.size, **({"align": spec.prepare.align} if as_aligned else {})}
    other = [f"{key} {found.get(key)}, not {value}" for key, value in due.items() if found.get(key) != value]
    if other:
        raise FercliError(
            f"{store.path} was not prepared with the spec's settings: {', '.join(other)}",
            Advice(Advice.run("prepare", f"--dataset {name}"), ", or set paths.prepared to a folder for such stores"),
        )
    return store


def warn_of_overlap(store: Store) -> None:
    """Warn if a target is scored on splits that it is adapted to (set by the user, or by an older fercli)."""
    both = overlap(store.adapt_splits, store.score_splits)
    if both:
        console.warn(f"{store.name} is scored on faces that it is adapted to (split {', '.join(both)})")


class Source(NamedTuple):
    """The labelled faces of the source datasets: those to train on, and those held out for selection."""

    train: FaceDataset
    labels: np.ndarray
    held: FaceDataset
    held_labels: np.ndarray
    stores: list[Store]


def source_faces(spec: Spec, device: torch.device) -> Source:
    """Training and held-out faces of the source datasets, with labels. Warns of expressions without training faces."""
    stores = [open_store(spec, name) for name in spec.data.source]
    train, held = zip(*(training_and_validation(store, spec.data.validation) for store in stores), strict=True)
    labels = labels_of(stores, train)
    absent = [name for number, name in enumerate(EXPRESSIONS) if not (labels == number).any()]
    if absent:
        names = "+".join(spec.data.source)
        console.warn(
            f"{names} has no training face for {', '.join(absent)}: an expression without examples cannot be learned"
        )
    how = (device, spec.model.reads_crops, spec.engine.data)
    return Source(
        FaceDataset(stores, train, *how), labels, FaceDataset(stores, held, *how), labels_of(stores, held), stores
    )


class Target(NamedTuple):
    """The faces of a target: those to adapt to, and those to score after each epoch. None of their labels is read."""

    train: FaceDataset
    scored: FaceDataset
    store: Store


def target_faces(spec: Spec, store: Store, device: torch.device) -> Target:
    """The faces of a store that was opened without labels."""
    train, scored = (
        FaceDataset([store], [store.indices(splits)], device, spec.model.reads_crops, spec.engine.data)
        for splits in (store.adapt_splits, store.score_splits)
    )
    return Target(train, scored, store)
