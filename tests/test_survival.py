"""Runs that are killed, short of disk or memory, or whose loss breaks: what is kept, what is told, and going on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench
from trained_runs import assert_same_run, assert_same_sweep

from fercli.batches import Batches, Faces
from fercli.engine import checkpoint
from fercli.engine.log import read_metrics
from fercli.engine.trouble import FAILED_BATCH
from fercli.store import Store

#: For each line it reads, {"arguments", "output", "file_size"}, it forks a process in which all is loaded already: to
#: start anew for each of thirty kills would take minutes. Says the process's number, and after another line its status.
NURSERY = """
import json, os, resource, sys
import fercli.engine.stages, fercli.sweep, fercli.evaluation.collect
from fercli.cli import main
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        output = os.open(asked["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        if asked["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_size"],) * 2)
        try:
            main(asked["arguments"], standalone_mode=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Commands in processes of their own."""

    def __init__(self, folder: Path):
        self._output = folder / "output"
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def start(self, *arguments: str, file_size: int = 0) -> int:
        """Start a command, with the largest size in bytes that a file of its may have; its process's number."""
        asked = {"arguments": arguments, "output": str(self._output), "file_size": file_size}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Wait for it: exit code (-9 where it was killed) and what it said."""
        print(file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return code, self._output.read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)


def ended(number: int) -> bool:
    """Whether a process has ended, be it waited for or not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


# Killed

KILLS = 10
FULL = {"adapt.options": {"threshold": 0.3}, "engine.save_every_s": 0}
SWEEP = {"sweep": {"methods": {"dann": None}, "seeds": [0]}, "engine.save_every_s": 0}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("command", ["train-source", "adapt", "sweep"])
def test_ten_kills_change_no_bit(command: str, tmp_path: Path, trained: Bench, nursery: Nursery) -> None:
    seed = time.time_ns()
    draw = random.Random(seed)

    def fresh(name: str) -> Bench:
        made = Bench(tmp_path / name, trained.prepared, SWEEP if command == "sweep" else FULL)
        if command == "adapt":
            shutil.copytree(trained.runs / "source", made.runs / "source")
        return made

    def start(bench: Bench) -> int:
        return nursery.start(*((command, str(bench.spec)) if command == "sweep" else (command, "-c", str(bench.spec))))

    def compare(bench: Bench) -> None:
        if command == "sweep":
            assert_same_sweep(whole, bench)
        else:
            stage = {"train-source": "source", "adapt": "adapt-jaffe"}[command]
            assert_same_run(whole.runs / stage, bench.runs / stage)
            outputs = [{p.name: p.read_bytes() for p in b.runs.glob(f"{stage}/outputs/*")} for b in (whole, bench)]
            assert outputs[0] == outputs[1]

    whole = fresh("whole")
    begun = time.monotonic()
    start(whole)
    assert nursery.end()[0] == 0
    lasts = time.monotonic() - begun

    kills, rounds, bench = 0, 0, fresh("killed-0")
    while kills < KILLS and rounds < 10 * KILLS:
        rounds += 1
        number, begun = start(bench), time.monotonic()
        delay = draw.uniform(0, lasts)
        while time.monotonic() < begun + delay and not ended(number):
            time.sleep(0.001)
        passed = time.monotonic() - begun
        os.kill(number, signal.SIGKILL)  # a process that has ended is one still, until it is waited for
        code, told = nursery.end()
        if code == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0, (seed, told)
            compare(bench)
            lasts = min(lasts, passed)  # the machine may have been busy with others before
            bench = fresh(f"killed-{rounds}")
    assert kills == KILLS
    start(bench)
    assert nursery.end()[0] == 0
    compare(bench)


# A loss that is not finite


def test_the_batch_of_a_broken_loss_is_named(make_adapting) -> None:
    bench = make_adapting("broken", {"adapt.rate": 1e30, "adapt.clip_norm": None, "engine.seed": 0})
    result = bench("adapt", "--quiet")
    path = bench.runs / "adapt-jaffe" / FAILED_BATCH
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
    assert str(path) in result.stderr and "nothing was saved yet" in result.stderr
    told = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert f"the loss is not finite at step {told['step']} (" in result.stderr
    assert (told["seed"], told["turn"], told["epoch"]) == (0, 0, 1) and 1 < told["step"] <= 3
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


def test_the_named_faces_are_those_of_the_batch(make_adapting, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    make = Batches.__call__

    def batch(self: Batches, step: int, pool: torch.Tensor | None = None) -> Any:
        made = make(self, step, pool)
        drawn[step + 1] = made.indices.tolist()
        return made

    monkeypatch.setattr(Batches, "__call__", batch)
    bench = make_adapting("broken", {"adapt.rate": 1e30, "adapt.clip_norm": None})
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
        ((Batches, "__call__"), on_a_gpu, {"adapt.batch": 3}, "adapt.batch 3: free memory that others hold, or take a"),
        ((Faces, "plain"), on_a_gpu, {}, "with engine.evaluate_batch 128: try engine.evaluate_batch=64; nothing"),
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


# Too little disk: a limit on the size of files is a write that fails, without a disk to fill


def test_a_checkpoint_that_finds_no_room_leaves_the_last(tmp_path: Path, trained: Bench, nursery: Nursery) -> None:
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


def test_metrics_that_find_no_room_are_one_line(tmp_path: Path, trained: Bench, nursery: Nursery) -> None:
    bench = Bench(tmp_path / "full", trained.prepared)
    bench.done("train-source", "--quiet", "--set", "train_source.epochs=1")
    folder = bench.runs / "source"
    metrics, padding = folder / "metrics.jsonl", json.dumps({"kind": "padding", "step": 0, "text": "x" * 1000}) + "\n"
    largest = max((folder / name).stat().st_size for name in ("last.ckpt", "best.ckpt"))
    metrics.write_text(padding * (largest // 500) + metrics.read_text())
    nursery.start("train-source", "--quiet", "-c", str(bench.spec), file_size=metrics.stat().st_size + 10)
    code, told = nursery.end()
    assert code == 1 and len(told.strip().splitlines()) == 1
    assert f"the disk is full while writing {metrics}" in told
    assert checkpoint.load(folder / "last.ckpt")["step"] == 3
    bench.done("train-source", "--quiet")
    metrics.write_text("".join(json.dumps(m) + "\n" for m in read_metrics(folder) if m["kind"] != "padding"))
    assert_same_run(trained.runs / "source", folder)
