"""Precision by device, what stays float32, and compilation that may fail."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import Bench
from functorch.compile import nop
from tiny import model_spec
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from fercli import machine
from fercli.engine import acceleration, checkpoint, distributed
from fercli.engine.acceleration import Compiled, accelerate, resolve_precision, with_way_back
from fercli.engine.fabric import make_fabric
from fercli.errors import FercliError
from fercli.models import GlobalLocal, build_network
from fercli.models.local import LocalNets
from fercli.spec import Engine

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network(seed: int = 0, width: int = 4) -> GlobalLocal:
    torch.manual_seed(seed)
    return build_network(model_spec(width=width)).train()


def faces(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 112, 112, generator=generator), torch.rand(count, 5, 2, generator=generator) * 112


# Precision


@pytest.mark.parametrize(("asked", "given"), [("auto", "32-true"), ("32-true", "32-true"), ("bf16-mixed",) * 2])
def test_precision_on_a_cpu(asked: str, given: str) -> None:
    assert resolve_precision(asked, "cpu") == given


@pytest.mark.parametrize("asked", ["tf32", "16-mixed"])
def test_precisions_that_a_cpu_lacks_are_refused(asked: str) -> None:
    with pytest.raises(FercliError, match=f"{asked} needs a CUDA device; on a CPU use 32-true or bf16-mixed"):
        make_fabric(Engine(device="cpu", precision=asked))


@pytest.mark.parametrize(("capability", "given"), [((9, 0), "bf16-mixed"), ((8, 0), "bf16-mixed"), ((7, 5), "32-true")])
def test_auto_on_cuda_depends_on_the_device(monkeypatch: pytest.MonkeyPatch, capability, given: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision("auto", "cuda") == given
    assert resolve_precision("tf32", "cuda") == "tf32"


def test_bfloat16_without_instructions_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for flags, warned in ((frozenset({"avx2"}), True), (frozenset({"avx2", "avx512_bf16"}), False)):
        monkeypatch.setattr(acceleration, "cpu_flags", lambda flags=flags: flags)
        accelerate(network(), Engine(precision="bf16-mixed"), CPU, 2)
        assert ("no bfloat16 instructions" in capsys.readouterr().err) == warned


def test_only_the_network_is_half_and_only_in_training() -> None:
    net, (images, landmarks) = network(), faces()
    seen: dict[str, torch.dtype] = {}
    net.backbone.stages[0].register_forward_hook(lambda m, i, out: seen.update(backbone=out.dtype))
    net.classifiers[0].register_forward_hook(lambda m, i, out: seen.update(heads=out.dtype))
    assert accelerate(net, Engine(precision="bf16-mixed"), CPU, 4)["precision"] == "bf16-mixed"
    output = net(images, landmarks)
    assert seen == {"backbone": torch.bfloat16, "heads": torch.float32}
    assert output.logits.dtype == output.features.dtype == torch.float32
    output.logits.square().mean().backward()
    assert {p.grad.dtype for p in net.parameters()} == {p.dtype for p in net.parameters()} == {torch.float32}
    net.eval()
    with torch.no_grad():
        net(images, landmarks)
    assert seen["backbone"] == torch.float32


def test_windows_are_cut_at_the_exact_landmarks_under_fabric() -> None:
    # bfloat16 cannot distinguish 100 from 100.4: Fabric's own cast of inputs would move the windows.
    fabric = make_fabric(Engine(device="cpu", precision="bf16-mixed"))
    module = fabric.setup_module(nn.Identity())
    point = torch.tensor([100.4])
    assert module(point).dtype == torch.float32 and torch.equal(module(point), point)


def test_a_run_in_bfloat16_trains_and_says_so(bench: Bench) -> None:
    bench.done("train-source", "--quiet", "--set", "engine.precision=bf16-mixed", "--set", "engine.crop_nets=grouped")
    record = json.loads((bench.runs / "source/environment.json").read_text())
    assert (record["precision"], record["crop_nets"], record["compile"]) == ("bf16-mixed", "grouped", False)
    weights = torch.load(bench.runs / "source/last.ckpt", weights_only=True)["network"]
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("asked", "width", "deterministic", "given"),
    [
        ("auto", 4, False, "grouped"),
        ("auto", 16, False, "grouped"),
        ("auto", 24, False, "loop"),
        ("auto", 4, True, "loop"),
        ("matmul", 4, True, "matmul"),
    ],
)
def test_crop_nets_on_a_cpu(asked: str, width: int, deterministic: bool, given: str) -> None:
    net = network(width=width)
    engine = Engine(crop_nets=asked, deterministic=deterministic)
    assert accelerate(net, engine, CPU, 4)["crop_nets"] == net.local_nets.implementation == given


@pytest.mark.parametrize("norms", ["synchronised", "local"])
def test_crop_nets_run_side_by_side_where_processes_share_their_norms(
    norms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    net = network(width=4)
    for asked, runs in (("matmul", "matmul"), ("auto", "grouped")):
        engine = Engine(crop_nets=asked, batch_norm=norms)
        assert accelerate(net, engine, CPU, 4)["crop_nets"] == net.local_nets.implementation == runs


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed", "16-mixed"])
def test_every_precision_trains_on_cuda(bench: Bench, precision: str) -> None:
    settings = ("engine.device=cuda", f"engine.precision={precision}", "engine.deterministic=false")
    bench.done("train-source", "--quiet", *(word for text in settings for word in ("--set", text)))
    assert json.loads((bench.runs / "source/environment.json").read_text())["precision"] == precision


@pytest.mark.cuda
@needs_cuda
def test_the_fastest_way_is_chosen_on_cuda() -> None:
    net = network()
    given = accelerate(net, Engine(device="cuda"), torch.device("cuda"), 8)
    assert given["crop_nets"] in ("loop", "grouped", "matmul") and given["precision"] in ("bf16-mixed", "32-true")
    net(*(tensor.cuda() for tensor in faces())).logits.sum().backward()


# Compilation


def steps(net: GlobalLocal, count: int = 2) -> list[torch.Tensor]:
    """Logits and gradients of some training passes, and the buffers that the passes change."""
    answers = []

    def gradients() -> None:
        net.zero_grad()
        answers.append(net(*faces()).logits)
        answers[-1].square().mean().backward()

    for _ in range(count):
        with_way_back(net, net, "the one kind", gradients)
    changed = [b for b in net.buffers() if b.is_floating_point()]
    return [answers[-1].detach(), *(p.grad for p in net.parameters()), *changed]


@pytest.mark.slow
def test_compiling_changes_neither_names_nor_numbers() -> None:
    plain, compiled = network(), network()
    # torch's tracing of a step, without the minutes that a C++ compiler takes
    compiled.compiled = Compiled(compiled.compute, backend="aot_eager")
    for ours, theirs in zip(steps(compiled), steps(plain), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm().clamp(min=1)
    assert compiled.compiled.proven == {"the one kind"}  # it did not give up
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["grouped", "matmul"])
def test_crop_nets_side_by_side_can_be_compiled(implementation: str) -> None:
    plain, nets = LocalNets(4, light=True), LocalNets(4, light=True)
    nets.load_state_dict(plain.state_dict())
    plain.implementation = nets.implementation = implementation
    traced, maps = torch.compile(nets, backend="eager", fullgraph=True), torch.randn(2, 5, 4, 7, 7)
    torch.testing.assert_close(traced(maps), plain(maps))
    assert all(torch.equal(a, b) for a, b in zip(nets.state_dict().values(), plain.state_dict().values(), strict=True))


def test_in_eval_mode_nothing_is_compiled() -> None:
    net = network().eval()
    net.compiled = Compiled(net.compute, backend=_no_backend)
    with torch.no_grad():
        net(*faces())


def _no_backend(graph, inputs):
    raise RuntimeError("no compiler\nand more of this on other lines")


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", [_no_backend, aot_autograd(fw_compiler=nop, bw_compiler=_no_backend)], ids=["forward", "backward"]
)
def test_if_compiling_fails_training_continues_with_one_warning(backend, capsys) -> None:
    plain, net = network(), network()
    net.compiled = Compiled(net.compute, backend=backend)
    for ours, theirs in zip(steps(net), steps(plain), strict=True):
        assert torch.equal(ours, theirs)  # statistics were updated once per pass
    said = capsys.readouterr().err
    assert said.count("torch.compile does not work here") == 1
    assert said.count("\n") == 1 and "engine.compile=off" in said
    assert net.compiled is None


def test_if_compiling_fails_random_numbers_are_drawn_once() -> None:
    drawn = {}
    for name, backend in (("plain", None), ("failed", _no_backend)):
        net = network()
        torch.manual_seed(3)
        if backend is not None:
            net.compiled = Compiled(net.compute, backend=backend)

        def gradients(net=net, name=name) -> None:
            drawn[name] = torch.rand(2)
            net(*faces())

        with_way_back(net, net, "the one kind", gradients)
    assert torch.equal(drawn["plain"], drawn["failed"])


def test_an_error_of_the_network_itself_is_not_blamed_on_compiling(capsys) -> None:
    net = network()
    net.compiled = Compiled(net.compute, backend="aot_eager")
    five_channels = torch.randn(2, 5, 112, 112)
    with pytest.raises((RuntimeError, ValueError)):
        with_way_back(net, net, "the one kind", lambda: net(five_channels, faces(2)[1]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("asked", "given"), [("off", False), ("auto", False), ("on", True)])
def test_what_is_compiled_on_a_cpu(asked: str, given: bool) -> None:
    net = network()
    assert accelerate(net, Engine(compile=asked), CPU, 4)["compile"] == (net.compiled is not None) == given


@pytest.mark.cuda
@needs_cuda
def test_compiled_steps_on_cuda_equal_plain_ones() -> None:
    plain, net = network().cuda(), network()
    accelerate(net, Engine(device="cuda", precision="32-true", compile="on", crop_nets="loop"), torch.device("cuda"), 4)
    views = [tensor.cuda() for tensor in faces()]
    torch.testing.assert_close(net(*views).logits, plain(*views).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.cuda
@needs_cuda
def test_the_float16_gradient_scale_is_saved_and_restored(bench: Bench) -> None:
    bench.done("train-source", "--quiet", *("--set", "engine.device=cuda", "--set", "engine.precision=16-mixed"))
    path = bench.runs / "source/last.ckpt"
    state = checkpoint.load(path)
    assert state["scaling"]["scale"] > 0
    state["scaling"]["scale"], state["scaling"]["growth_interval"] = 512.0, 10**6
    checkpoint.save(path, {key: value for key, value in state.items() if key not in ("format", "fercli")})
    more = ("--set", "engine.device=cuda", "--set", "engine.precision=16-mixed", "--set", "train_source.epochs=3")
    bench.done("train-source", "--quiet", *more)
    assert checkpoint.load(path)["scaling"]["scale"] <= 512


# The machine


def test_a_machine_is_described_once(bench: Bench) -> None:
    described = machine.describe_device("cpu")
    assert {"processor", "platform", "python", "fercli", "torch", "numpy", "device", "threads", "date"} <= set(
        described
    )
    assert described["torch"] == torch.__version__
    assert machine.describe("numpy").items() <= {**described, "command": machine.describe()["command"]}.items()
