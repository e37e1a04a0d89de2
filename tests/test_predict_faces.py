"""Every face of a picture: crowds, small ones, and what `find` finds to the bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn import STREET, THUMBNAIL

from fercli.faces.landmarker import Landmarker
from fercli.faces.search import SearchRegion
from fercli.synthetic.render import LAB, STUDIO, render

LANDMARKER = Landmarker()


def grid(domain, rows: int, columns: int, side: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """People side by side, each in a cell of side x side, and their landmarks."""
    picture, points = np.full((rows * side, columns * side, 3), 120, np.uint8), []
    for i in range(rows * columns):
        face = render(domain, i, i % 7, i)
        scale = side / max(face.image.shape)
        small = cv2.resize(face.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        y, x = i // columns * side, i % columns * side
        picture[y : y + small.shape[0], x : x + small.shape[1]] = small
        points.append((face.landmarks + 0.5) * scale - 0.5 + [x, y])
    return picture, points


@pytest.mark.parametrize(("domain", "rows", "columns", "side"), [(STUDIO, 3, 4, 240), (STREET, 5, 8, 130)])
def test_every_face_of_a_crowd_is_found_once(domain, rows, columns, side):
    picture, points = grid(domain, rows, columns, side)
    found = LANDMARKER.find_all(picture)
    assert len(found) == rows * columns
    middles = [face.box[0] + face.box[2] for face in found]
    assert middles == sorted(middles)
    for drawn in points:
        eyes = np.linalg.norm(drawn[1] - drawn[0])
        errors = [np.linalg.norm(face.points5 - drawn, axis=1).mean() / eyes for face in found]
        assert min(errors) < 0.2


@pytest.mark.parametrize("domain", [STUDIO, STREET, LAB, THUMBNAIL], ids=lambda d: d.name)
def test_the_face_of_find_is_among_them(domain):
    for i in range(4):
        image = render(domain, i, i, i).image
        one, every = LANDMARKER.find(image), LANDMARKER.find_all(image)
        assert len(every) == (one is not None)
        for face in every:
            assert np.array_equal(face.points5, one.points5)
            assert (face.box, face.score, face.how) == (one.box, one.score, one.how)


def test_rolled_faces_are_set_upright_and_lying_ones_found():
    left, right = render(STUDIO, 1, 3, 1), render(STUDIO, 2, 6, 2)
    pair = np.hstack([SearchRegion(face.image).turn(40).image for face in (left, right)])
    found = LANDMARKER.find_all(pair)
    assert len(found) == 2 and all(25 < face.pose[0] < 55 for face in found)
    assert len(LANDMARKER.find_all(SearchRegion(pair).turn(50).image)) >= 1


@pytest.mark.parametrize("shape", [(480, 640, 3), (8, 8, 3), (700, 30, 3)])
def test_no_face_is_an_empty_list(shape):
    assert LANDMARKER.find_all(np.random.default_rng(0).integers(0, 256, shape, np.uint8)) == []
