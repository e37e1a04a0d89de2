"""Local features: five windows around the landmarks (or five prepared patches), each with its own crop net."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fercli.machine import seconds
from fercli.models.backbones import BottleneckIR, activation
from fercli.models.grouped import IMPLEMENTATIONS, GroupedNets
from fercli.models.heads import FEATURE_SIZE, REGIONS
from fercli.models.norms import BatchNorm2d

#: Side of the window around a landmark, in pixels of the 28x28 map.
WINDOW = 7


def cut_windows(maps: Tensor, centres: Tensor, size: int = WINDOW) -> Tensor:
    """Cut a window around every landmark of every sample, in a single gather.

    A centre too close to the border is moved inward until its window is inside the map: with windows of 7 on a map of
    28, centres are clamped to 3..24.

    Args:
        maps: [B, C, H, W].
        centres: [B, 5, 2] integers, (x, y) in pixels of the map. Any value is allowed, even outside the map.
        size: side of the window; must be odd.

    Returns:
        [B, 5, C, size, size], a view of memory with the regions first and the channels last. Each region's [B, C, size,
        size] is thus a dense channels-last tensor.
    """
    batch, channels, height, width = maps.shape
    half = size // 2
    x, y = centres.transpose(0, 1).long().unbind(-1)  # [5, B] each
    x, y = x.clamp(half, width - 1 - half), y.clamp(half, height - 1 - half)
    # Rows in the table of all pixels of all maps: each sample's first, shifted from a centre to its window's corner.
    corner, pixels_each = half * (width + 1), height * width
    sample = torch.arange(-corner, batch * pixels_each - corner, pixels_each, device=maps.device)
    inside = torch.arange(size * width, device=maps.device).view(size, width)[:, :size]
    row = torch.add(sample + x, y, alpha=width)[..., None, None] + inside  # [5, B, size, size]
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    windows = pixels.index_select(0, row.flatten())
    return windows.view(len(row), batch, size, size, channels).permute(1, 0, 4, 2, 3)


def to_map(landmarks: Tensor, image_size: int, map_size: int) -> Tensor:
    """Scale landmarks [B, 5, 2] from pixels of the image to integer pixels of the map, truncating as published."""
    return (landmarks * (map_size / image_size)).long()


class ConvPool(nn.Module):
    """3x3 convolution to 64 channels (with bias), ReLU, global average pool: [B, C, H, W] to a feature [B, 64].

    The average, and thus the feature, is float32 (or better) even under half-precision autocast.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, FEATURE_SIZE, 3, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps).relu()
        return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


class CropNet(nn.Module):
    """One region's net: IR blocks c to 2c (stride 2), 2c, 4c (stride 2), 4c, then `ConvPool`.

    Shape: [B, c, 7, 7] (any size does) to [B, 64].

    Args:
        blocks: blocks to use instead, from c to 4c channels.
    """

    def __init__(self, channels: int, light: bool = False, blocks: nn.Sequential | None = None):
        super().__init__()
        self.blocks = blocks or nn.Sequential(
            BottleneckIR(channels, 2 * channels, 2, light),
            BottleneckIR(2 * channels, 2 * channels, 1, light),
            BottleneckIR(2 * channels, 4 * channels, 2, light),
            BottleneckIR(4 * channels, 4 * channels, 1, light),
        )
        self.head = ConvPool(4 * channels)

    def forward(self, windows: Tensor) -> Tensor:
        return self.head(self.blocks(windows))


class LocalNets(nn.Module):
    """The five crop nets, which share no weights: windows [B, 5, c, h, w] to features [B, 5, 64].

    They can be run by each of `fercli.models.grouped.IMPLEMENTATIONS`: one after the other, or side by side as one net.
    Outputs, gradients and statistics are the same up to rounding; parameter names do not change.

    The table shows the processor time of one forward and backward pass of the crop nets, as a percentage of the loop's
    time. The numbers are only a guide: the best of 2 to 6 passes on one thread of an AMD EPYC with avx512_bf16 that was
    not idle, torch 2.15, channels-last weights, 2026-11-23. c is the number of channels of a window, twice
    ``model.width``. No CUDA device has been measured yet.

    | c, batch, precision   | loop | grouped | grouped, plain layout | matmul | torch.func.vmap |
    |-----------------------|------|---------|-----------------------|--------|-----------------|
    | 16 light, 32, float32 | 100  | 91      | 99                    | 168    | 104             |
    | 16 light, 32, bf16    | 100  | 83      | 96                    | 126    |                 |
    | 32 light, 32, float32 | 100  | 102     | 106                   | 184    | 122             |
    | 32 light, 32, bf16    | 100  | 106     | 118                   | 138    |                 |
    | 48 light, 32, float32 | 100  | 116     | 113                   | 174    |                 |
    | 128 (IR-50), 4, float32 | 100 | 203    | 134                   | 177    | 161             |
    | 128 (IR-50), 4, bf16  | 100  | 121     | 153                   | 241    |                 |

    In whole training steps on two threads of the same machine, idle and with the variants taking turns, grouped nets
    saved 8 to 12 % with c = 16 and 32, and nothing with 48 (`fercli bench train -c demo --set
    engine.crop_nets=grouped`). So on CPUs only the smallest nets run side by side: with larger ones, the convolutions
    of one region already fill a core. On CUDA devices `fastest` decides before training. Where processes synchronise
    their batch norms, its timings include those messages; side by side, there are a fifth as many. The plain layout and
    vmap (which turns the nets into grouped convolutions) were not fastest anywhere and were dropped.

    Args:
        channels: c.
        light: see `fercli.models.backbones.BottleneckIR`.
        blocks: builds the blocks of one net if they are not IR blocks (see `fercli.models.backbones`).
    """

    def __init__(self, channels: int, light: bool = False, blocks: Callable[[], nn.Sequential] | None = None):
        super().__init__()
        self.nets = nn.ModuleList(CropNet(channels, light, None if blocks is None else blocks()) for _ in REGIONS)
        self.implementation = "loop"

    @property
    def implementation(self) -> str:
        """One of `fercli.models.grouped.IMPLEMENTATIONS`."""
        return self._implementation

    @implementation.setter
    def implementation(self, implementation: str) -> None:
        self._implementation = implementation
        self._grouped = None if implementation == "loop" else GroupedNets(self.nets[0], len(self.nets), implementation)

    def forward(self, windows: Tensor) -> Tensor:
        if self._grouped is None:
            return torch.stack([net(windows[:, region]) for region, net in enumerate(self.nets)], dim=1)
        return self._grouped(self.nets, windows)

    def fastest(self, windows: Tensor, autocast: torch.dtype | None = None) -> dict[str, float]:
        """Time a training pass over `windows` on their device for each implementation; these nets are not changed.

        Returns:
            Seconds by implementation, fastest first. An implementation that fails is left out.
        """
        trial, spent = copy.deepcopy(self).train(), {}

        def step() -> None:
            leaf = windows.detach().requires_grad_()
            with torch.autocast(windows.device.type, autocast, enabled=autocast is not None):
                trial(leaf).float().square().mean().backward()
            trial.zero_grad()

        for trial.implementation in IMPLEMENTATIONS:
            try:
                spent[trial.implementation] = min(seconds(step, windows.device))
            except RuntimeError:  # the device or a library does not support it: the others remain
                if trial.implementation == "loop":
                    raise
        return dict(sorted(spent.items(), key=lambda item: item[1]))


class PatchStems(nn.Module):
    """The paper's image-level alternative: five stems that turn prepared patches into maps for the crop nets.

    Each region has its own stem, without shared weights: three 3x3 convolutions of stride 2 to c/4, c/2 and c channels,
    each with batch norm and activation. They turn patches [B, 5, 3, P, P] into maps [B, 5, c, P/8, P/8], rounded up.
    The prepared 48-pixel patches give 6x6 maps, with about the same size and resolution on the face as the windows. Any
    patch size is accepted.
    """

    def __init__(self, channels: int, light: bool = False):
        super().__init__()
        widths = (3, max(channels // 4, 1), max(channels // 2, 1), channels)
        self.stems = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), BatchNorm2d(b), activation(b, light))
                    for a, b in pairwise(widths)
                )
            )
            for _ in REGIONS
        )

    def forward(self, patches: Tensor) -> Tensor:
        return torch.stack([stem(patches[:, region]) for region, stem in enumerate(self.stems)], dim=1)
