"""A whole step as one CUDA graph: recorded once, then run for every further batch by a single launch.

A step consists of thousands of small operations. Launched one by one, they keep a fast device waiting for the CPU. A
graph needs one launch. It repeats exactly what was recorded, on the same memory. A step therefore reads its batch from
tensors that stay in place, and every number that changes from step to step (rates, training progress, the meter's row)
is in a tensor that is filled before the step (`fercli.engine.training.Training.begin_step`).
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

#: Steps that run unrecorded before one is recorded, so that one-time choices, compilation and allocation are done.
WARM_STEPS = 3


def captures(engine: Engine, device: torch.device) -> bool:
    """Whether steps are recorded: on one CUDA device, unless ``engine.compile`` is off.

    With float16 they are not recorded: its gradient scaling checks at every step whether the gradients are finite.
    """
    alone = device.type == "cuda" and distributed.world_size() == 1
    return alone and engine.compile != "off" and resolve_precision(engine.precision, "cuda") != "16-mixed"


def tensors(batch: Batch) -> Iterator[Tensor | None]:
    """All tensors of a batch, always in the same order; None for a tensor that the batch does not have."""
    for part in batch:
        yield from part.inputs if isinstance(part, View) else (part,)


def shapes(batch: Batch) -> Hashable:
    """The shapes and types of a batch's tensors. A recorded step fits all batches with the same ones."""
    return tuple(None if each is None else (each.shape, each.dtype) for each in tensors(batch))


def cloned(batch: Batch) -> Batch:
    """A copy of a batch in its own memory."""

    def clone(part: Any) -> Any:
        if isinstance(part, View):
            return View(*(None if each is None else each.clone() for each in part.inputs))
        return None if part is None else part.clone()

    return Batch(*map(clone, batch))


def fill(batch: Batch, source: Batch) -> None:
    """Copy the numbers of `source` into the tensors of `batch`, which has the same `shapes`."""
    pairs = [(to, of) for to, of in zip(tensors(batch), tensors(source), strict=True) if to is not None]
    torch._foreach_copy_([to for to, _ in pairs], [of for _, of in pairs])


class CudaGraphs:
    """Records work on the current CUDA device as graphs. They share their memory: only one runs at a time."""

    def __init__(self) -> None:
        # One stream for the warm-up steps and the recording: what autograd keeps from the first serves the second.
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def do(self, work: Callable[[], None]) -> None:
        """Do work directly, on the stream that it will be recorded on."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work without doing it; returns a function that does it in one launch. All errors are raised."""
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are checked: another thread may fetch the next faces meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CapturedStep:
    """Does a step on a batch: by replaying a recorded step as soon as there is one for the batch's shapes.

    If recording fails, steps run unrecorded from then on, and one warning is printed.

    Args:
        step: does the step. All tensors that it reads beside its batch, and all that it changes, stay in place; it
            never waits for the device (`fercli.methods.base.Method`).
        optimizer: of the step; its gradients are allocated in the graph's memory.
        graphs: records and replays.
    """

    def __init__(self, step: Callable[[Batch], None], optimizer: torch.optim.Optimizer, graphs: CudaGraphs):
        self._step, self._optimizer, self._graphs = step, optimizer, graphs
        self._done: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Callable[[], None], Batch]] = {}
        self._gave_up = False

    def __call__(self, batch: Batch) -> None:
        # Weight decay is a Python number, and changes once with ``late_rates``.
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
        except Exception as problem:  # nothing has been computed: recording does not run the step
            self._gave_up = True
            self._optimizer.zero_grad(set_to_none=True)
            console.warn(
                f"a step cannot be recorded as a CUDA graph here ({first_line(problem)}); training without it "
                "(engine.compile=off)"
            )
