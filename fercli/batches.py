"""Prepared stores to endless device batches of views. The target side yields images, landmarks and indices: no labels.

Every batch is a pure function of (seed, step): which faces, and how each is cropped, flipped and augmented. Nothing
needs saving to resume in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fercli.engine.shares import rows_of
from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS, UNLABELLED
from fercli.methods.base import Batch
from fercli.residence import Ahead, Resident, Rows, home_of
from fercli.spec import TrainSource
from fercli.store import Store, subsample
from fercli.views import Share, View, ViewSettings, plain_view, strong_view, weak_view


def mix(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Deck:
    """Endless shuffled positions 0..count-1: every `count` draws are a fresh permutation.

    The draw at place k depends on (seed, k) only, so a stream can be taken up anywhere.
    """

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._latest = -1, np.empty(0, np.int64)

    def take(self, start: int, amount: int) -> np.ndarray:
        """Positions drawn at places start..start+amount-1, int64 [amount]."""
        return self.at(np.arange(start, start + amount))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Positions drawn at any places, int64 as `places`."""
        rounds = places // self._count
        drawn = np.empty(len(places), np.int64)
        for number in np.unique(rounds):
            inside = rounds == number
            drawn[inside] = self._permutation(int(number))[places[inside] % self._count]
        return drawn

    def _permutation(self, number: int) -> np.ndarray:
        latest, order = self._latest
        if number != latest:
            generator = torch.Generator().manual_seed(mix(self._seed, number))
            order = torch.randperm(self._count, generator=generator).numpy()
            self._latest = number, order  # in one, as a thread may be drawing ahead
        return order


class Mixture:
    """Endless positions in several sets laid end to end, every set getting its share of the draws.

    Rounds of `CYCLE` draws hold the same number of each set's, in shuffled order; within a set it is a `Deck`. As
    there, the draw at place k depends on (seed, k) only.

    Args:
        counts: size of each set.
        shares: part of the draws that each gets, in any unit. Rounded to whole draws a cycle, at least one each.
    """

    CYCLE = 1000

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int):
        exact = np.asarray(shares, float) / sum(shares) * self.CYCLE
        self._quota = np.maximum(1, np.floor(exact).astype(int))
        for number in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, self.CYCLE - self._quota.sum())]:
            self._quota[number] += 1
        self._length = int(self._quota.sum())
        generator = torch.Generator().manual_seed(mix(seed, "mixture"))
        self._which = np.repeat(np.arange(len(counts)), self._quota)[
            torch.randperm(self._length, generator=generator).numpy()
        ]
        # How many draws of its own set came before each place of the cycle.
        self._before = np.empty(self._length, int)
        for number in range(len(counts)):
            self._before[self._which == number] = np.arange(self._quota[number])
        self._decks = [Deck(count, mix(seed, number)) for number, count in enumerate(counts)]
        self._starts = np.cumsum([0, *counts])

    def take(self, start: int, amount: int) -> np.ndarray:
        """Positions drawn at places start..start+amount-1, int64 [amount]."""
        rounds, places = np.divmod(np.arange(start, start + amount), self._length)
        which = self._which[places]
        nth = rounds * self._quota[which] + self._before[places]
        drawn = np.empty(amount, np.int64)
        for number in np.unique(which):
            inside = which == number
            drawn[inside] = self._decks[number].at(nth[inside]) + self._starts[number]
        return drawn


def source_deck(counts: Sequence[int], balance: str, seed: int) -> Deck | Mixture:
    """How training draws from several sources: ``images``, ``sqrt`` or ``equal`` (``data.balance``)."""
    counts = [count for count in counts if count]
    if balance == "images" or len(counts) == 1:
        return Deck(sum(counts), seed)
    return Mixture(counts, [count**0.5 if balance == "sqrt" else 1.0 for count in counts], seed)


class Faces:
    """Chosen faces of one or several stores, as device tensors on demand.

    Positions 0..len-1 count through the chosen indices of the first store, then the second's, and so on.

    Args:
        data: where they wait, as ``engine.data`` (`fercli.residence.home_of`); ``host`` suits faces looked at once.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        indices: Sequence[np.ndarray],
        device: torch.device,
        with_crops: bool,
        data: str = "host",
    ):
        self._stores, self._indices, self._device, self._with_crops = stores, indices, device, with_crops
        self._data, self._homes = data, [home_of(store, device, with_crops, data) for store in stores]
        self._starts = np.cumsum([0] + [len(i) for i in indices])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def counts(self) -> list[int]:
        """Chosen faces of each store."""
        return [len(indices) for indices in self._indices]

    def thinned(self, limit: int) -> Faces:
        """At most about `limit` of the faces, evenly spread over the stores and within each."""
        if len(self) <= limit:
            return self
        kept = []
        for indices in self._indices:
            amount = -(-len(indices) * limit // len(self))
            kept.append(indices[subsample(len(indices), amount)])
        return Faces(self._stores, kept, self._device, self._with_crops, self._data)

    def same_as(self, other: Faces) -> bool:
        """Whether these are the other's faces in the other's order."""
        mine, theirs = self._indices, other._indices
        return self._stores == other._stores and all(map(np.array_equal, mine, theirs))

    def names(self, positions: np.ndarray) -> list[tuple[int, str, str]]:
        """Position, dataset and id of the faces at `positions`."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        named = []
        for number, position in zip(which.tolist(), positions.tolist(), strict=True):
            store = self._stores[number]
            row = self._indices[number][position - self._starts[number]]
            named.append((position, store.name, str(store.ids[row])))
        return named

    @property
    def resident(self) -> bool:
        """Whether all of them lie on the device."""
        return all(isinstance(home, Resident) for home in self._homes)

    def fetch(self, positions: np.ndarray) -> Rows:
        """What `gather` gives, as far as it can be had without the device: there, or in (pinned) memory."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        numbers = np.unique(which)
        if len(numbers) <= 1:  # the plain case; and a process's share of a small batch may be nothing
            number = int(numbers[0]) if len(numbers) else 0
            return self._homes[number].rows(self._indices[number][positions - self._starts[number]])
        parts, order = [], []
        for number in numbers:
            inside = np.flatnonzero(which == number)
            order.append(inside)
            parts.append(self._homes[number].rows(self._indices[number][positions[inside] - self._starts[number]]))
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        devices = {part[0].device for part in parts}
        if len(devices) > 1:  # one store fitted on the device and another did not
            parts = [_to(part, self._device) for part in parts]
        merged = [
            torch.cat(column)[back.to(column[0].device)] for column in zip(*parts, strict=True) if column[0] is not None
        ]
        if merged[0].device != self._device and self._device.type == "cuda":
            merged = [tensor.pin_memory() for tensor in merged]
        return merged[0], merged[1], merged[2] if self._with_crops else None

    def gather(self, positions: np.ndarray) -> Rows:
        """Faces uint8 [B,S,S,3], landmarks float32 [B,5,2] and crops uint8 [B,5,C,C,3] (or None) at `positions` [B]."""
        return _to(self.fetch(positions), self._device)

    def plain(self, positions: np.ndarray, settings: ViewSettings) -> View:
        """Centre-crop views of `positions`, for scoring."""
        return plain_view(*self.gather(positions), settings)


def _to(rows: Rows, device: torch.device) -> Rows:
    faces, landmarks, crops = (None if part is None else part.to(device, non_blocking=True) for part in rows)
    return faces, landmarks, crops


def labels_of(stores: Sequence[Store], indices: Sequence[np.ndarray]) -> np.ndarray:
    """Labels int64 of the chosen faces of labelled stores, in the order of `Faces`.

    Raises:
        FercliError: a chosen face has no label.
    """
    labels = np.concatenate([store.labels[chosen] for store, chosen in zip(stores, indices, strict=True)])
    if (labels == UNLABELLED).any():
        names = ", ".join(store.name for store in stores)
        raise FercliError(f"{(labels == UNLABELLED).sum()} faces of {names} have no label; a source must be labelled")
    return labels


def training_and_validation(store: Store, validation: float | str) -> tuple[np.ndarray, np.ndarray]:
    """The labelled faces of a source to train on, and those to choose the epoch by (``data.validation``).

    Args:
        validation: a share of the training faces, held out (`hold_out`), or a split of the store's own.

    Raises:
        FercliError: fewer than two training faces, or the split has no labelled face or is trained on.
    """
    train = store.indices(store.adapt_splits)
    train = train[store.labels[train] >= 0]
    if not isinstance(validation, str):
        return hold_out(store, train, validation)
    if validation in store.adapt_splits:
        raise FercliError(
            f"data.validation: {store.name} trains on its split {validation}; name another split, or a share"
        )
    held = np.flatnonzero((store.splits == validation) & (store.labels >= 0))
    if not len(held):
        there = ", ".join(sorted(set(store.splits.tolist()) - set(store.adapt_splits))) or "none but what it trains on"
        raise FercliError(
            f"data.validation: {store.name} has no labelled face in a split {validation} (there are: {there}); "
            "name one of them, or a share of the training faces such as 0.1"
        )
    return train, held


def hold_out(store: Store, indices: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split labelled faces into (training, validation), the same way on every machine.

    By subject where the store knows at least five of them, so that nobody stands on both sides; else class by class.
    Subjects and images are ranked by the hash of their name.

    Raises:
        FercliError: fewer than two faces.
    """
    if len(indices) < 2:
        raise FercliError(f"{store.name} has {len(indices)} labelled training face(s); at least 2 are needed")
    subjects, ids, labels = store.subjects[indices], store.ids[indices], store.labels[indices]
    held = np.zeros(len(indices), bool)
    people = sorted(set(subjects) - {""}, key=lambda s: mix("hold-out", s))
    if len(people) >= 5 and (subjects != "").all():
        for person in people[:-1]:  # somebody is left to train on
            if held.sum() >= fraction * len(indices):
                break
            held |= subjects == person
    else:
        rank = np.array([mix("hold-out", name) for name in ids])
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            members = members[np.argsort(rank[members], kind="stable")]
            held[members[: round(fraction * len(members))]] = True
    if held.all() or not held.any():
        held[:] = False
        held[int(np.argmin([mix("hold-out", name) for name in ids]))] = True
    return indices[~held], indices[held]


class SourceRecipe(NamedTuple):
    """How the source's faces are varied and weighed: the keys of ``train_source`` of the same names."""

    views: str = "weak"
    mixup: float = 0.0
    class_balance: float = 0.0

    @classmethod
    def of(cls, plan: TrainSource) -> SourceRecipe:
        """That of the spec's section."""
        return cls(plan.views, plan.mixup, plan.class_balance)


def class_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """The weight of a face by its expression, float32 [7]: n_c^-power, scaled so that the mean over all faces is 1.

    With power 1 all expressions weigh the same in all, with 0 all faces. Expressions without a face get 0.
    """
    counts = np.bincount(labels, minlength=NUM_EXPRESSIONS).astype(float)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -power, 0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


class Batches:
    """Step number -> `Batch`. Among several processes each makes the views of its own share only.

    Args:
        source, labels: the labelled faces and their labels, int64 [len(source)].
        target: the unlabelled faces, or None in stage 1.
        wants: which target views the method asks for.
        batch: faces a domain and view.
        seed: of the run.
        balance: how several sources share a batch, as ``data.balance``.
        ahead: whether a thread fetches the faces of the next step; None for where that helps: faces in the host's
            memory, and a CUDA device that works meanwhile. No batch depends on it.
        recipe: how the source's faces are varied and weighed.

    Attributes:
        waited: seconds spent so far until the faces of the batches were at hand.
    """

    def __init__(
        self,
        source: Faces,
        labels: np.ndarray,
        target: Faces | None,
        wants: frozenset[str],
        batch: int,
        seed: int,
        settings: ViewSettings,
        device: torch.device,
        balance: str = "images",
        ahead: bool | None = None,
        recipe: SourceRecipe = SourceRecipe(),  # noqa: B008 (a tuple)
    ):
        self._source, self._labels, self._target = source, labels, target
        self._wants, self._batch, self._seed, self._settings, self._device = wants, batch, seed, settings, device
        self._decks: dict[str, Deck | Mixture] = {"source": source_deck(source.counts, balance, mix(seed, "source"))}
        self._recipe = recipe
        self._class_weights = None
        if recipe.class_balance:
            self._class_weights = torch.from_numpy(class_weights(labels, recipe.class_balance))
        self._drawn_from = {"source": source}
        if recipe.mixup:
            self._drawn_from["partner"] = source
        if target is not None:
            self._decks.update({name: Deck(len(target), mix(seed, name)) for name in ("target", "pseudo")})
            if "target" in wants:
                self._drawn_from["target"] = target
            if wants & {"weak", "strong"}:
                self._drawn_from["pseudo"] = target
        if ahead is None:
            ahead = device.type == "cuda" and not all(faces.resident for faces in self._drawn_from.values())
        self._faces_of = Ahead(self._fetch_all) if ahead else self._fetch_all
        self.waited = 0.0

    def __call__(self, step: int, pool: Tensor | None = None) -> Batch:
        """The batch of a step; `pool` int64 [M] are target positions from which a further, smaller one is drawn."""
        started = time.perf_counter()
        drawn = self._faces_of(step)
        self.waited += time.perf_counter() - started
        faces, labels, parts = drawn["source"], torch.from_numpy(self._labels[drawn["source"].positions]), {}
        if self._recipe.mixup or self._class_weights is not None:
            own, soft = 1.0, F.one_hot(labels, NUM_EXPRESSIONS).float()
            if self._class_weights is not None:
                soft *= self._class_weights
            if "partner" in drawn:
                own = self._own_share(step)
                soft = own * soft + (1 - own) * soft.roll(1, 0)
                faces = faces._replace(faces=_blend(faces.faces, drawn["partner"].faces, own))
            parts["soft_labels"] = soft.to(self._device, non_blocking=True)
        labels = labels.to(self._device, non_blocking=True)
        source = self._view(strong_view if self._recipe.views == "strong" else weak_view, faces, "source", step)
        if "target" in drawn:
            parts["target"] = self._view(weak_view, drawn["target"], "target", step)
        if "pseudo" in drawn:
            pseudo = drawn["pseudo"]
            pseudo = pseudo._replace(faces=_to(pseudo.faces, self._device))
            parts["weak"] = self._view(weak_view, pseudo, "weak", step)
            parts["strong"] = self._view(strong_view, pseudo, "strong", step)
            parts["indices"] = self._on_device(pseudo.positions)
        if pool is not None and len(pool):
            chosen = _fetch(self._target, self._draw_pool(step, pool))
            parts["pool"] = self._view(weak_view, chosen, "pool", step)
            parts["pool_indices"] = self._on_device(chosen.positions)
        return Batch(source, labels, **parts)

    def names(self, step: int, pool: Tensor | None = None) -> dict[str, list[tuple[int, str, str]]]:
        """Position, dataset and id of all the faces in the batch of a step, by what they are drawn for."""
        named = {name: faces.names(self._draw(name, step)) for name, faces in self._drawn_from.items()}
        if pool is not None and len(pool):
            named["pool"] = self._target.names(self._draw_pool(step, pool))
        return named

    def _fetch_all(self, step: int) -> dict[str, _Drawn]:
        return {name: _fetch(faces, self._draw(name, step)) for name, faces in self._drawn_from.items()}

    def _draw_pool(self, step: int, pool: Tensor) -> np.ndarray:
        pool = pool.cpu().numpy()
        amount = min(self._batch, len(pool))
        return pool[Deck(len(pool), mix(self._seed, "pool")).take(step * amount, amount)]

    def _draw(self, name: str, step: int) -> np.ndarray:
        if name == "partner":  # who is blended with whom: the batch's faces, moved on by one
            return np.roll(self._draw("source", step), 1)
        return self._decks[name].take(step * self._batch, self._batch)

    def _own_share(self, step: int) -> float:
        """How much of each blended face is its own, 0.5 to 1, so that its landmarks are those of the larger part."""
        share = np.random.default_rng(mix(self._seed, "mixup", step)).beta(self._recipe.mixup, self._recipe.mixup)
        return float(max(share, 1 - share))

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._device, non_blocking=True)

    def _view(self, make: Callable[..., View], drawn: _Drawn, name: str, step: int) -> View:
        generator = torch.Generator().manual_seed(mix(self._seed, name, step))
        return make(*_to(drawn.faces, self._device), self._settings, generator, drawn.share)


def _blend(faces: Rows, partners: Rows, own: float) -> Rows:
    """Faces and crops as `own` of themselves and the rest of their partners, in whole levels; landmarks as they are."""
    images, patches = (
        None if mine is None else torch.lerp(theirs.float(), mine.float(), own).round_().to(torch.uint8)
        for mine, theirs in ((faces[0], partners[0]), (faces[2], partners[2]))
    )
    return images, faces[1], patches


class _Drawn(NamedTuple):
    """Positions drawn for a whole batch, this process's faces of them (`Faces.fetch`), and which those are."""

    positions: np.ndarray
    faces: Rows
    share: Share


def _fetch(faces: Faces, positions: np.ndarray) -> _Drawn:
    rows = rows_of(len(positions))
    return _Drawn(positions, faces.fetch(positions[rows]), (len(positions), rows))
