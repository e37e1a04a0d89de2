"""The benchmarks: they run, their figures are consistent, and the published step gives fercli's losses."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from drawn import THUMBNAIL, write_fer2013

from fercli.benchmarks import face_mesh, predict, steps
from fercli.benchmarks.published import PublishedStep, cut_one_by_one
from fercli.benchmarks.steps import Steps, with_settings
from fercli.benchmarks.stores import noise_store
from fercli.faces.images import read_image
from fercli.faces.landmarker import Landmarker
from fercli.loading.augment import ViewSettings, weak_view
from fercli.loading.batches import Batch
from fercli.methods.base import Progress
from fercli.models.local import cut_windows, to_map
from fercli.predict.videos import open_video
from fercli.spec import Prepare, Spec
from fercli.synthetic.render import render

TINY = ("--backbone", "ir-small", "--width", "4", "--batch", "4", "--steps", "1", "--rounds", "2", "--json")


def bench(tmp_path: Path, command: str, *arguments: str) -> dict:
    settings = (f"paths.runs={tmp_path}", "engine.device=cpu", "engine.threads=1", "adapt.options={hidden: 16}")
    done = run("bench", command, *TINY, *arguments, *(word for text in settings for word in ("--set", text)))
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def spec(batch: int = 4, **adapt) -> Spec:
    made = Spec.model_validate(
        {"model": {"backbone": "ir-small", "width": 4}, "engine": {"device": "cpu"}, "adapt": adapt}
    )
    return with_settings(made, "adapt", batch, "32-true")


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("train", {"batch", "forward", "backward", "optimizer", "rest"}),
        ("adapt", {"batch", "forward", "backward", "optimizer", "rest"}),
        ("predict", {"batch", "forward", "rest"}),
    ],
)
def test_steps_are_measured(tmp_path: Path, command: str, parts: set[str]) -> None:
    more = ("--pictures", "8", "--workers", "1") if command == "predict" else ()
    result = bench(tmp_path, command, "--precision", "32-true", "--precision", "bf16-mixed", *more)
    assert result == json.loads((tmp_path / f"bench/{command}.json").read_text())
    assert [path.name for path in (tmp_path / "bench").iterdir()] == [f"{command}.json"]  # the stores are gone
    assert (result["bench"], result["backbone"], result["width"]) == (command, "ir-small", 4)
    assert [row["precision"] for row in result["rows"]] == ["32-true", "bf16-mixed"]
    for row in result["rows"]:
        assert row["batch"] == 4 and row["images_per_step"] == (8 if command == "adapt" else 4)
        assert set(row["shares"]) == set(row["parts_ms"]) == parts and sum(row["shares"].values()) == pytest.approx(1)
        assert row["steps_per_s"] == pytest.approx(1e3 / row["step_ms"])
        assert row["images_per_s"] == pytest.approx(row["images_per_step"] * row["steps_per_s"])
        assert row["tflops"] == pytest.approx(row["gflop_per_step"] * row["steps_per_s"] / 1e3)
        assert row["utilisation"] == pytest.approx(row["tflops"] / row["matmul_peak_tflops"])
        assert row["spread_ms"][0] <= row["step_ms"] <= row["spread_ms"][1]
        assert row["memory_peak_mb"] > 100 and 0 < row["data_wait"] < 1
        assert (row["crop_nets"], row["compile"]) == ("loop" if command == "predict" else "grouped", False)
    assert result["machine"]["device"].startswith("cpu (") and result["machine"]["torch"] == torch.__version__


def test_operations_are_those_of_the_network(tmp_path: Path) -> None:
    def gflop(command: str, *more: str) -> float:
        rows = bench(tmp_path, command, "--batch", "8", *more)["rows"]
        one, two = (row["gflop_per_step"] for row in rows)
        assert [row["batch"] for row in rows] == [4, 8] and two == pytest.approx(2 * one)
        return two

    one = gflop("predict", "--pictures", "8", "--workers", "1", "--rounds", "1")
    train = gflop("train")
    assert 2.5 * one < train < 3 * one  # backward costs twice forward, minus the first layer's gradient of the images


def test_a_slow_small_product_is_not_followed_by_the_large_one(monkeypatch) -> None:
    sizes = []

    def seconds(product, device, rounds, warm):
        sizes.append(len(product.args[0]))
        return [1.0]

    monkeypatch.setattr(steps, "seconds", seconds)
    assert steps.matmul_peak.__wrapped__(torch.device("cpu"), "32-true") == 2 * 512**3
    assert sizes == [512, 512]  # as a product and as a convolution


def test_epochs_on_several_numbers_of_faces(tmp_path: Path) -> None:
    result = bench(tmp_path, "train", "--faces", "64", "--faces", "128")
    assert [row["faces"] for row in result["rows"]] == [64, 128]
    for row in result["rows"]:
        assert row["seconds_per_1000"] == pytest.approx(1000 * row["seconds"] / row["faces"])
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["train-epochs.json"]


def test_our_step_against_the_published_one(tmp_path: Path) -> None:
    result = bench(tmp_path, "adapt", "--against", "published", "--precision", "32-true", "--precision", "bf16-mixed")
    assert result == json.loads((tmp_path / "bench/adapt-published.json").read_text())
    assert [row["what"] for row in result["windows"]] == ["forward", "forward and backward"]
    assert [row["precision"] for row in result["rows"]] == ["32-true", "bf16-mixed"]
    for row in (*result["windows"], *result["rows"]):
        assert row["spread"][0] <= row["times_faster"] <= row["spread"][1]
        assert row["published_ms"] > 0 and row["ours_ms"] > 0
    assert all(row["times_faster"] > 2 for row in result["windows"])  # far more, but the machine may be busy
    assert result["passes"] == "published"  # both sides do the same


def test_a_batch_too_large_for_the_device_does_not_affect_the_others(tmp_path: Path, monkeypatch) -> None:
    run_plain = PublishedStep.losses

    def losses(self: PublishedStep, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        if len(batch.labels) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return run_plain(self, batch, step)

    monkeypatch.setattr(PublishedStep, "losses", losses)
    fits, short = bench(tmp_path, "adapt", "--against", "published", "--batch", "8")["rows"]
    assert (short["batch"], short["failed"]) == (8, "out of memory") and fits["times_faster"] > 0


def test_fewer_passes_are_named(tmp_path: Path) -> None:
    arguments = ("bench", "adapt", *TINY[:-1], "--rounds", "1", "--against", "published")
    words = (f"paths.runs={tmp_path}", "engine.device=cpu", "adapt.options.passes=shared")
    done = run(*arguments, *(word for text in words for word in ("--set", text)))
    assert done.exit_code == 0, done.stderr
    assert "The whole adapt step, passes shared, ir-small of width 4" in " ".join((done.stdout + done.stderr).split())
    assert json.loads((tmp_path / "bench/adapt-published.json").read_text())["passes"] == "shared"


@pytest.mark.parametrize("settings", [("adapt.method=dann",), ("adapt.options={adversarial: false}",)])
def test_settings_that_cannot_be_compared_with_the_published_step(tmp_path: Path, settings: tuple[str, ...]) -> None:
    words = [word for text in (f"paths.runs={tmp_path}", *settings) for word in ("--set", text)]
    done = run("bench", "adapt", *TINY, "--against", "published", *words)
    assert done.exit_code == 1 and "--against published needs adapt.method aglrls" in done.stderr


def test_a_method_that_predicts_all_faces_first_can_be_measured(tmp_path: Path) -> None:
    assert bench(tmp_path, "adapt", "--set", "adapt.method=cglrl", "--set", "adapt.options={}")["method"] == "cglrl"


def test_a_method_without_a_source_is_measured_without_one(tmp_path: Path) -> None:
    made = Steps(spec(method="tent"), "adapt", tmp_path)
    assert made.training.batch().source is None and made.training.faces_a_step == 4
    made.run()


def test_an_oracle_cannot_be_measured(tmp_path: Path) -> None:
    words = ("--set", f"paths.runs={tmp_path}", "--set", "adapt.method=cglrl-oracle")
    done = run("bench", "adapt", *TINY, *words)
    assert done.exit_code == 1 and "reads target labels, but noise has none" in done.stderr


def test_a_store_of_noise_is_a_store(tmp_path: Path) -> None:
    store = noise_store(tmp_path, "noise", 300, Prepare(), crops=True)
    assert (len(store), store.faces.shape, store.crops.shape) == (300, (300, 140, 140, 3), (300, 5, 48, 48, 3))
    assert store.synthetic and sorted(set(store.labels.tolist())) == list(range(7))
    assert store.faces[299].std() > 50 and store.crops[299].std() > 50
    points = weak_view(
        *(torch.from_numpy(np.array(a[:50])) for a in (store.faces, store.landmarks)), None, ViewSettings()
    ).landmarks
    assert ((points > 0) & (points < 112)).float().mean() > 0.95


def test_windows_cut_one_by_one_equal_the_gathered_ones() -> None:
    maps, landmarks = torch.randn(3, 6, 28, 28), torch.rand(3, 5, 2) * 130 - 9
    ours = cut_windows(maps, to_map(landmarks, 112, 28))
    assert torch.equal(torch.stack(cut_one_by_one(maps, landmarks, 112), dim=1), ours)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_the_published_step_gives_our_losses(tmp_path: Path, sharing: str) -> None:
    torch.manual_seed(0)
    made = Steps(spec(options={"hidden": 16, "threshold": 0.3, "discriminators": sharing}), "adapt", tmp_path).training
    network, method = made.network, made.method.eval()  # no dropout; the network trains, with its batch statistics
    network.train()
    method.bank[:, :20] = torch.arange(20) % 7
    plain = PublishedStep(copy.deepcopy(network), copy.deepcopy(method))
    batch = made.batch()
    theirs = plain.losses(batch, 0)
    ours, logs = made.module.module(batch, Progress(0, 1))
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.method.bank, method.bank)
    assert plain.hits[-1].sum() / plain.seen.sum() == pytest.approx(float(logs["source-accuracy"]))
    for loss in (theirs, ours):
        sum(loss.values()).backward()
    for (name, one), other in zip(network.named_parameters(), plain.network.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm().clamp(min=1e-2), name


# On images


def test_bench_predict(tmp_path):
    result = bench(tmp_path, "predict", "--pictures", "8", "--workers", "1")
    assert result["pictures"] == 8
    assert [row["input"] for row in result["end_to_end"]] == ["folder", "video"]
    for row in result["end_to_end"]:
        d, n, whole = (row[f"{name}_per_s"] for name in ("detection", "network", "end_to_end"))
        assert (row["batch"], row["workers"]) == (4, 1) and row["slower"] == ("detection" if d < n else "network")
        assert row["to_slower"] == pytest.approx(whole / min(d, n))
        assert row["bound_per_s"] == pytest.approx(d * n / (d + n)) and row["bound_per_s"] < min(d, n)
        assert row["to_bound"] == pytest.approx(whole / row["bound_per_s"])
        assert row["spread_per_s"][0] <= whole <= row["spread_per_s"][1]


def test_drawn_images_and_video_contain_the_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "DRAWN", 4)
    landmarker = Landmarker()
    folder = predict.draw_folder(tmp_path / "pictures", 6)
    assert len(list(folder.iterdir())) == 6
    assert [len(landmarker.find_all(read_image(folder / f"{i:06d}.jpg"))) for i in (0, 1, 2, 3, 4)] == [1, 2, 3, 4, 1]
    with open_video(predict.draw_video(tmp_path / "video.mp4", 3)) as video:
        assert [len(landmarker.find_all(frame.image)) for frame in video.frames()] == [2, 2, 2]


@pytest.mark.slow
def test_bench_prepare(tmp_path):
    done = run("bench", "prepare", "--images", "40", "--rounds", "1", "--json", "--set", f"paths.runs={tmp_path}")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "bench/prepare.json").read_text())
    assert result["pictures"] == 40 and set(result["stages_ms"]) == {"decode", "detect", "warp", "write", "rest"}
    assert all(result["stages_ms"][stage] > 0 for stage in ("decode", "detect", "warp", "write"))
    first = result["processes"][0]
    assert first["processes"] == 1 and first["speed_up"] == 1
    if face_mesh.is_installed():
        assert first["prepare_to_bare"] == pytest.approx(first["prepare_per_s"] / first["bare_per_s"])
    else:
        assert first["prepare_to_bare"] is first["bare_per_s"] is first["mesh_only_per_s"] is None
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["prepare.json"]


def test_a_csv_of_pixels_cannot_be_measured(tmp_path):
    root = write_fer2013(tmp_path / "fer", [render(THUMBNAIL, 1, label, 1) for label in range(2)])
    done = run("bench", "prepare", "--dataset", "fer2013", "--root", str(root), "--set", f"paths.runs={tmp_path}")
    assert done.exit_code == 1 and "one file per image" in done.stderr
