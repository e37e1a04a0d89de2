"""Duplicate faces: within a prepared dataset, across its splits, and in a source and a target.

Candidates are all pairs whose hashes differ in at most `NEAR` bits. The search is exhaustive, hence exact, and runs as
matrix products: for bits as -1 and 1, a . b = 256 - 2 * distance. Multi-index hashing (Norouzi et al., CVPR 2012) was
weighed and left: at the distance that finds an image again its tables hand back a sixth of all pairs of random hashes,
and more of those of aligned faces, which share bits; a product takes the same time for a pair whatever the hashes are.
Two times 100,000 faces took 72 s on one core and 38 s on two of a shared EPYC, in less than 100 MB.

A candidate is then one of three: the same file (their photographs have the same bytes), the same image (`likeness`
of at least `SAME`), or merely alike (at least `ALIKE`: neighbouring frames, one person twice, faces drawn alike).
Neighbours of one subject in a sequence are expected: their pairs within one split are counted apart and not looked at.
Across splits they are judged like any other.

A pair is a leak where one of its faces is trained on (or adapted to) and the other is scored: between stores, the
first's is in a split of its `adapt_splits` and the second's in one of its `score_splits`; within a store, the one is in
`adapt_splits` and the other in `score_splits` alone. What is adapted to and scored as a whole has none within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fercli.faces.perceptual_hash import BITS, NEAR, likeness, patch, perceptual_hash, unpack
from fercli.store import Store, read_manifest

#: Likeness from which two faces are one image, and from which they are alike.
SAME, ALIKE = 0.95, 0.88

#: Pairs of one comparison that are looked at, the nearest by hash first; about 1 ms each.
LOOKED_AT = 20_000

#: What a pair may be, the gravest first.
KINDS = ("same file", "same image", "alike")

_ROWS, _COLUMNS = 2048, 1024


@dataclass(frozen=True)
class Faces:
    """The faces of a store as the search sees them; all arrays are in the store's order [N].

    Attributes:
        store: the store.
        hashes: uint8 [N, 32].
        labels: int64 [N], as the manifest has them.
        sources, subjects, splits: numbers int64 [N] that are equal where the texts are; -1 where there is none.
        trained, scored: bool [N]: in a split that trains (or is adapted to), in one that is scored.
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
        """How many people have faces in more than one split."""
        known = self.subjects >= 0
        people = np.unique(np.stack([self.subjects[known], self.splits[known]]), axis=1)[0]
        return int((np.unique(people, return_counts=True)[1] > 1).sum())

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Pair:
    """Two faces that are one, or look it: positions in their stores, and why.

    Attributes:
        first, second: positions.
        distance: bits in which the hashes differ.
        likeness: -1 to 1; None for the same file, which needs no look.
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
    """What a comparison found.

    Attributes:
        near: pairs near by hash, those of one subject within one split left out.
        unlooked: those of them beyond `LOOKED_AT`, of which nothing more is known.
        one_subject: pairs near by hash of one subject within one split.
        one_subject_across: those of `near` that are of one subject, in two splits.
        pairs: confirmed ones: first leaks, then those across splits (or stores), then by kind, then by distance.
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
    """Read what the search needs of a store; hashes that its manifest lacks are made from its faces.

    Args:
        store: the store.
        seen: gives texts their numbers (`numbering`): the same one for stores that are to be compared.
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
    """Return a function that numbers texts: equal ones alike, the empty one -1."""
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
        second: uint8 [m, 32]; None: pairs i < j within the first.
        distance: bits.
        done: is told how many more rows of the first are through.

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
        first, second: the faces; second None: pairs within the first.
        looked_at: pairs to confirm at most, the nearest first.
        done: is told how many more faces of the first are through.
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
    order = np.lexsort((near[1], near[0]))  # along the files: the faces are read from the disk
    for i, j, apart in near[:, order].T.tolist():
        pair = _judge(first, other, i, j, apart, second is not None)
        if pair is not None:
            found.pairs.append(pair)
    found.pairs.sort(key=lambda p: (not p.leak, not p.across, KINDS.index(p.kind), p.distance, p.first, p.second))
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
    # A scored face that is adapted to itself loses nothing by its twin.
    return _leaks(faces, faces, i, j) and not faces.trained[j]


def _patch(faces: Faces, i: int) -> np.ndarray:
    return patch(faces.store.faces[i], int(faces.store.meta["parameters"]["margin"]))


def _nearest(blocks: list[np.ndarray], count: int) -> np.ndarray:
    """Return the `count` nearest pairs; of equally near ones the first in the stores' order."""
    pairs = np.concatenate(blocks, axis=1)
    if pairs.shape[1] <= count:
        return pairs
    return pairs[:, np.lexsort((pairs[1], pairs[0], pairs[2]))[:count]]


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Return hashes uint8 [n, 32] as -1 and 1, float32 [n, 256]."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
