"""From stores to batches: shuffling, gathering, holding out, and no target labels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from fercli.batches import Batches, Deck, Faces, hold_out, labels_of, mix
from fercli.errors import FercliError
from fercli.store import Store
from fercli.views import ViewSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raf(prepared: Path) -> Store:
    return Store.open(prepared / "raf-db")


@pytest.fixture(scope="module")
def jaffe(prepared: Path) -> Store:
    return Store.open(prepared / "jaffe", labels=False)


def positions(count: int, places: int, seed: int = 3) -> np.ndarray:
    return Deck(count, seed).take(0, places)


# Deck


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_a_deck_deals_every_position_once_a_round(count: int) -> None:
    dealt = positions(count, 5 * count).reshape(5, count)
    for round_ in dealt:
        assert sorted(round_) == list(range(count))
    if count == 20:
        assert len({tuple(round_) for round_ in dealt}) == 5


@pytest.mark.parametrize("amount", [1, 3, 7, 8, 25])
def test_a_deal_depends_on_its_place_only(amount: int) -> None:
    whole = positions(7, 100)
    deck = Deck(7, seed=3)
    starts = list(range(0, 100 - amount, amount))
    for start in reversed(starts):  # backwards, with one deck that has dealt later places before
        np.testing.assert_array_equal(deck.take(start, amount), whole[start : start + amount])
        np.testing.assert_array_equal(Deck(7, seed=3).take(start, amount), whole[start : start + amount])


def test_decks_of_other_seeds_differ() -> None:
    assert positions(50, 50, seed=1).tolist() != positions(50, 50, seed=2).tolist()


def test_mix_is_fixed_for_good() -> None:
    # Runs of earlier versions resume only while these stay.
    assert mix("hold-out", "a") == mix("hold-out", "a") != mix("hold-out", "b")
    assert mix(1, "source", 2) != mix(1, "source", 3)
    assert 0 <= mix(0) < 2**63


# Faces


@pytest.mark.parametrize("with_crops", [True, False])
def test_gathering_over_two_stores_is_plain_indexing_in_order(raf: Store, jaffe: Store, with_crops: bool) -> None:
    chosen = [raf.indices(["train"])[::3], jaffe.indices(jaffe.adapt_splits)[5:25]]
    faces = Faces([raf, jaffe], chosen, CPU, with_crops)
    assert len(faces) == len(chosen[0]) + len(chosen[1])
    rows = [(store, i) for store, indices in zip((raf, jaffe), chosen, strict=True) for i in indices]
    asked = np.random.default_rng(0).integers(0, len(faces), 17)
    asked[3] = asked[4]  # the same face twice
    images, landmarks, crops = faces.gather(asked)
    for k, position in enumerate(asked):
        store, row = rows[position]
        np.testing.assert_array_equal(images[k], store.faces[row])
        np.testing.assert_array_equal(landmarks[k], store.landmarks[row])
        if with_crops:
            np.testing.assert_array_equal(crops[k], store.crops[row])
    assert (images.dtype, landmarks.dtype) == (torch.uint8, torch.float32)
    assert (crops is None) == (not with_crops)


def test_an_empty_first_store_shifts_nothing(raf: Store, jaffe: Store) -> None:
    faces = Faces([raf, jaffe], [np.empty(0, np.int64), np.arange(4)], CPU, False)
    np.testing.assert_array_equal(faces.gather(np.array([3, 0]))[0], jaffe.faces[[3, 0]])


def test_labels_follow_the_order_of_faces(raf: Store) -> None:
    parts = [raf.indices(["test"])[:5], raf.indices(["train"])[:7]]
    np.testing.assert_array_equal(labels_of([raf, raf], parts), np.concatenate([raf.labels[p] for p in parts]))


def test_an_unlabelled_source_face_is_refused(raf: Store, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "raf-db", tmp_path / "raf-db")
    labels = raf.labels.copy()
    labels[2] = -1
    np.save(tmp_path / "raf-db" / "labels.npy", labels)
    with pytest.raises(FercliError, match=r"1 faces of raf-db have no label"):
        labels_of([Store.open(tmp_path / "raf-db")], [np.arange(5)])


# hold_out


class Named:
    """What `hold_out` looks at of a store."""

    name = "named"

    def __init__(self, labels: list[int], subjects: list[str] | None = None):
        self.labels = np.array(labels)
        self.ids = np.array([f"face-{i}" for i in range(len(labels))])
        self.subjects = np.array(subjects or [""] * len(labels))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.9])
def test_no_person_stands_on_both_sides(fraction: float) -> None:
    store = Named([i % 7 for i in range(120)], [f"p{i % 8}" for i in range(120)])
    train, held = hold_out(store, np.arange(120), fraction)
    assert set(store.subjects[train]).isdisjoint(store.subjects[held])
    assert sorted([*train, *held]) == list(range(120))
    assert len(train)
    assert len(held)
    assert len(held) / 120 >= min(fraction, 0.05)


@pytest.mark.parametrize(
    "subjects", [None, [f"p{i % 4}" for i in range(140)], [f"p{i % 8}" if i else "" for i in range(140)]]
)
def test_without_enough_people_classes_are_held_out_in_proportion(subjects: list[str] | None) -> None:
    store = Named([0] * 100 + [1] * 30 + [2] * 10, subjects)
    train, held = hold_out(store, np.arange(140), 0.1)
    assert Counter(store.labels[held]) == {0: 10, 1: 3, 2: 1}
    assert sorted([*train, *held]) == list(range(140))


def test_held_out_faces_depend_on_names_not_on_order() -> None:
    store = Named([i % 3 for i in range(60)])
    indices = np.arange(60)
    again = np.random.default_rng(0).permutation(60)
    assert set(hold_out(store, indices, 0.2)[1]) == set(hold_out(store, again, 0.2)[1])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_neither_side_is_ever_empty(count: int, fraction: float) -> None:
    for store in (Named(list(range(count))), Named([0] * count, [f"p{i}" for i in range(count)])):
        train, held = hold_out(store, np.arange(count), fraction)
        assert len(train)
        assert len(held)
        assert len(train) + len(held) == count


def test_one_face_cannot_be_split() -> None:
    with pytest.raises(FercliError, match="named has 1 labelled"):
        hold_out(Named([0]), np.arange(1), 0.1)


# Batches


def make(raf: Store, jaffe: Store, wants: set[str], seed: int = 0, batch: int = 6) -> Batches:
    indices = raf.indices(["train"])
    faces = Faces([raf], [indices], CPU, True)
    target = Faces([jaffe], [jaffe.indices(jaffe.adapt_splits)[:10]], CPU, True)
    labels = labels_of([raf], [indices])
    return Batches(faces, labels, target, frozenset(wants), batch, seed, ViewSettings(), CPU)


def same(a, b) -> bool:
    if a is None or b is None:
        return a is b
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(same(x, y) for x, y in zip(a.inputs, b.inputs, strict=True))


def test_a_batch_depends_on_seed_and_step_only(raf: Store, jaffe: Store) -> None:
    wants = {"target", "weak", "strong"}
    forwards = make(raf, jaffe, wants)
    first = [forwards(step) for step in range(6)]
    backwards = make(raf, jaffe, wants)
    torch.manual_seed(99)  # the global generator plays no part
    for step in reversed(range(6)):
        again = backwards(step)
        assert all(same(x, y) for x, y in zip(first[step], again, strict=True)), step
    assert not same(first[0].source, first[1].source)
    assert not same(first[0].source, make(raf, jaffe, wants, seed=1)(0).source)


def test_what_another_view_draws_changes_none(raf: Store, jaffe: Store) -> None:
    # So that an ablation sees the same source faces as the full method.
    alone, all_ = make(raf, jaffe, set())(3), make(raf, jaffe, {"target", "weak", "strong"})(3)
    assert same(alone.source, all_.source)
    assert same(alone.labels, all_.labels)
    assert alone.target is alone.weak is alone.strong is alone.indices is None


def test_weak_and_strong_are_views_of_the_faces_that_the_indices_name(raf: Store, jaffe: Store) -> None:
    batch = make(raf, jaffe, {"weak", "strong"})(2)
    assert batch.target is None
    assert batch.indices.dtype == torch.int64
    assert set(batch.indices.tolist()) <= set(range(10))
    assert len(batch.weak) == len(batch.strong) == len(batch.indices) == 6
    assert not same(batch.weak, batch.strong)


def test_a_batch_may_be_larger_than_the_target(raf: Store, jaffe: Store) -> None:
    batch = make(raf, jaffe, {"target", "weak", "strong"}, batch=25)(1)
    assert len(batch.target) == len(batch.weak) == 25
    assert set(batch.indices.tolist()) == set(range(10))


def test_source_labels_go_with_their_faces(raf: Store, jaffe: Store) -> None:
    indices = raf.indices(["train"])
    settings = ViewSettings(flip=0, jitter=0)
    faces = Faces([raf], [indices], CPU, False)
    labels = labels_of([raf], [indices])
    batch = Batches(faces, labels, None, frozenset(), 8, 0, settings, CPU)(1)
    plain = faces.plain(np.arange(len(faces)), settings)
    for image, label in zip(batch.source.images, batch.labels, strict=True):
        nearest = int((plain.images - image).abs().mean((1, 2, 3)).argmin())
        torch.testing.assert_close(plain.images[nearest], image, rtol=0, atol=1e-4)
        assert labels[nearest] == label


def test_target_labels_cannot_be_read(jaffe: Store) -> None:
    with pytest.raises(RuntimeError, match="labels of jaffe"):
        _ = jaffe.labels
    with pytest.raises(RuntimeError, match="labels of jaffe"):
        labels_of([jaffe], [np.arange(3)])
