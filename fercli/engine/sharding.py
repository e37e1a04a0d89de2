"""One batch, several processes: each runs the network on its share, and all compute the losses of the whole batch.

Of every view of a global batch, process r of W holds the faces r, r + W, r + 2 W, ... `ShardedNetwork` gathers the
outputs of all processes in the order of the whole batch. A method therefore computes the same in every process as it
would in a single one: its losses, their sums over a domain, sorted batches, banks, dropout and logs are those of the
global batch, and no method needs to know about processes. Only the network, which does nearly all the work, is split.
Heads and discriminators that a method applies to its outputs are computed again in each process.

Gradients: the loss is identical in all W processes, so W times its gradient is passed back to this process's faces. The
mean that DDP takes over the processes is then the gradient of a single process. Whatever comes after the outputs has
the same gradient in every process, and the mean does not change it.

Every view of a batch has the same number of faces in each process, in every step.

Batch norms of the network use the global batch (`sync_norms`), at the cost of two messages per norm and pass. With
``engine.batch_norm: local`` they use only their process's share and need no message. They then normalise by other
statistics than a single process would, and `average_norms` makes their running statistics equal again. Batch norms of a
method receive its gathered outputs in either case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fercli.engine import distributed
from fercli.errors import FercliError


def shard_of(count: int) -> slice:
    """The indices of this process's faces among a batch's `count` faces; all of them in a single process."""
    return slice(distributed.rank(), count, distributed.world_size())


def check_batch(batch: int, key: str) -> None:
    """Refuse a batch that cannot be split evenly.

    Raises:
        FercliError: its size is not a multiple of the number of processes.
    """
    world = distributed.world_size()
    if batch % world:
        nearest = max(world, round(batch / world) * world)
        raise FercliError(
            f"{key} {batch} cannot be split evenly over {world} processes", f"set it to {nearest}, for example"
        )


class ShardedNetwork:
    """The network as a method calls it: takes this process's faces, returns the whole batch's outputs, in one message.

    Args:
        network: in training mode; returns a named tuple of tensors [faces, ...]. Its attributes are reachable here.
    """

    def __init__(self, network: nn.Module):
        self._network = network

    def __call__(self, images: Tensor, *others: Any) -> Any:
        answers = self._network(images, *others)
        rows = [each.flatten(1) for each in answers]
        parts = _AllGather.apply(torch.cat(rows, 1)).split([each.shape[1] for each in rows], 1)
        # torch.cat has converted tensors of different dtypes to the widest one
        return type(answers)(
            *(part.unflatten(1, each.shape[1:]).to(each.dtype) for part, each in zip(parts, answers, strict=True))
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class _AllGather(torch.autograd.Function):
    """Rows [n, K] of each of W processes -> rows [W n, K] of all, in the order of the whole batch."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        return distributed.all_gather(mine).transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[shard_of(len(gradient))] * distributed.world_size()


def sync_norms(network: nn.Module) -> None:
    """Make every batch norm of a network normalise by the global batch in training, in place; parameters stay.

    torch's SyncBatchNorm is not used. It does not run on CPUs, it counts batches, and on CUDA the host waits for the
    device in each norm in order to skip processes without faces, which do not occur here.

    Nets that run side by side (`fercli.models.local.LocalNets`) then exchange one message for all their norms at the
    same position.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Sync{kind.__name__}", (_SyncNorm, kind), {})
    for module in network.modules():
        if hasattr(module, "implementation"):
            module.implementation = module.implementation  # stacks the nets again, with these norms


def average_norms(network: nn.Module) -> None:
    """Set the running statistics of a network's batch norms to their means over the processes, in one message.

    Their update is linear, r + m (batch - r). The mean of the processes' statistics is therefore what the mean of their
    batches' statistics would have given, whenever and however often it is taken. A mean of variances leaves out the
    spread between the shares' means, as a running variance leaves it out between batches.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    distributed.average([statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)])


class _SyncNorm(_BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        normalise = _NormaliseOnCuda if x.is_cuda else _Normalise
        return normalise.apply(
            *(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)
        )


class _Normalise(torch.autograd.Function):
    """Batch norm over the values [B, C, ...] of all processes, all with the same B. Sums are in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum, eps
    ) -> Tensor:
        channels, axes = x.shape[1], [0, *range(2, x.dim())]
        wide, number = x.double(), x.numel() // channels
        count = number * distributed.world_size()
        mean = wide.mean(axes)
        spread = (wide - _across(mean, x)).square().sum(axes)
        means, spreads = distributed.all_gather(torch.stack([mean, spread])).unbind(1)
        mean = means.mean(0)
        spread = (spreads + number * (means - mean).square()).sum(0)
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((spread / max(count - 1, 1)).to(running_var), momentum)
        scale = (spread / count + eps).rsqrt().float()
        ctx.save_for_backward(x, weight, mean.float(), scale)
        ctx.count = count
        out = (x.float() - _across(mean.float(), x)) * _across(scale * weight, x) + _across(bias, x)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        wide, normal = gradient.float(), (x.float() - _across(mean, x)) * _across(scale, x)
        of_bias, of_weight = wide.sum(axes), (wide * normal).sum(axes)
        shift, stretch = (distributed.all_reduce(torch.stack([of_bias, of_weight])) / ctx.count).unbind()
        back = (wide - _across(shift, x) - normal * _across(stretch, x)) * _across(scale * weight, x)
        return back.to(x.dtype), of_weight, of_bias, None, None, None, None


class _NormaliseOnCuda(torch.autograd.Function):
    """The same with torch's CUDA kernels for its own sync norm: one pass over `x` for its moments, one for the rest.

    No step reads a number back from the device.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum, eps
    ) -> Tensor:
        x = _dense(x)
        mean, inverse = torch.batch_norm_stats(x, eps)
        means, inverses = distributed.all_gather(torch.stack([mean, inverse])).unbind(1)
        counts = mean.new_full((len(means),), x.numel() // x.shape[1])
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x, means.contiguous(), inverses.contiguous(), running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts)
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        gradient = _dense(gradient)
        sums = torch.batch_norm_backward_reduce(gradient, x, mean, inverse, weight, True, True, True)
        of_all, with_x = distributed.all_reduce(torch.stack(sums[:2])).unbind()
        back = torch.batch_norm_backward_elemt(gradient, x, mean, inverse, weight, of_all, with_x, counts.int())
        return back, sums[2], sums[3], None, None, None, None


def _dense(maps: Tensor) -> Tensor:
    """Maps in one of the two memory layouts that the kernels support; a copy if they are in neither."""
    return maps if maps.is_contiguous(memory_format=_layout(maps)) else maps.contiguous()


def _layout(maps: Tensor) -> torch.memory_format:
    return torch.channels_last if maps.dim() == 4 else torch.contiguous_format


def _across(values: Tensor, like: Tensor) -> Tensor:
    """Values [C] to be broadcast over [B, C, ...]."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))
