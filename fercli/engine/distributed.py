"""Several processes that train as one: who this one is, and the little that they tell each other.

torchrun or SLURM starts them, one a device, and `fercli.engine.fabric` makes them known to each other; in a process on
its own all of this is a no-op. What they share out, and what they do alike, stands in `fercli.engine.sharding`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fercli.errors import FercliError

T = TypeVar("T")

#: Seconds between two polls of the processes (`Poll`), and what taking leave of the others may last.
POLL_S, LEAVE_S = 0.25, 20.0

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
    return [bool(vote) for vote in largest(*flags)]


def largest(*numbers: float) -> list[float]:
    """Of each number the largest that any process has. All must call it."""
    if world_size() == 1:
        return list(numbers)
    all_ = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(all_, dist.ReduceOp.MAX, group=_messages)
    return all_.tolist()


class Poll:
    """Asks all processes, every now and then, what one alone may have seen, such as a signal.

    A message a step would be one too many. So each poll agrees on when the next one is: after as many steps as the
    slowest process does in `POLL_S` seconds, at least one. A signal is heard that much later at most, and a process
    on its own is asked at every step.

    Args:
        step: steps done.
    """

    def __init__(self, step: int):
        self._asked, self._asked_at, self._due = step, time.monotonic(), step + 1

    def due(self, step: int) -> bool:
        """Whether all processes ask after `step` steps."""
        return world_size() == 1 or step >= self._due

    def any_of(self, step: int, *flags: bool) -> list[bool]:
        """For each flag, whether any process has it set. All must call it, at the same step: when it is due, or not."""
        now = time.monotonic()
        *votes, seconds = largest(*flags, (now - self._asked_at) / max(1, step - self._asked))
        self._asked, self._asked_at = step, now
        self._due = step + max(1, int(POLL_S / max(seconds, 1e-6)))
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

    After a good run they take leave of each other first: NCCL warns of a group that is left open. After a failure a
    peer may be gone, and leaving would wait for it; the same goes for one that dies now, so that the wait is limited.

    Python's own end is passed by: threads of the process group that let go of their last tensors then need an
    interpreter that is gone, and abort the process (seen with gloo, torch 2.15, one time in four).
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0:
            limit = threading.Timer(LEAVE_S, os._exit, [code])
            limit.daemon = True
            limit.start()
            with contextlib.suppress(RuntimeError):  # a peer has gone first: nothing is left to be lost
                dist.destroy_process_group()
        os._exit(code)


def all_gather(tensor: Tensor) -> Tensor:
    """Tensors of one shape and type from all processes, in their order: [processes, ...]. No gradient passes."""
    sent = tensor.detach().contiguous()
    if world_size() == 1:
        return sent[None]
    # As bytes: not every backend knows every type of number.
    raw = sent.flatten().view(torch.uint8)
    got = raw.new_empty(world_size(), len(raw))
    if dist.get_backend(_group(raw)) == "nccl":
        dist.all_gather_into_tensor(got, raw, group=_group(raw))  # straight to its place; gloo has no such thing
    else:
        dist.all_gather(list(got), raw, group=_group(raw))
    return got.view(sent.dtype).view(world_size(), *sent.shape)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=_group(tensor))
    return tensor


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Set tensors, of one type and on one device, to their means over all processes, in one message."""
    if world_size() > 1 and tensors:
        whole = all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
        means = whole.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Set tensors on one device to the first process's: what all compute alike then stays alike whatever machines they
    run on. One message for all of them, and one for the random numbers, which are made alike too.
    """
    if world_size() > 1:
        state = torch.get_rng_state()
        for several in (tensors, [state]):
            raw = [tensor.flatten().contiguous().view(torch.uint8) for tensor in several]
            if raw:
                whole = torch.cat(raw)
                dist.broadcast(whole, 0, group=_group(whole))
                for tensor, part in zip(several, whole.split(list(map(len, raw))), strict=True):
                    # a copy, as a part may begin at a place where no number of its type can
                    tensor.copy_(part.clone().view(tensor.dtype).view_as(tensor))
        torch.set_rng_state(state)


def _group(tensor: Tensor) -> Any:
    return _messages if tensor.device.type == "cpu" else dist.group.WORLD
