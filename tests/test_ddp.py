"""Processes that train together, started by torchrun over gloo, are one process on the same batches.

Exactly so in float64, for every method; through the command line, in float32, as far as sums in another order go.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EPOCHS, STEPS, Bench
from trained_runs import answers, assert_same_state, leaves

from fercli.engine import checkpoint, distributed
from fercli.engine.fabric import Launch, launched
from fercli.engine.log import read_metrics
from fercli.engine.sharding import check_batch, shard_of, sync_norms
from fercli.engine.training import TrainingModule
from fercli.errors import FercliError
from fercli.evaluation.outputs import EpochOutputs
from fercli.loading.augment import View, ViewSettings
from fercli.loading.batches import Batch, Batches
from fercli.loading.face_dataset import FaceDataset
from fercli.methods import method_class
from fercli.methods.base import Progress
from fercli.models import FEATURE_SIZE, GlobalLocal
from fercli.models.backbones import IR_BLOCKS, IRNet
from fercli.spec import Adapt
from fercli.spec.registry import METHODS
from fercli.store import Store

# Every method, in float64

#: Faces in a batch, faces of the target, and faces with a pseudo label: no multiple of the processes.
BATCH, TARGET, POOL = 6, 20, 5
OPTIONS = {
    **{name: {"threshold": 0.3} for name in ("aglrls", "aglrls-sf", "fixmatch")},
    "mcd": {"generator_steps": 1},
}
#: Refuse to run in several processes (`fercli.methods.sharpness`).
ALONE = {"sar"}
DOUBLE = sorted(name for name in METHODS if not method_class(name).oracle and name not in ALONE)


def steps(name: str) -> dict[str, torch.Tensor]:
    """Three steps of a method on a batch that is the same whatever the processes; losses, logs and all state."""
    torch.manual_seed(0)
    network = GlobalLocal(IRNet(IR_BLOCKS["ir-small"], 4, light=True))
    kind = method_class(name)
    plan = Adapt(batch=BATCH, epochs=1, lr={1: 1e-3}, method=name)
    method = kind(plan, kind.read_options(OPTIONS.get(name, {})), FEATURE_SIZE, TARGET)
    if name == "cglrl":
        method.pseudo[:POOL] = torch.arange(POOL)
    trainee = raw = TrainingModule(network, method).double().train()
    if distributed.world_size() > 1:
        sync_norms(network, torch.device("cpu"))
        trainee = torch.nn.parallel.DistributedDataParallel(raw, find_unused_parameters=not kind.reaches_all)
    optimizer = torch.optim.SGD(trainee.parameters(), 1e-3, 0.9)
    generator = torch.Generator().manual_seed(1)

    def view(count: int) -> View:
        images = torch.randn(count, 3, 112, 112, generator=generator, dtype=torch.float64)
        landmarks, rows = torch.rand(count, 5, 2, generator=generator) * 112, shard_of(count)
        return View(images[rows], landmarks[rows])

    seen = {}
    for step in range(3):
        labels, indices = (torch.randint(most, (BATCH,), generator=generator) for most in (7, TARGET))
        batch = Batch(view(BATCH), labels, view(BATCH), view(BATCH), view(BATCH), indices)
        pseudo_labelled = method.pseudo_labelled()
        if pseudo_labelled is not None:
            batch = batch._replace(pseudo_labelled=view(len(pseudo_labelled)), pseudo_labelled_indices=pseudo_labelled)
        for update in range(method.updates):
            losses, logs = trainee(batch, Progress(1000 * step, 1, update))
            optimizer.zero_grad()
            if losses:
                sum(losses.values()).backward()
            for parameter in method.frozen(network, update):
                parameter.grad = None
            optimizer.step()
            seen.update({f"{step} {update} {key}": value.detach() for key, value in (losses | logs).items()})
    return {**seen, **{key: value.clone() for key, value in raw.state_dict().items()}}


def worker(rank: int, world: int, folder: str) -> None:
    """One of the processes of `together`. What methods do in float32 they do in float64 here."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world
        )
        distributed.open_cpu_group()
    torch.save({name: steps(name) for name in DOUBLE}, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_method_is_exact(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    started = [context.Process(target=worker, args=(r, w, str(tmp_path))) for w in (1, 2) for r in range(w)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    assert [process.exitcode for process in started] == [0, 0, 0]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name in DOUBLE:
        for key, value in alone[name].items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-10, atol=1e-10, msg=f"{name}: {key}")
            assert torch.equal(first[name][key], second[name][key]), f"{name}: {key} differs between the processes"


# Its faces


def test_shares_of_a_batch_make_the_batch(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [Store.open(prepared / name) for name in ("raf-db", "jaffe")]
    cpu, everything = torch.device("cpu"), [np.arange(len(store.labels)) for store in stores]
    source, target = (
        FaceDataset([store], [chosen], cpu, with_crops=True) for store, chosen in zip(stores, everything, strict=True)
    )
    wants = frozenset({"target", "weak", "strong"})
    batches = Batches(source, stores[0].labels, target, wants, 8, 0, ViewSettings(), cpu, shard=shard_of)
    pseudo_labelled = torch.arange(3, 8)  # five faces for three processes
    whole = batches(1, pseudo_labelled)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = batches(1, pseudo_labelled)
        for name in ("labels", "indices", "pseudo_labelled_indices"):
            assert torch.equal(getattr(share, name), getattr(whole, name))
        for name in ("source", "target", "weak", "strong", "pseudo_labelled"):
            for part, all_of_it in zip(getattr(share, name).inputs, getattr(whole, name).inputs, strict=True):
                assert torch.equal(part, all_of_it[rank::3]), (name, rank)


# The command line, in float32

#: Of losses, scores, weights and statistics: what two ways to sum the same numbers may differ by.
CLOSE = 1e-5


def together(bench: Bench, command: str, *arguments: str, processes: int = 2) -> subprocess.Popen:
    """Start a command in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [*launcher, "-m", "fercli", command, "-c", str(bench.spec), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plain_environment())


def plain_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}


def done_together(bench: Bench, command: str, *arguments: str) -> str:
    """A command that must go well in two processes; its stdout."""
    process = together(bench, command, *arguments)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {path: value for path, value in leaves(line) if isinstance(value, int | float)}


def assert_close(one: Path, other: Path) -> None:
    """Metrics, weights and buffers to `CLOSE`; whole numbers (banks, pools, answers, counts) the same."""
    lines, others = read_metrics(one), read_metrics(other)
    assert [(m["kind"], m["step"]) for m in lines] == [(m["kind"], m["step"]) for m in others]
    for line, like in zip(lines, others, strict=True):
        assert numbers(line) == pytest.approx(numbers(like), rel=CLOSE, abs=CLOSE, nan_ok=True)
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (checkpoint.load(folder / name) for folder in (one, other))
        assert (a["step"], a["best"]["epoch"]) == (b["step"], b["best"]["epoch"])
        for part in ("network", "method", "status"):
            values, likes = dict(leaves(a.get(part))), dict(leaves(b.get(part)))
            assert values.keys() == likes.keys()
            for path, value in values.items():
                if isinstance(value, torch.Tensor):
                    assert value.shape == likes[path].shape and value.dtype == likes[path].dtype, path
                    if value.is_floating_point():
                        torch.testing.assert_close(value, likes[path], rtol=CLOSE, atol=CLOSE)
                    else:
                        assert torch.equal(value, likes[path]), path
    outputs, others = EpochOutputs(one), EpochOutputs(other)
    assert outputs.paths.keys() == others.paths.keys()
    for epoch in outputs.paths:
        assert answers(one, epoch) == answers(other, epoch)
        torch.testing.assert_close(outputs[epoch][0], others[epoch][0], rtol=0, atol=2e-3)  # as the files round


#: Rates at which a few steps do not blow up what sums in another order differ by.
GENTLE = {"train_source.lr": 1e-4, "adapt.lr": 1e-4, "adapt.discriminator_lr": 1e-3}


@pytest.fixture
def well_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's batch norms sum in float64, as those do that several processes share.

    Torch's on CPUs add up the 100,000 numbers of a channel in float32, and so the losses here are off by up to 2e-5.
    """
    plain = torch.nn.functional.batch_norm

    def batch_norm(x, mean, variance, weight, bias, training, momentum, eps):
        if not training:
            return plain(x, mean, variance, weight, bias, training, momentum, eps)
        wide = [tensor.double() for tensor in (x, mean, variance, weight, bias)]
        result = plain(*wide, training, momentum, eps)
        mean.copy_(wide[1])
        variance.copy_(wide[2])
        return result.to(x.dtype)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", batch_norm)


def by_srun(bench: Bench, *arguments: str) -> list[subprocess.Popen]:
    """Start a command in two processes with what srun would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS": 2, "SLURM_STEP_TASKS_PER_NODE": 2, "SLURM_NNODES": 1}
    job = {**step, "SLURM_JOB_ID": 1, "SLURM_JOB_NAME": "a", "SLURM_NODELIST": "localhost", "MASTER_PORT": port}
    started = []
    for rank in range(2):
        told = {**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}
        environment = {**plain_environment(), **{name: str(value) for name, value in told.items()}}
        words = [sys.executable, "-m", "fercli", *arguments, "-c", str(bench.spec)]
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return started


@pytest.mark.slow
def test_two_processes_train_the_source_as_one(well_summed: None, tmp_path: Path, prepared: Path) -> None:
    one, two = (Bench(tmp_path / name, prepared, GENTLE) for name in ("one", "two"))
    one.done("train-source", "--quiet")
    processes = by_srun(two, "train-source", "--json")
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert json.loads(said[0][0])["train_source"]["steps"] == EPOCHS * STEPS
    assert said[1][0] == "" and "source model" not in said[1][1]  # one of them speaks
    assert_close(one.runs / "source", two.runs / "source")
    assert json.loads((two.runs / "source/environment.json").read_text())["processes"] == 2


#: Methods that have a bank (at a threshold low enough for it to fill), several updates and a first look, a refinement.
FULL = {"aglrls": {"threshold": 0.3}, "mcd": {"generator_steps": 2}, "agra": {"warm_steps": 5}}


@pytest.mark.slow
@pytest.mark.parametrize("method", FULL)
def test_two_processes_adapt_as_one(well_summed: None, method: str, make_adapting) -> None:
    changes = {**GENTLE, "adapt.method": method, "adapt.options": FULL[method]}
    one, two = (make_adapting(name, changes) for name in ("one", "two"))
    one.done("adapt", "--quiet")
    done_together(two, "adapt", "--quiet")
    assert_close(one.runs / "adapt-jaffe", two.runs / "adapt-jaffe")
    state = checkpoint.load(two.runs / "adapt-jaffe/last.ckpt")["method"]
    assert "bank" not in state or (state["bank"] >= 0).any()


@pytest.mark.slow
def test_a_stop_of_one_stops_both_and_both_go_on(make_adapting) -> None:
    changes = {"adapt.steps_per_epoch": 7, "adapt.options": {"threshold": 0.3}, "engine.save_every_s": 0}
    whole, stopped = (make_adapting(name, changes) for name in ("whole", "stopped"))
    done_together(whole, "adapt", "--quiet")
    process, last = together(stopped, "adapt"), stopped.runs / "adapt-jaffe/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)  # the second process
    told = process.communicate(timeout=500)[1]
    assert told.count("stopped at step ") == 1 and told.count("exitcode  : 130") == 2, told
    assert 0 < checkpoint.load(last)["step"] < 14
    done_together(stopped, "adapt", "--quiet")
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_state(whole.runs / "adapt-jaffe" / name, stopped.runs / "adapt-jaffe" / name)
    assert read_metrics(whole.runs / "adapt-jaffe") == read_metrics(stopped.runs / "adapt-jaffe")


@pytest.mark.slow
def test_what_goes_wrong_is_told_once(make_adapting) -> None:
    changes = {"adapt.lr": 1e30, "adapt.clip_norm": None}
    process = together(make_adapting("ruined", changes), "adapt")
    told = process.communicate(timeout=500)[1]
    assert process.returncode and told.count("error:") == told.count("not finite") == 1, told


# How processes are found

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("nobody", 1, 1)),
        (TORCHRUN, Launch("torchrun", 8, 2)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, Launch("nobody", 1, 1)),
        (SRUN, Launch("srun", 6, 3)),
        ({**SRUN, **TORCHRUN}, Launch("torchrun", 8, 2)),  # torchrun under SLURM
        ({"SLURM_NTASKS": "6"}, Launch("nobody", 1, 1)),  # a batch script by itself
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "6"}, Launch("srun", 6, 1)),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Launch("nobody", 1, 1)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,2"}, "as many as the others"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, "as many as the others"),
    ],
)
def test_launched(environment: dict[str, str], expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, Launch):
        assert launched() == expected
    else:
        with pytest.raises(FercliError, match=expected):
            launched()


@pytest.mark.parametrize(("batch", "advised"), [(8, None), (7, 8), (9, 8), (2, 4), (31, 32)])
def test_a_batch_is_shared_evenly_or_refused(batch: int, advised: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    if advised is None:
        check_batch(batch, "adapt.batch")
    else:
        with pytest.raises(FercliError, match=f"adapt.batch {batch} .* by 4 processes; set it to {advised}"):
            check_batch(batch, "adapt.batch")


def test_a_sweep_is_not_for_torchrun(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import run

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    result = run("sweep", str(bench.spec))
    assert result.exit_code and len(result.stderr.strip().splitlines()) == 1
