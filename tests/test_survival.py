"""Runs that run out of disk or memory, or whose loss is not finite: what is kept and reported, and resuming."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench, fercli
from nursery import Nursery
from trained_runs import assert_same_run

from fercli.engine import checkpoint
from fercli.engine import predict as evaluation
from fercli.engine.guards import FAILED_BATCH
from fercli.engine.log import read_metrics
from fercli.loading.batches import Batches
from fercli.store import Store


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


# A loss that is not finite


def test_the_batch_with_the_broken_loss_is_recorded(make_adapting) -> None:
    bench = make_adapting("broken", {"adapt.lr": 1e30, "adapt.clip_norm": None, "engine.seed": 0})
    result = bench("adapt", "--quiet")
    path = bench.runs / "adapt-jaffe" / FAILED_BATCH
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
    assert str(path) in result.stderr and "nothing was saved yet" in result.stderr
    told = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert f"the loss is not finite at step {told['step']} (" in result.stderr
    assert (told["seed"], told["update"], told["epoch"]) == (0, 0, 1) and 1 < told["step"] <= 3
    broken = {name for name, value in told["losses"].items() if value in ("nan", "inf")}
    assert broken and all(name in result.stderr for name in broken)
    stores = {name: Store.open(bench.prepared / name) for name in ("raf-db", "jaffe")}
    jaffe = stores["jaffe"].ids[stores["jaffe"].indices(stores["jaffe"].adapt_splits)]
    assert told["faces"].keys() == {"source", "target", "pseudo"}
    for drawn_for, faces in told["faces"].items():
        assert len(faces) == 8
        for face in faces:
            assert face["dataset"] == ("raf-db" if drawn_for == "source" else "jaffe")
            assert face["id"] in stores[face["dataset"]].ids
            assert drawn_for == "source" or jaffe[face["position"]] == face["id"]


def test_the_recorded_faces_are_those_of_the_batch(make_adapting, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    make = Batches.__call__

    def batch(self: Batches, step: int, pool: torch.Tensor | None = None) -> Any:
        made = make(self, step, pool)
        drawn[step + 1] = made.indices.tolist()
        return made

    monkeypatch.setattr(Batches, "__call__", batch)
    bench = make_adapting("broken", {"adapt.lr": 1e30, "adapt.clip_norm": None})
    assert bench("adapt", "--quiet").exit_code == 1
    told = json.loads((bench.runs / "adapt-jaffe" / FAILED_BATCH).read_text())
    assert [face["position"] for face in told["faces"]["pseudo"]] == drawn[told["step"]]


# Too little memory


def on_a_gpu(*_: Any) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def on_a_cpu(*_: Any) -> None:
    torch.empty(1 << 61, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("where", "fails", "settings", "told"),
    [
        ((Batches, "__call__"), on_a_gpu, {}, "out of GPU memory with adapt.batch 8: try adapt.batch=4; nothing"),
        ((Batches, "__call__"), on_a_cpu, {}, "out of memory with adapt.batch 8: try adapt.batch=4; nothing"),
        (
            (Batches, "__call__"),
            on_a_gpu,
            {"adapt.batch": 3},
            "adapt.batch 3: free memory used by other programs, or use a",
        ),
        (
            (evaluation, "plain_view"),
            on_a_gpu,
            {},
            "with engine.evaluate_batch 128: try engine.evaluate_batch=64; nothing",
        ),
    ],
)
def test_too_little_memory_says_what_to_try(
    where: tuple[Any, str], fails, settings: dict[str, Any], told: str, make_adapting, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_adapting("short", {"adapt.steps_per_epoch": 1, **settings})
    monkeypatch.setattr(*where, fails)
    result = bench("adapt", "--quiet")
    assert result.exit_code == 1
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_run_that_runs_out_of_memory_keeps_its_checkpoint(make_adapting, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_adapting("short", {"adapt.epochs": 1, "adapt.steps_per_epoch": 1})
    bench.done("adapt", "--quiet")
    before = (bench.runs / "adapt-jaffe/last.ckpt").read_bytes()
    monkeypatch.setattr(Batches, "__call__", on_a_gpu)
    result = bench("adapt", "--quiet", "--set", "adapt.epochs=2")
    assert "try adapt.batch=4 with --restart; the last good checkpoint in " in result.stderr
    assert (bench.runs / "adapt-jaffe/last.ckpt").read_bytes() == before


# Too little disk space: a limit on file size makes a write fail without filling a disk


def test_a_checkpoint_that_does_not_fit_keeps_the_last(tmp_path: Path, trained: Bench, nursery: Nursery) -> None:
    bench = Bench(tmp_path / "full", trained.prepared)
    bench.done("train-source", "--quiet", "--set", "train_source.epochs=1")
    folder = bench.runs / "source"
    before = {name: (folder / name).read_bytes() for name in ("last.ckpt", "best.ckpt")}
    nursery.start("train-source", "--quiet", "-c", str(bench.spec), file_size=len(before["best.ckpt"]) // 2)
    code, told = nursery.end()
    assert code == 1 and len(told.strip().splitlines()) == 1
    assert f"cannot write {folder}" in told and "the last good checkpoint is kept" in told
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert not list(folder.glob("*.tmp"))
    bench.done("train-source", "--quiet")
    assert_same_run(trained.runs / "source", folder)


def test_metrics_that_do_not_fit_leave_one_line(tmp_path: Path, trained: Bench, nursery: Nursery) -> None:
    bench = Bench(tmp_path / "full", trained.prepared)
    bench.done("train-source", "--quiet", "--set", "train_source.epochs=1")
    folder = bench.runs / "source"
    metrics = folder / "metrics.jsonl"
    padding = json.dumps({"kind": "train", "step": 0, "epoch": 1, "losses": {"x" * 1000: 0.0}, "logs": {}}) + "\n"
    largest = max((folder / name).stat().st_size for name in ("last.ckpt", "best.ckpt"))
    metrics.write_text(padding * (largest // 500) + metrics.read_text())
    nursery.start("train-source", "--quiet", "-c", str(bench.spec), file_size=metrics.stat().st_size + 10)
    code, told = nursery.end()
    assert code == 1 and len(told.strip().splitlines()) == 1
    assert f"the disk is full while writing {metrics}" in told
    assert checkpoint.load(folder / "last.ckpt")["step"] == 3
    bench.done("train-source", "--quiet")
    metrics.write_text("".join(json.dumps(m) + "\n" for m in read_metrics(folder) if m["step"]))
    assert_same_run(trained.runs / "source", folder)


# A kill while outputs are written

#: Imported by every process at startup: kills the process before (or after) it moves a file of this name into place.
_KILLED = """
import os
move = os.replace
def replace(source, target):
    if {after}:
        move(source, target)
    if str(target).endswith("{name}"):
        os.kill(os.getpid(), 9)
    if not {after}:
        move(source, target)
os.replace = replace
"""


@pytest.mark.parametrize(
    ("command", "name", "after"),
    [
        ("adapt", "epoch-0002.safetensors", False),
        pytest.param("adapt", "epoch-0002.safetensors", True, marks=pytest.mark.slow),
        ("evaluate", "dataset-jaffe.safetensors", False),
    ],
)
def test_the_same_command_completes_outputs_after_a_kill(
    command: str, name: str, after: bool, tmp_path: Path, adapted: Bench, make_adapting
) -> None:
    bench, folder = make_adapting("killed"), "adapt-jaffe"
    outputs = f"{folder}/outputs/{name}"
    if command == "evaluate":
        adapted.done("evaluate", "--quiet")
        shutil.copytree(adapted.runs / folder, bench.runs / folder)
        (bench.runs / outputs).unlink()
    (tmp_path / "sitecustomize.py").write_text(_KILLED.format(name=outputs, after=after))
    assert fercli(command, "-c", bench.spec, before=tmp_path).returncode == -signal.SIGKILL
    assert bool(list(bench.runs.glob(f"{folder}/outputs/.*.tmp"))) is not after
    bench.done(command, "--quiet")
    assert_same_run(adapted.runs / folder, bench.runs / folder)
    assert (bench.runs / outputs).read_bytes() == (adapted.runs / outputs).read_bytes()
    assert not list(bench.runs.rglob(".*.tmp"))
