"""Duplicate faces: within a prepared dataset, across its splits, and between a source and a target.

Candidates are all pairs whose hashes differ in at most `NEAR` bits. The search is exhaustive, hence exact, and runs as
matrix products: for bits as -1 and 1, a . b = 256 - 2 * distance. Multi-index hashing (Norouzi et al., CVPR 2012) was
considered and rejected. At the distance needed to recognise an image, its tables return a sixth of all pairs of random
hashes, and more for aligned faces, whose hashes share bits. A matrix product takes the same time for any hashes.
Comparing 100,000 faces with 100,000 took 72 s on one core and 38 s on two cores of a shared EPYC, in less than 100 MB.

A candidate pair can then be of three kinds: the same file (the source images have the same bytes), the same image
(`likeness` of at least `SAME`), or merely alike (at least `ALIKE`: neighbouring frames, one person twice, faces drawn
alike). Similar frames of one subject in a sequence are expected, so their pairs within one split are counted separately
and not examined. Pairs across splits are examined like any other.

A pair is a leak if one of its faces is trained on (or adapted to) and the other is scored. Between stores, the first
face is then in a split in its store's `adapt_splits` and the second in one of its store's `score_splits`. Within a
store, one face is in `adapt_splits` and the other only in `score_splits`. A dataset that is adapted to and scored as a
whole has no leak within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fercli.faces.perceptual_hash import BITS, NEAR, likeness, patch, perceptual_hash, unpack
from fercli.store import Store, read_manifest

#: Least likeness at which two faces are the same image, and at which they are alike.
SAME, ALIKE = 0.95, 0.88

#: The most pairs examined per comparison, nearest by hash first. Each takes about 1 ms.
LOOKED_AT = 20_000

#: Kinds of pairs, the most serious first.
KINDS = ("same file", "same image", "alike")

_ROWS, _COLUMNS = 2048, 1024


@dataclass(frozen=True)
class Faces:
    """The faces of a store in the form that the search uses. All arrays are in the store's order [N].

    Attributes:
        store: the store.
        hashes: uint8 [N, 32].
        labels: int64 [N], as in the manifest.
        sources, subjects, splits: int64 [N]; equal numbers mean equal texts, -1 means none.
        trained, scored: bool [N]: whether the face is in a split that is trained on (or adapted to), or that is scored.
    """

    store: Store
    hashes: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    subjects: np.ndarray
    splits: np.ndarray
    trained: np.ndarray
    scored: np.ndarray

    @property
    def subjects_across(self) -> int:
        """How many subjects have faces in more than one split."""
        known = self.subjects >= 0
        people = np.unique(np.stack([self.subjects[known], self.splits[known]]), axis=1)[0]
        return int((np.unique(people, return_counts=True)[1] > 1).sum())

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Pair:
    """Two faces that are duplicates or look alike: their positions in their stores, and the evidence.

    Attributes:
        first, second: positions.
        distance: number of bits in which the hashes differ.
        likeness: -1 to 1; None for the same file, where it is not computed.
        kind: one of `KINDS`.
        across: whether the faces are in different splits, or in different stores.
        leak: whether one of them is trained on and the other scored.
    """

    first: int
    second: int
    distance: int
    likeness: float | None
    kind: str
    across: bool
    leak: bool


@dataclass
class Found:
    """The result of a comparison.

    Attributes:
        near: number of pairs with similar hashes, except those of one subject within one split.
        unlooked: how many of these exceed `LOOKED_AT` and were not examined.
        one_subject: number of pairs with similar hashes of one subject within one split.
        one_subject_across: how many of `near` are of one subject in two splits.
        pairs: the confirmed pairs. Leaks come first, then pairs across splits (or stores), then by kind, then by
            distance.
    """

    near: int = 0
    unlooked: int = 0
    one_subject: int = 0
    one_subject_across: int = 0
    pairs: list[Pair] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Return how many pairs are of this kind."""
        return sum(pair.kind == kind for pair in self.pairs)


def faces_of(store: Store, seen: Callable[[str], int]) -> Faces:
    """Read the data of a store that the search needs. Hashes missing in its manifest are computed from its faces.

    Args:
        store: the store.
        seen: numbers texts (`numbering`). Stores that will be compared need the same one.
    """
    rows = [row for row in read_manifest(store.path) if row["status"] != "rejected"]
    margin = int(store.meta["parameters"]["margin"])
    hashes = [row.get("hash") or "" for row in rows]
    hashes = [text or perceptual_hash(store.faces[i], margin) for i, text in enumerate(hashes)]
    columns = (
        np.array([seen(row.get(name) or "") for row in rows], np.int64) for name in ("source", "subject", "split")
    )
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    roles = (
        np.array([row["split"] in part for row in rows], bool) for part in (store.adapt_splits, store.score_splits)
    )
    return Faces(store, unpack(hashes), labels, *columns, *roles)


def numbering() -> Callable[[str], int]:
    """Return a function that numbers texts. Equal texts get the same number, and the empty text gets -1."""
    numbers: dict[str, int] = {"": -1}
    return lambda text: numbers.setdefault(text, len(numbers))


def near_pairs(
    first: np.ndarray,
    second: np.ndarray | None = None,
    distance: int = NEAR,
    done: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of hashes at most `distance` apart, block by block.

    Args:
        first: uint8 [n, 32].
        second: uint8 [m, 32]; None compares pairs i < j within the first.
        distance: the most bits in which a pair's hashes may differ.
        done: called with the number of rows of the first that were just completed.

    Yields:
        (i, j, distance), int64 [k] each.
    """
    other = first if second is None else second
    for top in range(0, len(first), _ROWS):
        rows = _signs(first[top : top + _ROWS])
        for left in range(top // _COLUMNS * _COLUMNS if second is None else 0, len(other), _COLUMNS):
            product = rows @ _signs(other[left : left + _COLUMNS]).T
            flat = np.flatnonzero(product >= BITS - 2 * distance)
            i, j = np.divmod(flat, product.shape[1])
            apart = ((BITS - product.ravel()[flat]) / 2).astype(np.int64)
            i, j = i + top, j + left
            if second is None:
                keep = i < j
                i, j, apart = i[keep], j[keep], apart[keep]
            if len(i):
                yield i, j, apart
        done(len(rows))


def compare(
    first: Faces,
    second: Faces | None = None,
    looked_at: int = LOOKED_AT,
    done: Callable[[int], None] = lambda rows: None,
) -> Found:
    """Find the faces that are in both stores, or twice in one.

    Args:
        first, second: the faces; if second is None, pairs within the first.
        looked_at: the most pairs to examine, nearest first.
        done: called with the number of faces of the first that were just completed.
    """
    other, found = second or first, Found()
    kept: list[np.ndarray] = []  # each int64 [3, k]: i, j, distance
    for i, j, apart in near_pairs(first.hashes, None if second is None else second.hashes, NEAR, done):
        if second is None:
            one = (first.subjects[i] >= 0) & (first.subjects[i] == first.subjects[j])
            beside = one & (first.splits[i] == first.splits[j])
            found.one_subject += int(beside.sum())
            found.one_subject_across += int((one & ~beside).sum())
            i, j, apart = i[~beside], j[~beside], apart[~beside]
        found.near += len(i)
        kept.append(np.stack([i, j, apart]))
        if sum(block.shape[1] for block in kept) > 4 * looked_at:
            kept = [_nearest(kept, looked_at)]
    if not kept:
        return found
    near = _nearest(kept, looked_at)
    found.unlooked = found.near - near.shape[1]
    order = np.lexsort((near[1], near[0]))  # in file order, because the faces are read from the disk
    for i, j, apart in near[:, order].T.tolist():
        pair = _judge(first, other, i, j, apart, second is not None)
        if pair is not None:
            found.pairs.append(pair)

    def rank(pair: Pair) -> tuple[bool | int | str, ...]:
        # Similar faces come last: they are not duplicates, wherever they are.
        similar = pair.kind == "alike"
        return similar, not pair.leak, not pair.across, KINDS.index(pair.kind), pair.distance, pair.first, pair.second

    found.pairs.sort(key=rank)
    return found


def _judge(first: Faces, second: Faces, i: int, j: int, apart: int, stores: bool) -> Pair | None:
    across = stores or bool(first.splits[i] != second.splits[j])
    leak = _leaks(first, second, i, j) if stores else _leaks_within(first, i, j) or _leaks_within(first, j, i)
    if first.sources[i] >= 0 and first.sources[i] == second.sources[j]:
        return Pair(i, j, apart, None, "same file", across, leak)
    alike = likeness(_patch(first, i), _patch(second, j))
    if alike < ALIKE:
        return None
    return Pair(i, j, apart, round(alike, 3), "same image" if alike >= SAME else "alike", across, leak)


def _leaks(first: Faces, second: Faces, i: int, j: int) -> bool:
    return bool(first.trained[i] and second.scored[j])


def _leaks_within(faces: Faces, i: int, j: int) -> bool:
    # It is not a leak if the scored face itself is adapted to.
    return _leaks(faces, faces, i, j) and not faces.trained[j]


def _patch(faces: Faces, i: int) -> np.ndarray:
    return patch(faces.store.faces[i], int(faces.store.meta["parameters"]["margin"]))


def _nearest(blocks: list[np.ndarray], count: int) -> np.ndarray:
    """Return the `count` nearest pairs. Ties are broken by the stores' order."""
    pairs = np.concatenate(blocks, axis=1)
    if pairs.shape[1] <= count:
        return pairs
    return pairs[:, np.lexsort((pairs[1], pairs[0], pairs[2]))[:count]]


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Return hashes uint8 [n, 32] as -1 and 1, float32 [n, 256]."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
