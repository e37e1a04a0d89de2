"""For every method: a training step never waits for the device, and can be recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from recorded import Tape, adaptation, noise_spec
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fercli.benchmarks.operations import Operations
from fercli.benchmarks.steps import changed
from fercli.engine.capture import CapturedStep, cloned, fill, shapes
from fercli.engine.loop import take_step
from fercli.engine.training import Training
from fercli.spec import Spec
from fercli.spec.registry import METHODS

CPU, META = torch.device("cpu"), torch.device("meta")
#: Options that put more of a method into effect within a few steps, and variants.
VARIANTS = {
    **{name: (name, {}) for name in METHODS},
    **{name: (name, {"threshold": 0.2}) for name in ("aglrls", "aglrls-sf")},
    "aglrls, shared passes, alignment": ("aglrls", {"passes": "shared", "alignment": True, "threshold": 0.2}),
    "aglrls, as released": ("aglrls", {"reversal_counts": "forwards", "drop_last": True, "threshold": 0.2}),
    "aglrls, freematch": ("aglrls", {"thresholds": "freematch"}),
    "fixmatch, flexmatch": ("fixmatch", {"thresholds": "flexmatch", "threshold": 0.2}),
    "fixmatch, softmatch": ("fixmatch", {"thresholds": "softmatch"}),
    "safn, hard": ("safn", {"variant": "hard"}),
    "agra": ("agra", {"warm_steps": 2}),
    "agra, classes": ("agra", {"means": "classes", "average_after": 2, "warm_steps": 2}),
}
#: Target faces that CGLRL has labelled.
POOL = torch.tensor([1, 4, 5, 9, 20])


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    noise_spec(folder)
    return folder


def spec_of(room: Path, variant: str, **adapt) -> Spec:
    name, options = VARIANTS[variant]
    also = [] if name in METHODS and "sf" in name else ["last"]
    return noise_spec(room, method=name, options=options, select="last", also_score=also, **adapt)


def choose_pool(training: Training) -> None:
    """Make CGLRL label some faces, without evaluating them."""
    if hasattr(training.method, "pseudo"):
        if training.method.pseudo.device != META:
            training.method.pseudo[POOL] = POOL % 7
        training._pseudo_labelled, training._asked = POOL, True


# No number is read back


class NumbersSent(TorchFunctionMode):
    """Records tensors created from Python numbers on a device other than the CPU: the copy makes the CPU wait.

    `Operations` cannot see them on the meta device, which holds no numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, Tensor.new_tensor) and result.device.type != "cpu":
            self.seen.append(func.__name__)
        return result


def seen_in_a_step(training: Training) -> Operations:
    training._asked = True
    choose_pool(training)
    training.batch()  # the first batch sends some constants
    with Operations("meta") as seen, NumbersSent() as sent:
        batch = training.batch()
        training.begin_step()
        take_step(training, batch)
        training.count_step()
    seen.waits += sent.seen
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_step_reads_a_number_back(variant: str, room: Path, tmp_path: Path) -> None:
    # The meta device has shapes but no numbers: any decision based on a number fails.
    training = adaptation(spec_of(room, variant, clip_norm=1.0, ema=0.9), META, tmp_path)
    assert not seen_in_a_step(training).waits
    assert all(each.device == META for each in training.raw.state_dict().values())


def test_no_step_of_the_real_network_reads_a_number_back(room: Path, tmp_path: Path) -> None:
    spec = changed(spec_of(room, "cdan-e", sharpness=0.05), model={"input": "grey"})
    assert not seen_in_a_step(adaptation(spec, META, tmp_path, real=True)).waits


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: bool(x.any())),
        ("nonzero", lambda x: x.nonzero()),
        ("index", lambda x: x[x > 0]),
        ("index_put_", lambda x: x.index_put_((x > 0,), torch.zeros(()))),
        ("_unique2", lambda x: x.unique()),
        ("_linalg_svd", lambda x: torch.linalg.svdvals(x)),
    ],
)
def test_operations_that_wait_are_noticed(name: str, wait) -> None:
    with Operations("cpu") as seen:
        wait(torch.eye(3))
    assert name in seen.waits


def test_copies_to_a_device_are_noticed_where_they_wait() -> None:
    for more, waits in (({}, True), ({"non_blocking": True}, False)):
        with Operations("meta") as seen:
            torch.zeros(3).to("meta", **more)
            torch.zeros(3, device="meta").copy_(torch.zeros(3), **more)
        assert len(seen.waits) == 2 * waits


# Number of operations

#: Operations of a step on a device, its batch included. They are counted in the second step, in float32, with the
#: optimizer of a CUDA device (fused there, ``foreach`` here, which has the same number or one more). Fewer is better:
#: more is slower wherever the CPU cannot launch as fast as the device works.
MOST_OPERATIONS = {
    **{"source-only": 98, "aglrls": 668, "cglrl": 512, "dann": 180, "cdan-e": 229, "mcd": 433, "agra": 447},
    **{"aglrls-sf": 318, "aglrls, ir-small": 2038, "aglrls, ir50": 3062},
}


@pytest.mark.parametrize("what", MOST_OPERATIONS)
def test_a_step_has_no_more_operations_than_it_had(what: str, room: Path, tmp_path: Path) -> None:
    variant, _, backbone = what.partition(", ")
    spec = spec_of(room, variant)
    if backbone:
        spec = changed(spec, model={"backbone": backbone})
    training = adaptation(spec, META, tmp_path, real=bool(backbone))
    for group in training.optimizer.param_groups:
        group["foreach"] = True
    assert seen_in_a_step(training).total <= MOST_OPERATIONS[what]


# Recorded once, then replayed


def state_of(training: Training) -> dict[str, Tensor]:
    optimizer = training.optimizer.state
    momentum = {f"momentum of {name}": optimizer[p]["momentum_buffer"] for name, p in training.raw.named_parameters()}
    return {**training.raw.state_dict(), **momentum}


@pytest.mark.parametrize(("variant", "real"), [*((variant, False) for variant in VARIANTS), ("aglrls", True)])
def test_a_recorded_step_is_the_step(variant: str, real: bool, room: Path, tmp_path: Path) -> None:
    """Bit for bit, over changing rates, epochs and reversal strengths, on batches other than the recorded one."""
    # Nearly every step has its own rate and epoch.
    spec = spec_of(room, variant, epochs=4, steps_per_epoch=3, schedule="cosine", warmup_epochs=1, ema=0.9)
    plain, recorded = (adaptation(spec, CPU, tmp_path, True, real) for _ in range(2))
    tape, inputs = None, None
    for step in range(5):
        for training in (plain, recorded):
            torch.manual_seed(step)
            if training.between_epochs:
                training.method.begin_epoch(training.evaluator)
            choose_pool(training)
            batch = training.batch()
            training.begin_step()
            torch.manual_seed(step)  # for dropout
            if training is plain or step < 2:
                take_step(training, batch)
            elif tape is None:
                inputs = cloned(batch)
                training.optimizer.zero_grad(set_to_none=True)
                with Tape() as tape:
                    take_step(training, inputs)
            else:
                assert shapes(batch) == shapes(inputs)
                fill(inputs, batch)
                tape.play()
            training.count_step()
        for (name, value), other in zip(state_of(plain).items(), state_of(recorded).values(), strict=True):
            assert torch.equal(value, other), (step, name)
    assert plain.meter.not_finite() is None
    assert plain.meter.flush() == recorded.meter.flush()


class Tapes:
    """`CudaGraphs` without CUDA: recording is undone, because a device does not run what it records."""

    def __init__(self, training: Training, fails: bool = False):
        self.training, self.fails, self.recorded = training, fails, 0

    def do(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        live = [*state_of(self.training).values(), *self.training.meter._written.values()]
        before, drawn = [tensor.clone() for tensor in live], torch.get_rng_state()
        with Tape() as tape:
            work()
        with torch.no_grad():
            for tensor, value in zip(live, before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(drawn)
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.recorded += 1
        return tape.play


@pytest.mark.parametrize("fails", [False, True])
def test_steps_are_recorded_by_the_shapes_of_their_batches(fails: bool, room: Path, tmp_path: Path, capsys) -> None:
    spec = spec_of(room, "cglrl", epochs=4, steps_per_epoch=6)
    plain, captured = (adaptation(spec, CPU, tmp_path, fused=True) for _ in range(2))
    tapes = Tapes(captured, fails)
    steps = partial(take_step, plain), CapturedStep(partial(take_step, captured), captured.optimizer, tapes)
    for step in range(18):
        for training, take in zip((plain, captured), steps, strict=True):
            torch.manual_seed(step)
            if step == 6:  # from the second epoch on there are pseudo labels, and one more pass
                choose_pool(training)
            elif step == 0:
                training._asked = True
            batch = training.batch()
            training.begin_step()
            take(batch)
            training.count_step()
        for (name, value), other in zip(state_of(plain).items(), state_of(captured).values(), strict=True):
            assert torch.equal(value, other), (step, name)
    assert plain.meter.flush() == captured.meter.flush()
    assert tapes.recorded == (0 if fails else 2)
    told = (
        "warning: a step cannot be recorded as a CUDA graph here (RuntimeError: operation not permitted when stream is "
        "capturing); training without it (engine.compile=off)\n"
    )
    assert capsys.readouterr().err == told * fails
