"""Which labelled faces of a source are used for training, and which are held out to choose the epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fercli.errors import FercliError
from fercli.expressions import UNLABELLED
from fercli.loading.samplers import derive_seed
from fercli.store import Store


def labels_of(stores: Sequence[Store], indices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the labels, int64, of the selected faces of labelled stores, in the order of `FaceDataset`.

    Raises:
        FercliError: a selected face has no label.
    """
    labels = np.concatenate([store.labels[chosen] for store, chosen in zip(stores, indices, strict=True)])
    if (labels == UNLABELLED).any():
        names = ", ".join(store.name for store in stores)
        raise FercliError(f"{(labels == UNLABELLED).sum()} faces of {names} have no label; a source must be labelled")
    return labels


def training_and_validation(store: Store, validation: float | str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labelled faces of a source for training, and those for choosing the epoch (``data.validation``).

    Args:
        validation: a fraction of the training faces to hold out (`hold_out`; 0: none), or the name of one of the
            store's splits.

    Raises:
        FercliError: there are fewer than two training faces (for a fraction above 0), or the split has no labelled face
            or is used for training.
    """
    train = store.indices(store.adapt_splits)
    train = train[store.labels[train] >= 0]
    if validation == 0:
        return train, train[:0]
    if not isinstance(validation, str):
        return hold_out(store, train, validation)
    if validation in store.adapt_splits:
        raise FercliError(
            f"data.validation: {store.name} trains on its split {validation}; name another split, or a fraction"
        )
    held = np.flatnonzero((store.splits == validation) & (store.labels >= 0))
    if not len(held):
        there = ", ".join(sorted(set(store.splits.tolist()) - set(store.adapt_splits))) or "none"
        raise FercliError(
            f"data.validation: {store.name} has no labelled face in a split {validation} (splits not used for "
            f"training: {there}); name one of them, or a fraction of the training faces such as 0.1"
        )
    return train, held


def hold_out(store: Store, indices: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split labelled faces into (training, validation), the same way on every machine.

    The split is by subject if the store has at least five known subjects, so that no identity appears on both sides.
    Otherwise it is class by class. Subjects and images are ranked by the hash of their name.

    Raises:
        FercliError: there are fewer than two faces.
    """
    if len(indices) < 2:
        raise FercliError(f"{store.name} has {len(indices)} labelled training face(s); at least 2 are needed")
    subjects, ids, labels = store.subjects[indices], store.ids[indices], store.labels[indices]
    held = np.zeros(len(indices), bool)
    people = sorted(set(subjects) - {""}, key=lambda s: derive_seed("hold-out", s))
    if len(people) >= 5 and (subjects != "").all():
        for person in people[:-1]:  # at least one person is left for training
            if held.sum() >= fraction * len(indices):
                break
            held |= subjects == person
    else:
        rank = np.array([derive_seed("hold-out", name) for name in ids])
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            members = members[np.argsort(rank[members], kind="stable")]
            held[members[: round(fraction * len(members))]] = True
    if held.all() or not held.any():
        held[:] = False
        held[int(np.argmin([derive_seed("hold-out", name) for name in ids]))] = True
    return indices[~held], indices[held]
