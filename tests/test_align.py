"""Alignment against plain solves and plain loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fercli.faces import align


def similarity(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    turn = np.deg2rad(degrees)
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[c, -s, x], [s, c, y]])


def plain_solve(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same least squares written out: unknowns a, b, tx, ty of x' = ax - by + tx, y' = bx + ay + ty."""
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
    """Noisy faces about the template, each posed at will: their mean on the canvas is the template's shape."""
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


def test_box_crop_puts_the_square_of_the_box_into_the_inner_part():
    image = np.random.default_rng(2).integers(0, 256, (300, 300, 3), np.uint8)
    # 112 pixels wide, 90 high: the square keeps the wider side and the centre.
    face = align.warp(image, align.box_matrix((50, 60, 162, 150)), 140)
    np.testing.assert_array_equal(face[14:126, 14:126], image[49:161, 50:162])
    np.testing.assert_array_equal(face, image[35:175, 36:176])


def test_box_crop_scales_edges_to_edges():
    matrix = align.box_matrix((10, 20, 66, 76), size=112, margin=0)
    # A box's edge lies half a pixel before its first pixel's centre.
    np.testing.assert_allclose(
        align.transform(matrix, np.array([[9.5, 19.5], [65.5, 75.5]])), [[-0.5] * 2, [111.5] * 2]
    )


def test_box_of_points_is_what_the_template_shows():
    points = align.transform(similarity(3, 0, 40, 70), align.ARCFACE_TEMPLATE)
    left, top, right, bottom = align.box_of_points(points)
    np.testing.assert_allclose((right - left, bottom - top), 336)
    np.testing.assert_allclose(align.box_matrix((left, top, right, bottom)), align.template_matrix(points), atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 0.21, 0.05])
def test_reducing_a_large_photograph_does_not_alias(scale):
    """A fine checkerboard averages to grey; sampled without blurring first it would keep its black and white."""
    side = int(180 / scale)
    board = ((np.indices((side, side)).sum(0) % 2) * 255).astype(np.uint8)
    face = align.warp(np.repeat(board[..., None], 3, 2), similarity(scale, 17, 20, -20), 140)
    assert abs(face[40:100, 40:100].astype(float) - 127.5).max() < 45


@pytest.mark.parametrize("scale", [0.13, 0.4, 0.79, 1.0, 2.7])
def test_warp_keeps_points_where_the_matrix_says(scale):
    """A blob drawn in the photograph has its centre of mass where its centre is mapped."""
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
    """Only the part that the canvas sees is reduced; reducing everything gives the same within rounding."""
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 256, (600, 800, 3), np.uint8), (0, 0), 8)
    matrix = similarity(0.3, 10, -60, -40)
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    whole = matrix.copy()
    whole[:, :2] *= 2
    whole[:, 2] = matrix[:, :2] @ (0.5, 0.5) + matrix[:, 2]
    plain = cv2.warpAffine(small, whole, (140, 140), borderMode=cv2.BORDER_REPLICATE)
    assert abs(align.warp(image, matrix, 140).astype(int) - plain.astype(int))[20:-20, 20:-20].max() <= 4


def test_warp_survives_a_canvas_beside_the_picture_and_a_picture_of_one_pixel():
    image = np.full((30, 30, 3), 77, np.uint8)
    for matrix in (similarity(0.1, 0, 5000, 5000), similarity(0.01, 30, -900, 0)):
        assert (align.warp(image, matrix, 140) == 77).all()
    assert (align.warp(image[:1, :1], similarity(0.2, 0, 0, 0), 140) == 77).all()


def test_local_crops_are_cut_from_the_photograph_around_each_landmark():
    image = np.random.default_rng(4).integers(0, 256, (400, 400, 3), np.uint8)
    matrix = np.array([[1.0, 0, -100], [0, 1, -120]])
    points = np.array([[40.5, 51.5], [88.5, 51.5], [64.5, 80.5], [45.5, 100.5], [83.5, 100.5]])
    crops = align.local_crops(image, matrix, points, size=48, zoom=1.0)
    for crop, (x, y) in zip(crops, points, strict=True):
        left, top = int(x + 100 - 23.5), int(y + 120 - 23.5)
        np.testing.assert_array_equal(crop, image[top : top + 48, left : left + 48])


@pytest.mark.parametrize(("size", "zoom"), [(48, 1.5), (32, 1.0), (64, 3.0)])
def test_local_crops_show_size_over_zoom_pixels_of_the_face(size, zoom):
    """Zoomed around the middle of a wide gradient: the slope of the crop is the gradient's over the zoom."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    image = np.repeat(ramp[..., None], 3, 2)
    crop = align.local_crops(image, similarity(1, 0, 0, 0), np.array([[128.0, 128.0]]), size, zoom)[0, ..., 0].astype(
        float
    )
    np.testing.assert_allclose(np.polyfit(np.arange(size), crop[size // 2], 1)[0], 1 / zoom, rtol=0.02)
    np.testing.assert_allclose(crop[size // 2].mean(), 128, atol=0.6)
