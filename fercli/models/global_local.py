"""The global-local network: one global and five local branches, one classifier head for each, and a fused head.

Published in CGLRL (Xie et al., ICPR 2022) and AGLRLS (Gao et al., IEEE TMM 2024, arXiv 2401.11085).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import IMAGENET_MEAN, IMAGENET_STD, MIRRORED
from fercli.models.heads import FEATURE_SIZE, NUM_FEATURES, REGIONS
from fercli.models.local import ConvPool, LocalNets, PatchStems, cut_windows, to_map

#: Weights of red, green and blue in a grey image (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


class Output(NamedTuple):
    """The network's output for a batch.

    Attributes:
        logits: [B, 7 heads, 7 expressions], with the heads in the order of `HEADS`.
        features: [B, 6, 64], all non-negative. Row 0 is the global feature, rows 1 to 5 are the local ones in the order
            of `REGIONS`. The fused head reads all 384 numbers in this order.

    Both are float32, even under half-precision autocast.
    """

    logits: Tensor
    features: Tensor


class GlobalLocal(nn.Module):
    """A backbone, one global and five local features of length 64, and seven heads that read them.

    Args:
        backbone: returns (local map [B, L, 28, 28], global map [B, G, 7, 7]); see `fercli.models.backbones`.
        local: ``feature-map`` cuts windows of the local map around the landmarks, as published. ``image-crop``, the
            paper's alternative, passes prepared patches of the image through one stem each.
        classifiers: ``shared`` means three classifiers (global, one for the five local heads, fused), as in the
            released code and its checkpoints. ``separate`` means seven in the order of `HEADS`, as the paper draws
            them.
        input: ``colour``, or ``grey``: the luminance of images and crops, repeated in all three channels.
        test_flip: whether logits and features in eval mode are the means over a face and its mirror image, whose
            landmarks are mirrored and swap sides. This doubles the cost for a usual small gain in accuracy (Simonyan
            and Zisserman, ICLR 2015, section 3.2).
        first_weights: the initial weights: ``standard`` (`initialise`), or ``released`` as in AGLRLS's code
            (`initialise_as_released`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        local: str = "feature-map",
        classifiers: str = "shared",
        input: str = "colour",
        test_flip: bool = False,
        first_weights: str = "standard",
    ):
        super().__init__()
        light = getattr(backbone, "light", False)
        self.local, self.sharing = local, classifiers
        self.input, self.test_flip = input, test_flip
        self.luminance = Luminance() if input == "grey" else None
        self.backbone = backbone
        self.global_head = ConvPool(backbone.global_channels)
        self.patch_stems = PatchStems(backbone.local_channels, light) if local == "image-crop" else None
        self.local_nets = LocalNets(backbone.local_channels, light, getattr(backbone, "crop_blocks", None))
        locals_ = 1 if classifiers == "shared" else len(REGIONS)
        self.classifiers = nn.ModuleList(nn.Linear(FEATURE_SIZE, NUM_EXPRESSIONS) for _ in range(1 + locals_))
        self.classifiers.append(nn.Linear(NUM_FEATURES * FEATURE_SIZE, NUM_EXPRESSIONS))
        if first_weights == "released":
            initialise_as_released(self)
        else:
            self.apply(initialise)
        #: The type that backbone and crop nets train in; None for the weights' type. The engine sets it.
        self.autocast: torch.dtype | None = None
        #: The compiled `compute`, for training; None to run it uncompiled. The engine sets it.
        self.compiled: Callable[..., Output] | None = None

    def forward(self, images: Tensor, landmarks: Tensor, crops: Tensor | None = None) -> Output:
        """Compute features and logits.

        Args:
            images: [B, 3, 112, 112], normalised with ImageNet's mean and standard deviation.
            landmarks: [B, 5, 2] float32 (x, y) in pixels of `images`. Keep them in float32: bfloat16 cannot distinguish
                100 from 100.4.
            crops: [B, 5, 3, P, P], normalised in the same way; required with ``image-crop``, otherwise not used.

        Raises:
            FercliError: ``image-crop`` without `crops`.
        """
        if self.training and self.compiled is not None:
            return self.compiled(images, landmarks, crops)
        output = self.compute(images, landmarks, crops)
        if self.test_flip and not self.training:
            mirrored = self.compute(*mirror(images, landmarks, crops))
            return Output((output.logits + mirrored.logits) / 2, (output.features + mirrored.features) / 2)
        return output

    def compute(self, images: Tensor, landmarks: Tensor, crops: Tensor | None = None) -> Output:
        """Compute what `forward` returns. The logits are always float32, which thresholds such as 0.95 require."""
        device = images.device.type
        if self.training and self.autocast is not None:
            with torch.autocast(device, self.autocast):
                features = self._features(images, landmarks, crops)
        else:  # the caller's own autocast still applies
            features = self._features(images, landmarks, crops)
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            features = features.to(self.classifiers[0].weight.dtype)
            return Output(self._classify(features), features)

    def _features(self, images: Tensor, landmarks: Tensor, crops: Tensor | None) -> Tensor:
        if self.luminance is not None:
            images, crops = self.luminance(images), None if crops is None else self.luminance(crops)
        local_map, global_map = self.backbone(images)
        if self.patch_stems is None:
            windows = cut_windows(local_map, to_map(landmarks, images.shape[-1], local_map.shape[-1]))
        elif crops is None:
            raise FercliError("model.local: image-crop needs prepared local crops, but this batch has none")
        else:
            windows = self.patch_stems(crops)
        return torch.cat([self.global_head(global_map)[:, None], self.local_nets(windows)], dim=1)

    def _classify(self, features: Tensor) -> Tensor:
        first, *locals_, last = self.classifiers
        if self.sharing == "shared":
            local = locals_[0](features[:, 1:])
        else:
            local = torch.stack([head(features[:, 1 + i]) for i, head in enumerate(locals_)], dim=1)
        return torch.cat([first(features[:, :1]), local, last(features.flatten(1))[:, None]], dim=1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters in two groups, ``backbone`` and ``new``; the new ones train at ten times the rate.

        The new ones are those that no pre-trained backbone provides: the global convolution, the crop nets, the heads
        and, where they exist, the patch stems and the backbone's projections.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "new": []}
        for name, parameter in self.named_parameters():
            old = name.startswith("backbone.") and not name.startswith("backbone.project_")
            groups["backbone" if old else "new"].append(parameter)
        return groups


class Luminance(nn.Module):
    """Makes images [..., 3, H, W], normalised with ImageNet's mean and deviation, grey in the same normalisation.

    All three channels become the luma of ITU-R BT.601, which OpenCV and Pillow also use. A grey image stays the same,
    up to rounding.
    """

    def __init__(self) -> None:
        super().__init__()
        # Buffers, since sending these numbers to a device in every pass would synchronise it. Not part of the state.
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # One product per channel: y_c = (sum_k luma_k (x_k std_k + mean_k) - mean_c) / std_c
        grey = (images * (self.luma * self.std)).sum(-3, keepdim=True) + (self.luma * self.mean).sum()
        return (grey - self.mean) / self.std


def mirror(images: Tensor, landmarks: Tensor, crops: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mirror the inputs of `GlobalLocal`; left and right landmarks and crops swap places."""

    def swapped(regions: Tensor) -> Tensor:
        # not by indexing with a list, which would be sent to the device in every pass
        return torch.stack([regions[:, place] for place in MIRRORED], 1)

    width = images.shape[-1]
    flipped = torch.stack([width - 1 - landmarks[..., 0], landmarks[..., 1]], -1)
    return images.flip(-1), swapped(flipped), None if crops is None else swapped(crops.flip(-1))


def initialise(module: nn.Module) -> None:
    """Give one layer its initial weights: Kaiming normal (fan-in) for a convolution, Xavier uniform if it is linear.

    Biases are 0, and batch norms keep weight 1 and bias 0. Draws from torch's global generator.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def initialise_as_released(network: GlobalLocal) -> None:
    """Give a new network the initial weights of AGLRLS's released code.

    Convolutions keep torch's default (Kaiming uniform with a slope of sqrt 5, biases not zero). The five crop nets (and
    stems, if there are any) start as copies of the first. The heads are Xavier normal with zero biases. Compared with
    `initialise`, convolution weights are 2.45 times smaller, which causes most of the difference in the initial local
    features. Draws from torch's global generator.
    """
    regional = [network.local_nets.nets, *([network.patch_stems.stems] if network.patch_stems is not None else [])]
    for nets in regional:
        for net in nets[1:]:
            net.load_state_dict(nets[0].state_dict())
    for head in network.classifiers:
        nn.init.xavier_normal_(head.weight)
        nn.init.zeros_(head.bias)
