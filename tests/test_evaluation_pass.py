"""A trained network over many faces: the same as a plain loop, without waiting for the device or leaving threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fercli.engine.network import empty_network
from fercli.engine.predict import float32_products, predict
from fercli.errors import FercliError
from fercli.loading.augment import ViewSettings
from fercli.loading.face_dataset import FaceDataset
from fercli.models import GlobalLocal, Output
from fercli.spec import parse
from fercli.store import Store

CPU, SETTINGS = torch.device("cpu"), ViewSettings()
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def network() -> GlobalLocal:
    """A network in training mode whose batch norms have statistics from noise."""
    torch.manual_seed(2)
    made = empty_network(parse({"model": {"backbone": "ir-small", "width": 4}}))
    with torch.no_grad():
        for _ in range(3):
            made.train()(torch.randn(8, 3, 112, 112), 20 + 70 * torch.rand(8, 5, 2))
    return made


def faces_on(prepared: Path, device: torch.device = CPU, data: str = "host") -> FaceDataset:
    """33 faces of two stores."""
    stores = [Store.open(prepared / name, labels=False) for name in ("raf-db", "jaffe")]
    return FaceDataset(stores, [np.arange(3, 60, 3), np.arange(0, 42, 3)], device, False, data)


@pytest.fixture
def faces(prepared: Path) -> FaceDataset:
    return faces_on(prepared)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch faces ahead, as for a CUDA device."""
    monkeypatch.setattr(FaceDataset, "worth_fetching_ahead", True)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fercli-data")]


@torch.no_grad()
def by_a_loop(network: GlobalLocal, faces: FaceDataset, batch: int, transform=lambda output: output) -> list:
    network.eval()
    parts = [range(start, min(start + batch, len(faces))) for start in range(0, len(faces), batch)]
    outputs = [transform(network(*faces.plain(np.array(part), SETTINGS).inputs)) for part in parts]
    network.train()
    return [torch.cat([output.logits.softmax(-1) for output in outputs]), torch.cat([o.features for o in outputs])]


@pytest.mark.parametrize("way", ["plain", "ahead"])
@pytest.mark.parametrize("batch", [33, 8])
def test_a_pass_is_a_plain_loop_over_batches(way: str, batch: int, network, faces, request) -> None:
    before = threads()
    if way == "ahead":
        request.getfixturevalue("ahead")
    given = predict(network, faces, SETTINGS, batch)
    assert all(map(torch.equal, given[:2], by_a_loop(network, faces, batch)))
    assert network.training and given.labels is None and threads() == before


def test_the_network_receives_images_channels_last_and_nothing_is_kept_for_gradients(network, faces) -> None:
    met = []

    def look(module, inputs) -> None:
        last = inputs[0].is_contiguous(memory_format=torch.channels_last)
        met.append((last, torch.is_inference_mode_enabled(), module.training, len(inputs[0]), threads()))

    handle = network.register_forward_pre_hook(look)
    predict(network, faces, SETTINGS, 20)
    handle.remove()
    assert met == [(True, True, False, 20, []), (True, True, False, 13, [])]  # on a CPU no fetching thread is used


def test_its_outputs_can_be_trained_with(network, faces) -> None:
    given = predict(network, faces, SETTINGS, 33, lambda output: Output(2 * output.logits, output.features + 1))
    expected = by_a_loop(network, faces, 33, lambda output: Output(2 * output.logits, output.features + 1))
    assert all(map(torch.equal, given[:2], expected))
    assert not (given.probabilities.is_inference() or given.features.is_inference())
    given.probabilities.mul_(2)
    weight = torch.ones(64, requires_grad=True)
    (given.features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, expected[1].sum((0, 1)))


def test_the_device_is_read_after_all_batches_are_launched(network, prepared: Path) -> None:
    """The `meta` device raises an error when it is read: here only after the last batch."""
    calls = []
    there = empty_network(parse({"model": {"backbone": "ir-small", "width": 4}})).to("meta")
    there.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(NotImplementedError, match="meta"):
        predict(there, faces_on(prepared, torch.device("meta")), SETTINGS, 8)
    assert len(calls) == 5


@pytest.mark.parametrize("problem", [torch.cuda.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()], ids=repr)
def test_a_pass_that_ends_early_leaves_no_thread(problem: BaseException, network, faces, ahead) -> None:
    before, passed = threads(), []

    def fail(*_: object) -> None:
        passed.append(threads())
        if len(passed) == 3:
            raise problem

    handle = network.register_forward_hook(fail)
    with pytest.raises(type(problem)) as told:
        predict(network, faces, SETTINGS, 8)
    handle.remove()
    assert len(passed[-1]) == len(before) + 1
    assert told.value is problem and threads() == before  # although the exception still holds the pass's frame


def test_faces_that_cannot_be_read_end_the_pass(network, faces, ahead, monkeypatch) -> None:
    fetch, asked, before = FaceDataset.fetch, [], threads()

    def broken(self, positions):
        asked.append(int(positions[0]))
        if positions[0] == 16:
            raise FercliError("the disk is gone")
        return fetch(self, positions)

    monkeypatch.setattr(FaceDataset, "fetch", broken)
    with pytest.raises(FercliError, match="the disk is gone"):
        predict(network, faces, SETTINGS, 8)
    assert asked == [0, 8, 16] and threads() == before
    asked.clear()
    monkeypatch.setattr(FaceDataset, "fetch", lambda self, at: (asked.append(int(at[0])), fetch(self, at))[1])
    predict(network, faces, SETTINGS, 8)
    assert asked == [0, 8, 16, 24, 32]  # each once, and none after the last


def test_no_faces_give_no_outputs(network, prepared: Path, ahead) -> None:
    nothing = FaceDataset([Store.open(prepared / "jaffe", labels=False)], [np.array([], np.int64)], CPU, False)
    given = predict(network, nothing, SETTINGS, 8)
    assert given.probabilities.shape == (0, 7, 7) and given.features.shape == (0, 6, 64)


def test_scores_are_not_rounded_to_tf32_whatever_training_does() -> None:
    def state() -> tuple[bool, str]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = state()
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        with pytest.raises(ValueError, match="within"), float32_products(torch.device("cuda")):
            assert state() == (False, "highest")
            raise ValueError("within")
        assert state() == (True, "high")
        with float32_products(CPU):
            assert state() == (True, "high")
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("data", ["host", "device"])
def test_a_cuda_device_predicts_what_the_cpu_predicts(data: str, network, prepared: Path) -> None:
    expected, device = predict(network, faces_on(prepared), SETTINGS, 8), torch.device("cuda")
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        given = predict(network.to(device), faces_on(prepared, device, data), SETTINGS, 8)
    finally:
        torch.backends.cudnn.allow_tf32 = before
        network.to(CPU)
    assert given.probabilities.device == given.features.device == CPU and not threads()
    torch.testing.assert_close(given.probabilities, expected.probabilities, atol=1e-5, rtol=0)
    torch.testing.assert_close(given.features, expected.features, atol=1e-4, rtol=1e-3)
