"""A whole step as one CUDA graph: recorded once, then run for every further batch by a single launch.

Run one by one, the thousands of small operations of a step keep a fast device waiting for the processor that launches
them. A graph is launched at once. It does exactly what was recorded, on the same memory: so a step reads its batch from
tensors that stay, and every number that differs from step to step (rates, how far training is, the row of the meter)
lies in a tensor that is filled before (`fercli.engine.training.Training.begin_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from fercli import console
from fercli.engine import distributed
from fercli.engine.acceleration import first_line, resolve_precision
from fercli.errors import FercliError
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.spec import Engine

#: Steps that are done as they are before one is recorded: what is chosen, compiled or allocated once is there then.
WARM_STEPS = 3


def captures(engine: Engine, device: torch.device) -> bool:
    """Whether steps are recorded: on one CUDA device, unless ``engine.compile`` is off.

    With float16 they are not: its scaling looks at every step whether the gradients are finite.
    """
    alone = device.type == "cuda" and distributed.world_size() == 1
    return alone and engine.compile != "off" and resolve_precision(engine.precision, "cuda") != "16-mixed"


def tensors(batch: Batch) -> Iterator[Tensor | None]:
    """All tensors of a batch, always in the same order; None for what it has not."""
    for part in batch:
        yield from part.inputs if isinstance(part, View) else (part,)


def shapes(batch: Batch) -> Hashable:
    """What one recorded step fits: shapes and types of a batch's tensors."""
    return tuple(None if each is None else (each.shape, each.dtype) for each in tensors(batch))


def cloned(batch: Batch) -> Batch:
    """A batch of the same numbers in memory of its own."""

    def clone(part: Any) -> Any:
        if isinstance(part, View):
            return View(*(None if each is None else each.clone() for each in part.inputs))
        return None if part is None else part.clone()

    return Batch(*map(clone, batch))


def fill(batch: Batch, source: Batch) -> None:
    """Copy the numbers of `source` into the tensors of `batch`, of the same `shapes`."""
    pairs = [(to, of) for to, of in zip(tensors(batch), tensors(source), strict=True) if to is not None]
    torch._foreach_copy_([to for to, _ in pairs], [of for _, of in pairs])


class CudaGraphs:
    """Records work on the current CUDA device as graphs, which share their memory: one of them runs at a time."""

    def __init__(self) -> None:
        # One stream for what is done beforehand and for the recording: what autograd keeps of the one serves the other.
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def do(self, work: Callable[[], None]) -> None:
        """Do work as it is, on the stream where it will be recorded."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work without doing it; returns what does it, by one launch. Whatever goes wrong is raised."""
        graph = torch.cuda.CUDAGraph()
        # Only this thread's doings: another one may fetch the next faces meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CapturedStep:
    """Does a step on a batch, by a recorded one as soon as there is one for batches of its shapes.

    Where recording fails, steps are done as they are, and a warning says so once.

    Args:
        step: does it. All that it reads beside its batch stays in its place, and so does all that it changes; it waits
            for nothing (`fercli.methods.base.Method`).
        optimizer: of the step; its gradients are made in the graph's memory.
        graphs: records and repeats.
    """

    def __init__(self, step: Callable[[Batch], None], optimizer: torch.optim.Optimizer, graphs: CudaGraphs):
        self._step, self._optimizer, self._graphs = step, optimizer, graphs
        self._done: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Callable[[], None], Batch]] = {}
        self._gave_up = False

    def __call__(self, batch: Batch) -> None:
        # Decay is a number of Python's, and changes once where ``late_rates`` has it so.
        kind = shapes(batch), tuple(group["weight_decay"] for group in self._optimizer.param_groups)
        done = self._done[kind] = self._done.get(kind, 0) + 1
        if done > WARM_STEPS and kind not in self._recorded and not self._gave_up:
            self._record(kind, batch)
        if kind not in self._recorded:
            self._graphs.do(lambda: self._step(batch))
            return
        repeat, inputs = self._recorded[kind]
        fill(inputs, batch)
        repeat()

    def _record(self, kind: Hashable, batch: Batch) -> None:
        inputs = cloned(batch)
        self._optimizer.zero_grad(set_to_none=True)
        try:
            self._recorded[kind] = self._graphs.record(lambda: self._step(inputs)), inputs
        except FercliError:
            raise
        except Exception as problem:  # nothing was done yet: what is recorded does not run
            self._gave_up = True
            self._optimizer.zero_grad(set_to_none=True)
            console.warn(
                f"a step cannot be recorded as a CUDA graph here ({first_line(problem)}); going on without it "
                "(engine.compile=off)"
            )
