"""From stores to batches: shuffling, gathering, holding out, and never reading target labels."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bench
from stores import seal

from fercli.errors import FercliError
from fercli.loading.augment import ViewSettings
from fercli.loading.batches import Batches
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.held_out import hold_out, labels_of
from fercli.loading.samplers import ShuffledSampler, WeightedSampler, derive_seed, source_sampler
from fercli.store import Store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raf(prepared: Path) -> Store:
    return Store.open(prepared / "raf-db")


@pytest.fixture(scope="module")
def jaffe(prepared: Path) -> Store:
    return Store.open(prepared / "jaffe", labels=False)


def positions(count: int, places: int, seed: int = 3) -> np.ndarray:
    return ShuffledSampler(count, seed).take(0, places)


# Shuffled sampler


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_a_sampler_draws_every_position_once_per_round(count: int) -> None:
    drawn = positions(count, 5 * count).reshape(5, count)
    for round_ in drawn:
        assert sorted(round_) == list(range(count))
    if count == 20:
        assert len({tuple(round_) for round_ in drawn}) == 5


@pytest.mark.parametrize("amount", [1, 3, 7, 8, 25])
def test_a_draw_depends_on_its_place_only(amount: int) -> None:
    whole = positions(7, 100)
    sampler = ShuffledSampler(7, seed=3)
    starts = list(range(0, 100 - amount, amount))
    for start in reversed(starts):  # backwards, with one sampler that has drawn later places before
        np.testing.assert_array_equal(sampler.take(start, amount), whole[start : start + amount])
        np.testing.assert_array_equal(ShuffledSampler(7, seed=3).take(start, amount), whole[start : start + amount])


def test_samplers_with_other_seeds_differ() -> None:
    assert positions(50, 50, seed=1).tolist() != positions(50, 50, seed=2).tolist()


@pytest.mark.parametrize(
    ("parts", "digest"),
    [  # the first 16 digits of: printf hold-out/a | sha256sum
        (("hold-out", "a"), "a03301dd96a24ca7"),
        ((1, "source", 2), "d11ce6f0b8f8cfa2"),
        ((0,), "5feceb66ffc86f38"),
        (("hold-out", "caf\udce9"), "a0611cfe181c7abe"),  # a file name that is not UTF-8: its bytes
    ],
)
def test_derived_seeds_never_change(parts: tuple, digest: str) -> None:
    """Eight bytes of SHA-256, little-endian, halved. Earlier versions' runs can only resume if these do not change."""
    value = sum(int(digest[2 * i : 2 * i + 2], 16) << 8 * i for i in range(8))
    assert derive_seed(*parts) == value // 2 < 2**63


def test_draws_never_change() -> None:
    """The order is that of the first stored runs: another order would change every run that is resumed."""
    assert positions(5, 10).tolist() == [1, 4, 3, 0, 2, 0, 1, 2, 4, 3]
    assert source_sampler([3, 2], "equal", seed=5).take(0, 12).tolist() == [4, 3, 2, 3, 4, 0, 1, 3, 2, 1, 0, 1]


# Several sources


#: Sizes of sources, and each source's share of the draws.
SHARES = {
    "images": [([84, 30], [84 / 114, 30 / 114]), ([900, 90, 10], [0.9, 0.09, 0.01])],
    "sqrt": [([100, 25], [2 / 3, 1 / 3]), ([12271, 327, 213], [0.776, 0.127, 0.102]), ([1, 1], [0.5, 0.5])],
    "equal": [([84, 30], [0.5, 0.5]), ([900, 90, 10], [1 / 3] * 3), ([1, 5000], [0.5, 0.5])],
}


def drawn_of(counts: Sequence[int], places: np.ndarray) -> list[np.ndarray]:
    """Return the positions drawn from each set, counted from the set's start."""
    ends = np.cumsum(counts)
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    return [places[(places >= start) & (places < end)] - start for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(("balance", "counts", "shares"), [(b, *case) for b, cases in SHARES.items() for case in cases])
def test_each_source_gets_its_share_of_the_draws(balance: str, counts: list[int], shares: list[float]) -> None:
    places = source_sampler(counts, balance, seed=5).take(0, 20_000)
    assert places.dtype == np.int64
    assert places.min() >= 0
    assert places.max() < sum(counts)
    given = [len(part) / len(places) for part in drawn_of(counts, places)]
    roots = [count**0.5 for count in counts]
    if balance == "sqrt":  # the table's figures are rounded, so use the rule itself
        shares = [root / sum(roots) for root in roots]
    np.testing.assert_allclose(given, shares, atol=0.002 if balance != "images" else 0.01)


@pytest.mark.parametrize("balance", ["sqrt", "equal"])
@pytest.mark.parametrize("counts", [[84, 30], [7, 1, 300], [1, 1], [5, 5, 5, 5]])
def test_every_face_of_every_source_is_drawn_equally_often(balance: str, counts: list[int]) -> None:
    sampler = source_sampler(counts, balance, seed=5)
    for count, part in zip(counts, drawn_of(counts, sampler.take(0, 8000)), strict=True):
        times = np.bincount(part, minlength=count)
        assert times.max() - times.min() <= 1, count
        for start in range(0, len(part) - count + 1, count):  # each round of a source is a permutation
            assert sorted(part[start : start + count]) == list(range(count))


@pytest.mark.parametrize("amount", [1, 7, 64, 999, 1000, 1001])
def test_a_weighted_draw_depends_on_its_place_only(amount: int) -> None:
    counts = [84, 30, 7]
    whole = WeightedSampler(counts, [2, 1, 1], seed=3).take(0, 4000)
    sampler = WeightedSampler(counts, [2, 1, 1], seed=3)
    for start in reversed(range(0, 4000 - amount, max(amount, 500))):
        np.testing.assert_array_equal(sampler.take(start, amount), whole[start : start + amount])
    assert not np.array_equal(WeightedSampler(counts, [2, 1, 1], seed=4).take(0, 4000), whole)


def test_a_cycle_contains_the_quota_of_every_set_and_mixes_them() -> None:
    counts, shares = [50, 50, 50], [0.7, 0.2, 0.1]
    places = WeightedSampler(counts, shares, seed=0).take(0, 3 * WeightedSampler.CYCLE).reshape(3, -1)
    for cycle in places:
        assert [len(part) for part in drawn_of(counts, cycle)] == [700, 200, 100]
    # In batches of 50, the smallest set is never absent for long and never dominates.
    small = (places.reshape(-1, 50) >= 100).sum(1)
    assert small.mean() == 5
    assert small.max() <= 15


def test_the_smallest_share_is_one_draw_per_cycle() -> None:
    counts = [10, 10]
    places = WeightedSampler(counts, [1e9, 1.0], seed=0).take(0, 10_000)
    assert 9 <= len(drawn_of(counts, places)[1]) <= 10


@pytest.mark.parametrize("balance", ["images", "sqrt", "equal"])
def test_one_source_and_a_union_by_images_use_a_shuffled_sampler(balance: str) -> None:
    for counts in ([40], [0, 40], [40, 0], *([[30, 10]] if balance == "images" else [])):
        np.testing.assert_array_equal(
            source_sampler(counts, balance, 9).take(0, 100), ShuffledSampler(40, 9).take(0, 100)
        )


@pytest.mark.parametrize("balance", ["sqrt", "equal"])
def test_a_source_without_faces_shifts_no_position(balance: str) -> None:
    with_empty = source_sampler([30, 0, 10], balance, 9).take(0, 500)
    np.testing.assert_array_equal(with_empty, source_sampler([30, 10], balance, 9).take(0, 500))
    assert with_empty.max() == 39


def test_batches_draw_from_several_sources_by_the_given_balance(raf: Store, jaffe: Store) -> None:
    chosen = [raf.indices(["train"]), raf.indices(["test"])[:7]]
    faces = FaceDataset([raf, raf], chosen, CPU, False)
    assert faces.counts == [84, 7]
    marks = np.r_[np.zeros(84, np.int64), np.ones(7, np.int64)]  # the source's number instead of labels
    for balance, share in (("images", 7 / 91), ("sqrt", 7**0.5 / (84**0.5 + 7**0.5)), ("equal", 0.5)):
        batches = Batches(faces, marks, None, frozenset(), 50, 0, ViewSettings(size=32), CPU, balance)
        marked = torch.cat([batches(step).labels for step in range(20)])
        assert marked.double().mean().item() == pytest.approx(share, abs=0.02), balance


# Faces


@pytest.mark.parametrize("with_crops", [True, False])
def test_gathering_over_two_stores_is_plain_indexing_in_order(raf: Store, jaffe: Store, with_crops: bool) -> None:
    chosen = [raf.indices(["train"])[::3], jaffe.indices(jaffe.adapt_splits)[5:25]]
    faces = FaceDataset([raf, jaffe], chosen, CPU, with_crops)
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
    faces = FaceDataset([raf, jaffe], [np.empty(0, np.int64), np.arange(4)], CPU, False)
    np.testing.assert_array_equal(faces.gather(np.array([3, 0]))[0], jaffe.faces[[3, 0]])


@pytest.mark.parametrize("limit", [1, 5, 20, 61, 62])
def test_subsampled_faces_are_spread_over_stores_and_within_each(raf: Store, jaffe: Store, limit: int) -> None:
    chosen = [raf.indices(["test"])[:42], jaffe.indices(jaffe.adapt_splits)[:20], np.empty(0, np.int64)]
    faces = FaceDataset([raf, jaffe, raf], chosen, CPU, False)
    thin = faces.subsampled(limit)
    assert limit <= len(thin) <= min(limit + 1, 62)
    assert thin.counts == [-(-42 * limit // 62), -(-20 * limit // 62), 0]
    kept, positions = thin.gather(np.arange(len(thin)))[0], []
    whole = faces.gather(np.arange(len(faces)))[0]
    for image in kept:
        (match,) = (whole == image).flatten(1).all(1).nonzero().flatten().tolist()
        positions.append(match)
    assert positions == sorted(set(positions))
    first = [p for p in positions if p < 42]
    assert first[0] == 0
    if len(first) > 1:
        assert first[-1] == 41
        assert np.ptp(np.diff(first)) <= 1
    assert len(faces) == 62


def test_few_faces_are_not_subsampled(raf: Store) -> None:
    faces = FaceDataset([raf], [np.arange(9)], CPU, False)
    assert faces.subsampled(9) is faces
    assert faces.subsampled(10) is faces
    assert len(faces.subsampled(8)) == 8


def test_faces_are_the_same_only_in_the_same_order_of_the_same_stores(raf: Store, jaffe: Store) -> None:
    def of(*parts: tuple[Store, Sequence[int]]) -> FaceDataset:
        return FaceDataset([store for store, _ in parts], [np.array(rows) for _, rows in parts], CPU, False)

    faces = of((raf, [1, 2, 3]), (jaffe, [4]))
    assert faces.same_as(of((raf, [1, 2, 3]), (jaffe, [4])))
    others = [
        of((raf, [1, 2, 3])),
        of((raf, [1, 3, 2]), (jaffe, [4])),
        of((raf, [1, 2]), (jaffe, [4])),
        of((jaffe, [4]), (raf, [1, 2, 3])),
        of((raf, [1, 2, 3]), (raf, [4])),
    ]
    assert not any(faces.same_as(other) or other.same_as(faces) for other in others)


def test_labels_follow_the_order_of_faces(raf: Store) -> None:
    parts = [raf.indices(["test"])[:5], raf.indices(["train"])[:7]]
    np.testing.assert_array_equal(labels_of([raf, raf], parts), np.concatenate([raf.labels[p] for p in parts]))


def test_an_unlabelled_source_face_is_refused(raf: Store, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "raf-db", tmp_path / "raf-db")
    labels = raf.labels.copy()
    labels[2] = -1
    np.save(tmp_path / "raf-db" / "labels.npy", labels)
    seal(tmp_path / "raf-db")
    with pytest.raises(FercliError, match=r"1 faces of raf-db have no label"):
        labels_of([Store.open(tmp_path / "raf-db")], [np.arange(5)])


# hold_out


class Named:
    """The parts of a store that `hold_out` reads."""

    name = "named"

    def __init__(self, labels: list[int], subjects: list[str] | None = None):
        self.labels = np.array(labels)
        self.ids = np.array([f"face-{i}" for i in range(len(labels))])
        self.subjects = np.array(subjects or [""] * len(labels))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.9])
def test_no_person_appears_on_both_sides(fraction: float) -> None:
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
    faces = FaceDataset([raf], [indices], CPU, True)
    target = FaceDataset([jaffe], [jaffe.indices(jaffe.adapt_splits)[:10]], CPU, True)
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
    torch.manual_seed(99)  # the global generator has no effect
    for step in reversed(range(6)):
        again = backwards(step)
        assert all(same(x, y) for x, y in zip(first[step], again, strict=True)), step
    assert not same(first[0].source, first[1].source)
    assert not same(first[0].source, make(raf, jaffe, wants, seed=1)(0).source)


def test_the_draws_of_one_view_do_not_change_others(raf: Store, jaffe: Store) -> None:
    # This way, an ablation sees the same source faces as the full method.
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


@pytest.mark.parametrize("pseudo_labelled", [None, torch.empty(0, dtype=torch.long)])
def test_without_pseudo_labelled_faces_there_is_no_batch_of_them(
    raf: Store, jaffe: Store, pseudo_labelled: torch.Tensor | None
) -> None:
    batch = make(raf, jaffe, {"target"})(2, pseudo_labelled)
    assert batch.pseudo_labelled is batch.pseudo_labelled_indices is None


@pytest.mark.parametrize("members", [[7], [1, 4, 9], [9, 8, 7, 6, 5, 4, 3, 2]])
def test_a_pseudo_labelled_batch_is_full_and_has_only_chosen_faces(
    raf: Store, jaffe: Store, members: list[int]
) -> None:
    pseudo_labelled = torch.tensor(members)
    batches = make(raf, jaffe, {"target"})
    drawn = []
    for step in range(4 * len(members)):
        batch = batches(step, pseudo_labelled)
        assert len(batch.pseudo_labelled) == len(batch.pseudo_labelled_indices) == 6
        assert batch.pseudo_labelled_indices.dtype == torch.int64
        drawn += batch.pseudo_labelled_indices.tolist()
    assert set(drawn) == set(members)
    assert len({drawn.count(member) for member in members}) == 1  # complete rounds of the chosen faces


def test_pseudo_labelled_views_are_of_the_faces_that_their_indices_name(raf: Store, jaffe: Store) -> None:
    indices = jaffe.indices(jaffe.adapt_splits)[:10]
    target, settings = FaceDataset([jaffe], [indices], CPU, False), ViewSettings(flip=0, jitter=0)
    source = FaceDataset([raf], [raf.indices(["train"])], CPU, False)
    batches = Batches(source, labels_of([raf], [raf.indices(["train"])]), target, frozenset(), 4, 0, settings, CPU)
    batch = batches(1, torch.tensor([2, 3, 5, 7, 8]))
    plain = target.plain(batch.pseudo_labelled_indices.numpy(), settings)
    torch.testing.assert_close(batch.pseudo_labelled.images, plain.images, rtol=0, atol=1e-4)
    assert batch.target is None


def test_pseudo_labelled_faces_change_no_other_view(raf: Store, jaffe: Store) -> None:
    wants = {"target", "weak", "strong"}
    without, with_ = make(raf, jaffe, wants)(3), make(raf, jaffe, wants)(3, torch.arange(4))
    for name in ("source", "labels", "target", "weak", "strong", "indices"):
        assert same(getattr(without, name), getattr(with_, name))
    again = make(raf, jaffe, set())(3, torch.arange(4))
    assert same(again.pseudo_labelled, with_.pseudo_labelled)
    assert same(again.pseudo_labelled_indices, with_.pseudo_labelled_indices)


def test_source_labels_go_with_their_faces(raf: Store, jaffe: Store) -> None:
    indices = raf.indices(["train"])
    settings = ViewSettings(flip=0, jitter=0)
    faces = FaceDataset([raf], [indices], CPU, False)
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


# A run with two sources


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Return the session's stores and a second labelled one, which is RAF-DB under another name."""
    stores = tmp_path_factory.mktemp("two")
    for name in ("raf-db", "jaffe"):
        (stores / name).symlink_to(prepared / name)
    shutil.copytree(prepared / "raf-db", stores / "second")
    meta = json.loads((stores / "second/meta.json").read_text())
    (stores / "second/meta.json").write_text(json.dumps({**meta, "name": "second"}))
    return stores


@pytest.mark.parametrize("balance", ["images", "sqrt", "equal"])
def test_a_run_with_two_sources_goes_from_end_to_end(balance: str, two_sources: Path, tmp_path: Path) -> None:
    changes = {"data.source": ["raf-db", "second"], "data.balance": balance, "adapt.method": "dann"}
    bench = Bench(tmp_path / "run", two_sources, changes)
    for command in ("train-source", "adapt"):
        bench.done(command, "--quiet")
    document = json.loads(bench.done("evaluate", "--report", "--json").stdout)
    assert {name: about["role"] for name, about in document["datasets"].items()} == {
        "raf-db": "source",
        "second": "source",
        "jaffe": "target",
    }
    scored = {(e["dataset"], e["method"]): e for e in document["entries"]}
    assert set(scored) == {
        ("raf-db", "source-only"),
        ("second", "source-only"),
        ("jaffe", "source-only"),
        ("jaffe", "dann"),
    }
    first, second = scored["raf-db", "source-only"], scored["second", "source-only"]
    assert first["heads"] == second["heads"]  # the same faces
    assert {row["source"] for row in document["entries"]} == {"raf-db+second"}
    # Another balance makes it a different run.
    other = bench("train-source", "--set", f"data.balance={'sqrt' if balance == 'equal' else 'equal'}")
    assert other.exit_code == 1
    assert "data.balance" in other.stderr


def test_a_source_named_twice_or_an_unknown_balance_is_refused(bench: Bench) -> None:
    for setting, text in (
        ("data.source=[raf-db, raf-db]", "a source is named twice"),
        ("data.source=[]", "at least one source"),
        ("data.balance=cube", "one of 'images', 'sqrt', 'equal'"),
    ):
        result = bench("train-source", "--set", setting)
        assert result.exit_code == 2
        assert text in result.stderr
