"""Runs nets of one architecture with separate weights as one net, with their channels side by side.

Layer k of all G nets becomes one operation on [B, G c, H, W]: convolutions have G times as many groups, batch norms and
slopes G times as many channels. Parameters and statistics stay in their nets, under their names, and are concatenated
for every pass, so nothing changes for optimizers and checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: How a stack of nets can be run: one after the other, as grouped convolutions, or as batched matrix products.
IMPLEMENTATIONS = ("loop", "grouped", "matmul")


class GroupedMatmul(nn.Conv2d):
    """A grouped convolution as one batched matrix product over unfolded patches: [G, B h w, k k c] x [G, k k c, o].

    Zero padding, the same stride and padding in both directions, dilation 1. Channels-last inputs are fastest.
    """

    def forward(self, maps: Tensor) -> Tensor:
        size, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        pixels = F.pad(maps.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
        batch, high, wide, _ = pixels.shape
        high, wide = (high - size) // stride + 1, (wide - size) // stride + 1
        shifted = [
            pixels[:, i : i + stride * (high - 1) + 1 : stride, j : j + stride * (wide - 1) + 1 : stride].unflatten(
                -1, (self.groups, -1)
            )
            for i in range(size)
            for j in range(size)
        ]
        patches = torch.stack(shifted, dim=4).view(batch * high * wide, self.groups, -1)
        kernels = self.weight.unflatten(0, (self.groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3)
        result = torch.bmm(patches.transpose(0, 1), kernels).transpose(0, 1).flatten(1)
        if self.bias is not None:
            result = result + self.bias
        return result.view(batch, high, wide, -1).permute(0, 3, 1, 2)


class GroupedNets:
    """Runs G nets as one: [B, G, c, H, W] to [B, G, ...].

    The nets may contain convolutions, and layers that treat every channel separately (batch norms, slopes).

    Args:
        net: any one of the nets, which provides the layers.
        count: G.
        implementation: ``grouped`` or ``matmul`` (`IMPLEMENTATIONS`).
    """

    def __init__(self, net: nn.Module, count: int, implementation: str):
        self._count = count
        # Only the order of the layers and their settings are used; every call passes the weights.
        self._wide = copy.deepcopy(net).to("meta")
        for layer in self._wide.modules():
            if isinstance(layer, nn.Conv2d):
                layer.groups *= count
                if implementation == "matmul":
                    layer.__class__ = GroupedMatmul

    def __call__(self, nets: Sequence[nn.Module], maps: Tensor) -> Tensor:
        """Compute what ``stack([net(maps[:, i]) for i, net in enumerate(nets)], 1)`` does, to rounding.

        In training the nets' running statistics are updated as they would be in that loop. Batch norms must be those of
        `fercli.models.norms`.
        """
        states = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
        names = [name for name in states[0] if not name.endswith("num_batches_tracked")]
        parts = {name: [state[name] for state in states] for name in names}
        whole = {name: torch.cat(tensors) for name, tensors in parts.items()}
        self._wide.train(nets[0].training)
        side_by_side = maps.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        result = torch.func.functional_call(self._wide, whole, (side_by_side,))
        if nets[0].training:
            self._take_back(parts, whole)
        return result.unflatten(1, (self._count, -1))

    def _take_back(self, parts: dict[str, list[Tensor]], whole: dict[str, Tensor]) -> None:
        moved = [name for name in parts if name.endswith(("running_mean", "running_var"))]
        if not moved:
            return
        with torch.no_grad():
            old = [tensor for name in moved for tensor in parts[name]]
            new = [tensor for name in moved for tensor in whole[name].chunk(self._count)]
            torch._foreach_copy_(old, new)
