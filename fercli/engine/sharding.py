"""One batch, several processes: each runs the network on its share, and all compute the losses of the whole batch.

Of every view of a global batch, process r of W holds the faces r, r + W, r + 2 W, ... `ShardedNetwork` puts the answers
of all back in the order of the whole batch, so that a method computes in every process what it would compute in one:
its losses, their sums over a domain, sorted batches, banks, dropout and logs are those of the global batch, and nothing
in a method knows of processes. Only the network is shared out, where all the work is; heads and discriminators that a
method puts on its answers are computed in each process again.

Gradients: the loss is one and the same in all W processes, so W times its gradient goes back to this process's faces;
the mean over the processes that DDP takes is then the gradient of one process. What lies behind the answers has the
same gradient everywhere, and the mean changes nothing.

Batch norms of the network see the global batch (`sync_norms`); those of a method see its gathered answers anyway.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fercli.engine import distributed
from fercli.errors import FercliError


def shard_of(count: int) -> slice:
    """Which of a batch's `count` faces are this process's; all where it is alone."""
    return slice(distributed.rank(), count, distributed.world_size())


def check_batch(batch: int, key: str) -> None:
    """Refuse a batch that cannot be shared evenly.

    Raises:
        FercliError: it is no multiple of the processes.
    """
    world = distributed.world_size()
    if batch % world:
        nearest = max(world, round(batch / world) * world)
        raise FercliError(f"{key} {batch} cannot be shared evenly by {world} processes", f"set it to {nearest}, say")


class ShardedNetwork:
    """The network as a method calls it: this process's faces go in, the whole batch's answers come out.

    Args:
        network: in training mode; returns a named tuple of tensors [faces, ...]. Its attributes are reachable here.
        uneven: whether some call may bring another number of faces than in another process
            (`Batch.pseudo_labelled`): then they are counted first.
    """

    def __init__(self, network: nn.Module, uneven: bool = False):
        self._network, self._uneven = network, uneven

    def __call__(self, images: Tensor, *others: Any) -> Any:
        answers = self._network(images, *others)
        total = distributed.all_reduce_count(len(images)) if self._uneven else len(images) * distributed.world_size()
        return type(answers)(*(_AllGather.apply(each, total) for each in answers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class _AllGather(torch.autograd.Function):
    """Rows [n, ...] of this process -> rows [total, ...] of all, in the order of the whole batch."""

    @staticmethod
    def forward(ctx, mine: Tensor, total: int) -> Tensor:
        most = -(-total // distributed.world_size())
        if len(mine) < most:  # the last row of an uneven batch
            mine = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        return torch.stack(distributed.all_gather(mine), 1).flatten(0, 1)[:total]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[shard_of(len(gradient))] * distributed.world_size(), None


def sync_norms(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a network normalise by the global batch in training, in place; parameters stay.

    On CUDA by torch's own SyncBatchNorm. That has no CPU side: there ours does the same. A module that can run its
    norms by another ``implementation`` than calling them one by one (crop nets side by side) is told to call them.
    """
    for module in network.modules():
        if hasattr(module, "implementation"):
            module.implementation = "loop"
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Shared{kind.__name__}", (_SyncNorm, kind), {})


class _SyncNorm(_BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, self.momentum, self.eps
            )
        self.num_batches_tracked.add_(1)
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (count / (count - 1).clamp_min(1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        return out


class _Normalise(torch.autograd.Function):
    """Batch norm over the values [B, C, ...] of all processes, which may hold different numbers of them, or none.

    Returns what `x` becomes, and mean [C], biased variance [C] and number of values a channel [1], in float64.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, axes = x.shape[1], [0, *range(2, x.dim())]
        wide = x.double()
        number = wide.new_full((1,), x.numel() // channels)
        mean = wide.sum(axes) / number.clamp_min(1)
        spread = (wide - _across(mean, x)).square().sum(axes)
        means, spreads, numbers = torch.stack(distributed.all_gather(torch.cat([mean, spread, number]))).split(
            [channels, channels, 1], 1
        )
        count = numbers.sum(0)
        mean = (means * numbers).sum(0) / count
        variance = (spreads + numbers * (means - mean).square()).sum(0) / count
        scale = (variance + eps).rsqrt().float()
        ctx.save_for_backward(x, weight, mean.float(), scale, count)
        out = (x.float() - _across(mean.float(), x)) * _across(scale * weight, x) + _across(bias, x)
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        wide, normal = gradient.float(), (x.float() - _across(mean, x)) * _across(scale, x)
        of_bias, of_weight = wide.sum(axes), (wide * normal).sum(axes)
        shift, stretch = (distributed.all_reduce(torch.cat([of_bias, of_weight])) / count.float()).chunk(2)
        back = (wide - _across(shift, x) - normal * _across(stretch, x)) * _across(scale * weight, x)
        return back.to(x.dtype), of_weight, of_bias, None


def _across(values: Tensor, like: Tensor) -> Tensor:
    """Values [C] to be broadcast over [B, C, ...]."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))
