"""Finding faces that are hard to find: rolled, turned away, partly hidden, tiny, one of several, or absent."""

from __future__ import annotations

import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import STREET, THUMBNAIL, write_expw, write_fer2013
from PIL import Image

from fercli.datasets import read_dataset
from fercli.faces import align
from fercli.faces.landmarker import RETRIES, Found, Landmarker
from fercli.faces.search import SearchRegion
from fercli.prepare import prepare
from fercli.spec import Prepare
from fercli.store import Store, read_manifest
from fercli.synthetic.render import LAB, STUDIO, Domain, Face, _background, render

HERE = Prepare(workers=1, backend="sequential")

LANDMARKER = Landmarker()


def faces_of(domain: Domain, count: int = 7) -> list[Face]:
    return [render(domain, identity, identity % 7, identity) for identity in range(count)]


@pytest.fixture(scope="module")
def studio() -> list[Face]:
    return faces_of(STUDIO)


def turned(image: np.ndarray, points: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn an image clockwise about its middle without changing its size, and turn the points with it."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    picture = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return picture, points @ matrix[:, :2].T + matrix[:, 2]


def error(found: Found, points: np.ndarray) -> float:
    """Return the mean distance of the five landmarks from the true ones, in units of the distance between the eyes."""
    return float(np.linalg.norm(found.points5 - points, axis=1).mean() / np.linalg.norm(points[1] - points[0]))


def test_the_spec_names_every_step_of_the_ladder():
    assert tuple(Prepare().retries) == RETRIES


@pytest.mark.parametrize("domain", [STUDIO, LAB, STREET], ids=lambda d: d.name)
def test_landmarks_are_where_the_faces_were_drawn(domain):
    for face in faces_of(domain):
        found = LANDMARKER.find(face.image, face.box)
        each = np.linalg.norm(found.points5 - face.landmarks, axis=1)
        eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
        assert found.how == "found" and each.mean() < 0.1 * eyes and each.max() < 0.25 * eyes
        assert 0.4 < found.score <= 1


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 9.0])
def test_landmarks_do_not_depend_on_the_size_of_the_image(studio, scale):
    image = studio[0].image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    found, plain = LANDMARKER.find(resized), LANDMARKER.find(image)
    eyes = np.linalg.norm(plain.points5[1] - plain.points5[0])
    np.testing.assert_allclose((found.points5 + 0.5) / scale - 0.5, plain.points5, atol=0.05 * eyes)
    assert 0.4 < found.score <= 1 and plain.how == "found"


def test_landmarker_is_silent(tmp_path, studio):
    np.save(tmp_path / "face.npy", studio[0].image)
    code = (
        "import sys, numpy as np; from fercli.faces.landmarker import Landmarker; "
        "l = Landmarker(); assert l.find(np.load(sys.argv[1])); l.find(np.zeros((60, 60, 3), np.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "face.npy")], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


# Rolled


@pytest.mark.parametrize("degrees", [15, -15, 30, -30, 45, -45, 60, -60])
@pytest.mark.parametrize(("domain", "median", "most"), [(STUDIO, 0.05, 0.1), (LAB, 0.08, 0.13), (STREET, 0.05, 0.1)])
def test_rolled_faces_are_found_as_exactly_as_upright_ones(domain, median, most, degrees):
    """The points keep their order: the image-left eye of the upright face is always the first, wherever it is."""
    errors = []
    for face in faces_of(domain):
        image, points = turned(face.image, face.landmarks, degrees)
        found = LANDMARKER.find(image)
        errors.append(error(found, points))
        eyes = points[1] - points[0]
        assert abs(found.pose[0] - np.degrees(np.arctan2(eyes[1], eyes[0]))) < 8
    assert np.median(errors) < median and max(errors) < most


@pytest.mark.parametrize("degrees", [30, -30, 45, -45])
def test_rolled_faces_of_48_pixels_are_found(degrees):
    """Their eyes are 17 pixels apart, and a twelfth of that is a pixel and a half."""
    errors = []
    for face in faces_of(THUMBNAIL, 14):
        image, points = turned(face.image, face.landmarks, degrees)
        errors.append(error(LANDMARKER.find(image), points))
    assert np.median(errors) < 0.1 and max(errors) < 0.25


def test_a_face_that_is_only_found_turned_says_so_and_is_mapped_back():
    """The plain pass misses faces of 48 pixels that lie on their side."""
    plain, rotate = Landmarker(retries=()), Landmarker(retries=("rotate",))
    errors = []
    for face in faces_of(THUMBNAIL, 14):
        for degrees in (90, -90):
            image, points = turned(face.image, face.landmarks, degrees)
            if plain.find(image) is None:
                found = rotate.find(image)
                if found is not None:
                    assert found.how == "retried:rotate" and abs(abs(found.pose[0]) - 90) < 35
                    errors.append(error(found, points))
                    left, top, right, bottom = found.box
                    assert (found.points5 > (left, top)).all() and (found.points5 < (right, bottom)).all()
    assert len(errors) >= 8 and np.median(errors) < 0.12 and max(errors) < 0.35


def test_a_given_box_holds_for_rolled_faces(studio):
    """Each of two rolled faces side by side is found within its own box."""
    parts = [turned(face.image, face.landmarks, degrees) for face, degrees in zip(studio[:2], (40, -40), strict=True)]
    image = np.hstack([picture for picture, _ in parts])
    for offset, (picture, points) in zip((0, parts[0][0].shape[1]), parts, strict=True):
        found = LANDMARKER.find(image, (offset, 0.0, offset + picture.shape[1], picture.shape[0]))
        assert error(found, points + np.array([offset, 0])) < 0.1


@pytest.mark.parametrize("degrees", [0.0, 30.0, -60.0, 90.0, 137.5])
def test_a_turned_view_maps_back_to_the_image(degrees):
    """A dot is turned with its image; its position in the view maps back to its original position."""
    image = np.zeros((90, 150, 3), np.uint8)
    image[20:23, 110:113] = 255
    view = SearchRegion(image).crop((60.0, 0.0, 150.0, 90.0), 0.0).pad(0.1).enlarge(256).turn(degrees)
    weights = view.image[..., 0].astype(float)
    middle = [(weights.sum(axis) * (np.arange(weights.shape[1 - axis]) + 0.5)).sum() / weights.sum() for axis in (0, 1)]
    back = view.to_original(np.array([middle], float))
    np.testing.assert_allclose(back, [(111, 21)], atol=0.1)


# Turned away, partly hidden


def test_faces_turned_away_are_found():
    """Yaw of up to about 40 degrees in both directions (a standard deviation of 25)."""
    sideways = replace(STUDIO, yaw=25.0, roll=0.0, pitch=0.0)
    errors = []
    for face in faces_of(sideways, 21):
        found = LANDMARKER.find(face.image)
        errors.append(error(found, face.landmarks))
    assert np.median(errors) < 0.06 and max(errors) < 0.25


def test_yaw_and_roll_of_the_mesh_follow_the_head():
    sideways = replace(STUDIO, yaw=25.0, roll=0.0, pitch=0.0)
    noses, yaws = [], []
    for face in faces_of(sideways, 14):
        eyes = face.landmarks[:2]
        noses.append((face.landmarks[2, 0] - eyes[:, 0].mean()) / np.ptp(eyes[:, 0]))
        yaws.append(LANDMARKER.find(face.image).pose[1])
    assert np.corrcoef(noses, yaws)[0, 1] > 0.9


def _bar_over_mouth(face: Face) -> tuple[slice, slice]:
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    mouth = face.landmarks[3:, 1].mean()
    return slice(int(mouth - 0.3 * eyes), int(mouth + 0.3 * eyes)), slice(int(face.box[0]), int(face.box[2]))


def _bar_over_one_eye(face: Face) -> tuple[slice, slice]:
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    x, y = face.landmarks[0]
    return slice(int(y - 0.3 * eyes), int(y + 0.3 * eyes)), slice(int(x - 0.5 * eyes), int(x + 0.35 * eyes))


def _third(face: Face) -> tuple[slice, slice]:
    left, top, right, bottom = (int(v) for v in face.box)
    return slice(top, bottom), slice(left, left + (right - left) // 3)


@pytest.mark.parametrize(("hide", "median"), [(_bar_over_mouth, 0.13), (_bar_over_one_eye, 0.06), (_third, 0.1)])
@pytest.mark.parametrize("domain", [STUDIO, STREET], ids=lambda d: d.name)
def test_partly_hidden_faces_are_found(domain, hide, median):
    errors = []
    for face in faces_of(domain):
        image = face.image.copy()
        image[hide(face)] = 25
        errors.append(error(LANDMARKER.find(image), face.landmarks))
    assert np.median(errors) < median and max(errors) < 0.25


# Tiny, tight


def test_tiny_grey_faces_are_found():
    """Faces like those of FER2013: 48 x 48, grey, tightly cropped."""
    errors = [error(LANDMARKER.find(face.image), face.landmarks) for face in faces_of(THUMBNAIL, 35)]
    assert np.median(errors) < 0.1 and max(errors) < 0.25


def cut_by(face: Face, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image cropped to the face's box reduced by a fraction of each side, and the landmarks in it."""
    left, top, right, bottom = face.box
    across, down = share * (right - left), share * (bottom - top)
    left, top, right, bottom = (int(v) for v in (left + across, top + down, right - across, bottom - down))
    return np.ascontiguousarray(face.image[top:bottom, left:right]), face.landmarks - (left, top)


def faint(face: Face, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    return (face.image * contrast + (1 - contrast) * 110).astype(np.uint8), face.landmarks


def far_away(face: Face, side: int, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image, with `side` pixels on its longer side, in the middle of a grey square."""
    scale, start = side / max(face.image.shape[:2]), (canvas - side) // 2
    small = cv2.resize(face.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = np.full((canvas, canvas, 3), 128, np.uint8)
    picture[start : start + small.shape[0], start : start + small.shape[1]] = small
    return picture, (face.landmarks + 0.5) * scale - 0.5 + start


#: Images in which the plain pass finds nothing, by the first step of the ladder that finds the face.
HARD = {
    "border": [(STREET, 2, cut_by, 0.18), (LAB, 11, faint, 0.07)],
    "upscale": [(THUMBNAIL, 4, faint, 0.1), (THUMBNAIL, 10, faint, 0.05)],
    "low-confidence": [(LAB, 5, cut_by, 0.12), (LAB, 10, faint, 0.07)],
    "full-range": [(STUDIO, 1, far_away, 48, 300), (LAB, 0, far_away, 48, 300)],
    "rotate": [(LAB, 5, turned, 90), (THUMBNAIL, 5, turned, -90)],
}


@pytest.mark.parametrize(("step", "case"), [(step, case) for step, cases in HARD.items() for case in cases])
def test_each_step_of_the_ladder_finds_faces_that_no_earlier_step_finds(step, case):
    domain, number, change, *how_much = case
    face = render(domain, number, number % 7, number)
    given = (face.image, face.landmarks) if change is turned else (face,)
    image, points = change(*given, *how_much)
    assert Landmarker(retries=()).find(image) is None and Landmarker(retries=()).find_all(image) == []
    found = LANDMARKER.find(image)
    assert found.how == f"retried:{step}" and error(found, points) < 0.12
    assert [one.how for one in LANDMARKER.find_all(image)] == [found.how]
    fewer = Landmarker(retries=[name for name in RETRIES if name != step]).find(image)
    assert fewer is None or RETRIES.index(fewer.how.removeprefix("retried:")) > RETRIES.index(step)


def test_the_retry_ladder_finds_tight_faces(tmp_path, studio):
    """The manifest names the step that found a face. Without a ladder, nothing is retried and fewer faces are found."""
    write_fer2013(tmp_path / "fer", [replace(face, image=cut_by(face, 0.17)[0]) for face in studio])
    listing = read_dataset("fer", "fer2013", tmp_path / "fer")
    summary = prepare(listing, tmp_path / "out", HERE)
    counts = summary.counts
    assert counts["retried"] >= 3 and counts["found"] + counts["retried"] >= 6
    assert sum(counts.values()) == 2 * counts["expected"] and counts["given"] == counts["mean-landmarks"] == 0
    by_step = Counter(row["reason"] for row in read_manifest(tmp_path / "out") if row["status"] == "retried")
    assert by_step.total() == counts["retried"] and set(by_step) <= set(RETRIES)
    fewer = prepare(listing, tmp_path / "o2", Prepare(workers=1, retries=()))
    assert fewer.counts["retried"] == 0 and fewer.counts["found"] == counts["found"]


def test_faces_too_small_to_show_anything_are_not_found(studio):
    small = cv2.resize(studio[0].image, (22, 24), interpolation=cv2.INTER_AREA)
    canvas = np.full((200, 200, 3), 128, np.uint8)
    canvas[80:104, 80:102] = small
    assert LANDMARKER.find(canvas) is None and LANDMARKER.find(small) is None


# Several


def test_the_given_box_chooses_among_several_faces(tmp_path, studio):
    write_expw(tmp_path / "expw", studio[:4])
    prepare(read_dataset("expw", "expw", tmp_path / "expw"), tmp_path / "out", HERE)
    store = Store.open(tmp_path / "out")
    assert store.counts()["rejected"] == 0 and len(store) == 4
    both = [i for i, name in enumerate(store.ids) if name.startswith("procedural_face_3.jpg")]
    for i, face in zip(both, studio[2:4], strict=True):
        drawn = align.warp(face.image, align.template_matrix(face.landmarks), 140)
        assert abs(store.faces[i][40:110, 40:100].astype(int) - drawn[40:110, 40:100]).mean() < 30


def test_every_face_of_a_grid_is_found_by_its_box_and_the_largest_without_one():
    faces = faces_of(STREET, 6)
    rows = [np.hstack([face.image for face in faces[i : i + 3]]) for i in (0, 3)]
    image, (height, width) = np.vstack(rows), faces[0].image.shape[:2]
    sizes = []
    for i, face in enumerate(faces):
        corner = np.array([i % 3 * width, i // 3 * height])
        box = (*(face.box[:2] + corner), *(face.box[2:] + corner))
        assert error(LANDMARKER.find(image, tuple(float(v) for v in box)), face.landmarks + corner) < 0.12
        sizes.append((face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
    largest = LANDMARKER.find(image)
    middle = largest.points5.mean(0)
    chosen = int(middle[1] // height) * 3 + int(middle[0] // width)
    assert sizes[chosen] >= 0.8 * max(sizes)


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (0, 0, 2, 200), (-500, -500, -100, -100), (1e6, 1e6, 2e6, 2e6)])
def test_a_box_without_the_face_finds_none(studio, box):
    assert LANDMARKER.find(studio[0].image, tuple(float(v) for v in box)) is None


# Every face of an image


def grid(domain, rows: int, columns: int, side: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return people side by side, each in a cell of side x side, and their landmarks."""
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


# No face at all


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3))


def _soft_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return 128 + 40 * cv2.GaussianBlur(rng.normal(0, 3, (height, width)), (0, 0), rng.uniform(0.7, 4))


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    ramp = x[..., None] * rng.normal(size=3) + y[..., None] * rng.normal(size=3)
    return (ramp - ramp.min()) / np.ptp(ramp) * 255


def _text(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    picture = np.full((height, width, 3), rng.integers(180, 256), np.uint8)
    for y in range(8, height + 10, int(rng.integers(14, 40))):
        words = "".join(rng.choice(list(string.ascii_letters + "     .,"), 60))
        cv2.putText(picture, words, (-5, y), int(rng.integers(0, 8)), rng.uniform(0.3, 1.4), (20, 20, 20))
    return picture


def _two_letters(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw large signs with holes, which are most similar to eyes and mouths."""
    picture = np.full((height, width, 3), rng.integers(150, 256), np.uint8)
    sign = "".join(rng.choice(list("AOQ8BDG0@:()"), 2))
    cv2.putText(picture, sign, (2, int(height * 0.8)), int(rng.integers(0, 8)), height / 40, (30, 30, 30), height // 30)
    return picture


def _waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    slopes = rng.normal(0, 0.15, (3, 2))
    return 128 + 40 * sum(np.sin(x * a + y * b + rng.uniform(0, 6)) for a, b in slopes)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    octaves = (
        cv2.resize(rng.standard_normal((2**k, 2**k)), (width, height), interpolation=cv2.INTER_CUBIC) / 2**k
        for k in range(1, 6)
    )
    cloud = sum(octaves)
    return ((cloud - cloud.min()) / np.ptp(cloud))[..., None] * rng.uniform(100, 255, 3)


def _discs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    picture = np.full((height, width, 3), float(rng.integers(0, 256)))
    for _ in range(30):
        x, y = (int(v) for v in rng.integers(0, (width, height)))
        shade = [float(v) for v in rng.integers(0, 256, 3)]
        cv2.circle(picture, (x, y), int(rng.integers(2, height // 4)), shade, -1, cv2.LINE_AA)
    return picture


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    picture, side = np.full((height, width, 3), 170.0), int(rng.integers(8, 24))
    for row, y in enumerate(range(0, height, side)):
        for x in range(-(row % 2) * side, width, 2 * side):
            picture[y + 1 : y + side - 1, max(0, x + 1) : max(0, x + 2 * side - 1)] = rng.uniform(60, 180)
    return picture


def _egg(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a skin-coloured oval without features."""
    picture = _clouds(rng, height, width)
    cv2.ellipse(picture, (width // 2, height // 2), (width // 4, height // 3), 0, 0, 360, (224, 172, 140), -1)
    return cv2.GaussianBlur(picture, (0, 0), 2)


def _crowd(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw the backdrop of the procedural street: blocks and people without features, out of focus."""
    return cv2.resize(_background(STREET, rng), (width, height), interpolation=cv2.INTER_AREA)


NO_FACES: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _noise, _soft_noise, _gradient, _text, _two_letters, _waves, _clouds, _discs, _bricks, _egg, _crowd,
)  # fmt: skip


def test_images_without_a_face_give_no_false_one():
    """132 images of 48 x 48 or more, a quarter of them grey: none in the plain pass, at most one in the ladder."""
    plain, false = Landmarker(retries=()), Counter()
    for kind, draw in enumerate(NO_FACES):
        for i in range(12):
            height, width = [(48, 48), (100, 100), (240, 200), (300, 400)][i % 4]
            picture = np.clip(draw(np.random.default_rng([kind, i]), height, width), 0, 255).astype(np.uint8)
            if i % 4 == 3 and picture.ndim == 3:
                picture = picture.mean(-1).astype(np.uint8)
            picture = np.ascontiguousarray(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))
            assert plain.find(picture) is None
            found = LANDMARKER.find(picture)
            if found is not None:
                false[found.how, draw.__name__] += 1
    assert sum(false.values()) <= 1, false


# Real faces


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reader", "step", "least"), [("wild-mini", "csv", 1, 0.98), ("fer2013-mini", "fer2013", 4, 0.93)]
)
def test_real_faces_are_found(tmp_path, name, reader, step, least):
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not root.is_dir():
        pytest.skip(f"needs the real faces in {root}")
    listing = read_dataset(name, reader, root)
    summary = prepare(replace(listing, records=listing.records[::step]), tmp_path / name, HERE)
    assert summary.counts["expected"] - summary.counts["rejected"] >= least * summary.counts["expected"]
