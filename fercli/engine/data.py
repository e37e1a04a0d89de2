"""What a stage trains on and is scored on: prepared stores, opened as the run spec says."""

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
    """How the spec wants faces varied."""
    return ViewSettings(size=spec.prepare.size, **spec.data.augment.model_dump())


def open_store(spec: Spec, name: str, labels: bool = True, as_aligned: bool = True) -> Store:
    """The prepared store of a dataset; without labels, reading them is an error.

    Args:
        as_aligned: whether its faces must be aligned as the spec's ``prepare.align`` says.

    Raises:
        FercliError: it is not prepared, or for faces of another size or alignment.
    """
    store = Store.open(spec.store_path(name), labels, name=name)
    found = store.meta["parameters"]
    due = {"size": spec.prepare.size, **({"align": spec.prepare.align} if as_aligned else {})}
    other = [f"{key} {found.get(key)}, not {value}" for key, value in due.items() if found.get(key) != value]
    if other:
        raise FercliError(
            f"{store.path} was not prepared as the spec says: {', '.join(other)}",
            Advice(Advice.run("prepare", f"--dataset {name}"), ", or set paths.prepared to a folder for such stores"),
        )
    return store


def warn_of_overlap(store: Store) -> None:
    """Say that a target is scored on splits that it is adapted to, as the user's options or an older fercli have it."""
    both = overlap(store.adapt_splits, store.score_splits)
    if both:
        console.warn(f"{store.name} is scored on faces that it is adapted to (split {', '.join(both)})")


class Source(NamedTuple):
    """The labelled faces of the source datasets: to train on, and held out for choosing."""

    train: FaceDataset
    labels: np.ndarray
    held: FaceDataset
    held_labels: np.ndarray
    stores: list[Store]


def source_faces(spec: Spec, device: torch.device) -> Source:
    """Training and held-out faces of the source datasets with their labels. Warns of an expression without any."""
    stores = [open_store(spec, name) for name in spec.data.source]
    train, held = zip(*(training_and_validation(store, spec.data.validation) for store in stores), strict=True)
    labels = labels_of(stores, train)
    absent = [name for number, name in enumerate(EXPRESSIONS) if not (labels == number).any()]
    if absent:
        names = "+".join(spec.data.source)
        console.warn(f"{names} has no training face of {', '.join(absent)}: the model cannot learn to answer so")
    how = (device, spec.model.reads_crops, spec.engine.data)
    return Source(
        FaceDataset(stores, train, *how), labels, FaceDataset(stores, held, *how), labels_of(stores, held), stores
    )


class Target(NamedTuple):
    """The faces of a target: to adapt to, and to be scored on after each epoch. No label of theirs is read."""

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
