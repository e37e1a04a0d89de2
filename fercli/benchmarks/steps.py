"""The speed of a training or prediction step, the time of its parts, and its use of the device.

The steps are those of `fercli.engine.loop`, on stores of noise (`fercli.benchmarks.stores`). Parts are timed in
separate steps that wait for the device after each part. The whole step is timed without such waits; "rest" is the time
it takes beyond the parts. torch counts the floating point operations as the layers request them (a multiply-add is
two). Utilisation is relative to a large matrix product of the same precision, measured on the same device.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fercli import console
from fercli.benchmarks.operations import Operations
from fercli.benchmarks.stores import noise_store
from fercli.durations import digits
from fercli.engine.acceleration import accelerate, autocast_of, resolve_precision
from fercli.engine.data import open_store, source_faces, target_faces, view_settings
from fercli.engine.fabric import make_fabric
from fercli.engine.loop import begin_epoch, step_taker, take_step
from fercli.engine.network import empty_network
from fercli.engine.stages import train_source
from fercli.engine.training import Training
from fercli.errors import FercliError
from fercli.loading.augment import plain_view
from fercli.loading.batches import Batch
from fercli.loading.face_dataset import FaceDataset
from fercli.machine import Clock, seconds
from fercli.methods import method_class
from fercli.spec import Spec

PARTS = ("batch", "forward", "backward", "optimizer")
#: A small matrix product that takes longer, in seconds, is not followed by the large one.
_SLOW_S = 0.05


class Steps:
    """A stage of training set up on stores of noise, to be run step by step.

    Args:
        spec: what to train and how; its datasets are not read.
        stage: ``train`` or ``adapt``.
        room: a folder for the stores; it is created if it does not exist.
    """

    def __init__(self, spec: Spec, stage: str, room: Path):
        adapts = stage == "adapt"
        kind = method_class(spec.adapt.method if adapts else "source-only")
        if kind.oracle:
            raise FercliError(f"adapt.method {spec.adapt.method} reads target labels, but noise has none")
        self.spec = spec = on_noise(spec, room)
        count = max(256, 2 * (spec.adapt if adapts else spec.train_source).batch)
        for seed, name in enumerate(("source", "target") if adapts else ("source",)):
            noise_store(room, name, count, spec.prepare, spec.model.reads_crops, seed)
        fabric = make_fabric(spec.engine)
        self.device = fabric.device
        source = source_faces(spec, self.device) if kind.needs_source else None
        target = target_faces(spec, open_store(spec, "target", labels=False), self.device) if adapts else None
        network = empty_network(spec)
        self.training = Training(spec, fabric, network, source, target, room, record={})
        self._take_step: Callable[[Batch], None] | None = None
        begin_epoch(self.training)

    def run(self, timed: Callable[[str], Any] = nullcontext) -> None:
        """Do one step as the training loop does. `timed` maps the name of a part to a context manager for it."""
        with timed("batch"):
            batch = self.training.batch()
        self.training.begin_step()
        self.update(batch, timed)
        self.training.count_step()

    def update(self, batch: Batch, timed: Callable[[str], Any]) -> None:
        """Do the rest of a step after its batch is made, exactly as the training loop does unless parts are `timed`."""
        if timed is nullcontext:
            self._take_step = self._take_step or step_taker(self.training)
            self._take_step(batch)
        else:
            take_step(self.training, batch, timed)


def on_noise(spec: Spec, room: Path) -> Spec:
    """The spec with the stores in `room`, with ``source`` as the source and a randomly initialised network."""
    paths, data = {"prepared": room, "runs": room / "runs"}, {"source": ["source"], "validation": 0.1}
    return changed(spec, paths=paths, data=data, model={"weights": None})


def changed(spec: Spec, **sections: dict[str, Any]) -> Spec:
    """The spec with new values for some keys, such as ``adapt={"batch": 8}``."""
    return spec.model_copy(
        update={name: getattr(spec, name).model_copy(update=values) for name, values in sections.items()}
    )


def measure(
    spec: Spec, stage: str, batches: Sequence[int], precisions: Sequence[str], steps: int, rounds: int, room: Path
) -> dict[str, Any]:
    """Measure every batch size at every precision.

    Args:
        stage: ``train``, ``adapt`` or ``predict``.
        batches: faces per domain (empty: the spec's).
        precisions: values of ``engine.precision`` (empty: the spec's).
        steps: steps per round, after two that are not counted.
        rounds: number of rounds; results are medians over them.
        room: a folder for stores of noise.

    Returns:
        A JSON document; see `tables`. A batch that does not fit into the device's memory has the row
        ``{"batch", "precision", "failed"}``.
    """
    own = {"train": spec.train_source.batch, "adapt": spec.adapt.batch, "predict": spec.engine.evaluate_batch}
    sizes = list(batches) or [own[stage]]
    rows, cells = [], [(p, b) for p in list(precisions) or [spec.engine.precision] for b in sizes]
    with console.progress(f"bench {stage}", total=len(cells)) as bar:
        for number, (precision, batch) in enumerate(cells):
            cell = with_settings(spec, stage, batch, precision)
            try:
                row = (_predict if stage == "predict" else _train)(cell, stage, steps, rounds, room / str(number))
            except torch.cuda.OutOfMemoryError:
                row = {"batch": batch, "precision": precision, "failed": "out of memory"}
                torch.cuda.empty_cache()
            rows.append(row)
            bar.advance()
    return {
        "bench": stage,
        "backbone": spec.model.backbone,
        "width": spec.model.width,
        "method": spec.adapt.method if stage == "adapt" else None,
        "options": spec.adapt.options if stage == "adapt" else None,
        "steps": steps,
        "rounds": rounds,
        "rows": rows,
    }


def with_settings(spec: Spec, stage: str, batch: int, precision: str) -> Spec:
    """The spec with the given batch size and precision."""
    section = {"train": "train_source", "adapt": "adapt", "predict": "engine"}[stage]
    key = "evaluate_batch" if stage == "predict" else "batch"
    return changed(changed(spec, engine={"precision": precision}), **{section: {key: batch}})


def _train(spec: Spec, stage: str, steps: int, rounds: int, room: Path) -> dict[str, Any]:
    made = Steps(spec, stage, room)
    training = made.training
    with FlopCounterMode(display=False) as counter:
        made.run(Clock())
    chosen = accelerate(training.network, spec.engine, made.device, training.faces_a_step)
    made.run(Clock())  # the first step also sends some constants to the device
    with Operations(made.device.type) as seen:
        made.run(Clock())
    chosen |= _counted(seen, made.device)
    _forget_peak(made.device)
    for _ in range(2):
        made.run()
    parts = Clock(made.device)
    for _ in range(steps):
        made.run(parts)
    training.batches.waited = 0.0
    spent = seconds(lambda: [made.run() for _ in range(steps)], made.device, rounds, warm=0)
    flops, waited = counter.get_total_flops(), training.batches.waited / (rounds * steps)
    faces = training.plan.batch, training.faces_a_step
    return _row(spec, made.device, chosen, *faces, steps, spent, parts.spent, flops, waited)


@torch.no_grad()
def _predict(spec: Spec, stage: str, steps: int, rounds: int, room: Path) -> dict[str, Any]:
    fabric, batch = make_fabric(spec.engine), spec.engine.evaluate_batch
    device = fabric.device
    store = noise_store(room, "source", max(256, batch), spec.prepare, spec.model.reads_crops)
    faces = FaceDataset([store], [np.arange(len(store))], device, spec.model.reads_crops, spec.engine.data)
    network = empty_network(spec).to(device).eval()
    settings, precision = view_settings(spec), resolve_precision(spec.engine.precision, device.type)
    half, positions, waited = autocast_of(precision), np.arange(batch), 0.0

    def run(timed: Callable[[str], Any] = nullcontext) -> None:
        nonlocal waited
        with timed("batch"):
            started = time.perf_counter()
            rows = faces.gather(positions)
            waited += time.perf_counter() - started
            view = plain_view(*rows, settings)
        with timed("forward"), torch.autocast(device.type, half, enabled=half is not None):
            output = network(*view.inputs)
        output.logits.float().softmax(-1).cpu()

    with FlopCounterMode(display=False) as counter:
        run()
    with Operations(device.type) as seen:
        run()
    _forget_peak(device)
    run()
    parts = Clock(device)
    for _ in range(steps):
        run(parts)
    waited = 0.0
    spent = seconds(lambda: [run() for _ in range(steps)], device, rounds, warm=0)
    how = {"crop_nets": network.local_nets.implementation, "compile": False}
    chosen = {"precision": precision, **how, **_counted(seen, device)}
    flops = counter.get_total_flops()
    return _row(spec, device, chosen, batch, batch, steps, spent, parts.spent, flops, waited / (rounds * steps))


def _row(spec, device, chosen, batch, images, steps, spent, parts, flops, waited) -> dict[str, Any]:
    step = statistics.median(spent) / steps
    used = {name: value / steps for name, value in parts.items() if value}
    used["rest"] = max(0.0, step - sum(used.values()))
    peak = matmul_peak(device, chosen["precision"])
    return {
        "batch": batch,
        "images_per_step": images,
        **chosen,
        "step_ms": 1e3 * step,
        "spread_ms": [1e3 * min(spent) / steps, 1e3 * max(spent) / steps],
        "steps_per_s": 1 / step,
        "images_per_s": images / step,
        "parts_ms": {name: 1e3 * value for name, value in used.items()},
        "shares": {name: value / sum(used.values()) for name, value in used.items()},
        "gflop_per_step": flops / 1e9,
        "tflops": flops / step / 1e12,
        "matmul_peak_tflops": peak / 1e12,
        "utilisation": flops / step / peak,
        "memory_peak_mb": _peak_mb(device),
        "data_wait": waited / step,
    }


@cache
def matmul_peak(device: torch.device, precision: str) -> float:
    """Floating point operations per second of a large square matrix product, the best of several. Measured once.

    It is computed as a product and as a 1x1 convolution, which is the same sum. On CPUs these use different libraries,
    and which is faster depends on the CPU's manufacturer. A way that is slow for a small product (bfloat16 on a CPU
    without instructions for it) is not tried with the large one, which would take minutes.
    """
    dtype = autocast_of(precision) or torch.float32
    peak = 0.0
    for product in (torch.matmul, _as_convolution):
        for size in (8192,) if device.type == "cuda" else (512, 1536):
            one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            spent = min(seconds(partial(product, one, other), device, rounds=3, warm=2))
            peak = max(peak, 2 * size**3 / spent)
            if spent > _SLOW_S:
                break
    return peak


def _as_convolution(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    size = len(one)
    pixels = one.t().reshape(1, size, size, 1).contiguous(memory_format=torch.channels_last)
    kernel = other.t().reshape(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
    return F.conv2d(pixels, kernel)


def _counted(seen: Operations, device: torch.device) -> dict[str, int | None]:
    """The operation and wait counts of a step, for a row. On a CPU there is no device to wait for."""
    return {"operations": seen.total, "host_waits": None if device.type == "cpu" else len(seen.waits)}


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mb(device: torch.device) -> float | None:
    """Peak device memory since `_forget_peak`; on a CPU, of the process since it started. None on Windows' CPUs."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return None
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes on macOS, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_epochs(spec: Spec, counts: Sequence[int], room: Path) -> list[dict[str, float]]:
    """Train one whole epoch of stage 1 for each number of faces, from opening the store to the last checkpoint.

    A short epoch before, which is not counted, loads everything that is loaded once.

    Returns:
        A row for each count: faces, seconds, seconds per thousand faces.
    """
    rows = []
    with console.progress("bench train, epochs", total=len(counts)) as bar:
        for number, count in enumerate([min(counts), *counts]):
            folder = room / f"epoch-{number}"
            noise_store(folder, "source", count, spec.prepare, spec.model.reads_crops)
            cell = changed(on_noise(spec, folder), train_source={"epochs": 1, "steps_per_epoch": None})
            started = time.perf_counter()
            with console.hushed():
                train_source(cell)
            spent = time.perf_counter() - started
            if number:
                rows.append({"faces": count, "seconds": spent, "seconds_per_1000": 1e3 * spent / count})
                bar.advance()
    return rows


def tables(result: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Return columns and rows of a result of `measure` for the console: speed, and the shares of a step's parts."""
    columns = ["batch", "precision", "ms/step", "steps/s", "images/s"]
    columns += ["GFLOP/step", "TFLOP/s", "utilisation", "memory MB", "data wait"]
    done = [row for row in result["rows"] if "failed" not in row]
    parts = [name for name in (*PARTS, "rest") if any(name in row["shares"] for row in done)]
    speed, shares = [], []
    for row in result["rows"]:
        head = [str(row["batch"]), row["precision"]]
        if "failed" in row:
            speed.append([*head, row["failed"], *[""] * (len(columns) - 3)])
            continue
        speed.append(
            [
                *head,
                *(digits(row[key]) for key in ("step_ms", "steps_per_s", "images_per_s", "gflop_per_step", "tflops")),
                f"{row['utilisation']:.0%}",
                *("-" if row["memory_peak_mb"] is None else f"{row['memory_peak_mb']:.0f}", f"{row['data_wait']:.1%}"),
            ]
        )
        spent = (f"{row['shares'].get(name, 0):.0%}" for name in parts)
        shares.append(
            [*head, *spent, f"{row['operations']:,}", "-" if row["host_waits"] is None else str(row["host_waits"])]
        )
    return [(columns, speed), (["batch", "precision", *parts, "operations", "host waits"], shares)]
