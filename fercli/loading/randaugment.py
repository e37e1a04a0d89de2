"""RandAugment for batches: the operations that each sample draws, and their effect on its pixels and position.

Cubuk et al., *RandAugment* (CVPR-W 2020, arXiv 1909.13719), with the operations of FixMatch (Sohn et al., NeurIPS
2020, arXiv 2001.07685). Each sample draws a number of these fourteen, uniformly and with replacement, all at one
magnitude m of 10:

| operation               | effect at magnitude m                                                    | at m = 5     |
|-------------------------|--------------------------------------------------------------------------|--------------|
| identity                | nothing                                                                  |              |
| autocontrast            | stretches each channel to 0..255                                         |              |
| equalize                | flattens each channel's histogram                                        |              |
| solarize                | inverts the levels from 256 (1 - m/10) upwards                           | 128 and up   |
| posterize               | drops the lowest round(4 m/10) of the 8 bits                             | 2 bits       |
| color                   | blends with the grey image, factor 1 ± 0.9 m/10                          | 0.55 or 1.45 |
| contrast                | blends with the mean grey level, the same factor                         | 0.55 or 1.45 |
| brightness              | blends with black, the same factor                                       | 0.55 or 1.45 |
| sharpness               | blends with the image smoothed 3x3, the same factor                      | 0.55 or 1.45 |
| rotate                  | turns about the centre by ± 30 m/10 degrees                              | 15 degrees   |
| shear-x, shear-y        | shears about the centre by ± 0.3 m/10                                    | 0.15         |
| translate-x, translate-y| shifts by ± 0.3 m/10 of the side                                         | 0.15         |

The sign (±) is drawn per sample and operation. The pixel operations agree with Pillow's to one level. There are
deliberate differences from the usual per-image code:
- A sample's geometric operations become one affine map, applied once and *before* its pixel operations. This saves
  interpolations and takes histograms of the image that the network sees. The drawn order holds within each kind only.
- Outside the image, a map reads the replicated border, not black or grey.
- Shears are about the centre, not the corner, so that the face stays in place.
- The factor of the four blends goes both ways (FixMatch's only weakens), and the magnitude is m itself. FixMatch draws
  the magnitude up to m, leaves out each operation half of the time and cuts out a square; RandAugment does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fercli.loading.placement import upload

PIXEL_OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "solarize",
    "posterize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
GEOMETRIC_OPERATIONS = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
OPERATIONS = PIXEL_OPERATIONS + GEOMETRIC_OPERATIONS
MAX_MAGNITUDE = 10


class Plan(NamedTuple):
    """The draws of a batch, on the CPU, so that the work can be planned without waiting for an accelerator."""

    operations: torch.Tensor  # int64 [n, B]: positions in OPERATIONS, in the order of application
    signs: torch.Tensor  # float32 [n, B]: +1 or -1


class Layout(NamedTuple):
    """A sample's pixels in one row: the size x size face, then `crops` patches of side crop_size (possibly none)."""

    size: int
    crops: int
    crop_size: int

    @property
    def face(self) -> int:
        """The number of pixels in the face, which come first in the row."""
        return self.size**2

    def split(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split [B, 3, N] into face [B, 3, size, size] and patches [B, 3, crops, crop_size, crop_size] (views)."""
        face, patches = pixels[..., : self.face], pixels[..., self.face :]
        side = self.crop_size
        return face.unflatten(-1, (self.size, self.size)), patches.unflatten(-1, (self.crops, side, side))


def draw(batch: int, operations: int, generator: torch.Generator | None) -> Plan:
    """Draw `operations` operations and signs for each of `batch` samples, independently, with the CPU's `generator`."""
    drawn = torch.randint(len(OPERATIONS), (operations, batch), generator=generator)
    signs = torch.randint(2, (operations, batch), generator=generator).float() * 2 - 1
    return Plan(drawn, signs)


def geometry(plan: Plan, magnitude: float, size: int) -> torch.Tensor:
    """Return the plan's geometric operations as one map per sample, float64 [B, 3, 3] on the CPU.

    The map takes a pixel of the result to the place in the input where it is read. Both are in pixels from the centre,
    so the first operation's matrix is the leftmost.
    """
    strength = plan.signs.double() * magnitude / MAX_MAGNITUDE

    def amount(name: str, most: float) -> torch.Tensor:
        return torch.where(plan.operations == OPERATIONS.index(name), strength * most, 0.0)

    angle = amount("rotate", math.radians(30))
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (
        (angle.cos(), -angle.sin() + amount("shear-x", 0.3), amount("translate-x", 0.3 * size)),
        (angle.sin() + amount("shear-y", 0.3), angle.cos(), amount("translate-y", 0.3 * size)),
        (zero, zero, one),
    )
    matrices = torch.stack([torch.stack(row, -1) for row in rows], -2)
    whole = torch.eye(3, dtype=torch.float64).expand(plan.operations.shape[1], 3, 3)
    for matrix in matrices:
        whole = whole @ matrix
    return whole


def apply_pixel_operations(pixels: torch.Tensor, layout: Layout, plan: Plan, magnitude: float) -> torch.Tensor:
    """Apply the plan's pixel operations, changing `pixels` in place.

    pixels: float32 [B, 3, N] with integer levels 0..255, each row in the given `layout`. Autocontrast, equalize and
    contrast measure the face and apply the face's own table or mean to the patches, so that a patch still looks like a
    piece of its face. Sharpness smooths each patch separately. Returns `pixels`.
    """
    signs, strength = upload(plan.signs, pixels.device), magnitude / MAX_MAGNITUDE
    for step, position, members in grouped(plan.operations, len(OPERATIONS), pixels.device):
        name = OPERATIONS[position]
        if name not in CHANGES:
            continue
        chosen = pixels.index_select(0, members)
        if name == "solarize":
            amount = 256 * (1 - strength)
        elif name == "posterize":
            amount = 2 ** round(4 * strength)
        else:
            amount = 1 + signs[step].index_select(0, members).view(-1, 1, 1) * (0.9 * strength)
        pixels.index_copy_(0, members, CHANGES[name](chosen, layout, amount))
    return pixels


def grouped(operations: torch.Tensor, number: int, device: torch.device) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (step, operation, the samples that drew it as int64 [k] on `device`), step by step.

    operations: int64 [n, B] on the CPU, each 0..number-1. The groups are formed on the CPU and moved together, so that
    nothing waits for the device.
    """
    groups = upload(operations.argsort(dim=1, stable=True), device)
    for step, drawn in enumerate(operations):
        stop = 0
        for position, count in enumerate(drawn.bincount(minlength=number).tolist()):
            start, stop = stop, stop + count
            if count:
                yield step, position, groups[step, start:stop]


# Each takes (pixels [k, 3, N] which it may overwrite, layout, amount) and returns [k, 3, N]. The amount is a number or
# a tensor [k, 1, 1]: for solarize, the lowest level that is inverted; for posterize, the number of levels merged into
# one; for the four blends, the image's share.


def _autocontrast(pixels, layout, amount):
    low, high = pixels[..., : layout.face].aminmax(dim=-1, keepdim=True)
    flat = high <= low
    scale = torch.where(flat, 1.0, 255 / (high - low).clamp(min=1))
    low = torch.where(flat, 0.0, low)
    # The small addend keeps the brightest level at 255 if float rounding puts it just below.
    return pixels.sub_(low).mul_(scale).add_(1e-3).floor_().clamp_(0, 255)


def _equalize(pixels, layout, amount):
    levels = pixels.long()
    face = levels[..., : layout.face]
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(-1, face, torch.ones_like(face))
    brightest = counts.gather(-1, face.amax(-1, keepdim=True))
    step = (layout.face - brightest) // 255
    before = counts.cumsum(-1) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp_(max=255)
    # With hardly any spread (such as a flat channel), leave the channel unchanged, as Pillow does.
    table = torch.where(step == 0, torch.arange(256, device=pixels.device), table)
    return table.to(pixels.dtype).gather(-1, levels)


def _solarize(pixels, layout, amount):
    return torch.where(pixels < amount, pixels, 255 - pixels)


def _posterize(pixels, layout, amount):
    return pixels.div_(amount).floor_().mul_(amount)


def _color(pixels, layout, amount):
    return _blend(_grey(pixels), pixels, amount)


def _contrast(pixels, layout, amount):
    mean = _grey(pixels[..., : layout.face]).mean(-1, keepdim=True).add_(0.5).floor_()
    return _blend(mean, pixels, amount)


def _brightness(pixels, layout, amount):
    return pixels.mul_(amount).clamp_(0, 255).floor_()


def _sharpness(pixels, layout, amount):
    smooth = pixels.clone()
    for target, picture in zip(layout.split(smooth), layout.split(pixels), strict=True):
        if picture.numel():
            inner = picture[..., 1:-1, 1:-1]
            nine = F.avg_pool2d(picture.flatten(1, -3), 3, stride=1, divisor_override=1).view_as(inner)
            # Pillow's SMOOTH: weights 1, and 5 in the middle, out of 13; the outermost pixels do not change.
            target[..., 1:-1, 1:-1] = nine.add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    return _blend(smooth, pixels, amount)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Return the ITU-R 601 luma in integer levels, [k, 1, N]."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114).add_(0.5).floor_()


def _blend(other: torch.Tensor, pixels: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return other + share (pixels - other) in integer levels: below 1 closer to `other`, above 1 further from it."""
    return torch.lerp(other, pixels, share).clamp_(0, 255).floor_()


#: The pixel operations except identity; see above for their arguments.
CHANGES = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
