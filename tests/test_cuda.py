"""Behaviour that only an NVIDIA GPU can show: it trains and predicts as the CPU does, and never makes its host wait.

``FERCLI_TEST_DEVICE=cpu`` runs the same tests on the CPU. That shows that the tests work, and nothing about a GPU.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench, told
from torch import Tensor, nn
from trained_runs import assert_same_state, leaves

from fercli.benchmarks.steps import Steps
from fercli.engine import checkpoint
from fercli.engine.acceleration import accelerate
from fercli.engine.capture import WARM_STEPS
from fercli.engine.log import read_metrics
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.swd import SWD, sliced_wasserstein
from fercli.models import build_network
from fercli.spec import Engine, Model, Spec
from fercli.spec.registry import METHODS

DEVICE = os.environ.get("FERCLI_TEST_DEVICE", "cuda")
HERE = torch.device(DEVICE)
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
#: Without cglrl-oracle, whose step is that of cglrl: only its labels differ, and stores of noise have none.
TRAINED = [name for name in METHODS if not method_class(name).oracle]
#: Low thresholds: few faces pass the published ones before anything is learned.
OPTIONS = {name: {"threshold": 0.3} for name in ("aglrls", "aglrls-sf", "fixmatch")}
OPTIONS["cglrl"] = {"entropy_limit": 5.0, "min_size": 0.0, "min_agreement": 0.0}


def settings(*pairs: str) -> tuple[str, ...]:
    return tuple(word for pair in pairs for word in ("--set", pair))


def steps(folder: Path, method: str, device: str, backbone: str = "ir-small", **engine: Any) -> Steps:
    """A method's training on stores of noise, without dropout, at learning rates high enough for a step to show."""
    torch.manual_seed(0)
    plan = {"method": method, "options": OPTIONS.get(method, {}), "batch": 4, "lr": 0.002, "discriminator_lr": 0.002}
    plain = {"precision": "32-true", "compile": "off", "crop_nets": "loop"}
    made = Steps(
        Spec.model_validate(
            {
                "model": {"backbone": backbone, "width": 4},
                "engine": {"device": device, **plain, **engine},
                "adapt": plan,
            }
        ),
        "adapt",
        folder,
    )
    for module in made.training.raw.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch, moved to another device."""

    def move(value: Any) -> Any:
        if isinstance(value, View):
            return View(*map(move, value.inputs))
        return value.to(device) if isinstance(value, Tensor) else value

    return Batch(*map(move, batch))


def after(made: Steps, batch: Batch) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The losses of one step's updates, and the changes that it made to weights, statistics and banks."""
    seen: list[dict[str, Tensor]] = []
    hook = made.training.raw.register_forward_hook(lambda module, given, step: seen.append(step.losses))
    before = {name: tensor.clone() for name, tensor in made.training.raw.state_dict().items()}
    made.training.begin_step()
    made.update(batch, lambda name: _nothing())  # timed, and therefore not recorded
    hook.remove()
    state = made.training.raw.state_dict()
    change = {name: (tensor.double() - before[name].double()).cpu() for name, tensor in state.items()}
    return [{name: value.item() for name, value in losses.items()} for losses in seen], change


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def assert_alike(one: Any, other: Any, tolerance: float = 0.1) -> None:
    """Losses agree to a thousandth, counters and banks exactly, changes of weights and statistics to `tolerance`.

    The changes are compared as one vector each for network and method. Even on the CPU, other float32 kernels change
    the gradient of a single layer by up to a tenth if a value is near the kink of a PReLU.
    """
    (losses, change), (likes, expected) = one, other
    for mine, like in zip(losses, likes, strict=True):
        assert mine == pytest.approx(like, rel=1e-3, abs=1e-3)
    assert change.keys() == expected.keys()
    for part in {name.partition(".")[0] for name in expected}:
        names = [name for name in expected if name.startswith(part)]
        whole = [name for name in names if torch.equal(expected[name], expected[name].round())]
        assert not [name for name in whole if not torch.equal(change[name].round(), expected[name])]
        mine, like = (torch.cat([found[name].flatten() for name in names]) for found in (change, expected))
        assert (mine - like).norm() <= tolerance * like.norm() + 1e-6, part


# A step


@pytest.fixture
def same_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """SWD's random directions, drawn once."""
    directions = nn.functional.normalize(torch.randn(7, 16), dim=0)
    monkeypatch.setattr(SWD, "discrepancy", lambda self, a, b: sliced_wasserstein(a, b, directions.to(a)))


@pytest.mark.parametrize(("method", "backbone"), [*((name, "ir-small") for name in TRAINED), ("aglrls", "ir50")])
def test_a_step_is_that_of_the_cpu(tmp_path: Path, same_directions: None, method: str, backbone: str) -> None:
    here, there = steps(tmp_path / "here", method, "cpu", backbone), steps(tmp_path / "there", method, DEVICE, backbone)
    there.training.raw.load_state_dict(here.training.raw.state_dict())
    for _ in range(2):  # the second has momentum and filled banks
        batch = here.training.batch()
        assert_alike(after(there, moved(batch, HERE)), after(here, batch))
        here.training.count_step()
        there.training.count_step()
        there.training.raw.load_state_dict(here.training.raw.state_dict())


@pytest.mark.parametrize("compiles", ["off", "auto"])
@pytest.mark.parametrize("method", TRAINED)
def test_a_step_never_waits_for_the_device(tmp_path: Path, method: str, compiles: str) -> None:
    made = steps(tmp_path, method, DEVICE, compile=compiles)
    for _ in range(WARM_STEPS + 2):  # one-time set-up and recording may wait
        made.run()
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            made.run()
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    made.training.guard.check()  # the losses were finite


def gradient(precision: str, compiles: str) -> Tensor:
    """The gradient of the sum of squared logits, over all weights of a network on the same faces."""
    torch.manual_seed(0)
    network = build_network(Model(backbone="ir-small", width=8)).to(memory_format=torch.channels_last).train()
    given = accelerate(network, Engine(device=DEVICE, precision=precision, compile=compiles, crop_nets="loop"), HERE, 8)
    assert given["precision"] == precision
    generator = torch.Generator().manual_seed(1)
    images, points = (torch.randn(8, 3, 112, 112, generator=generator), torch.rand(8, 5, 2, generator=generator) * 112)
    for _ in range(3):  # until captured graphs are replayed
        network.zero_grad()
        network(images.to(HERE), points.to(HERE)).logits.square().mean().backward()
    return torch.cat([p.grad.flatten().double().cpu() for p in network.parameters()])


@pytest.mark.parametrize(
    ("precision", "compiles", "least"),
    [("32-true", "on", 0.9999), ("bf16-mixed", "off", 0.98), ("bf16-mixed", "on", 0.98)],
)
def test_compiled_and_bfloat16_gradients_point_the_same_way(precision: str, compiles: str, least: float) -> None:
    if DEVICE == "cpu" and compiles == "on":
        pytest.skip("compiling for a processor takes minutes")
    plain, other = gradient("32-true", "off"), gradient(precision, compiles)
    assert torch.cosine_similarity(plain, other, dim=0) > least
    assert other.norm().item() == pytest.approx(plain.norm().item(), rel=0.1 if least < 0.99 else 1e-2)


# Runs


def losses_of(folder: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(folder) if line["kind"] == "train"]


def assert_same_losses(some: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    """Compare the losses of 16 steps. float32 rounding differences of the first step have grown by the last."""
    assert len(some) == len(others) == 16
    for step, (mine, like) in enumerate(zip(some, others, strict=True)):
        assert mine == pytest.approx(like, rel=1e-3 * (1 + 3 * step), abs=1e-3)


@pytest.mark.parametrize("method", ["aglrls", "cglrl", "mcd"])
def test_captured_steps_are_the_plain_ones(make_adapting, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(nn.functional, "dropout", lambda x, *rest, **named: x)  # its random numbers may differ
    seen, options = {}, json.dumps(OPTIONS.get(method, {}))
    for compiles in ("off", "auto"):
        bench = make_adapting(compiles, {"adapt.method": method})
        how = (f"engine.device={DEVICE}", "engine.deterministic=false", f"engine.compile={compiles}")
        more = ("engine.precision=32-true", "engine.crop_nets=loop", "engine.log_every=1", f"adapt.options={options}")
        bench.done("adapt", "--quiet", *settings(*how, *more, "adapt.steps_per_epoch=8"))
        seen[compiles] = losses_of(bench.runs / "adapt-jaffe")
    assert_same_losses(seen["auto"], seen["off"])


def test_captured_steps_of_the_source_are_the_plain_ones(bench: Bench) -> None:
    seen = {}
    for compiles in ("off", "auto"):
        how = (f"engine.device={DEVICE}", "engine.deterministic=false", f"engine.compile={compiles}")
        more = ("engine.precision=32-true", "engine.crop_nets=loop", "engine.log_every=1")
        bench.done("train-source", "--quiet", "--restart", *settings(*how, *more, "train_source.steps_per_epoch=8"))
        seen[compiles] = losses_of(bench.runs / "source")
    assert_same_losses(seen["auto"], seen["off"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_resumed_run_equals_one_that_never_stopped(make_adapting, deterministic: bool) -> None:
    how = settings(
        f"engine.device={DEVICE}", f"engine.deterministic={str(deterministic).lower()}", "engine.compile=off"
    )
    options = settings(f"adapt.options={json.dumps(OPTIONS['aglrls'])}")
    whole, halves = make_adapting("whole"), make_adapting("halves")
    whole.done("adapt", "--quiet", *how, *options)
    halves.done("adapt", "--quiet", *how, *options, *settings("adapt.epochs=1"))
    halves.done("adapt", "--quiet", *how, *options)
    one, other = (bench.runs / "adapt-jaffe/last.ckpt" for bench in (whole, halves))
    if deterministic:
        assert_same_state(one, other)
        return
    values, likes = (dict(leaves(checkpoint.load(path)["network"])) for path in (one, other))
    for name, value in values.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, likes[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("command", ["train-source", "adapt"])
def test_two_deterministic_runs_are_the_same_bits(make_adapting, command: str) -> None:
    folder = {"train-source": "source", "adapt": "adapt-jaffe"}[command]
    paths = []
    for name in ("one", "other"):
        bench = make_adapting(name)
        bench.done(command, "--quiet", "--restart", *settings(f"engine.device={DEVICE}"))
        paths.append(bench.runs / folder / "last.ckpt")
    assert_same_state(*paths)


@contextmanager
def starved() -> Iterator[None]:
    """Within this context almost no more device memory can be allocated."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(HERE).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (96 << 20)) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 29), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_out_of_memory_for_real(bench: Bench) -> None:
    here = settings(f"engine.device={DEVICE}", "engine.compile=off")
    wide = settings("train_source.batch=1024", "model.backbone=ir18", "prepare.margin=14")
    with starved():
        line = told(bench("train-source", "--quiet", *here, *wide))
    kind = "GPU memory" if DEVICE == "cuda" else "memory"
    assert f"out of {kind} with train_source.batch 1024: try train_source.batch=512; nothing was saved yet" in line

    bench.done("train-source", "--quiet", "--restart", *here)
    gc.collect()
    taken = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    before = (bench.runs / "source/last.ckpt").read_bytes()
    if DEVICE == "cuda":  # CPU memory cannot be made scarce enough for so small a network
        with starved():
            hog = torch.empty(80 << 20, dtype=torch.uint8, device=HERE)
            line = told(bench("train-source", "--quiet", *here, *settings("train_source.epochs=3")))
            del hog
        assert "the last good checkpoint in " in line and "--restart" in line
        gc.collect()
        assert torch.cuda.memory_allocated() <= taken + (8 << 20)  # the failed step's memory was released
    assert (bench.runs / "source/last.ckpt").read_bytes() == before
    bench.done("train-source", "--quiet", *here, *settings("train_source.epochs=3"))


def probabilities(bench: Bench, device: str) -> dict[str, dict[str, str]]:
    """The rows of all predictions, by file and face."""
    bench.done("evaluate", "--report", "--quiet", *settings(f"engine.device={device}"))
    rows = {}
    for path in sorted((bench.runs / "report/predictions").glob("*.csv")):
        with path.open(newline="") as file:
            rows |= {f"{path.name}: {n}": row for n, row in enumerate(csv.DictReader(file))}
    return rows


def test_evaluation_predicts_as_on_the_cpu(adapted: Bench, tmp_path: Path) -> None:
    seen = []
    for device in ("cpu", DEVICE):
        bench = Bench(tmp_path / f"on-{device}-{len(seen)}", adapted.prepared)
        shutil.copytree(adapted.runs, bench.runs, ignore=shutil.ignore_patterns("report", "results*"))
        seen.append(probabilities(bench, device))
    cpu, other = seen
    assert cpu.keys() == other.keys() and len(cpu) >= 42
    for face, row in cpu.items():
        for column, value in row.items():
            try:
                number = float(value)
            except ValueError:
                assert other[face][column] == value, (face, column)
            else:
                assert float(other[face][column]) == pytest.approx(number, abs=1e-3), (face, column)


# A group of one process


def worker(folder: str) -> None:
    """Run by torchrun: compare a step through DDP, in a process group of one process, with a plain step."""
    from fercli.benchmarks import steps as benchmark
    from fercli.engine.lightning import DDPStrategy, Fabric, environments, precision_plugin

    plain = steps(Path(folder) / "plain", "aglrls", DEVICE)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    fabric = Fabric(
        accelerator=DEVICE,
        devices=1,
        strategy=DDPStrategy(process_group_backend=backend, find_unused_parameters=True),
        plugins=[environments.TorchElasticEnvironment(), precision_plugin("32-true", DEVICE)],
    )
    fabric.launch()
    assert torch.distributed.get_backend() == backend and torch.distributed.get_world_size() == 1
    benchmark.make_fabric = lambda engine: fabric
    wrapped = steps(Path(folder) / "wrapped", "aglrls", DEVICE)
    wrapped.training.raw.load_state_dict(plain.training.raw.state_dict())
    for _ in range(2):
        batch = plain.training.batch()
        assert_alike(after(wrapped, batch), after(plain, batch), 1e-2)
    total = torch.full((3,), 2.0, device=HERE)
    torch.distributed.all_reduce(total)
    assert total.tolist() == [2, 2, 2]
    torch.distributed.destroy_process_group()
    print("the same")


def test_one_process_of_a_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), *sys.path)))}
    done = subprocess.run(
        [*command, __file__, str(tmp_path)], capture_output=True, text=True, timeout=150, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout


if __name__ == "__main__":
    worker(sys.argv[1])
