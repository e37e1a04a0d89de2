"""Views: pixels checked with Pillow, geometry with plain loops and torchvision, landmarks with painted dots."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from fercli.errors import FercliError
from fercli.loading import randaugment
from fercli.loading.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    View,
    ViewSettings,
    cat,
    plain_view,
    strong_view,
    weak_view,
)
from fercli.loading.randaugment import GEOMETRIC_OPERATIONS, OPERATIONS, PIXEL_OPERATIONS, Layout, Plan

STORED, SIZE, MARGIN, PATCH = 140, 112, 14, 21
STILL = ViewSettings(flip=0, jitter=0)
# Integers, so that a patch can be cut exactly around each point.
POINTS = torch.tensor([[52.0, 58], [90, 61], [70, 79], [55, 95], [86, 97]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_faces(count: int, seed: int = 0, size: int = STORED, noise: float = 12) -> torch.Tensor:
    """Return uint8 [count, size, size, 3]: smooth blobs of different ranges with a little noise."""
    generator = seeded(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    blobs = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    low, high = torch.rand(2, count, 1, 1, 3, generator=generator)
    levels = 20 + 60 * low + (80 + 90 * high) * blobs + noise * torch.randn(blobs.shape, generator=generator)
    return levels.clamp(0, 255).to(torch.uint8)


def cut(faces: torch.Tensor, points: torch.Tensor, side: int = PATCH) -> torch.Tensor:
    """Return patches [B, 5, side, side, 3] of images [B, S, S, 3] centred on integer points [B, 5, 2]."""
    half = side // 2
    corners = points.round().long() - half
    return torch.stack(
        [
            torch.stack([face[y : y + side, x : x + side] for x, y in corner])
            for face, corner in zip(faces, corners.tolist(), strict=True)
        ]
    )


def inputs(count: int, **settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    faces = smooth_faces(count, **settings)
    points = POINTS.expand(count, 5, 2).clone()
    return faces, points, cut(faces, points)


def levels(normalised: torch.Tensor) -> torch.Tensor:
    """Undo ImageNet's normalisation: [..., 3, H, W] to levels [..., H, W, 3]."""
    shape = (3, 1, 1)
    raw = normalised * torch.tensor(IMAGENET_STD).view(shape) + torch.tensor(IMAGENET_MEAN).view(shape)
    return (raw * 255).movedim(-3, -1)


def plan_of(seed: int, batch: int, operations: int = 3) -> Plan:
    """Return the plan that a strong view draws from this seed (after four numbers per sample for the window)."""
    generator = seeded(seed)
    torch.rand(batch, 4, dtype=torch.float64, generator=generator)
    return randaugment.draw(batch, operations, generator)


def only_moved(plan: Plan) -> torch.Tensor:
    """Return a mask of the samples that drew no pixel operation."""
    still = [OPERATIONS.index(name) for name in ("identity", *GEOMETRIC_OPERATIONS)]
    return torch.isin(plan.operations, torch.tensor(still)).all(0)


# --- plain and identity --------------------


def test_plain_view_is_the_stored_box_to_the_bit():
    faces, points, crops = inputs(3)
    view = plain_view(faces.contiguous(), points, crops, STILL)
    box = faces[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert torch.equal(levels(view.images).round().to(torch.uint8), box)
    assert torch.equal(levels(view.crops).round().to(torch.uint8), crops)
    expected = (box.permute(0, 3, 1, 2) / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    torch.testing.assert_close(view.images, expected, atol=2e-6, rtol=0)
    assert torch.equal(view.landmarks, points - MARGIN)
    assert view.images.is_contiguous(memory_format=torch.channels_last)
    assert view.crops.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert view.images.shape == (3, 3, SIZE, SIZE) and view.crops.shape == (3, 5, 3, PATCH, PATCH)


@pytest.mark.parametrize("stored", [SIZE, SIZE + 1, STORED])
def test_without_jitter_and_operations_every_view_is_the_plain_one(stored):
    faces = smooth_faces(4, size=stored)
    points = torch.rand(4, 5, 2, generator=seeded()) * 80 + 16
    crops = smooth_faces(20, size=48).unflatten(0, (4, 5))
    plain = plain_view(faces, points, crops, STILL)
    nothing = dataclasses.replace(STILL, operations=0)
    for view in (weak_view(faces, points, crops, STILL), strong_view(faces, points, crops, nothing)):
        assert torch.equal(view.images, plain.images)
        assert torch.equal(view.crops, plain.crops)
        torch.testing.assert_close(view.landmarks, plain.landmarks, atol=1e-4, rtol=0)


def test_views_without_crops_have_the_same_images():
    faces, points, crops = inputs(6)
    for make in (weak_view, strong_view):
        with_crops = make(faces, points, crops, ViewSettings(), seeded(3))
        without = make(faces, points, None, ViewSettings(), seeded(3))
        assert without.crops is None
        assert torch.equal(with_crops.images, without.images)
        assert torch.equal(with_crops.landmarks, without.landmarks)
        assert with_crops.images.is_contiguous() and with_crops.crops.is_contiguous()


# --- pixel operations --------------------


def pillow(picture: np.ndarray, name: str, magnitude: float, sign: float) -> np.ndarray:
    """Apply one operation to one uint8 [H, W, 3] image with Pillow."""
    image = Image.fromarray(picture)
    factor = 1 + sign * 0.9 * magnitude / 10
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        image = enhancers[name](image).enhance(factor)
    elif name == "autocontrast":
        image = ImageOps.autocontrast(image)
    elif name == "equalize":
        image = ImageOps.equalize(image)
    elif name == "solarize":
        image = ImageOps.solarize(image, 256 * (1 - magnitude / 10))
    elif name == "posterize":
        image = ImageOps.posterize(image, 8 - round(4 * magnitude / 10))
    return np.asarray(image)


def apply(faces: torch.Tensor, crops: torch.Tensor | None, plan: Plan, magnitude: float):
    """Apply fercli's pixel operations to uint8 [B, S, S, 3] and [B, 5, C, C, 3]: int64 levels of the same shapes."""
    pixels = faces.permute(0, 3, 1, 2).flatten(2).float()
    layout = Layout(faces.shape[1], 0, 0)
    if crops is not None:
        layout = Layout(faces.shape[1], 5, crops.shape[2])
        pixels = torch.cat([pixels, crops.permute(0, 4, 1, 2, 3).flatten(2).float()], -1)
    changed = randaugment.apply_pixel_operations(pixels, layout, plan, magnitude)
    assert torch.equal(changed, changed.round()) and changed.min() >= 0 and changed.max() <= 255
    face, patches = layout.split(changed)
    return face.permute(0, 2, 3, 1).long(), patches.permute(0, 2, 3, 4, 1).long()


@pytest.mark.parametrize("magnitude", [2, 5, 10])
@pytest.mark.parametrize("name", PIXEL_OPERATIONS)
def test_a_pixel_operation_does_what_pillow_does(name, magnitude):
    faces = smooth_faces(6, size=SIZE)
    faces[0] = faces[0] // 4 + 90  # a narrow range
    faces[1, ..., 2] = 77  # a flat channel
    signs = torch.tensor([[1.0, -1, 1, -1, 1, -1]])
    ours, _ = apply(faces, None, Plan(torch.full((1, 6), OPERATIONS.index(name)), signs), magnitude)
    for face, result, sign in zip(faces.numpy(), ours.numpy(), signs[0].tolist(), strict=True):
        difference = np.abs(result - pillow(face, name, magnitude, sign))
        assert difference.max() <= 1
        assert difference.mean() < 0.02
    assert (ours != faces).any() == (name != "identity")


@pytest.mark.parametrize("name", ["equalize", "autocontrast"])
def test_a_flat_face_does_not_change(name):
    faces = torch.full((2, 16, 16, 3), 130, dtype=torch.uint8)
    ours, _ = apply(faces, None, Plan(torch.full((1, 2), OPERATIONS.index(name)), torch.ones(1, 2)), 5)
    assert torch.equal(ours, faces.long())


def test_equalize_by_hand():
    # 400 pixels per channel: 100 of level 10, 300 of level 200. Step (400 - 300) // 255 = 0: Pillow changes nothing.
    face = torch.full((1, 20, 20, 3), 200, dtype=torch.uint8)
    face[:, :5] = 10
    plan = Plan(torch.full((1, 1), OPERATIONS.index("equalize")), torch.ones(1, 1))
    assert torch.equal(apply(face, None, plan, 5)[0], face.long())
    # 1024: 768 of level 10, 256 of level 200. Step 768 // 255 = 3: level 10 to (1 + 0) // 3 = 0, level 200 to
    # (1 + 768) // 3 = 256, so 255.
    face = torch.full((1, 32, 32, 3), 10, dtype=torch.uint8)
    face[:, :8] = 200
    expected = torch.where(face == 10, 0, 255)
    assert torch.equal(apply(face, None, plan, 5)[0], expected)


@pytest.mark.parametrize("name", PIXEL_OPERATIONS)
def test_a_crop_stays_a_piece_of_its_face(name):
    faces = smooth_faces(4, size=SIZE)
    points = (POINTS - MARGIN).expand(4, 5, 2)
    plan = Plan(torch.full((1, 4), OPERATIONS.index(name)), torch.tensor([[1.0, -1, 1, -1]]))
    face, crops = apply(faces, cut(faces, points), plan, 5)
    expected = cut(face, points)
    inner = slice(1, -1) if name == "sharpness" else slice(None)  # the outermost ring lacks its outer neighbours
    assert torch.equal(crops[:, :, inner, inner], expected[:, :, inner, inner])


def test_a_batch_equals_its_samples_one_by_one_and_follows_the_drawn_order():
    faces, points, _ = inputs(48, size=SIZE)
    crops = cut(faces, points - MARGIN)
    plan = randaugment.draw(48, 3, seeded(5))
    batched, batched_crops = apply(faces, crops, plan, 5)
    close = []
    for i in range(48):
        own = Plan(plan.operations[:, i : i + 1], plan.signs[:, i : i + 1])
        single, single_crops = apply(faces[i : i + 1], crops[i : i + 1], own, 5)
        # Not bit for bit: a vectorised sum (the mean of contrast) may round differently.
        assert (batched[i] != single[0]).float().mean() < 1e-3
        assert (batched_crops[i] != single_crops[0]).float().mean() < 1e-3
        picture = faces[i].numpy()
        for operation, sign in zip(own.operations[:, 0].tolist(), own.signs[:, 0].tolist(), strict=True):
            picture = pillow(picture, OPERATIONS[operation], 5, sign)
        # A difference of one level may grow in the next operation (equalize, posterize), so not every pixel agrees.
        close.append((np.abs(single[0].numpy() - picture) <= 2).mean())
    assert min(close) > 0.95 and np.mean(close) > 0.995


def test_all_operations_are_drawn_evenly_and_independently():
    plan = randaugment.draw(4000, 3, seeded())
    shares = torch.bincount(plan.operations.flatten(), minlength=len(OPERATIONS)) / plan.operations.numel()
    assert len(OPERATIONS) == 14 and (shares - 1 / 14).abs().max() < 0.01
    assert (plan.operations[0] == plan.operations[1]).float().mean() == pytest.approx(1 / 14, abs=0.02)
    assert set(plan.signs.unique().tolist()) == {-1.0, 1.0} and plan.signs.mean().abs() < 0.05


# --- geometry --------------------


def reading_place(name: str, sign: float, magnitude: float, x: float, y: float) -> tuple[float, float]:
    """Return where one operation reads the result's pixel (x, y), both from the centre, written out separately."""
    amount = sign * magnitude / 10
    if name == "rotate":
        turn = math.radians(30 * amount)
        return math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y
    if name == "shear-x":
        return x + 0.3 * amount * y, y
    if name == "shear-y":
        return x, y + 0.3 * amount * x
    if name == "translate-x":
        return x + 0.3 * amount * SIZE, y
    if name == "translate-y":
        return x, y + 0.3 * amount * SIZE
    return x, y


def bilinear(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return image [S, S, 3] at (x, y), with a replicated border."""
    last = len(picture) - 1
    x, y = min(max(x, 0), last), min(max(y, 0), last)
    left, top = min(int(x), last - 1), min(int(y), last - 1)
    u, v = x - left, y - top
    rows = picture[top : top + 2, left : left + 2].astype(float)
    return (rows[0, 0] * (1 - u) + rows[0, 1] * u) * (1 - v) + (rows[1, 0] * (1 - u) + rows[1, 1] * u) * v


def test_geometric_operations_compose_as_a_plain_loop_over_pixels():
    count, settings = 300, STILL
    plan = plan_of(7, count)
    chosen = only_moved(plan).nonzero()[:, 0].tolist()
    assert len(chosen) > 10
    faces, points, _ = inputs(count, noise=0)
    view = strong_view(faces, points, None, settings, seeded(7))
    pictures = levels(view.images)
    centre, stored_centre = (SIZE - 1) / 2, (STORED - 1) / 2
    for i in chosen:
        steps = [(OPERATIONS[o], s) for o, s in zip(plan.operations[:, i], plan.signs[:, i].tolist(), strict=True)]
        for row, column in [(0, 0), (5, 100), (40, 50), (56, 56), (77, 20), (111, 111)]:
            x, y = column - centre, row - centre
            for name, sign in reversed(steps):  # the last result is read from the previous one
                x, y = reading_place(name, sign, settings.magnitude, x, y)
            expected = bilinear(faces[i].numpy(), x + stored_centre, y + stored_centre)
            assert np.abs(pictures[i, row, column].numpy() - expected).max() <= 0.51


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", GEOMETRIC_OPERATIONS)
def test_a_geometric_operation_does_what_torchvision_does(name, sign):
    """One operation of magnitude 5 inside the image; the equivalent signs of torchvision are written out."""
    plan = Plan(torch.full((1, 1), OPERATIONS.index(name)), torch.tensor([[float(sign)]]))
    matrix = randaugment.geometry(plan, 5, 120)[0]
    face = smooth_faces(1, size=121, noise=0)[0].permute(2, 0, 1).float()
    slope = math.degrees(math.atan(0.15))
    # Translate by exactly 18 of 120 pixels.
    arguments = {
        "rotate": dict(angle=-15.0 * sign),
        "shear-x": dict(shear=[slope * sign, 0.0]),
        "shear-y": dict(shear=[0.0, slope * sign]),
        "translate-x": dict(translate=[-18 * sign, 0]),
        "translate-y": dict(translate=[0, -18 * sign]),
    }[name]
    call = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0]) | arguments
    expected = TF.affine(face, **call, interpolation=InterpolationMode.BILINEAR)
    inner = range(35, 86, 5)
    for row in inner:
        for column in inner:
            x, y = (matrix @ torch.tensor([column - 60.0, row - 60, 1], dtype=torch.float64))[:2].tolist()
            ours = bilinear(face.permute(1, 2, 0).numpy(), x + 60, y + 60)
            assert np.abs(expected[:, row, column].numpy() - ours).max() < 0.05


def dotted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return faces [5 count, S, S, 3] and landmarks [5 count, 5, 2]: plain, with a soft disc on one landmark each."""
    points = POINTS + torch.rand(count, 5, 2, generator=seeded(seed)) * 6 - 3
    points = points.repeat_interleave(5, 0)
    own = points[torch.arange(5 * count), torch.arange(5).repeat(count)]
    steps = torch.arange(STORED)
    distance = torch.hypot(steps - own[:, 0, None, None], steps[:, None] - own[:, 1, None, None])
    disc = (3.5 - distance).clamp(0, 1)
    colour = torch.tensor([230.0, 40, 160]) - torch.tensor([100.0, 120, 60])
    return (torch.tensor([100.0, 120, 60]) + disc[..., None] * colour).round().to(torch.uint8), points


@pytest.mark.parametrize("make", [weak_view, strong_view])
@pytest.mark.parametrize("swap", [True, False])
def test_painted_dots_are_found_at_the_returned_landmarks(make, swap):
    count = 64
    faces, points = dotted(count, 1)
    settings = ViewSettings(swap_landmarks=swap)
    # The five dots of a sample use the same draws: one view per dot, each with the sample's own random numbers.
    checked = 0
    for dot in range(5):
        view = make(faces[dot::5], points[dot::5], None, settings, seeded(11))
        flipped = torch.rand(count, 4, dtype=torch.float64, generator=seeded(11))[:, 0] < settings.flip
        assert 0 < flipped.sum() < count
        place = torch.where(flipped, [1, 0, 2, 4, 3][dot], dot) if swap else torch.full((count,), dot)
        landmark = view.landmarks[torch.arange(count), place]
        inside = ((landmark > 5) & (landmark < SIZE - 6)).all(-1)
        picture = levels(view.images)
        background = picture.flatten(1, 2).median(1).values[:, None, None]
        weight = (picture - background).abs().amax(-1)
        weight = weight * (weight > 0.5 * weight.amax((1, 2), keepdim=True))
        steps = torch.arange(SIZE)
        total = weight.sum((1, 2))
        found = torch.stack([(weight * steps).sum((1, 2)), (weight * steps[:, None]).sum((1, 2))], -1) / total[:, None]
        error = (found - landmark).norm(dim=-1)[inside]
        assert error.max() < 1.5 and error.mean() < 0.5
        checked += int(inside.sum())
    assert checked == 5 * count if make is weak_view else checked > 4 * count


@pytest.mark.parametrize("swap", [True, False])  # as published: False
def test_a_flip_mirrors_the_image_and_swaps_landmarks_and_crops_if_set(swap):
    faces, points, crops = inputs(3)
    settings = ViewSettings(flip=1, jitter=0, swap_landmarks=swap)
    plain, view = plain_view(faces, points, crops, settings), weak_view(faces, points, crops, settings, seeded())
    assert torch.equal(view.images, plain.images.flip(-1))
    mirrored = plain.landmarks * torch.tensor([-1.0, 1]) + torch.tensor([SIZE - 1.0, 0])
    order = [1, 0, 2, 4, 3] if swap else [0, 1, 2, 3, 4]
    torch.testing.assert_close(view.landmarks, mirrored[:, order], atol=1e-4, rtol=0)
    assert torch.equal(view.crops, plain.crops.flip(-1)[:, order])
    # If swapped, the order is still that of the image: left before right, whatever the face's own sides are.
    assert (view.landmarks[:, 0, 0] < view.landmarks[:, 1, 0]).tolist() == [swap] * 3
    assert (view.landmarks[:, 3, 0] < view.landmarks[:, 4, 0]).tolist() == [swap] * 3
    # In both cases, each crop equals what the view shows around its landmark.
    assert torch.equal(levels(view.crops).round(), cut(levels(view.images), view.landmarks).round())


def test_the_published_strong_view_does_not_move_the_landmarks():
    faces, points, crops = inputs(40)
    moved = strong_view(faces, points, crops, ViewSettings(), seeded(2))
    left = strong_view(faces, points, crops, ViewSettings(move_landmarks=False), seeded(2))
    weak = weak_view(faces, points, crops, ViewSettings(), seeded(2))  # the window is drawn first, so it is the same
    assert torch.equal(left.images, moved.images) and torch.equal(left.crops, moved.crops)
    assert torch.equal(left.landmarks, weak.landmarks)
    geometric = (plan_of(2, 40).operations >= len(PIXEL_OPERATIONS)).any(0)
    shifted = (moved.landmarks - left.landmarks).abs().amax((1, 2)) > 1
    assert not shifted[~geometric].any()
    assert shifted[geometric].float().mean() > 0.9  # two draws may cancel each other


def test_jitter_stays_inside_the_stored_face_and_in_its_range():
    count = 600
    corners = torch.tensor([[0.0, 0], [STORED - 1, STORED - 1], [14, 14], [125, 125], [69.5, 69.5]])
    faces = torch.zeros(count, STORED, STORED, 3, dtype=torch.uint8)
    settings = ViewSettings(flip=0, jitter=0.1)
    points = weak_view(faces, corners.expand(count, 5, 2), None, settings, seeded()).landmarks
    assert points[:, 0].max() <= 1e-3 and points[:, 1].min() >= SIZE - 1 - 1e-3  # the image covers the window
    scale = (SIZE - 1) / (points[:, 3] - points[:, 2])  # stored pixels per view pixel
    assert 0.9 - 1e-4 < scale.min() < 0.905 and 1.095 < scale.max() < 1.1 + 1e-4
    shift = ((SIZE - 1) / 2 - points[:, 4]) * scale
    assert 10.5 < shift.abs().max() < 11.2 + 1e-3 and shift.mean(0).abs().max() < 1


def test_crops_show_what_the_view_shows_around_its_landmarks():
    count, side, half = 500, 31, 15
    faces, points, _ = inputs(count, noise=0)
    crops = cut(faces, points, side)
    settings = ViewSettings()
    kept = only_moved(plan_of(13, count))
    view = strong_view(faces, points, crops, settings, seeded(13))[kept]
    weak = weak_view(faces, points, crops, settings, seeded(14))[:40]
    steps = torch.arange(-half, half + 1.0)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    for shown in (weak, view):
        places = shown.landmarks[:, :, None, None] + offsets  # [B, 5, side, side, 2]
        grid = (places * 2 / (SIZE - 1) - 1).flatten(1, 2)
        expected = F.grid_sample(shown.images, grid, align_corners=True).unflatten(2, (5, side)).transpose(1, 2)
        near = offsets.norm(dim=-1) <= 8  # pixels well inside the crop before turning, shearing and scaling
        seen = ((places > 1) & (places < SIZE - 2)).all(-1) & near
        difference = (levels(shown.crops) - levels(expected)).abs().amax(-1)[seen]
        assert seen.sum() > 5000 and difference.max() <= 3 and difference.mean() < 0.5


# --- random numbers, devices, the View itself --------------------


@pytest.mark.parametrize("make", [weak_view, strong_view])
def test_the_generator_determines_the_view(make):
    faces, points, crops = inputs(8)
    one, same, other = (make(faces, points, crops, ViewSettings(), seeded(seed)) for seed in (1, 1, 2))
    for a, b, c in zip(one.inputs, same.inputs, other.inputs, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    state = torch.get_rng_state()
    make(faces, points, crops, ViewSettings(), seeded(1))
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_not_changed_and_views_carry_no_gradient():
    faces, points, crops = inputs(16)
    copies = faces.clone(), points.clone(), crops.clone()
    view = strong_view(faces, points, crops, ViewSettings(), seeded())
    for before, after in zip(copies, (faces, points, crops), strict=True):
        assert torch.equal(before, after)
    assert not any(tensor.requires_grad for tensor in view.inputs)
    assert all(tensor.dtype == torch.float32 for tensor in view.inputs)


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("make", [weak_view, strong_view])
def test_views_are_made_on_the_device_of_the_faces(make, device):
    """`meta` computes nothing, but refuses to mix devices like an accelerator."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    faces, points, crops = inputs(32)
    here = make(faces, points, crops, ViewSettings(), seeded(4))
    there = make(faces.to(device), points.to(device), crops.to(device), ViewSettings(), seeded(4))
    for a, b in zip(here.inputs, there.inputs, strict=True):
        assert b.device.type == device and a.shape == b.shape and a.dtype == b.dtype
    if device == "cuda":
        there = there.to("cpu")
        torch.testing.assert_close(there.landmarks, here.landmarks, atol=1e-3, rtol=0)
        far = (levels(there.images) - levels(here.images)).abs() > 1.5
        assert far.float().mean() < 0.01


def test_view_is_indexed_by_sample_and_joined():
    faces, points, crops = inputs(6)
    view = plain_view(faces, points, crops, STILL)
    assert len(view) == 6 and len(view[2:4]) == 2
    picked = view[torch.tensor([5, 0])]
    assert torch.equal(picked.images[0], view.images[5]) and torch.equal(picked.crops[1], view.crops[0])
    assert len(view[view.landmarks[:, 0, 0] > 1e6]) == 0
    joined = cat([view[:2], view[2:]])
    assert all(torch.equal(a, b) for a, b in zip(joined.inputs, view.inputs, strict=True))
    bare = View(view.images, view.landmarks)
    assert cat([bare, bare]).crops is None and bare[:1].crops is None and len(bare.to("cpu")) == 6
    with pytest.raises(FercliError, match="only some have local crops"):
        cat([view, bare])
    with pytest.raises(TypeError, match="batch dimension"):
        view[0]
    with pytest.raises(TypeError):
        iter(view)


def test_a_stored_face_smaller_than_the_view_is_refused():
    with pytest.raises(FercliError, match="smaller than the view's 112"):
        plain_view(torch.zeros(1, 100, 100, 3, dtype=torch.uint8), torch.zeros(1, 5, 2), None, STILL)
