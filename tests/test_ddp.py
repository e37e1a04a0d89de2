"""Processes that train together, started by torchrun over gloo, give the same result as one process.

In float64 the result is exact, for every method. Through the command line, in float32, it agrees as far as a different
order of sums allows. With ``engine.batch_norm: local`` they match one process that runs the network on each share of a
batch separately.
"""

from __future__ import annotations

import copy
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
import yaml
from conftest import EPOCHS, STEPS, TINY, Bench, merge
from trained_runs import answers, assert_same_state, leaves

from fercli.__main__ import _leave
from fercli.benchmarks.operations import Operations
from fercli.benchmarks.steps import Steps
from fercli.engine import checkpoint, distributed
from fercli.engine.fabric import Launch, how_to_reduce, launched
from fercli.engine.log import read_metrics
from fercli.engine.sharding import ShardedNetwork, average_norms, check_batch, shard_of, sync_norms
from fercli.engine.training import TrainingModule
from fercli.errors import FercliError
from fercli.evaluation.outputs import EpochOutputs
from fercli.loading.augment import View, ViewSettings
from fercli.loading.batches import Batch, Batches
from fercli.loading.face_dataset import FaceDataset
from fercli.methods import method_class
from fercli.methods.base import Progress
from fercli.models import FEATURE_SIZE, GlobalLocal, Output
from fercli.models.backbones import IR_BLOCKS, IRNet
from fercli.models.grouped import IMPLEMENTATIONS
from fercli.models.local import LocalNets
from fercli.models.norms import BatchNorm2d
from fercli.spec import Adapt, parse
from fercli.spec.registry import METHODS
from fercli.store import Store

# Every method, in float64

#: Faces in a batch, faces of the target, and faces with a pseudo label, from which a batch is drawn.
BATCH, TARGET, POOL = 6, 20, 5
OPTIONS = {
    **{name: {"threshold": 0.3} for name in ("aglrls", "aglrls-sf", "fixmatch")},
    "mcd": {"generator_steps": 1},
}
#: Methods that refuse to run in several processes (`fercli.methods.sharpness`).
ALONE = {"sar"}
DOUBLE = sorted(name for name in METHODS if not method_class(name).oracle and name not in ALONE)
#: Methods whose running statistics the plain loop over shares reproduces; AdaBN sets them itself.
LOCAL = sorted(set(DOUBLE) - {"adabn"})


class Shares:
    """The network, run on each share of a batch separately, with running statistics for each: a plain loop."""

    def __init__(self, network: GlobalLocal, count: int):
        self.network = network
        self.statistics = [{name: old.clone() for name, old in network.named_buffers()} for _ in range(count)]

    def __call__(self, *inputs: torch.Tensor | None) -> Output:
        count = len(self.statistics)
        parts = [
            torch.func.functional_call(self.network, its, tuple(None if x is None else x[share::count] for x in inputs))
            for share, its in enumerate(self.statistics)
        ]
        return Output(*(torch.stack(answers, 1).flatten(0, 1) for answers in zip(*parts, strict=True)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def average(self) -> None:
        """Copy the means of the statistics into the network."""
        for name, buffer in self.network.named_buffers():
            buffer.copy_(sum(its[name] for its in self.statistics) / len(self.statistics))


def steps(name: str, local: bool = False) -> dict[str, torch.Tensor]:
    """Three steps of a method on a batch that does not depend on the processes; losses, logs and all state.

    With `local`, one process runs the network on two shares of the batch, and two processes do not share their norms.
    """
    torch.manual_seed(0)
    network = GlobalLocal(IRNet(IR_BLOCKS["ir-small"], 4, light=True))
    kind = method_class(name)
    plan = Adapt(batch=BATCH, epochs=1, lr={1: 1e-3}, method=name)
    method = kind(plan, kind.read_options(OPTIONS.get(name, {})), FEATURE_SIZE, TARGET)
    if name == "cglrl":
        method.pseudo[:POOL] = torch.arange(POOL)
    trainee = raw = TrainingModule(network, method).double().train()
    if distributed.world_size() > 1:
        network.local_nets.implementation = "grouped"
        if not local:
            sync_norms(network)
        how = {"find_unused_parameters": not kind.reaches_all, **how_to_reduce()}
        trainee = torch.nn.parallel.DistributedDataParallel(raw, **how)
    elif local:
        shares = Shares(network, 2)
        trainee = lambda *given: method(shares, *given)  # noqa: E731
    optimizer = torch.optim.SGD(raw.parameters(), 1e-3, 0.9)
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
            drawn = pseudo_labelled[torch.arange(step, step + BATCH) % len(pseudo_labelled)]
            batch = batch._replace(pseudo_labelled=view(BATCH), pseudo_labelled_indices=drawn)
        for update in range(method.updates):
            losses, logs = trainee(batch, Progress(1000 * step, 1, update))
            optimizer.zero_grad()
            if losses:
                sum(losses.values()).backward()
            for parameter in method.frozen(network, update):
                parameter.grad = None
            optimizer.step()
            seen.update({f"{step} {update} {key}": value.detach() for key, value in (losses | logs).items()})
    if local:
        average_norms(network) if distributed.world_size() > 1 else shares.average()
    return {**seen, **{key: value.clone() for key, value in raw.state_dict().items()}}


def meet(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world
        )
        distributed.open_cpu_group()


def worker(rank: int, world: int, folder: str) -> None:
    """One of the processes of `together`. Methods that use float32 use float64 here."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    meet(rank, world, folder)
    done = {name: steps(name) for name in DOUBLE} | {f"{name} local": steps(name, local=True) for name in LOCAL}
    torch.save(done, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_method_is_exact(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(r, w, str(tmp_path))) for w in (1, 2) for r in range(w)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(1000)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, expected in alone.items():
        for key, value in expected.items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-10, atol=1e-10, msg=f"{name}: {key}")
            assert torch.equal(first[name][key], second[name][key]), f"{name}: {key} differs between the processes"
    losses = [alone[name]["0 0 source"] for name in ("dann", "dann local")]
    assert not torch.isclose(*losses)  # the faces that the norms receive make a difference


# Batch norms and messages

ON_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels-last"])
@pytest.mark.parametrize(
    ("device", "dtype", "close"),
    [
        ("cpu", torch.float32, 1e-5),
        pytest.param("cuda", torch.float32, 1e-4, marks=ON_CUDA),
        pytest.param("cuda", torch.bfloat16, 2e-2, marks=ON_CUDA),
    ],
)
def test_shares_are_normalised_as_one_batch(
    device: str, dtype: torch.dtype, close: float, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shares take turns in one process; each receives both messages of the previous round. The third is exact."""
    torch.manual_seed(0)
    x = (3 * torch.randn(6, 5, 4, 3) + 2).to(device, dtype).contiguous(memory_format=layout)
    weights = torch.randn_like(x)
    plain = BatchNorm2d(5).to(device)
    torch.nn.init.normal_(plain.weight), torch.nn.init.normal_(plain.bias)
    heard, said = [], []

    def tell(tensor: torch.Tensor) -> torch.Tensor:
        said[-1].append(tensor.clone())
        return torch.stack([each[len(said[-1]) - 1] if each else tensor for each in heard or [[], []]])

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", tell)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tell(tensor).sum(0))
    for _ in range(3):
        found = []
        for share in range(2):
            said.append([])
            norm, leaf = copy.deepcopy(plain), x[share::2].clone(memory_format=layout).requires_grad_()
            sync_norms(norm)
            out = norm(leaf)
            (out * weights[share::2]).sum().backward()
            found.append((out.detach(), leaf.grad, norm))
        assert [len(each) for each in said] == [2, 2]  # one message in each direction
        heard, said = said, []
    leaf = x.clone(memory_format=layout).requires_grad_()
    expected = plain(leaf)
    (expected * weights).sum().backward()
    for ours, theirs in zip(zip(*found, strict=True), (expected, leaf.grad), strict=False):
        together = torch.stack(ours, 1).flatten(0, 1)
        torch.testing.assert_close(together, theirs, rtol=close, atol=close)
    for _, _, norm in found:
        torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=close, atol=close)
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=close, atol=close)
        torch.testing.assert_close(norm.eval()(x), plain.eval()(x))
        plain.train()
    for name in ("weight", "bias"):
        total = sum(getattr(norm, name).grad for _, _, norm in found)
        torch.testing.assert_close(total, getattr(plain, name).grad, rtol=close, atol=10 * close)


def test_all_outputs_of_the_network_are_sent_at_once_in_the_order_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Output(torch.arange(4 * 49.0, dtype=torch.float64).view(4, 7, 7), torch.arange(4 * 384.0).view(4, 6, 64))
    rows, sent = [torch.cat([each[rank::2].double().flatten(1) for each in whole], 1) for rank in range(2)], []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: sent.append(mine) or torch.stack([rows[0], mine]))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    mine = Output(whole.logits[1::2] * scale, whole.features[1::2])
    answers = ShardedNetwork(lambda images: mine)(torch.zeros(2))
    assert len(sent) == 1 and torch.equal(sent[0], rows[1])
    for ours, theirs in zip(answers, whole, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    answers.logits.sum().backward()
    assert float(scale.grad) == 2 * float(whole.logits[1::2].sum())  # DDP's mean over two processes cancels the factor


def test_polls_are_rare_and_a_stop_is_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slower = 0.0, 2.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(distributed, "largest", lambda *own: [*own[:-1], slower * own[-1]])  # another process's pace
    poll = distributed.Poll(100)
    assert all(poll.due(step) for step in range(101, 110))  # a single process has nothing to send
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    polls, asked_for, heard = [], 700, None
    for step in range(101, 1101):
        clock += 0.01
        if poll.due(step):
            polls.append(step)
            (stopping,) = poll.any_of(step, step >= asked_for)
            heard = heard or (step if stopping else None)
    assert polls[0] == 101 and 80 < len(polls) < 90
    assert 0 <= (heard - asked_for) * 0.01 * slower <= distributed.POLL_S
    for step in range(polls[-1] + 13, polls[-1] + 20):  # steps of a second each
        clock += 1
        assert poll.due(step)
        poll.any_of(step, False)


def test_gradients_go_into_their_bucket_at_once_and_stay_there(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        layers, how = [torch.nn.Linear(8, 8) for _ in range(20)], how_to_reduce()
        module = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers), **how)
        for _ in range(3):  # DDP rebuilds its buckets in the second
            module.zero_grad()
            with Operations("cpu") as mode:
                module(torch.randn(2, 8)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len({p.grad.untyped_storage().data_ptr() for p in module.parameters()}) == 1
    moved = {name: number for name, number in mode.counts.items() if "copy" in name or name.startswith("mul")}
    assert moved == {"_foreach_copy_": 1} or "batched_grad_copy" not in how


#: Collectives in a step of AGLRLS with ir-small: in each pass one per norm forward and, where a gradient flows, one
#: backward (five crop nets count as one), and one for the outputs; DDP's buckets, and at times a poll.
MESSAGES = {"synchronised": {"allgather_": 69, "allreduce_": 48}, "local": {"allgather_": 3, "allreduce_": 4}}


@pytest.mark.slow
@pytest.mark.parametrize("norms", MESSAGES)
def test_a_step_exchanges_no_more_messages_than_it_did(norms: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    engine = {"device": "cpu", "tensorboard": False, "batch_norm": norms}
    spec.write_text(yaml.safe_dump({"model": TINY["model"], "engine": engine, "adapt": {"batch": 4}}))
    words = [*LAUNCHER, str(Path(__file__).with_name("collectives.py")), str(spec)]
    done = subprocess.run(words, capture_output=True, text=True, env=plain_environment(), timeout=500)
    assert done.returncode == 0, done.stderr
    for step in json.loads(done.stdout):
        sent = {name: number for name, number in step.items() if number and name != "bytes"}
        assert sent.keys() == MESSAGES[norms].keys(), sent
        assert all(most - 1 <= sent[name] <= most for name, most in MESSAGES[norms].items()), sent


def started(work: Any, *arguments: Any) -> list[int]:
    """Exit codes of two processes that run work (rank, ...)."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def joining(rank: int, port: int, folder: str) -> None:
    """Two steps with local norms; their statistics and those of the average, before and after they are joined."""
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in told.items()})
    tree = merge(TINY, {"engine.batch_norm": "local", "adapt.ema": 0.5})
    made = Steps(parse(tree), "adapt", Path(folder, str(rank)))
    training, found = made.training, []
    for _ in range(2):
        made.run()
    for join in (lambda: None, training.join_statistics):
        join()
        state = training.network.state_dict()
        average = dict(zip(state, training.average.state(), strict=False))
        found.append([{name: value.clone() for name, value in values.items()} for values in (state, average)])
    torch.save(found, Path(folder, f"{rank}.pt"))
    distributed.end_process(0)


@pytest.mark.slow
def test_statistics_of_local_norms_and_of_their_average_become_the_mean(tmp_path: Path) -> None:
    assert started(joining, free_port(), str(tmp_path)) == [0, 0]
    (first, joined), (second, also) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for before, other, after, same in zip(first, second, joined, also, strict=True):
        for name, value in before.items():
            assert torch.equal(after[name], same[name]), name
            if "running_" in name:
                assert not torch.equal(value, other[name]), name
                torch.testing.assert_close(after[name], (value + other[name]) / 2)
            else:
                assert torch.equal(value, other[name]) and torch.equal(value, after[name]), name


def measuring(rank: int, folder: str) -> None:
    """The fastest way to run crop nets with shared norms, timed by all processes together."""
    meet(rank, 2, folder)
    nets = LocalNets(4)
    sync_norms(nets)
    spent = nets.fastest(torch.randn(5, 3, 7, 7, 4).permute(1, 0, 4, 2, 3))
    chosen = distributed.on_rank_zero(lambda: next(iter(spent)))
    Path(folder, str(rank)).write_text(json.dumps([chosen, sorted(spent)]))
    distributed.end_process(0)


@pytest.mark.slow
def test_processes_that_share_their_norms_time_crop_nets_together(tmp_path: Path) -> None:
    assert started(measuring, str(tmp_path)) == [0, 0]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second and first[1] == sorted(IMPLEMENTATIONS) and first[0] in IMPLEMENTATIONS


def leaving(rank: int, folder: str, fate: str) -> None:
    """End in one of several ways, and record the exit code and whether the group still existed."""
    meet(rank, 2, folder)
    leave = os._exit

    def noted(code: int) -> None:
        Path(folder, f"{fate}-{rank}").write_text(f"{code} {torch.distributed.is_initialized()}")
        leave(code)

    os._exit = noted
    if fate == "a peer died":
        if rank:
            leave(9)
        time.sleep(1)
    if fate == "unforeseen":
        _leave("this is an unexpected error in fercli", 1)
    distributed.end_process(3 if fate == "failed" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "codes", "group"),
    [("good", [0, 0], False), ("a peer died", [0, 9], False), ("failed", [3, 3], True), ("unforeseen", [1, 1], True)],
)
def test_processes_leave_the_group(fate: str, codes: list[int], group: bool, tmp_path: Path) -> None:
    assert started(leaving, str(tmp_path), fate) == codes
    assert (tmp_path / f"{fate}-0").read_text() == f"{codes[0]} {group}"


# The faces of a process


def test_shares_of_a_batch_add_up_to_the_batch(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [Store.open(prepared / name) for name in ("raf-db", "jaffe")]
    cpu, everything = torch.device("cpu"), [np.arange(len(store.labels)) for store in stores]
    source, target = (
        FaceDataset([store], [chosen], cpu, with_crops=True) for store, chosen in zip(stores, everything, strict=True)
    )
    wants = frozenset({"target", "weak", "strong"})
    batches = Batches(source, stores[0].labels, target, wants, 9, 0, ViewSettings(), cpu, shard=shard_of)
    pseudo_labelled = torch.arange(3, 8)
    whole = batches(1, pseudo_labelled)
    assert {len(view) for view in (whole.source, whole.target, whole.weak, whole.pseudo_labelled)} == {9}
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

#: Tolerance for losses, scores, weights and statistics between two ways to sum the same numbers.
CLOSE = 1e-5

#: SND (`evaluation.predictions`) is an entropy of similarities divided by this, which multiplies their differences.
SND_TEMPERATURE = 0.05

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(bench: Bench, command: str, *arguments: str) -> subprocess.Popen:
    """Start a command in two processes."""
    words = [*LAUNCHER, "-m", "fercli", command, "-c", str(bench.spec), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plain_environment())


def plain_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}


def done_together(bench: Bench, command: str, *arguments: str) -> str:
    """Run a command that must succeed in two processes; return its stdout."""
    process = together(bench, command, *arguments)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {path: value for path, value in leaves(line) if isinstance(value, int | float)}


def assert_close(one: Path, other: Path) -> None:
    """Compare metrics, weights and buffers to `CLOSE`; integers (banks, pools, predictions, counts) exactly."""
    lines, others = read_metrics(one), read_metrics(other)
    assert [(m["kind"], m["step"]) for m in lines] == [(m["kind"], m["step"]) for m in others]
    for line, like in zip(lines, others, strict=True):
        values, likes = numbers(line), numbers(like)
        density, like_density = (found.pop(".scores.snd", 0) for found in (values, likes))
        assert values == pytest.approx(likes, rel=CLOSE, abs=CLOSE, nan_ok=True)
        assert density == pytest.approx(like_density, rel=CLOSE / SND_TEMPERATURE, nan_ok=True)
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
        torch.testing.assert_close(outputs[epoch][0], others[epoch][0], rtol=0, atol=2e-3)  # the files' rounding


#: Rates at which a few steps do not amplify the differences from another order of sums.
GENTLE = {"train_source.lr": 1e-4, "adapt.lr": 1e-4, "adapt.discriminator_lr": 1e-3}


@pytest.fixture
def well_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's batch norms sum in float64, as norms shared by several processes do.

    Torch's norms on CPUs add up the 100,000 numbers of a channel in float32, which puts losses here off by up to 2e-5.
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
    """Start a command in two processes with the environment that srun would set."""
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS": 2, "SLURM_STEP_TASKS_PER_NODE": 2, "SLURM_NNODES": 1}
    job = {**step, "SLURM_JOB_ID": 1, "SLURM_JOB_NAME": "a", "SLURM_NODELIST": "localhost", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(2):
        told = {**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}
        environment = {**plain_environment(), **{name: str(value) for name, value in told.items()}}
        words = [sys.executable, "-m", "fercli", *arguments, "-c", str(bench.spec)]
        processes.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return processes


@pytest.mark.slow
def test_two_processes_train_the_source_as_one(well_summed: None, tmp_path: Path, prepared: Path) -> None:
    one, two = (Bench(tmp_path / name, prepared, GENTLE) for name in ("one", "two"))
    one.done("train-source", "--quiet")
    processes = by_srun(two, "train-source", "--json")
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert json.loads(said[0][0])["train_source"]["steps"] == EPOCHS * STEPS
    assert said[1][0] == "" and "source model" not in said[1][1]  # only the first process prints
    assert_close(one.runs / "source", two.runs / "source")
    told, alone = (json.loads((bench.runs / "source/environment.json").read_text()) for bench in (two, one))
    assert (told["processes"], told["batch_norm"]) == (2, "synchronised")
    assert alone["processes"] == 1 and "batch_norm" not in alone


#: Methods with a bank (at a threshold low enough for it to fill), with several updates and an initial pass, with a
#: refinement.
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
def test_a_stop_of_one_stops_both_and_both_resume(make_adapting) -> None:
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
def test_an_error_is_reported_once(make_adapting) -> None:
    changes = {"adapt.lr": 1e30, "adapt.clip_norm": None}
    process = together(make_adapting("ruined", changes), "adapt")
    told = process.communicate(timeout=500)[1]
    assert process.returncode and told.count("error:") == told.count("not finite") == 1, told


@pytest.mark.slow
def test_two_processes_adapt_with_local_norms_and_one_is_the_same_with_them(make_adapting) -> None:
    changes = {**GENTLE, "adapt.ema": 0.9}
    plain, alone, two = (
        make_adapting(name, {**changes, "engine.batch_norm": norms})
        for name, norms in (("plain", "synchronised"), ("alone", "local"), ("two", "local"))
    )
    for bench in (plain, alone):
        bench.done("adapt", "--quiet")
    done_together(two, "adapt", "--quiet")
    one, other, together_ = (bench.runs / "adapt-jaffe" for bench in (plain, alone, two))
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_state(one / name, other / name)
    assert read_metrics(one) == read_metrics(other)
    told = json.loads((together_ / "environment.json").read_text())
    assert (told["processes"], told["batch_norm"]) == (2, "local")
    ours, theirs = (checkpoint.load(folder / "last.ckpt")["network"] for folder in (together_, one))
    moved = [name for name in ours if "running_" in name and not torch.equal(ours[name], theirs[name])]
    assert moved and all(ours[name].isfinite().all() for name in moved)


# How processes are detected

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
        ({"SLURM_NTASKS": "6"}, Launch("nobody", 1, 1)),  # a batch script alone
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "6"}, Launch("srun", 6, 1)),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Launch("nobody", 1, 1)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,2"}, "start the same number on each"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, "start the same number on each"),
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
def test_a_batch_is_split_evenly_or_refused(batch: int, advised: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    if advised is None:
        check_batch(batch, "adapt.batch")
    else:
        with pytest.raises(FercliError, match=f"adapt.batch {batch} .* over 4 processes; set it to {advised}"):
            check_batch(batch, "adapt.batch")


def test_a_sweep_is_not_for_torchrun(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import run

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    result = run("sweep", str(bench.spec))
    assert result.exit_code and len(result.stderr.strip().splitlines()) == 1
