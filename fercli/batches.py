"""Prepared stores to endless device batches of views. The target side yields images, landmarks and indices: no labels.

Every batch is a pure function of (seed, step): which faces, and how each is cropped, flipped and augmented. Nothing
needs saving to resume in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fercli.engine.shares import rows_of
from fercli.errors import FercliError
from fercli.expressions import UNLABELLED
from fercli.methods.base import Batch
from fercli.store import Store
from fercli.views import Share, View, ViewSettings, plain_view, strong_view, weak_view


def mix(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Deck:
    """Endless shuffled positions 0..count-1: every `count` draws are a fresh permutation.

    The draw at place k depends on (seed, k) only, so a stream can be taken up anywhere.
    """

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._round, self._order = -1, np.empty(0, np.int64)

    def take(self, start: int, amount: int) -> np.ndarray:
        """Positions drawn at places start..start+amount-1, int64 [amount]."""
        places = np.arange(start, start + amount)
        rounds = places // self._count
        drawn = np.empty(amount, np.int64)
        for number in np.unique(rounds):
            inside = rounds == number
            drawn[inside] = self._permutation(int(number))[places[inside] % self._count]
        return drawn

    def _permutation(self, number: int) -> np.ndarray:
        if number != self._round:
            generator = torch.Generator().manual_seed(mix(self._seed, number))
            self._order = torch.randperm(self._count, generator=generator).numpy()
            self._round = number
        return self._order


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
        drawn = [self._decks[w].take(int(n), 1)[0] + self._starts[w] for w, n in zip(which, nth, strict=True)]
        return np.array(drawn, np.int64)


def source_deck(counts: Sequence[int], balance: str, seed: int) -> Deck | Mixture:
    """How training draws from several sources: ``images``, ``sqrt`` or ``equal`` (``data.balance``)."""
    counts = [count for count in counts if count]
    if balance == "images" or len(counts) == 1:
        return Deck(sum(counts), seed)
    return Mixture(counts, [count**0.5 if balance == "sqrt" else 1.0 for count in counts], seed)


class Faces:
    """Chosen faces of one or several stores, as device tensors on demand.

    Positions 0..len-1 count through the chosen indices of the first store, then the second's, and so on.
    """

    def __init__(self, stores: Sequence[Store], indices: Sequence[np.ndarray], device: torch.device, with_crops: bool):
        self._stores, self._indices, self._device, self._with_crops = stores, indices, device, with_crops
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
            kept.append(indices[np.linspace(0, len(indices) - 1, amount).round().astype(int)])
        return Faces(self._stores, kept, self._device, self._with_crops)

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

    def gather(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        """Faces uint8 [B,S,S,3], landmarks float32 [B,5,2] and crops uint8 [B,5,C,C,3] (or None) at `positions` [B]."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        parts: list[list[np.ndarray]] = [[], [], []]
        order = []
        for number in np.unique(which):
            inside = np.flatnonzero(which == number)
            rows = self._indices[number][positions[inside] - self._starts[number]]
            store = self._stores[number]
            order.append(inside)
            parts[0].append(store.faces[rows])
            parts[1].append(store.landmarks[rows])
            if self._with_crops:
                parts[2].append(store.crops[rows])
        back = np.argsort(np.concatenate(order))
        tensors = [torch.from_numpy(np.concatenate(p)[back]).to(self._device) if p else None for p in parts]
        return tensors[0], tensors[1], tensors[2]

    def plain(self, positions: np.ndarray, settings: ViewSettings) -> View:
        """Centre-crop views of `positions`, for scoring."""
        return plain_view(*self.gather(positions), settings)


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


class Batches:
    """Step number -> `Batch`. Among several processes each makes the views of its own share only.

    Args:
        source, labels: the labelled faces and their labels, int64 [len(source)].
        target: the unlabelled faces, or None in stage 1.
        wants: which target views the method asks for.
        batch: faces a domain and view.
        seed: of the run.
        balance: how several sources share a batch, as ``data.balance``.
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
    ):
        self._source, self._labels, self._target = source, labels, target
        self._wants, self._batch, self._seed, self._settings, self._device = wants, batch, seed, settings, device
        self._decks: dict[str, Deck | Mixture] = {"source": source_deck(source.counts, balance, mix(seed, "source"))}
        if target is not None:
            self._decks.update({name: Deck(len(target), mix(seed, name)) for name in ("target", "pseudo")})

    def __call__(self, step: int, pool: Tensor | None = None) -> Batch:
        """The batch of a step; `pool` int64 [M] are target positions from which a further, smaller one is drawn."""
        chosen = self._draw("source", step)
        labels = torch.from_numpy(self._labels[chosen]).to(self._device)
        source = self._view(weak_view, *_share(self._source, chosen), "source", step)
        parts = {}
        if "target" in self._wants:
            share = _share(self._target, self._draw("target", step))
            parts["target"] = self._view(weak_view, *share, "target", step)
        if "weak" in self._wants or "strong" in self._wants:
            chosen = self._draw("pseudo", step)
            share = _share(self._target, chosen)
            parts["weak"] = self._view(weak_view, *share, "weak", step)
            parts["strong"] = self._view(strong_view, *share, "strong", step)
            parts["indices"] = torch.from_numpy(chosen).to(self._device)
        if pool is not None and len(pool):
            drawn = self._draw_pool(step, pool)
            parts["pool"] = self._view(weak_view, *_share(self._target, drawn), "pool", step)
            parts["pool_indices"] = torch.from_numpy(drawn).to(self._device)
        return Batch(source, labels, **parts)

    def names(self, step: int, pool: Tensor | None = None) -> dict[str, list[tuple[int, str, str]]]:
        """Position, dataset and id of all the faces in the batch of a step, by what they are drawn for."""
        named = {"source": self._source.names(self._draw("source", step))}
        if "target" in self._wants:
            named["target"] = self._target.names(self._draw("target", step))
        if "weak" in self._wants or "strong" in self._wants:
            named["pseudo"] = self._target.names(self._draw("pseudo", step))
        if pool is not None and len(pool):
            named["pool"] = self._target.names(self._draw_pool(step, pool))
        return named

    def _draw_pool(self, step: int, pool: Tensor) -> np.ndarray:
        pool = pool.cpu().numpy()
        amount = min(self._batch, len(pool))
        return pool[Deck(len(pool), mix(self._seed, "pool")).take(step * amount, amount)]

    def _draw(self, name: str, step: int) -> np.ndarray:
        return self._decks[name].take(step * self._batch, self._batch)

    def _view(self, make, faces: tuple, share: Share, name: str, step: int) -> View:
        generator = torch.Generator().manual_seed(mix(self._seed, name, step))
        return make(*faces, self._settings, generator, share)


def _share(faces: Faces, chosen: np.ndarray) -> tuple[tuple, Share]:
    """This process's faces of the chosen ones, and which of them they are."""
    rows = rows_of(len(chosen))
    return faces.gather(chosen[rows]), (len(chosen), rows)
