"""The backbones: they turn an aligned face into a local map (28x28, for the windows) and a global map (7x7).

Every backbone takes images [B, 3, 112, 112] and returns ``(local map [B, L, 28, 28], global map [B, G, 7, 7])`` with
``local_channels`` = L and ``global_channels`` = G as attributes. A backbone whose crop nets are not made of IR blocks
has a method ``crop_blocks()``, which returns the blocks of one crop net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fercli.models.norms import BatchNorm2d
from fercli.models.prelu import PReLU

#: Number of blocks in each of the four stages of the IR nets, by their name in the run spec.
IR_BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "ir50": (3, 4, 14, 3),
    "ir18": (2, 2, 2, 2),
    "ir-small": (1, 1, 1, 1),
    "ir-lite": (1, 1, 3, 2),
}
#: The IR nets that fercli adds for CPUs: `width` channels wide, with light blocks (`BottleneckIR`).
LIGHT = frozenset({"ir-small", "ir-lite"})
#: MobileNetV2: torchvision's, and the one of the released checkpoints.
MOBILE = ("mobilenet-v2", "mobilenet-v2-wide")


class Shortcut(nn.Conv2d):
    """A 1x1 convolution without bias that works on every stride-th pixel, as published.

    On a CPU those pixels are selected first and the convolution has stride 1, which gives the same sums. The reason:
    oneDNN's strided 1x1 gradient overruns its buffer in channels-last with fewer than 16 channels (uxlfoundation/oneDNN
    issue 6035: wrong gradients or a crash). On other devices the convolution itself is strided, which saves a copy of
    the map in the forward and the backward pass.

    Shape: [B, channels_in, H, W] to [B, channels_out, ceil(H / stride), ceil(W / stride)].
    """

    #: Whether the convolution itself is strided; None: it is on every device but a CPU.
    strides_itself: bool | None = None

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" if self.strides_itself is None else self.strides_itself:
            return super().forward(x)
        high, wide = self.stride
        return F.conv2d(x[..., ::high, ::wide], self.weight, groups=self.groups)


class BottleneckIR(nn.Module):
    """The improved-residual block of ArcFace (Deng et al., CVPR 2019) and face.evoLVe's ``bottleneck_IR``.

    ``y = BN(conv(PReLU(conv(BN(x))))) + shortcut(x)``: 3x3 convolutions without bias, the second with the stride. The
    shortcut keeps every stride-th pixel, as the published max-pool of kernel 1 does. Where the number of channels
    changes, it passes them through a 1x1 convolution and batch norm (the published strided 1x1 convolution).

    `light` is fercli's variant for CPUs. The stride moves to the first convolution, so that the second works on a
    quarter of the pixels. In-place ReLU replaces PReLU, which costs one more pass over the map in each direction.

    Shape: [B, channels_in, H, W] to [B, channels_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, light: bool = False):
        super().__init__()
        self.stride = stride
        self.shortcut = None
        if channels_in != channels_out:
            self.shortcut = nn.Sequential(Shortcut(channels_in, channels_out, stride), BatchNorm2d(channels_out))
        first, second = (stride, 1) if light else (1, stride)
        self.body = nn.Sequential(
            BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, channels_out, 3, first, 1, bias=False),
            activation(channels_out, light),
            nn.Conv2d(channels_out, channels_out, 3, second, 1, bias=False),
            BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(x)
        return self.body(x) + kept


def activation(channels: int, light: bool) -> nn.Module:
    """Return PReLU with one slope per channel, as published, or in-place ReLU for light nets."""
    return nn.ReLU(inplace=True) if light else PReLU(channels)


def _stages(
    blocks: Sequence[int], channels: int, widths: Sequence[int], strides: Sequence[int], light: bool
) -> nn.ModuleList:
    """Build stages of `blocks` blocks each, from `channels` to `widths`; a stage's first block has its stride."""
    stages = []
    for count, wider, stride in zip(blocks, widths, strides, strict=True):
        rest = (BottleneckIR(wider, wider, 1, light) for _ in range(count - 1))
        stages.append(nn.Sequential(BottleneckIR(channels, wider, stride, light), *rest))
        channels = wider
    return nn.ModuleList(stages)


class IRNet(nn.Module):
    """An improved-residual net of four stages with `width`, 2, 4 and 8 times `width` channels.

    As published (IR-50, IR-18: `width` 64): a 3x3 stem at 112x112, and each stage's first block halves the map. A light
    net halves the map in the stem instead of in the first stage, and uses light blocks (see `BottleneckIR`). Its maps
    are 28x28 and 7x7 too, at about a fifth of the cost on a CPU.

    Args:
        blocks: number of blocks in each stage.
        width: channels of the stem and the first stage.
        light: depart from the published strides and activations for speed on CPUs.
    """

    def __init__(self, blocks: Sequence[int], width: int = 64, light: bool = False):
        super().__init__()
        self.light = light
        self.local_channels, self.global_channels = 2 * width, 8 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2 if light else 1, 1, bias=False), BatchNorm2d(width), activation(width, light)
        )
        widths = [width * 2**stage for stage in range(4)]
        self.stages = _stages(blocks, width, widths, (1 if light else 2, 2, 2, 2), light)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of stage 2 [B, 2 width, 28, 28] and of stage 4 [B, 8 width, 7, 7]."""
        local = self.stages[1](self.stages[0](self.stem(images)))
        return local, self.stages[3](self.stages[2](local))


class IRLite(nn.Module):
    """A light IR net for small and blurred images: deep where maps are small, with no work at full resolution.

    The face is first halved in size by averaging, which removes detail finer than two of 112 pixels. Faces of a 48x48
    source lack that detail anyway, and the sharp faces of a target then look like them. A 5x5 stem of stride 2 gives
    the 28x28 map. Stages 1 and 2 keep its size, with `width` channels; stages 3 and 4 each halve it, with 2 and 4 times
    `width`. The local map is projected to five eighths of `width` (1x1, batch norm, ReLU), because the five crop nets
    hold many of the weights and their number grows with the square of the map's channels.
    """

    light = True

    def __init__(self, width: int):
        super().__init__()
        self.local_channels, self.global_channels = max(4, 5 * width // 8), 4 * width
        self.halve = nn.AvgPool2d(2)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), BatchNorm2d(width), activation(width, True))
        widths = (width, width, 2 * width, 4 * width)
        self.stages = _stages(IR_BLOCKS["ir-lite"], width, widths, (1, 1, 2, 2), True)
        self.project_local = nn.Sequential(
            nn.Conv2d(width, self.local_channels, 1, bias=False),
            BatchNorm2d(self.local_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps [B, 5 width / 8, 28, 28] and [B, 4 width, 7, 7]."""
        local = self.stages[1](self.stages[0](self.stem(self.halve(images))))
        return self.project_local(local), self.stages[3](self.stages[2](local))


class MobileNetV2(nn.Module):
    """Torchvision's MobileNetV2 (Sandler et al., CVPR 2018), with its maps projected to 128 and 512 channels.

    The stem's stride is 1 instead of 2. The net was made for 224x224 images, so a 112x112 face now gives the same maps,
    32x28x28 and 320x7x7, from the same layers. Strides are not weights, so ImageNet weights still fit.

    Each projection is a 1x1 convolution, batch norm and ReLU6. It trains at the learning rate of the new layers.
    """

    def __init__(self) -> None:
        super().__init__()
        # torchvision takes a second to import, and the other backbones do not need it
        from torchvision.models import mobilenet_v2
        from torchvision.ops import Conv2dNormActivation

        self.local_channels, self.global_channels = 128, 512
        # the last of torchvision's layers, 1x1 to 1280 channels, is replaced by our projection to 512
        self.features = mobilenet_v2(weights=None, norm_layer=BatchNorm2d).features[:-1]
        self.features[0][0].stride = (1, 1)
        layers = {"norm_layer": BatchNorm2d, "activation_layer": nn.ReLU6}
        self.project_local = Conv2dNormActivation(32, 128, 1, **layers)
        self.project_global = Conv2dNormActivation(320, 512, 1, **layers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps [B, 128, 28, 28] and [B, 512, 7, 7]."""
        local = self.features[:7](images)
        return self.project_local(local), self.project_global(self.features[7:](local))


#: (expansion, channels, blocks, stride) of the inverted residuals in the four stages and in a crop net.
_WIDE_STAGES: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((1, 64, 1, 1), (6, 64, 2, 2)),
    ((6, 128, 3, 2),),
    ((6, 256, 4, 2), (6, 256, 3, 1)),
    ((6, 512, 3, 2), (6, 512, 1, 1)),
)
_WIDE_CROP_NET = ((6, 256, 4, 2), (6, 512, 3, 2))


class WideMobileNetV2(nn.Module):
    """The MobileNetV2 of the AGLRLS, CGLRL and AGRA measurements; its checkpoints fit no other backbone.

    MobileNetV2's blocks (Sandler et al., CVPR 2018) in four stages of 64, 128, 256 and 512 channels, without a stem:
    the first block reads the image. The numbers are those of the released code (github.com/yao-papercodes/AGLRLS,
    commit e4ce891, code/MobileNet.py; the same in github.com/HCPLab-SYSU/CD-FER-Benchmark, CADA/MobileNet.py). Its maps
    need no projection, and ImageNet weights do not fit it.

    Difference from the code: there the five crop nets share all blocks but each has its own last convolution, and a
    checkpoint names the shared blocks five times. Here they are five separate nets, as the paper draws them. A
    checkpoint gives the same predictions, and the nets diverge when they are trained further.
    """

    def __init__(self) -> None:
        super().__init__()
        self.local_channels, self.global_channels = 128, 512
        channels, stages = 3, []
        for rows in _WIDE_STAGES:
            stages.append(_inverted_residuals(channels, rows))
            channels = rows[-1][1]
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of stage 2 [B, 128, 28, 28] and of stage 4 [B, 512, 7, 7]."""
        local = self.stages[1](self.stages[0](images))
        return local, self.stages[3](self.stages[2](local))

    def crop_blocks(self) -> nn.Sequential:
        """Build the blocks of one crop net: [B, 128, 7, 7] to [B, 512, 2, 2]."""
        return _inverted_residuals(self.local_channels, _WIDE_CROP_NET)


def _inverted_residuals(channels: int, rows: Sequence[tuple[int, int, int, int]]) -> nn.Sequential:
    """Build MobileNetV2 blocks that start from `channels`; the first block of each row has its stride."""
    from torchvision.models.mobilenetv2 import InvertedResidual

    blocks = []
    for expansion, wider, count, stride in rows:
        for number in range(count):
            blocks.append(InvertedResidual(channels, wider, 1 if number else stride, expansion, BatchNorm2d))
            channels = wider
    return nn.Sequential(*blocks)


def build_backbone(name: str, width: int = 16) -> nn.Module:
    """Return the backbone that the run spec names; only the backbones in `LIGHT` use `width`.

    Raises:
        ValueError: there is no backbone of that name (a run spec is checked before this function is called).
    """
    if name == "mobilenet-v2":
        return MobileNetV2()
    if name == "mobilenet-v2-wide":
        return WideMobileNetV2()
    if name == "ir-lite":
        return IRLite(width)
    if name == "ir-small":
        return IRNet(IR_BLOCKS[name], width, light=True)
    if name in IR_BLOCKS:
        return IRNet(IR_BLOCKS[name])
    raise ValueError(f"no such backbone: {name!r}; choose one of {', '.join((*IR_BLOCKS, *MOBILE))}")
