"""Several processes that train as one: the rank of this process, and the few messages that they exchange.

torchrun or SLURM starts them, one per device, and `fercli.engine.fabric` connects them; in a single process all of
this is a no-op. `fercli.engine.sharding` describes which work they split and which each does in full.
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

#: Seconds between two polls of the processes (`Poll`), and the time limit for leaving the process group.
POLL_S, LEAVE_S = 0.25, 20.0

#: Group for messages between the CPUs, where the devices have a backend of their own, so that none waits for a GPU.
_messages: Any = None


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def open_cpu_group() -> None:
    """Set up `any_of` and `on_rank_zero`; every process calls it once, after they are connected."""
    global _messages
    if world_size() > 1 and _messages is None:
        _messages = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether any process has set it. All processes must call it."""
    return [bool(vote) for vote in largest(*flags)]


def largest(*numbers: float) -> list[float]:
    """For each number, the largest value of any process. All processes must call it."""
    if world_size() == 1:
        return list(numbers)
    all_ = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(all_, dist.ReduceOp.MAX, group=_messages)
    return all_.tolist()


class Poll:
    """Asks all processes from time to time whether one of them has noticed something, such as a signal.

    One message per step would be too many. Each poll therefore agrees on the step of the next one: after the number of
    steps that the slowest process does in `POLL_S` seconds, and at least one. A signal is noticed with at most that
    delay. A single process is polled at every step.

    Args:
        step: steps done so far.
    """

    def __init__(self, step: int):
        self._asked, self._asked_at, self._due = step, time.monotonic(), step + 1

    def due(self, step: int) -> bool:
        """Whether the processes poll after `step` steps."""
        return world_size() == 1 or step >= self._due

    def any_of(self, step: int, *flags: bool) -> list[bool]:
        """For each flag, whether any process has set it. All must call it at the same step, whether due or not."""
        now = time.monotonic()
        *votes, seconds = largest(*flags, (now - self._asked_at) / max(1, step - self._asked))
        self._asked, self._asked_at = step, now
        self._due = step + max(1, int(POLL_S / max(seconds, 1e-6)))
        return [bool(vote) for vote in votes]


def on_rank_zero(work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Do work in the first process only, and return its result (plain data or CPU tensors) in all processes.

    All processes must call it. A `FercliError` raised by the work ends all processes, and is printed once.
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
    """End this process if several train together; a single process is left alone.

    After success the processes leave the group first, because NCCL warns of a group that is left open. After a failure
    a peer may be gone, and leaving would wait for it. A peer may also die at this moment, so the wait has a time limit.

    Python's own shutdown is skipped. Threads of the process group that release their last tensors then need an
    interpreter that no longer exists, and abort the process (seen with gloo, torch 2.15, one time in four).
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0:
            limit = threading.Timer(LEAVE_S, os._exit, [code])
            limit.daemon = True
            limit.start()
            with contextlib.suppress(RuntimeError):  # a peer has left first: nothing can be lost any more
                dist.destroy_process_group()
        os._exit(code)


def all_gather(tensor: Tensor) -> Tensor:
    """Gather tensors of one shape and type from all processes, in rank order: [processes, ...]. No gradient flows."""
    sent = tensor.detach().contiguous()
    if world_size() == 1:
        return sent[None]
    # Sent as bytes: not every backend supports every dtype.
    raw = sent.flatten().view(torch.uint8)
    got = raw.new_empty(world_size(), len(raw))
    if dist.get_backend(_group(raw)) == "nccl":
        dist.all_gather_into_tensor(got, raw, group=_group(raw))  # writes in place; gloo does not support it
    else:
        dist.all_gather(list(got), raw, group=_group(raw))
    return got.view(sent.dtype).view(world_size(), *sent.shape)


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=_group(tensor))
    return tensor


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Set tensors, of one dtype and on one device, to their means over all processes, in one message."""
    if world_size() > 1 and tensors:
        whole = all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
        means = whole.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Set tensors on one device to those of the first process.

    Values that every process computes then stay equal on different machines. The tensors take one message. The random
    state, which is synchronised too, takes another.
    """
    if world_size() > 1:
        state = torch.get_rng_state()
        for several in (tensors, [state]):
            raw = [tensor.flatten().contiguous().view(torch.uint8) for tensor in several]
            if raw:
                whole = torch.cat(raw)
                dist.broadcast(whole, 0, group=_group(whole))
                for tensor, part in zip(several, whole.split(list(map(len, raw))), strict=True):
                    # a copy, as a part may begin at an offset that is not aligned for its dtype
                    tensor.copy_(part.clone().view(tensor.dtype).view_as(tensor))
        torch.set_rng_state(state)


def _group(tensor: Tensor) -> Any:
    return _messages if tensor.device.type == "cpu" else dist.group.WORLD
