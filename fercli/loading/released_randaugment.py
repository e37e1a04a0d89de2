"""RandAugment as in the released code of AGLRLS (Gao et al., IEEE TMM 2024), for batches.

It is FixMatch's RandAugment (Sohn et al., NeurIPS 2020) without the draw that leaves operations out. Each sample draws
a number of these fourteen, uniformly and with replacement, each with its own strength, uniform over the range. The
released code is given a magnitude of 5 and does not use it. At the end of every strong view, a square is cut out.

| operation                | effect at strength v                                   | v           |
|--------------------------|--------------------------------------------------------|-------------|
| identity, rotate         | nothing: the code of the rotation is commented out     |             |
| autocontrast, equalize   | as in `fercli.loading.randaugment`                     |             |
| brightness, color,       | blends with black, grey, the mean grey level or the    | 0.05..0.95  |
| contrast, sharpness      | smoothed image; v is the image's share                 |             |
| posterize                | keeps the upper int(v) of the 8 bits                   | 4..8        |
| solarize                 | inverts the levels from v upwards                      | 0..256      |
| shear-x, shear-y         | shears by v about the upper left corner                | -0.3..0.3   |
| translate-x, translate-y | shifts by v of the side                                | -0.3..0.3   |
| cutout, always, last     | paints a square of v of the side, its centre uniform   | 0..0.5      |
|                          | over the image, in (125, 123, 114)                     |             |

The drawn order is kept, with geometric and pixel operations mixed. Shears and shifts read the nearest pixel and show
black outside the image, which later operations then process. All agree with Pillow for the same view, to one level.

Some differences remain. The released code works on the crop of the source image before it is resized to the network's
side; this module works on the view after it. The released code therefore processes the pixels of the source image. If
the crop is not square, its shears and its cut-out square are squashed with it. The released code has no local crops.
Here they receive the pixel operations as in `fercli.loading.randaugment`, and are sheared about their landmarks first.
They get neither black nor a square, because they are patches of the source image and not of the view.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fercli.loading.placement import upload
from fercli.loading.randaugment import CHANGES, Layout, grouped

#: The operations and the ranges of their strengths.
RANGES = {
    "autocontrast": (0, 1),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "equalize": (0, 1),
    "identity": (0, 1),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "sharpness": (0.05, 0.95),
    "shear-x": (-0.3, 0.3),
    "shear-y": (-0.3, 0.3),
    "solarize": (0, 256),
    "translate-x": (-0.3, 0.3),
    "translate-y": (-0.3, 0.3),
}
OPERATIONS = tuple(RANGES)
#: The largest square that is cut out, as a fraction of the side, and its colour.
CUTOUT, CUTOUT_COLOUR = 0.5, (125.0, 123.0, 114.0)


class Plan(NamedTuple):
    """The draws of a batch, on the CPU."""

    operations: torch.Tensor  # int64 [n, B]: positions in OPERATIONS, in the order of application
    strengths: torch.Tensor  # float64 [n, B]: within the operation's range
    cutout: torch.Tensor  # float64 [B, 3]: side of the square, x and y of its centre, as fractions of the image's side

    def of(self, rows: slice) -> Plan:
        """Return the plan of some of the samples."""
        return Plan(self.operations[:, rows], self.strengths[:, rows], self.cutout[rows])


def draw(batch: int, operations: int, generator: torch.Generator | None) -> Plan:
    """Draw `operations` operations with strengths, and a square, for each sample, with the CPU's `generator`."""
    drawn = torch.randint(len(OPERATIONS), (operations, batch), generator=generator)
    low, high = torch.tensor(list(RANGES.values()), dtype=torch.float64)[drawn].unbind(-1)
    strengths = low + (high - low) * torch.rand(operations, batch, dtype=torch.float64, generator=generator)
    cutout = torch.rand(batch, 3, dtype=torch.float64, generator=generator)
    cutout[:, 0] *= CUTOUT
    return Plan(drawn, strengths, cutout)


def geometry(plan: Plan, size: int) -> torch.Tensor:
    """Return the plan's shears and shifts as one map per sample, float64 [B, 3, 3], like `randaugment.geometry`."""

    def amount(name: str) -> torch.Tensor:
        return torch.where(plan.operations == OPERATIONS.index(name), plan.strengths, 0.0)

    across, down = amount("shear-x"), amount("shear-y")
    zero, one = torch.zeros_like(across), torch.ones_like(across)
    # Counted from the centre, a shear about the corner is a shear about the centre plus a shift.
    rows = (
        (one, across, (across / 2 + amount("translate-x")) * size),
        (down, one, (down / 2 + amount("translate-y")) * size),
        (zero, zero, one),
    )
    whole = torch.eye(3, dtype=torch.float64).expand(plan.operations.shape[1], 3, 3)
    for matrix in torch.stack([torch.stack(row, -1) for row in rows], -2):
        whole = whole @ matrix
    return whole


def apply(pixels: torch.Tensor, layout: Layout, plan: Plan) -> torch.Tensor:
    """Apply all operations in the drawn order, then cut out the square; changes and returns `pixels`.

    pixels: float32 [B, 3, N] with integer levels 0..255, each row in the given `layout`. A plan without operations cuts
    nothing out.
    """
    if not len(plan.operations):
        return pixels
    device = pixels.device
    shifts = upload(_shifts(plan, layout.size), device)
    amounts = upload(_amounts(plan).to(torch.float32), device)
    for step, position, members in grouped(plan.operations, len(OPERATIONS), device):
        name = OPERATIONS[position]
        if name in CHANGES:
            amount = amounts[step].index_select(0, members).view(-1, 1, 1)
            pixels.index_copy_(0, members, CHANGES[name](pixels.index_select(0, members), layout, amount))
        elif name.startswith(("shear", "translate")):
            face = layout.split(pixels)[0]
            shift = shifts[step].index_select(0, members)
            face.index_copy_(0, members, _shifted(face.index_select(0, members), shift, name[-1]))
    _cut_out(layout.split(pixels)[0], plan.cutout)
    return pixels


def _amounts(plan: Plan) -> torch.Tensor:
    """Return the amounts for the functions in `CHANGES`, [n, B]."""
    coarse = 2 ** (8 - plan.strengths.floor())
    return torch.where(plan.operations == OPERATIONS.index("posterize"), coarse, plan.strengths)


def _shifts(plan: Plan, size: int) -> torch.Tensor:
    """Return the offset in pixels at which each row (or column) is read, int64 [n, B, size], for moving operations.

    Pillow reads a pixel's centre at the floor of its position: x + 0.5 + v (y + 0.5) is x plus a shift of the row.
    """
    sheared = (plan.operations == OPERATIONS.index("shear-x")) | (plan.operations == OPERATIONS.index("shear-y"))
    lever = torch.where(sheared[..., None], torch.arange(size, dtype=torch.float64) + 0.5, float(size))
    return (plan.strengths[..., None] * lever + 0.5).floor().long()


def _shifted(face: torch.Tensor, shift: torch.Tensor, axis: str) -> torch.Tensor:
    """Return face [k, 3, size, size] with each row (axis x) or column (y) read at the offset `shift` [k, size].

    Outside the face it is black.
    """
    size = face.shape[-1]
    place = torch.arange(size, device=face.device)
    place = place + shift[:, :, None] if axis == "x" else place[:, None] + shift[:, None, :]
    beyond = ((place < 0) | (place >= size))[:, None]
    place = place.clamp_(0, size - 1)[:, None].expand_as(face)
    return face.gather(-1 if axis == "x" else -2, place).masked_fill_(beyond, 0)


def _cut_out(face: torch.Tensor, cutout: torch.Tensor) -> None:
    """Paint each sample's square into its face [B, 3, size, size]."""
    size = face.shape[-1]
    side, centre = cutout[:, :1] * size, cutout[:, 1:] * size
    first = (centre - side / 2).clamp(min=0).floor()
    # The first pixel is an integer and the last one is painted too, as in Pillow's rectangle.
    last = (first + side).floor()
    place = torch.arange(size, dtype=torch.float64)
    within = (place >= first[..., None]) & (place <= last[..., None])  # [B, 2, size]
    within = upload(within, face.device)
    square = within[:, :1, None, :] & within[:, 1:, :, None]
    colour = upload(torch.tensor(CUTOUT_COLOUR), face.device).view(3, 1, 1)
    face.copy_(torch.where(square, colour, face))
