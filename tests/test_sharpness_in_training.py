"""`adapt.sharpness`: SDAT's step, written out by hand, for every method with a source."""

from __future__ import annotations

import copy
import math
import signal

import loops
import pytest
import torch
from tiny import Small, batch_for, draw
from trained_runs import assert_same_run, stopped

from fercli.engine import checkpoint, distributed
from fercli.engine.acceleration import Compiled
from fercli.engine.training import TrainingModule
from fercli.errors import FercliError, SpecError
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.base import Method, Progress
from fercli.models import FEATURE_SIZE, GlobalLocal
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt, parse
from fercli.spec.registry import METHODS

RHO, STEP = 0.3, 700
WITH_SOURCE = [name for name in METHODS if method_class(name).needs_source]
OPTIONS = {"aglrls": {"threshold": 0.3}, "fixmatch": {"threshold": 0.3}}


def made(name: str) -> Method:
    torch.manual_seed(0)
    kind = method_class(name)
    return kind(Adapt(), kind.read_options(OPTIONS.get(name, {})), FEATURE_SIZE, 12)


def network() -> Small:
    torch.manual_seed(1)
    return Small().train()


def by_hand(net: Small, method: Method, batch: Batch, update: int) -> tuple[dict, list, list, Small]:
    """The authors' order: uphill by rho g / |g|, the method's step there, its gradient for the original weights."""
    moved, probe = copy.deepcopy(net), copy.deepcopy(net)
    answers = probe(batch.source.images, None).logits
    loops.head_cross_entropy(answers, batch.labels, Adapt().head_weights).backward()
    length = sum(p.grad.square().sum() for p in probe.parameters()).sqrt()
    with torch.no_grad():
        for parameter, below in zip(moved.parameters(), probe.parameters(), strict=True):
            parameter += RHO * below.grad / length
    torch.manual_seed(2)  # for dropout
    step = method(moved, batch, Progress(STEP, 1, update))
    sum(step.losses.values()).backward()
    return step.losses, [p.grad for p in moved.parameters()], [p.grad for p in method.parameters()], moved


@pytest.mark.parametrize("name", WITH_SOURCE)
def test_a_step_is_the_one_written_out_by_hand(name: str) -> None:
    method, other = made(name), made(name)
    batch = batch_for(method)
    for update in sorted({0, method.updates - 1}):
        net = network()
        before = [p.detach().clone() for p in net.parameters()]
        losses, of_network, of_method, moved = by_hand(network(), other, batch, update)
        module = TrainingModule(net, method, RHO).train()
        module.zero_grad()
        torch.manual_seed(2)
        step = module(batch, Progress(STEP, 1, update))
        sum(step.losses.values()).backward()
        assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
        torch.testing.assert_close(dict(step.losses), dict(losses), rtol=1e-4, atol=1e-5)
        for ours, plain in zip(
            [p.grad for p in (*net.parameters(), *method.parameters())], [*of_network, *of_method], strict=True
        ):
            ours, plain = (torch.zeros(()) if g is None or not g.any() else g for g in (ours, plain))
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
        for (key, ours), plain in zip(net.named_buffers(), moved.buffers(), strict=True):
            torch.testing.assert_close(
                ours, plain, msg=lambda m, k=key: f"{k}: {m}"
            )  # updated by the method's own passes
        other.zero_grad()


def test_the_step_leads_to_a_higher_source_loss_and_not_without_it() -> None:
    method = made("dann").eval()
    batch = batch_for(method)
    source = {}
    for rho in (None, 1e-6, 0.01, 0.1):
        source[rho] = TrainingModule(network(), method, rho)(batch, Progress(STEP, 1)).losses["source"].item()
    assert source[None] == pytest.approx(source[1e-6], rel=1e-3)
    assert source[None] < source[0.01] < source[0.1]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"])
@pytest.mark.parametrize("nets", ["loop", "grouped"])
def test_the_real_network_learns_and_keeps_its_statistics(nets: str, compiled: bool) -> None:
    torch.manual_seed(0)
    net, method = GlobalLocal(build_backbone("ir-small", 4)), made("mcc")
    net.local_nets.implementation = nets
    if compiled:
        net.compiled = Compiled(net.compute, backend="aot_eager")
    module = TrainingModule(net, method, 0.05).train()

    def faces(seed: int) -> View:
        return View(draw(2, 3, 112, 112, seed=seed), torch.full((2, 5, 2), 56.0))

    batch, sources = Batch(faces(0), torch.tensor([2, 5]), faces(1)), []
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    norm, images = net.backbone.stem[1], torch.cat([batch.source.images, batch.target.images])
    for step in range(4):
        stem = module._uphill(batch)["network.backbone.stem.0.weight"]
        of_batch = torch.nn.functional.conv2d(images, stem, stride=2, padding=1).mean((0, 2, 3)).detach()
        means, plain = 0.9 * norm.running_mean + 0.1 * of_batch, copy_without(net)
        TrainingModule(plain, method, 0.05).train()(batch, Progress(step, 1))
        losses, _ = module(batch, Progress(step, 1))
        sources.append(losses["source"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        torch.testing.assert_close(norm.running_mean, means)  # updated by one pass, the method's own
        for (key, ours), theirs in zip(net.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    assert sources[-1] < sources[0]
    reference = TrainingModule(copy_without(net), method, 0.05).train()
    ours, plain = (m(batch, Progress(9, 1)).losses["source"].item() for m in (module, reference))
    assert ours == pytest.approx(plain, rel=1e-4)


def copy_without(net: GlobalLocal) -> GlobalLocal:
    """A network with the same weights whose crop nets run one by one, not compiled."""
    plain = GlobalLocal(build_backbone("ir-small", 4))
    plain.load_state_dict(net.state_dict())
    return plain


# Refusals, and the key


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(WITH_SOURCE)))
def test_a_method_without_a_source_refuses(name: str) -> None:
    with pytest.raises(SpecError, match=rf"adapt\.sharpness: it smooths the source loss, but {name} uses no source"):
        TrainingModule(network(), made(name), RHO)
    TrainingModule(network(), made(name))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(FercliError, match=r"adapt\.sharpness works in one process only"):
        TrainingModule(network(), made("dann"), RHO)
    TrainingModule(network(), made("dann"))


def test_the_key_is_off_and_has_a_range() -> None:
    assert Adapt().sharpness is None
    assert parse({"adapt": {"sharpness": 0.05}}).adapt.sharpness == 0.05
    for value in (0, -1, math.nan, math.inf, "much"):
        with pytest.raises(SpecError, match=r"adapt\.sharpness"):
            parse({"adapt": {"sharpness": value}})


# A whole run


def test_moving_averages_and_steps_uphill_survive_a_stop(make_adapting) -> None:
    changes = {"adapt.sharpness": 0.05, "adapt.options.thresholds": "freematch", "adapt.options.threshold": 0.3}
    whole, bench, plain = (
        make_adapting(name, changes if name != "plain" else {**changes, "adapt.sharpness": None})
        for name in ("whole", "stopped", "plain")
    )
    for one in (whole, plain):
        one.done("adapt", "--quiet")
    stopped(bench, "adapt", 4, signal.SIGTERM)
    assert checkpoint.load(bench.runs / "adapt-jaffe/last.ckpt")["method"]["thresholds.shares"].any()
    bench.done("adapt", "--quiet")
    assert_same_run(whole.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")
    weights = [checkpoint.load(one.runs / "adapt-jaffe/last.ckpt")["network"] for one in (whole, plain)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_command_refuses_it_if_no_source_is_trained_on(make_adapting) -> None:
    bench = make_adapting("free", {"adapt.method": "tent", "adapt.sharpness": 0.05})
    result = bench("adapt", "--quiet")
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "error: adapt.sharpness: it smooths the source loss, but tent uses no source; set it to null"
    )
