"""Batches are the same bits wherever prepared faces are kept."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fercli.errors import FercliError
from fercli.loading import placement
from fercli.loading.augment import ViewSettings
from fercli.loading.batches import Batches, SourceRecipe
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.held_out import labels_of
from fercli.loading.placement import DeviceCache, MemoryMapped, Prefetcher, place, size_of
from fercli.loading.samplers import ShuffledSampler, WeightedSampler
from fercli.store import Store

CPU = torch.device("cpu")
RECIPE = SourceRecipe("strong", mixup=0.4, class_balance=0.5)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def raf(prepared: Path) -> Store:
    return Store.open(prepared / "raf-db")


@pytest.fixture
def jaffe(prepared: Path) -> Store:
    return Store.open(prepared / "jaffe", labels=False)


def batches(raf: Store, jaffe: Store, data: str, ahead: bool | None = None, device: torch.device = CPU) -> Batches:
    """Return batches with two stores as the source and one as the target, with crops."""
    indices = [raf.indices(["train"])[::2], raf.indices(["test"])]
    source = FaceDataset([raf, raf], indices, device, True, data)
    target = FaceDataset([jaffe], [jaffe.indices(jaffe.adapt_splits)], device, True, data)
    wants = frozenset({"target", "weak", "strong"})
    labels = labels_of([raf, raf], indices)
    return Batches(source, labels, target, wants, 6, 3, ViewSettings(), device, "equal", ahead, RECIPE)


def digest(made: Batches, steps=range(4)) -> str:
    """Return the SHA-256 of all tensors of some batches."""
    sha = hashlib.sha256()
    for step in steps:
        batch = made(step, torch.tensor([3, 5, 8, 1]))
        for part in batch:
            for tensor in (part,) if isinstance(part, torch.Tensor) else part.inputs:
                sha.update(tensor.cpu().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize(("data", "ahead"), [("auto", True), ("device", None), ("device", True), ("host", None)])
def test_batches_are_the_same_bits(raf: Store, jaffe: Store, data: str, ahead: bool | None) -> None:
    assert digest(batches(raf, jaffe, data, ahead)) == digest(batches(raf, jaffe, "host", False))


def test_steps_may_be_requested_in_any_order(raf: Store, jaffe: Store) -> None:
    order = [2, 3, 0, 3, 4, 1]
    assert digest(batches(raf, jaffe, "host", True), order) == digest(batches(raf, jaffe, "host", False), order)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(("data", "ahead"), [("auto", None), ("device", None), ("host", None), ("host", False)])
def test_a_cuda_device_sees_the_same_faces(raf: Store, jaffe: Store, data: str, ahead: bool | None) -> None:
    here, there = batches(raf, jaffe, "host", False), batches(raf, jaffe, data, ahead, torch.device("cuda"))
    for step in range(3):
        one, other = here(step), there(step)
        assert other.source.images.device.type == "cuda"
        assert torch.equal(one.labels, other.labels.cpu()) and torch.equal(one.indices, other.indices.cpu())
        torch.testing.assert_close(one.source.images, other.source.images.cpu(), rtol=0, atol=0.05)


@pytest.mark.parametrize("with_crops", [True, False])
@pytest.mark.parametrize("index", [np.array([5, 0, 5, 83, 12]), np.array([], np.int64)], ids=len)
def test_rows_are_plain_indexing(raf: Store, index: np.ndarray, with_crops: bool) -> None:
    faces = FaceDataset([raf], [np.arange(len(raf))], CPU, with_crops).fetch(index)[0]
    np.testing.assert_array_equal(faces, raf.faces[index])
    for home in (MemoryMapped(raf, CPU, with_crops), DeviceCache(raf, CPU, with_crops)):
        faces, landmarks, crops = home.rows(index)
        np.testing.assert_array_equal(faces, raf.faces[index])
        np.testing.assert_array_equal(landmarks, raf.landmarks[index])
        assert (faces.dtype, landmarks.dtype) == (torch.uint8, torch.float32)
        if with_crops:
            np.testing.assert_array_equal(crops, raf.crops[index])
        else:
            assert crops is None


def test_a_large_array_is_uploaded_in_pieces(monkeypatch: pytest.MonkeyPatch, raf: Store) -> None:
    monkeypatch.setattr(placement, "_CHUNK", 5 * raf.faces[:1].nbytes + 1)
    np.testing.assert_array_equal(DeviceCache(raf, CPU, False).rows(np.arange(len(raf)))[0], raf.faces)


def test_all_faces_of_a_store_share_its_copy_on_the_device(raf: Store) -> None:
    one = place(raf, CPU, False, "device")
    assert isinstance(one, DeviceCache)
    assert place(raf, CPU, False, "device") is one and place(raf, CPU, True, "device") is not one
    faces = FaceDataset([raf], [np.arange(20)], CPU, False, "device")
    assert faces.on_device and faces.subsampled(5).on_device
    assert (
        not FaceDataset([raf], [np.arange(20)], CPU, True, "host").on_device or place(raf, CPU, True, "host") is not one
    )


def test_on_a_cpu_nothing_is_loaded_without_request(jaffe: Store) -> None:
    assert isinstance(place(jaffe, CPU, True, "auto"), MemoryMapped)


@pytest.mark.parametrize(("free", "kept"), [(0.9, MemoryMapped), (1.1, DeviceCache)])
def test_a_store_goes_to_a_cuda_device_if_it_fits(monkeypatch, raf: Store, free: float, kept: type) -> None:
    amount = int(free * size_of(raf, True) / placement.SHARE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (amount, 2 * amount))
    assert placement._fits(raf, torch.device("cuda"), True) == (kept is DeviceCache)


def test_a_device_that_is_too_small_is_reported(monkeypatch: pytest.MonkeyPatch, raf: Store) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(placement, "_upload", full)
    with pytest.raises(FercliError, match=r"raf-db \(0\.0 GB\) does not fit on cpu; set engine\.data=host"):
        place(raf, CPU, True, "device")


def test_prefetched_results_and_errors_come_in_order() -> None:
    def work(step: int) -> int:
        if step == 3:
            raise ValueError("three")
        return 10 * step

    ahead = Prefetcher(work)
    assert [ahead(step) for step in (0, 1, 2)] == [0, 10, 20]
    with pytest.raises(ValueError, match="three"):
        ahead(3)
    assert ahead(7) == 70


def test_a_weighted_sampler_draws_like_its_samplers_one_place_at_a_time() -> None:
    mixture, counts = WeightedSampler([7, 30, 5], [1, 2, 1], seed=4), np.array([0, 7, 37])
    drawn = mixture.take(990, 60)
    rounds, places = np.divmod(np.arange(990, 1050), mixture._length)
    for k, (round_, spot) in enumerate(zip(rounds, places, strict=True)):
        which = mixture._which[spot]
        nth = round_ * mixture._quota[which] + mixture._before[spot]
        assert drawn[k] == mixture._samplers[which].take(int(nth), 1)[0] + counts[which]


def test_a_shuffled_sampler_at_any_places() -> None:
    sampler, places = ShuffledSampler(7, 3), np.array([40, 2, 2, 15])
    np.testing.assert_array_equal(sampler.at(places), sampler.take(0, 50)[places])


def test_the_time_spent_waiting_for_faces_is_counted(raf: Store, jaffe: Store) -> None:
    made = batches(raf, jaffe, "host", False)
    assert made.waited == 0
    made(0)
    assert made.waited > 0


def test_prefetching_ends_at_the_given_step() -> None:
    done: list[int] = []
    ahead = Prefetcher(lambda step: done.append(step) or step, end=3)
    assert [ahead(step) for step in range(3)] == [0, 1, 2] == done
    ahead.close()
    assert done == [0, 1, 2]
    assert not any(thread is not threading.main_thread() for thread in ahead._pool._threads if thread.is_alive())


def test_closing_waits_for_current_work_and_begins_no_other() -> None:
    begun, done, goes_on = threading.Event(), [], threading.Event()

    def work(step: int) -> int:
        if step == 1:
            begun.set()
            goes_on.wait(10)
        done.append(step)
        return step

    ahead = Prefetcher(work)
    assert ahead(0) == 0 and begun.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    ahead.close()
    assert done == [0, 1]
    with pytest.raises(RuntimeError, match="after shutdown"):
        ahead(2)
