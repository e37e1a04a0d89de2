"""The released code's crop and RandAugment, checked with Pillow image by image, written from that code's behaviour."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from fercli.faces.align import warp
from fercli.loading import released_randaugment as released
from fercli.loading.augment import IMAGENET_MEAN, IMAGENET_STD, ViewSettings, plain_view, strong_view, weak_view
from fercli.loading.batches import Batches
from fercli.loading.face_dataset import FaceDataset
from fercli.loading.randaugment import Layout
from fercli.loading.released_randaugment import OPERATIONS, RANGES, Plan
from fercli.store import Store
from fercli.synthetic.render import STUDIO, render

STORED, SIZE, MARGIN = 140, 112, 14
RELEASED = ViewSettings(crop="released", randaugment="released")
BLENDS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
#: Rows of an affine map in Pillow's order, by strength v and side of the image.
MAPS = {
    "shear-x": lambda v, side: (1, v, 0, 0, 1, 0),
    "shear-y": lambda v, side: (1, 0, 0, v, 1, 0),
    "translate-x": lambda v, side: (1, 0, v * side, 0, 1, 0),
    "translate-y": lambda v, side: (1, 0, 0, 0, 1, v * side),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Return procedural faces, uint8 [H, W, 3]."""
    return [render(STUDIO, i, i % 7, i).image for i in range(8)]


@pytest.fixture(scope="module")
def stored(photographs: list[np.ndarray]) -> torch.Tensor:
    """Return uint8 [24, 140, 140, 3]: versions of these faces with different contrast."""
    pictures = [cv2.resize(image[:, :, ::step], (STORED, STORED)) for image in photographs for step in (1, -1)]
    dim = [picture // 3 + 60 for picture in pictures[:8]]
    return torch.from_numpy(np.stack([*pictures, *dim]))


def levels(normalised: torch.Tensor) -> np.ndarray:
    """Undo ImageNet's normalisation: [..., 3, H, W] to integer levels [..., H, W, 3]."""
    raw = normalised * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    return (raw * 255).movedim(-3, -1).round().numpy().astype(int)


def landmarks(count: int) -> torch.Tensor:
    return torch.tensor([[52.0, 58], [90, 61], [70, 79], [55, 95], [86, 97]]).expand(count, 5, 2).clone()


# --- operations --------------------


def pillow(picture: Image.Image, name: str, v: float) -> Image.Image:
    """Apply one operation at strength v."""
    if name in BLENDS:
        return BLENDS[name](picture).enhance(v)
    if name in MAPS:
        return picture.transform(picture.size, Image.Transform.AFFINE, MAPS[name](v, picture.size[0]))
    if name == "posterize":
        return ImageOps.posterize(picture, int(v))
    if name == "solarize":
        return ImageOps.solarize(picture, v)
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}.get(name, lambda same: same)(picture)


def with_square(picture: Image.Image, side: float, x: float, y: float) -> Image.Image:
    """Draw a square with Pillow: `side` and centre (x, y) are fractions of the width and height, corners are floats."""
    width, height = picture.size
    side *= width
    left, top = int(max(0, x * width - side / 2)), int(max(0, y * height - side / 2))
    corners = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(picture).rectangle(corners, (125, 123, 114))
    return picture


def ours(pictures: torch.Tensor, plan: Plan) -> np.ndarray:
    """Return the result of `released.apply` for uint8 [B, S, S, 3], as integer levels of the same shape."""
    size = pictures.shape[1]
    pixels = released.apply(pictures.permute(0, 3, 1, 2).flatten(2).float(), Layout(size, 0, 0), plan)
    assert torch.equal(pixels, pixels.round()) and pixels.min() >= 0 and pixels.max() <= 255
    return pixels.unflatten(-1, (size, size)).permute(0, 2, 3, 1).numpy().astype(int)


def plan_of(names: list[str], strengths: list[float], count: int, cutout: torch.Tensor | None = None) -> Plan:
    operations = torch.tensor([OPERATIONS.index(name) for name in names])[:, None].expand(-1, count)
    drawn = torch.tensor(strengths, dtype=torch.float64)[:, None].expand(-1, count)
    nowhere = torch.tensor([0.0, 5, 5], dtype=torch.float64).expand(count, 3)
    return Plan(operations, drawn, nowhere if cutout is None else cutout)


@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_pillow_does(name: str, share: float, stored: torch.Tensor) -> None:
    low, high = RANGES[name]
    v, pictures = low + share * (high - low), stored[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    changed = ours(pictures, plan_of([name], [v], len(pictures)))
    for picture, result in zip(pictures.numpy(), changed, strict=True):
        difference = abs(result - np.asarray(pillow(Image.fromarray(picture), name, v)).astype(int))
        if name in MAPS:  # at a position exactly between two pixels, Pillow's fixed point may take the other one
            assert (difference > 0).mean() < 2e-3
        else:
            assert difference.max() <= 1 and difference.mean() < 0.1
    unchanged = name in ("identity", "rotate") or (name in MAPS and share == 0.5)
    assert (changed == pictures.numpy()).all() == unchanged or (name, share) in (("posterize", 1.0), ("solarize", 1.0))


def test_operations_are_applied_in_the_drawn_order_and_the_square_last(stored: torch.Tensor) -> None:
    pictures = stored[:, MARGIN:-MARGIN, MARGIN:-MARGIN].repeat(6, 1, 1, 1)
    plan = released.draw(len(pictures), 3, seeded(5))
    close = []
    for i, result in enumerate(ours(pictures, plan)):
        picture = Image.fromarray(pictures[i].numpy())
        for operation, v in zip(plan.operations[:, i].tolist(), plan.strengths[:, i].tolist(), strict=True):
            picture = pillow(picture, OPERATIONS[operation], v)
        picture = with_square(picture, *plan.cutout[i].tolist())
        # A difference of one level may grow in the next operation (equalize, posterize), so not every pixel agrees.
        close.append((abs(result - np.asarray(picture).astype(int)) <= 2).mean())
    assert min(close) > 0.95 and np.mean(close) > 0.995


def test_later_operations_see_the_black_that_a_shift_leaves() -> None:
    grey = torch.full((1, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    grey[:, ::2] = 150
    inverted = ours(grey, plan_of(["translate-x", "solarize"], [0.25, 0.0], 1))
    assert (inverted[0, :, -28:] == 255).all() and (inverted[0, :, :-28] <= 155).all()
    stretched = ours(grey, plan_of(["translate-x", "autocontrast"], [0.25, 0.5], 1))
    assert set(np.unique(stretched)) == {0, 170, 255}  # not 0 and 255, as without the black
    assert set(np.unique(ours(grey, plan_of(["autocontrast", "translate-x"], [0.5, 0.25], 1)))) == {0, 255}


def test_strengths_are_uniform_over_the_range_of_their_operation() -> None:
    plan = released.draw(30000, 3, seeded())
    shares = torch.bincount(plan.operations.flatten(), minlength=14) / plan.operations.numel()
    assert len(OPERATIONS) == 14 and (shares - 1 / 14).abs().max() < 0.004
    assert (plan.operations[0] == plan.operations[1]).float().mean() == pytest.approx(1 / 14, abs=0.01)
    for position, (low, high) in enumerate(RANGES.values()):
        place = ((plan.strengths[plan.operations == position] - low) / (high - low)).sort().values
        assert place[0] >= 0 and place[-1] <= 1
        even = torch.linspace(0, 1, len(place), dtype=torch.float64)
        assert (place - even).abs().max() < 1.63 / len(place) ** 0.5  # Kolmogorov-Smirnov at 1 %
    bits = plan.strengths[plan.operations == OPERATIONS.index("posterize")].floor()
    assert set(bits.tolist()) == {4, 5, 6, 7}


def test_a_square_of_up_to_half_the_side_is_cut_out_of_every_view() -> None:
    count = 2000
    black = torch.zeros(count, SIZE, SIZE, 3, dtype=torch.uint8)
    plan = released.draw(count, 1, seeded(3))._replace(operations=torch.zeros(1, count, dtype=torch.int64))
    cut = (ours(black, plan) == (125, 123, 114)).all(-1)
    for i in range(0, count, 20):
        expected = np.asarray(with_square(Image.new("RGB", (SIZE, SIZE)), *plan.cutout[i].tolist()))
        np.testing.assert_array_equal(cut[i], (expected == (125, 123, 114)).all(-1))
    assert cut.any((1, 2)).all()
    width = cut.any(1).sum(-1)
    assert width.min() == 1 and 55 <= width.max() <= 57
    assert plan.cutout[:, 0].mean().item() == pytest.approx(0.25, abs=0.01)
    assert plan.cutout[:, 1:].mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_magnitude_is_not_used_and_no_operations_give_the_weak_view(stored: torch.Tensor) -> None:
    points = landmarks(len(stored))
    crops = stored[:, None, :48, :48].repeat(1, 5, 1, 1, 1)
    views = [
        strong_view(stored, points, crops, ViewSettings(randaugment="released", magnitude=m), seeded(1)) for m in (0, 9)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(view.inputs for view in views), strict=True))
    for crop in ("standard", "released"):
        settings = ViewSettings(crop=crop, randaugment="released", operations=0)
        weak = weak_view(stored, points, crops, ViewSettings(crop=crop, randaugment="released"), seeded(1))
        strong = strong_view(stored, points, crops, settings, seeded(1))
        assert all(torch.equal(a, b) for a, b in zip(weak.inputs, strong.inputs, strict=True))


# --- landmarks and local crops --------------------


def test_landmarks_follow_their_dots_unless_set_not_to() -> None:
    count = 200
    pictures = torch.zeros(count, STORED, STORED, 3, dtype=torch.uint8)
    dot = torch.tensor([74.0, 66.0])
    pictures[:, 63:70, 71:78] = 255
    points = dot.expand(count, 5, 2)
    names = ["shear-x", "translate-y", "shear-y", "translate-x"]
    plan = released.draw(count, 3, seeded(2))._replace(cutout=torch.tensor([[0.0, 5, 5]]).double().expand(count, 3))
    drawn = torch.randint(4, (3, count), generator=seeded(4))
    operations = torch.tensor([OPERATIONS.index(name) for name in names])[drawn]
    strengths = torch.rand(3, count, dtype=torch.float64, generator=seeded(6)) * 0.3 - 0.15
    plan = plan._replace(operations=operations, strengths=strengths)
    still = ViewSettings(flip=0, jitter=0, randaugment="released")
    with pytest.MonkeyPatch.context() as patch:  # only the draw is replaced, everything else is the view's own
        patch.setattr(released, "draw", lambda *_: plan)
        view = strong_view(pictures, points, None, still)
        left = strong_view(pictures, points, None, ViewSettings(**{**vars(still), "move_landmarks": False}))
    assert torch.equal(left.images, view.images)
    torch.testing.assert_close(left.landmarks, points - MARGIN)
    bright = (levels(view.images)[..., 0] > 128).astype(float)
    rows, columns = np.indices((SIZE, SIZE))
    total = bright.sum((1, 2))
    found = np.stack([(bright * columns).sum((1, 2)), (bright * rows).sum((1, 2))], -1) / total[:, None]
    inside = ((view.landmarks[:, 0] > 8) & (view.landmarks[:, 0] < SIZE - 8)).all(-1).numpy()
    error = np.linalg.norm(found - view.landmarks[:, 0].numpy(), axis=-1)[inside]
    assert inside.sum() > 150 and error.max() < 1.6 and error.mean() < 0.7
    assert (view.landmarks - left.landmarks).norm(dim=-1).max() > 10


def test_local_crops_are_sheared_about_their_landmarks_without_black_or_square() -> None:
    count = 60
    pictures = torch.full((count, STORED, STORED, 3), 90, dtype=torch.uint8)
    crops = torch.full((count, 5, 31, 31, 3), 90, dtype=torch.uint8)
    crops[:, :, :, 15] = 200  # an upright line through the landmark
    plan = plan_of(["shear-x", "translate-x"], [0.3, 0.3], count, released.draw(count, 1, seeded()).cutout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "draw", lambda *_: plan)
        view = strong_view(pictures, landmarks(count), crops, ViewSettings(flip=0, jitter=0, randaugment="released"))
    shown = levels(view.crops)[..., 0]
    assert shown.min() == 90 and (levels(view.images) == 0).any()
    assert (shown[:, :, [5, 15, 25]].argmax(-1) == [18, 15, 12]).all()


# --- the crop --------------------


def test_the_released_crop_equals_a_plain_loop(photographs: list[np.ndarray]) -> None:
    """Widen the box by a tenth per side, move both ends in or out equally, crop and resize with Pillow, one by one."""
    count, scale, offset = 60, 1.5, 40
    for photograph in photographs[:3]:
        # A widened box of 168 pixels at (40, 40), with 1.5 pixels per pixel of the view. The box itself has 140.
        photograph = cv2.GaussianBlur(cv2.resize(photograph, (260, 260)), (0, 0), 1.5)
        to_canvas = np.array([[1 / scale, 0, MARGIN], [0, 1 / scale, MARGIN]])
        to_canvas[:, 2] -= (offset - 0.5) / scale + 0.5
        face = torch.from_numpy(warp(photograph, to_canvas, STORED)).expand(count, -1, -1, -1)
        points = landmarks(count)
        view = weak_view(face, points, None, ViewSettings(crop="released", swap_landmarks=False), seeded(8))
        shown, uniform = levels(view.images), torch.rand(count, 4, dtype=torch.float64, generator=seeded(8))
        for i, (flip, *jitter, _) in enumerate(uniform.tolist()):
            inwards = [-14 * (2 * u - 1) for u in jitter]  # up to a tenth of the box's 140 pixels
            left, top = (offset + d for d in inwards)
            right, bottom = (offset + 168 - d for d in inwards)
            expected = Image.fromarray(photograph).resize(
                (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
            )
            own = (points[i].numpy() - to_canvas[:, 2]) * scale + 0.5  # from the image's corner
            moved = (own - (left, top)) * (SIZE / np.array([right - left, bottom - top]))
            if flip < 0.5:
                expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                moved[:, 0] = SIZE - moved[:, 0]
            difference = abs(shown[i] - np.asarray(expected).astype(int))
            assert difference.max() <= 12 and difference.mean() < 1
            np.testing.assert_allclose(view.landmarks[i], moved - 0.5, atol=2e-3)


def test_the_released_crop_scales_each_axis_separately_and_shifts_nothing(stored: torch.Tensor) -> None:
    count = 3000
    corners = torch.tensor([[14.0, 14], [125, 125], [69.5, 69.5], [0, 0], [139, 139]])
    settings = ViewSettings(flip=0, crop="released")
    points = weak_view(stored[:1].expand(count, -1, -1, -1), corners.expand(count, 5, 2), None, settings, seeded())
    points = points.landmarks
    torch.testing.assert_close(points[:, 2], torch.full((count, 2), 55.5), atol=1e-3, rtol=0)
    zoom = (SIZE - 1) / (points[:, 1] - points[:, 0])
    assert zoom.min() >= 5 / 6 - 1e-4 and zoom.max() <= 7 / 6 + 1e-4
    assert zoom.mean(0).tolist() == pytest.approx([1, 1], abs=0.01)
    assert zoom.std(0).tolist() == pytest.approx([1 / 6 / 3**0.5] * 2, abs=0.003)
    assert abs(np.corrcoef(zoom.T)[0, 1]) < 0.06
    assert points[:, 3].max() <= 0 and points[:, 4].min() >= SIZE - 1  # the margin is large enough
    plain = plain_view(stored, landmarks(len(stored)), None, settings)
    still = weak_view(stored, landmarks(len(stored)), None, ViewSettings(flip=0, jitter=0, crop="released"))
    assert torch.equal(plain.images, still.images)


# --- random numbers and devices --------------------


@pytest.mark.parametrize("make", [weak_view, strong_view])
def test_a_share_of_a_batch_has_the_same_views_as_the_whole(make, stored: torch.Tensor) -> None:
    points, crops = landmarks(len(stored)), stored[:, None, :48, :48].repeat(1, 5, 1, 1, 1)
    whole = make(stored, points, crops, RELEASED, seeded(9))
    for rows in (slice(0, 7), slice(7, 20), slice(20, 24)):
        part = make(stored[rows], points[rows], crops[rows], RELEASED, seeded(9), (len(stored), rows))
        for mine, due in zip(part.inputs, whole[rows].inputs, strict=True):
            # Not bit for bit: a vectorised sum (the mean of contrast) may round differently.
            assert ((mine - due).abs() > 1e-6).float().mean() < 1e-3


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_released_views_are_made_on_the_device_of_the_faces(device: str, stored: torch.Tensor) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    given = stored, landmarks(len(stored)), stored[:, None, :48, :48].repeat(1, 5, 1, 1, 1)
    here = strong_view(*given, RELEASED, seeded(4))
    there = strong_view(*(part.to(device) for part in given), RELEASED, seeded(4))
    for a, b in zip(here.inputs, there.inputs, strict=True):
        assert b.device.type == device and a.shape == b.shape and a.dtype == b.dtype
    if device == "cuda":
        torch.testing.assert_close(there.to("cpu").landmarks, here.landmarks, atol=1e-3, rtol=0)
        assert (abs(levels(there.to("cpu").images) - levels(here.images)) > 1).mean() < 0.01


# --- one crop for both views --------------------


def batches(prepared, **changes) -> Batches:
    raf, jaffe = Store.open(prepared / "raf-db"), Store.open(prepared / "jaffe", labels=False)
    cpu = torch.device("cpu")
    source, target = (FaceDataset([store], [np.arange(len(store))], cpu, True) for store in (raf, jaffe))
    wants = frozenset({"weak", "strong"})
    return Batches(source, raf.labels, target, wants, 12, 3, ViewSettings(**changes), cpu)


@pytest.mark.parametrize("crop", ["standard", "released"])
def test_weak_and_strong_view_share_crop_and_flip(prepared, crop: str) -> None:
    apart, shared = (batches(prepared, crop=crop, operations=0, shared_crop=share) for share in (False, True))
    for step in range(3):
        one, both = apart(step), shared(step)
        assert not torch.equal(one.strong.images, one.weak.images)
        for strong, weak, alone in zip(both.strong.inputs, both.weak.inputs, one.weak.inputs, strict=True):
            assert torch.equal(strong, weak) and torch.equal(weak, alone)


def test_only_the_crop_is_shared(prepared) -> None:
    left = {"move_landmarks": False, "randaugment": "released", "crop": "released"}
    made = batches(prepared, **left, shared_crop=True)(2)
    assert torch.equal(made.weak.landmarks, made.strong.landmarks)
    assert (made.weak.images != made.strong.images).flatten(1).any(1).all()
    # The operations are those that the view draws without a shared crop.
    still = {"flip": 0, "jitter": 0, "randaugment": "released"}
    apart, shared = (batches(prepared, **still, shared_crop=share)(2) for share in (False, True))
    assert torch.equal(apart.strong.images, shared.strong.images)
