"""Alignment, compared with plain solves and plain loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from fercli.faces import align
from fercli.synthetic.render import STUDIO, render


def similarity(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    turn = np.deg2rad(degrees)
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[c, -s, x], [s, c, y]])


def plain_solve(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve the same least squares written out: unknowns a, b, tx, ty of x' = ax - by + tx, y' = bx + ay + ty."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [(x, -y, 1, 0), (y, x, 0, 1)]
        right += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (0.3, 20), (2.5, -45), (1, 179), (7, 90)])
def test_umeyama_recovers_a_known_similarity(scale, degrees):
    truth = similarity(scale, degrees, 31, -12)
    points = align.ARCFACE_TEMPLATE * 2 + 5
    np.testing.assert_allclose(align.umeyama(points, align.transform(truth, points)), truth, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_umeyama_equals_a_plain_least_squares_solve(seed):
    rng = np.random.default_rng(seed)
    source = align.ARCFACE_TEMPLATE + rng.normal(0, 6, (5, 2))
    np.testing.assert_allclose(
        align.umeyama(source, align.ARCFACE_TEMPLATE), plain_solve(source, align.ARCFACE_TEMPLATE), atol=1e-9
    )


def test_umeyama_never_reflects():
    mirrored = align.ARCFACE_TEMPLATE * (-1, 1)
    assert np.linalg.det(align.umeyama(mirrored, align.ARCFACE_TEMPLATE)[:, :2]) > 0


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_umeyama_refuses_points_without_a_scale(points):
    with pytest.raises(ValueError, match="no similarity"):
        align.umeyama(points, align.ARCFACE_TEMPLATE)


def test_a_mean_shaped_face_lands_on_the_template():
    """Noisy faces around the template in random poses: their mean on the canvas is the template's shape."""
    rng = np.random.default_rng(0)
    landed = []
    for _ in range(400):
        shape = align.ARCFACE_TEMPLATE + rng.normal(0, 2, (5, 2))
        pose = similarity(rng.uniform(0.5, 4), rng.uniform(-60, 60), *rng.uniform(0, 500, 2))
        points = align.transform(pose, shape)
        landed.append(align.transform(align.template_matrix(points), points))
    np.testing.assert_allclose(np.mean(landed, 0), align.ARCFACE_TEMPLATE + 14, atol=0.4)


@pytest.mark.parametrize(("size", "margin"), [(112, 0), (112, 14), (224, 28), (56, 7)])
def test_template_of_another_size_covers_the_same_part_of_the_face(size, margin):
    shares = (align.template(size, margin) - margin + 0.5) / size
    np.testing.assert_allclose(shares, (align.ARCFACE_TEMPLATE + 0.5) / 112, atol=1e-12)


def test_warp_at_scale_one_copies_pixels_and_replicates_the_border():
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    moved = align.warp(image, np.array([[1.0, 0, 10], [0, 1, 10]]), 80)
    np.testing.assert_array_equal(moved[10:50, 10:60], image)
    np.testing.assert_array_equal(moved[0, 10:60], image[0])
    np.testing.assert_array_equal(moved[79, 79], image[-1, -1])


def loop_over_released(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the released code's box, step by step: whole pixels, half of a fifth on each side, clipped."""
    left, top, right, bottom = (int(v) for v in box)
    across, down = int(0.5 * int(0.20 * (right - left))), int(0.5 * int(0.20 * (bottom - top)))
    left, top = left - across, top - down
    right, bottom = right + across, bottom + down
    return left if left > 0 else 0, top if top > 0 else 0, min(right, width), min(bottom, height)


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """Return a procedural face of that size, with camera noise."""
    image = cv2.resize(render(STUDIO, seed, seed % 7, seed).image, (width, height), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(seed).normal(0, 5, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "box",
    [
        (50.0, 40.0, 162.0, 190.0),  # inside
        (30.7, 20.2, 95.9, 120.4),  # not in whole pixels
        (2.0, 5.0, 130.0, 170.0),  # clipped at the top and on the left
        (60.0, 70.0, 210.0, 260.0),  # extends beyond the image
        (0.0, 0.0, 220.0, 240.0),  # the whole image
        (100.0, 100.0, 109.0, 112.0),  # so small that the width does not grow
        (20.0, 30.0, 200.0, 60.0),  # flat
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_the_box_is_that_of_the_released_code(box, times):
    """Widened, clipped, cropped and resized to 112 x 112: equal to one level, except for the outermost pixels."""
    box = tuple(times * v for v in box)
    width, height = 220 * times, 240 * times
    image = photograph(width, height, 3)
    found = align.released_box(box, (width, height))
    assert found == loop_over_released(box, width, height)
    matrix = align.box_matrix(found)
    face = align.warp(image, matrix, 140)[14:126, 14:126].astype(int)
    expected = np.asarray(Image.fromarray(image).crop(found).resize((112, 112), Image.Resampling.BILINEAR)).astype(int)
    ring = 1 + 112 // min(found[2] - found[0], found[3] - found[1])
    assert abs(face - expected)[ring:-ring, ring:-ring].max() <= 1
    # There the filter sees the neighbouring pixels of the image, which a crop does not have.
    assert abs(face - expected).max() <= 60 and abs(face - expected).mean() < 0.3
    # Landmarks are mapped in the same way: fractions of the crop are fractions of the face.
    corners = np.array([found[:2], found[2:]], float) - 0.5
    np.testing.assert_allclose(align.transform(matrix, corners), [[13.5] * 2, [125.5] * 2], atol=1e-9)


def test_around_the_box_the_margin_shows_more_of_the_image_and_then_its_border():
    image = photograph(300, 260, 5)
    face = align.warp(image, align.box_matrix((60, 40, 172, 152)), 140)  # at scale one
    np.testing.assert_array_equal(face, image[26:166, 46:186])
    face = align.warp(image, align.box_matrix((0, 0, 224, 112)), 140)  # twice as wide as high
    np.testing.assert_array_equal(face[:14], np.repeat(face[14:15], 14, 0))
    np.testing.assert_array_equal(face[:, :12], np.repeat(face[:, 12:13], 12, 1))
    halves = image[:126, :252].reshape(126, 126, 2, 3).mean(2)
    assert abs(face[14:, 14:] - cv2.blur(halves, (1, 1))).mean() < 8
    far = align.warp(image, np.array([[0.5, 0, -4000], [0, 0.25, 9000]]), 40)
    assert (far == image[0, -1]).all()


@pytest.mark.parametrize("scale", [(0.21, 0.6), (1.7, 0.4), (1.0, 1.0), (3.0, 2.2)])
def test_a_warp_without_rotation_is_a_weighted_mean_of_pixels(scale):
    """Written out: each pixel is a mean with triangular weights as wide as the merged pixels, border replicated."""
    image = photograph(90, 70, 2)
    (sx, sy), side = scale, 40
    matrix = np.array([[sx, 0, 4.3], [0, sy, -7.6]])

    def weights(s: float, shift: float, length: int) -> np.ndarray:
        rows = np.zeros((side, length))
        for place in range(side):
            centre, reach = (place - shift) / s, max(1.0, 1 / s)
            near = np.arange(int(np.floor(centre - reach)), int(np.ceil(centre + reach)) + 1)
            triangle = np.clip(1 - abs(near - centre) / reach, 0, None)
            np.add.at(rows[place], np.clip(near, 0, length - 1), triangle / triangle.sum())
        return rows

    rows, columns = weights(sy, -7.6, 70), weights(sx, 4.3, 90)
    expected = np.einsum("ij,jkc,lk->ilc", rows, image.astype(float), columns)
    assert abs(align.warp(image, matrix, side) - expected).max() <= 1.01


def test_a_box_outside_the_image_or_without_a_pixel_is_refused():
    for box in ((300, 10, 400, 90), (10, -90, 60, -12), (10.2, 10, 10.9, 60), (50, 60, 40, 90)):
        with pytest.raises(ValueError, match="is outside the image"):
            align.released_box(box, (200, 200))
    with pytest.raises(ValueError, match="unknown alignment: 'square'"):
        align.alignment_matrix("square", align.ARCFACE_TEMPLATE, (0, 0, 9, 9), (9, 9), 112, 14)


def test_box_of_points_is_what_the_template_shows():
    points = align.transform(similarity(3, 0, 40, 70), align.ARCFACE_TEMPLATE)
    left, top, right, bottom = align.box_of_points(points)
    np.testing.assert_allclose((right - left, bottom - top), 336)
    np.testing.assert_allclose(align.box_matrix((left, top, right, bottom)), align.template_matrix(points), atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 0.21, 0.05])
def test_reducing_a_large_image_does_not_alias(scale):
    """A fine checkerboard averages to grey. Sampled without blurring first, it would stay black and white."""
    side = int(180 / scale)
    board = ((np.indices((side, side)).sum(0) % 2) * 255).astype(np.uint8)
    face = align.warp(np.repeat(board[..., None], 3, 2), similarity(scale, 17, 20, -20), 140)
    assert abs(face[40:100, 40:100].astype(float) - 127.5).max() < 45


@pytest.mark.parametrize("scale", [0.13, 0.4, 0.79, 1.0, 2.7])
def test_warp_keeps_points_where_the_matrix_says(scale):
    """A blob drawn in the image has its centre of mass where its centre is mapped."""
    image = np.zeros((900, 900, 3), np.uint8)
    centre, radius = np.array([431.0, 377.0]), 12 / scale
    cv2.circle(image, tuple(int(v) for v in centre), int(radius), (255, 255, 255), -1)
    matrix = similarity(scale, 25, 0, 0)
    matrix[:, 2] = 70.3 - matrix[:, :2] @ centre
    face = align.warp(image, matrix, 140)[..., 0].astype(float)
    rows, columns = np.indices(face.shape)
    mass = np.array([(columns * face).sum(), (rows * face).sum()]) / face.sum()
    np.testing.assert_allclose(mass, (70.3, 70.3), atol=0.12)


def test_warp_of_a_part_equals_the_warp_of_the_whole():
    """Only the part that the canvas shows is reduced. Reducing everything gives the same result within rounding."""
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 256, (600, 800, 3), np.uint8), (0, 0), 8)
    matrix = similarity(0.3, 10, -60, -40)
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    whole = matrix.copy()
    whole[:, :2] *= 2
    whole[:, 2] = matrix[:, :2] @ (0.5, 0.5) + matrix[:, 2]
    plain = cv2.warpAffine(small, whole, (140, 140), borderMode=cv2.BORDER_REPLICATE)
    assert abs(align.warp(image, matrix, 140).astype(int) - plain.astype(int))[20:-20, 20:-20].max() <= 4


def test_warp_survives_a_canvas_outside_the_image_and_an_image_of_one_pixel():
    image = np.full((30, 30, 3), 77, np.uint8)
    for matrix in (similarity(0.1, 0, 5000, 5000), similarity(0.01, 30, -900, 0)):
        assert (align.warp(image, matrix, 140) == 77).all()
    assert (align.warp(image[:1, :1], similarity(0.2, 0, 0, 0), 140) == 77).all()


def test_local_crops_are_cut_from_the_image_around_each_landmark():
    image = np.random.default_rng(4).integers(0, 256, (400, 400, 3), np.uint8)
    matrix = np.array([[1.0, 0, -100], [0, 1, -120]])
    points = np.array([[40.5, 51.5], [88.5, 51.5], [64.5, 80.5], [45.5, 100.5], [83.5, 100.5]])
    crops = align.local_crops(image, matrix, points, size=48, zoom=1.0)
    for crop, (x, y) in zip(crops, points, strict=True):
        left, top = int(x + 100 - 23.5), int(y + 120 - 23.5)
        np.testing.assert_array_equal(crop, image[top : top + 48, left : left + 48])


@pytest.mark.parametrize(("size", "zoom"), [(48, 1.5), (32, 1.0), (64, 3.0)])
def test_local_crops_show_size_over_zoom_pixels_of_the_face(size, zoom):
    """Zoomed around the middle of a wide gradient, the crop's slope is the gradient's slope divided by the zoom."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    image = np.repeat(ramp[..., None], 3, 2)
    crop = align.local_crops(image, similarity(1, 0, 0, 0), np.array([[128.0, 128.0]]), size, zoom)[0, ..., 0].astype(
        float
    )
    np.testing.assert_allclose(np.polyfit(np.arange(size), crop[size // 2], 1)[0], 1 / zoom, rtol=0.02)
    np.testing.assert_allclose(crop[size // 2].mean(), 128, atol=0.6)
