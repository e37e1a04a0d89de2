"""Several processes that train as one: who this one is, and the little that they tell each other.

torchrun or SLURM starts them, one a device, and `fercli.engine.fabric` makes them known to each other; in a process on
its own all of this is a no-op. What they share out, and what they do alike, stands in `fercli.engine.sharding`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fercli.errors import FercliError

T = TypeVar("T")

#: Messages between the CPUs go here where the devices talk by a backend of their own, so that none waits for a GPU.
_messages: Any = None


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def open_cpu_group() -> None:
    """Set up `any_of` and `on_rank_zero`; called once by every process when they have met."""
    global _messages
    if world_size() > 1 and _messages is None:
        _messages = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether any process has it set. All must call it."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX, group=_messages)
    return [bool(vote) for vote in votes]


def on_rank_zero(work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Do work in the first process only and give its result, plain data or tensors on the CPU, to all.

    All must call it. A `FercliError` that comes up in it ends all processes, and is told once.
    """
    if world_size() == 1:
        return work(*arguments, **named)
    answer: list[Any] = [None, None]
    failure = None
    if rank() == 0:
        try:
            answer[0] = work(*arguments, **named)
        except FercliError as problem:
            failure, answer[1] = problem, problem.exit_code
    dist.broadcast_object_list(answer, 0, group=_messages)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise SystemExit(answer[1])
    return answer[0]


def end_process(code: int) -> None:
    """End this process where several train together; alone it does nothing.

    Python's own end is passed by: threads of the process group that let go of their last tensors then need an
    interpreter that is gone, and abort the process (seen with gloo, torch 2.15, one time in four).
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Tensors of one shape [at least one axis] and type, from all processes in their order. No gradient passes."""
    if world_size() == 1:
        return [tensor]
    sent = tensor.detach().contiguous()
    # As bytes: not every backend knows every type of number.
    raw = sent.view(torch.uint8) if sent.element_size() != 1 else sent
    got = [torch.empty_like(raw) for _ in range(world_size())]
    dist.all_gather(got, raw, group=_group(raw))
    return [each.view(sent.dtype) for each in got]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=_group(tensor))
    return tensor


def all_reduce_count(number: int) -> int:
    """The sum of a number over all processes."""
    return int(all_reduce(torch.tensor(number)))


@torch.no_grad()
def broadcast(tensors: list[Tensor]) -> None:
    """Set tensors to the first process's: what all compute alike then stays alike whatever machines they run on."""
    if world_size() > 1:
        state = torch.get_rng_state()  # of the random numbers, too
        for tensor in (*tensors, state):
            dist.broadcast(tensor, 0, group=_group(tensor))
        torch.set_rng_state(state)


def _group(tensor: Tensor) -> Any:
    return _messages if tensor.device.type == "cpu" else dist.group.WORLD
