"""Views of stored faces: plain for testing, weak (flip, jitter) and strong (RandAugment on top) for training.

A stored face has the template (the "box") in its middle and a margin of the real image around it. Each view reads a
window of it through ONE affine map per sample (flip, jitter and, in strong views, the geometric operations). The view
moves the landmarks by the inverse of that map and turns the local crops by its linear part. The crops stay centred on
their landmarks, so a shift of the window does not affect them. Everything runs in batches on the device of the faces.
Every random number is drawn on the CPU with the caller's generator, so views are the same on all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from fercli.errors import FercliError
from fercli.loading import randaugment, released_randaugment
from fercli.loading.placement import upload

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The order of image-left eye, image-right eye, nose tip, image-left and image-right mouth corner after mirroring.
MIRRORED = (1, 0, 2, 4, 3)
#: Side of the stored face's middle, relative to the side of the face's box (`fercli.faces.align.released_box`).
_WIDENED = 1.2
#: (B, rows): the given faces are these rows of a batch of B. Random numbers are drawn for all B, so that the views are
#: the same as in the whole batch.
Shard = tuple[int, slice]


@dataclass(frozen=True)
class ViewSettings:
    """How views are made; the ranges are those of ``data.augment`` and ``prepare.size``."""

    size: int = 112  # side in pixels of the view, and of the box in the middle of the stored face
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.1  # the window shifts by up to this fraction of the box's side and scales within 1 ± this
    operations: int = 3  # number of RandAugment operations drawn for a strong view
    magnitude: float = 5  # of RandAugment, 0 to 10; not used if `randaugment` is released
    crop: str = "standard"  # or released: see `_draw_window`
    randaugment: str = "standard"  # or released: see `fercli.loading.released_randaugment`
    shared_crop: bool = False  # the weak and the strong view of a face share crop and flip (`fercli.loading.batches`)
    swap_landmarks: bool = True  # a flip swaps left and right landmarks (and crops), unlike in the published code
    move_landmarks: bool = True  # geometric operations move the landmarks; False: they do not, as in the published code


# Not frozen: Lightning Fabric rebuilds dataclasses among the inputs that it casts, and rejects frozen ones.
@dataclass
class View:
    """A batch of images in the form that the network receives: `network(*view.inputs)`.

    images float32 [B, 3, size, size], normalised with ImageNet's mean and standard deviation; landmarks float32
    [B, 5, 2], (x, y) in pixels of that image, pixel centres at integers (a shift may move them outside it); crops
    float32 [B, 5, 3, C, C], normalised in the same way, or None. `len(view)` is B; `view[index]` selects samples by
    slice, mask or positions.
    """

    images: torch.Tensor
    landmarks: torch.Tensor
    crops: torch.Tensor | None = None

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(images, landmarks, crops)."""
        return self.images, self.landmarks, self.crops

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | torch.Tensor | list[int]) -> View:
        if isinstance(index, int):
            raise TypeError("a View keeps its batch dimension: use view[i : i + 1]")
        return self._map(lambda tensor: tensor[index])

    # Iterates over neither samples nor fields: unpack `inputs` instead.
    __iter__ = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> View:
        """Return the same view on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> View:
        crops = None if self.crops is None else change(self.crops)
        return View(change(self.images), change(self.landmarks), crops)


def cat(views: Sequence[View]) -> View:
    """Return one view with the samples of all, in order. Raises FercliError if only some of them have crops."""
    crops = [view.crops for view in views if view.crops is not None]
    if len(crops) not in (0, len(views)):
        raise FercliError("views: only some have local crops; prepare all datasets with the same crops")
    return View(
        torch.cat([view.images for view in views]),
        torch.cat([view.landmarks for view in views]),
        torch.cat(crops) if crops else None,
    )


@torch.no_grad()
def plain_view(
    faces: torch.Tensor, landmarks: torch.Tensor, crops: torch.Tensor | None, settings: ViewSettings
) -> View:
    """Return the box itself, for testing: the exact stored pixels, without randomness, in memory with channels last.

    faces uint8 [B, S, S, 3]; landmarks float32 [B, 5, 2], pixels of the stored face; crops uint8 [B, 5, C, C, 3] or
    None; all on one device. Raises FercliError if S is smaller than `settings.size`.
    """
    offset = _offset(faces, settings)
    window = faces[:, offset : offset + settings.size, offset : offset + settings.size]
    images = _normalise(window.permute(0, 3, 1, 2))
    patches = None if crops is None else _normalise(crops.permute(0, 4, 1, 2, 3)).transpose(1, 2)
    return View(images, landmarks - offset, patches)


def weak_view(
    faces: torch.Tensor,
    landmarks: torch.Tensor,
    crops: torch.Tensor | None,
    settings: ViewSettings,
    generator: torch.Generator | None = None,
    share: Shard | None = None,
) -> View:
    """Flip and jitter: the box, shifted by up to jitter * size pixels per axis and scaled within 1 ± jitter.

    Inputs and errors as for `plain_view`.
    The shift is drawn from the range that keeps the window inside the stored face. If the margin is too small even for
    the scale, the border is replicated. With the crop ``released``, width and height are scaled separately instead,
    within 1 ± 2 jitter / 1.2, and nothing is shifted (`_draw_window`). `generator` is a CPU generator (None: torch's
    global one). `share`: see `Shard`.
    """
    return strong_view(faces, landmarks, crops, replace(settings, operations=0), generator, share)


@torch.no_grad()
def strong_view(
    faces: torch.Tensor,
    landmarks: torch.Tensor,
    crops: torch.Tensor | None,
    settings: ViewSettings,
    generator: torch.Generator | None = None,
    share: Shard | None = None,
    crop_generator: torch.Generator | None = None,
) -> View:
    """Flip and jitter as in `weak_view`, then apply `settings.operations` operations of RandAugment drawn per sample.

    `fercli.loading.randaugment` documents the operations, their meaning at a magnitude, and the deliberate differences
    (above all, geometric operations come before pixel operations, whatever the drawn order). With
    `move_landmarks=False` the landmarks stay where flip and jitter put them, but crops are still turned. RandAugment
    ``released`` is that of `fercli.loading.released_randaugment`. With no operations, the view is the weak view. If
    `crop_generator` is given, it draws flip and jitter instead of `generator`: with the weak view's seed, it gives the
    weak view's crop. Inputs and errors as for `plain_view`.
    """
    window, flipped = _draw_window(faces, settings, generator, share)
    if crop_generator is not None:  # `generator` has still drawn its own crop, so that its operations do not change
        window, flipped = _draw_window(faces, settings, crop_generator, share)
    batch, rows = share or (len(faces), slice(None))
    if settings.randaugment == "released":
        released = released_randaugment.draw(batch, settings.operations, generator).of(rows)
        whole = window @ released_randaugment.geometry(released, settings.size)
        mover = whole if settings.move_landmarks else window
        pixels, layout, points = _warp(faces, landmarks, crops, window, whole, mover, flipped, settings)
        return _finish(released_randaugment.apply(pixels, layout, released), layout, points)
    plan = randaugment.draw(batch, settings.operations, generator)
    plan = randaugment.Plan(*(drawn[:, rows] for drawn in plan))
    whole = window @ randaugment.geometry(plan, settings.magnitude, settings.size)
    mover = whole if settings.move_landmarks else window
    pixels, layout, points = _warp(faces, landmarks, crops, whole, whole, mover, flipped, settings)
    return _finish(randaugment.apply_pixel_operations(pixels, layout, plan, settings.magnitude), layout, points)


def _offset(faces: torch.Tensor, settings: ViewSettings) -> int:
    """Return the margin: where the box begins in the stored face."""
    stored = faces.shape[1]
    if stored < settings.size:
        raise FercliError(
            f"views: stored faces are {stored} x {stored} pixels, smaller than the view's {settings.size}; "
            f"prepare them again with prepare.size of at least {settings.size}"
        )
    return (stored - settings.size) // 2


def _draw_window(
    faces: torch.Tensor, settings: ViewSettings, generator: torch.Generator | None, share: Shard | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return flip and jitter as maps [B, 3, 3] (float64, CPU), and which samples are flipped, bool [B].

    A map takes a pixel of the view, counted from its centre, to a pixel of the stored face.

    The crop ``released`` follows the released code of AGLRLS. That code widens the face's box by a tenth of its side at
    each end. It then moves both ends inwards or outwards by one number, uniform within a tenth (`jitter`), separately
    for x and y. The stored face's middle is the widened box, 1.2 times the box, so it is scaled within
    1 ± 2 jitter / 1.2 per axis, about its centre. Two differences remain, because the stored face lacks the
    information: that code draws whole pixels of the source image, and it ends its crop at the edge of that image, where
    the view here shows the replicated border.
    """
    batch, rows = share or (len(faces), slice(None))
    stored = faces.shape[1]
    half = (settings.size - 1) / 2
    centre = _offset(faces, settings) + half
    uniform = torch.rand(batch, 4, dtype=torch.float64, generator=generator)
    flipped = uniform[:, 0] < settings.flip
    window = torch.zeros(batch, 3, 3, dtype=torch.float64)
    if settings.crop == "released":
        across, down = (1 + 2 * settings.jitter / _WIDENED * (2 * uniform[:, 1:3] - 1)).unbind(1)
        window[:, :2, 2] = centre
    else:
        across = down = scale = 1 + settings.jitter * (2 * uniform[:, 1] - 1)
        room = min(centre, stored - 1 - centre) - half * scale
        reach = room.clamp(0, settings.jitter * settings.size)
        window[:, :2, 2] = centre + (2 * uniform[:, 2:] - 1) * reach[:, None]
    window[:, 0, 0] = torch.where(flipped, -across, across)
    window[:, 1, 1] = down
    window[:, 2, 2] = 1
    return window[rows], flipped[rows]


def _warp(faces, landmarks, crops, reader, turner, mover, flipped, settings):
    """Read faces through `reader` and crops through the linear part of `turner`; move landmarks by `mover`'s inverse.

    The three maps are float64 [B, 3, 3] on the CPU. Returns pixels float32 [B, 3, N] as integer levels 0..255, their
    Layout, and the landmarks in pixels of the view.
    """
    device, size, batch = faces.device, settings.size, len(faces)
    moved = torch.linalg.inv(mover)
    moved[:, :2, 2] += (size - 1) / 2
    moved = upload(moved.to(torch.float32), device)
    # Plain sums instead of a matrix product, because autocast or TF32 would round the coordinates.
    points = (moved[:, None, :2, :2] * landmarks[:, :, None, :]).sum(-1) + moved[:, None, :2, 2]
    if settings.swap_landmarks:
        order = upload(torch.where(flipped[:, None], torch.tensor(MIRRORED), torch.arange(5)), device)
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
        if crops is not None:
            crops = crops[torch.arange(batch, device=device)[:, None], order]

    pixels = _read(faces.permute(0, 3, 1, 2), reader, size).flatten(2)
    if crops is None:
        return pixels, randaugment.Layout(size, 0, 0), points
    number, side = crops.shape[1:3]
    turn = turner.clone()
    turn[:, :2, 2] = (side - 1) / 2
    # All crops of a sample are turned alike, so they are read as one image of many channels.
    turned = _read(crops.permute(0, 4, 1, 2, 3).flatten(1, 2), turn, side).view(batch, 3, -1)
    return torch.cat([pixels, turned], dim=-1), randaugment.Layout(size, number, side), points


def _read(pictures: torch.Tensor, maps: torch.Tensor, size: int) -> torch.Tensor:
    """Read images uint8 [B, K, S, S] bilinearly through maps [B, 3, 3]: float32 [B, K, size, size], integer levels.

    A map takes a pixel of the result, counted from its centre, to a pixel of the image. With align_corners=True, pixel
    i of S is at 2 i/(S - 1) - 1, and rounding to integer levels makes the identity exact.
    """
    stored, device = pictures.shape[-1], pictures.device
    maps = maps[:, :2] * (2 / (stored - 1))
    maps[:, :, 2] -= 1
    maps = upload(maps.to(torch.float32), device)[:, None, None]  # [B, 1, 1, 2, 3]
    steps = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    across = steps[:, None] * maps[..., 0]  # [B, 1, size, 2]
    down = steps[:, None, None] * maps[..., 1] + maps[..., 2]  # [B, size, 1, 2]
    read = F.grid_sample(pictures.float(), across + down, mode="bilinear", padding_mode="border", align_corners=True)
    return read.round_()


def _finish(pixels: torch.Tensor, layout: randaugment.Layout, points: torch.Tensor) -> View:
    images, patches = layout.split(pixels)
    crops = _normalise(patches).transpose(1, 2).contiguous() if layout.crops else None
    return View(_normalise(images).contiguous(), points, crops)


def _normalise(levels: torch.Tensor) -> torch.Tensor:
    """Convert levels 0..255 [B, 3, ...] to ImageNet's normalisation, float32."""
    scale, shift = _constants(levels.device)
    shape = (3,) + (1,) * (levels.dim() - 2)
    return torch.addcmul(shift.view(shape), levels.float(), scale.view(shape))


@lru_cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (1 / (255 * std)).to(device), (-mean / std).to(device)
