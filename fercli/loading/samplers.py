"""Which faces come next: endless draws, each a pure function of (seed, place), so that a stream can resume anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from any printable parts; the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ShuffledSampler:
    """Endless shuffled positions 0..count-1: every `count` draws are a new permutation.

    The draw at place k depends on (seed, k) only, so a stream can resume anywhere.

    Args:
        count: number of positions.
        seed: seed of the permutations.
        multiple: the number of draws from each permutation is rounded down to a multiple of this; the rest is left out.
    """

    def __init__(self, count: int, seed: int, multiple: int = 1):
        self._count, self._seed = count, seed
        self._drawn = count - count % min(multiple, max(1, count))
        self._latest = -1, np.empty(0, np.int64)

    def take(self, start: int, amount: int) -> np.ndarray:
        """Return the positions drawn at places start..start+amount-1, int64 [amount]."""
        return self.at(np.arange(start, start + amount))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the positions drawn at any places, int64 of the same shape as `places`."""
        rounds = places // self._drawn
        drawn = np.empty(len(places), np.int64)
        for number in np.unique(rounds):
            inside = rounds == number
            drawn[inside] = self._permutation(int(number))[places[inside] % self._drawn]
        return drawn

    def _permutation(self, number: int) -> np.ndarray:
        latest, order = self._latest
        if number != latest:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
            order = torch.randperm(self._count, generator=generator).numpy()
            self._latest = number, order  # in one assignment, because a thread may be drawing ahead
        return order


class WeightedSampler:
    """Endless positions in several concatenated sets, each of which gets its share of the draws.

    Every round of `CYCLE` draws has the same number of draws from each set, in shuffled order. Within a set, a
    `ShuffledSampler` draws. As there, the draw at place k depends on (seed, k) only.

    Args:
        counts: size of each set.
        shares: each set's share of the draws, in any unit; rounded to whole draws per cycle, at least one each.
    """

    CYCLE = 1000

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int):
        exact = np.asarray(shares, float) / sum(shares) * self.CYCLE
        self._quota = np.maximum(1, np.floor(exact).astype(int))
        for number in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, self.CYCLE - self._quota.sum())]:
            self._quota[number] += 1
        self._length = int(self._quota.sum())
        generator = torch.Generator().manual_seed(derive_seed(seed, "mixture"))
        self._which = np.repeat(np.arange(len(counts)), self._quota)[
            torch.randperm(self._length, generator=generator).numpy()
        ]
        # For each place of the cycle, the number of earlier draws from the same set.
        self._before = np.empty(self._length, int)
        for number in range(len(counts)):
            self._before[self._which == number] = np.arange(self._quota[number])
        self._samplers = [ShuffledSampler(count, derive_seed(seed, number)) for number, count in enumerate(counts)]
        self._starts = np.cumsum([0, *counts])

    def take(self, start: int, amount: int) -> np.ndarray:
        """Return the positions drawn at places start..start+amount-1, int64 [amount]."""
        rounds, places = np.divmod(np.arange(start, start + amount), self._length)
        which = self._which[places]
        nth = rounds * self._quota[which] + self._before[places]
        drawn = np.empty(amount, np.int64)
        for number in np.unique(which):
            inside = which == number
            drawn[inside] = self._samplers[number].at(nth[inside]) + self._starts[number]
        return drawn


def source_sampler(counts: Sequence[int], balance: str, seed: int) -> ShuffledSampler | WeightedSampler:
    """Return the sampler for several training sources: ``images``, ``sqrt`` or ``equal`` (``data.balance``)."""
    counts = [count for count in counts if count]
    if balance == "images" or len(counts) == 1:
        return ShuffledSampler(sum(counts), seed)
    return WeightedSampler(counts, [count**0.5 if balance == "sqrt" else 1.0 for count in counts], seed)
