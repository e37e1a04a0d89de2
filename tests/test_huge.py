"""Images of more than 100 megapixels: JPEGs are decoded at reduced size, faces are given in pixels of the full size."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import Bench, run
from PIL import Image
from trees import encoded

from fercli.datasets.reader import Record
from fercli.faces import images
from fercli.faces.extract import extract
from fercli.faces.images import Unreadable, decode
from fercli.predict.faces import see
from fercli.spec import Prepare
from fercli.synthetic.render import STUDIO, render

_DRAWN = render(STUDIO, 1, 1, 3)
#: 440 x 480 pixels with a face; its landmarks and box.
_IMAGE = cv2.resize(_DRAWN.image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def limits(monkeypatch):
    """Lower the limit of 100 megapixels to 0.1, so that the image is decoded at a half or a quarter of its size."""

    def set_to(scale: int) -> None:
        monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
        monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 400_000)
        monkeypatch.setattr(images, "REDUCED_PIXELS", {2: 60_000, 4: 50_000}[scale])

    return set_to


def _jpeg(image: np.ndarray = _IMAGE, orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif, **options)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "MPO", "progressive"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_huge_jpeg_is_the_small_image_upright(limits, kind, scale, orientation):
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(_IMAGE, {1: 0, 6: 1}[orientation])))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored.convert(kind) if kind in ("L", "CMYK") else stored
    form = {"form": "MPO", "save_all": True, "append_images": [stored]} if kind == "MPO" else {"form": "JPEG"}
    data = encoded(image, quality=95, exif=exif, progressive=kind == "progressive", **form)
    whole = decode(data)
    limits(scale)
    small = decode(data)
    assert (whole.scale, small.scale) == (1, scale) and small.size == whole.size == (440, 480)
    expected = cv2.resize(whole.pixels, small.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert abs(small.pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("given", ["", "box", "landmarks", "box landmarks"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_and_landmarks_are_in_pixels_of_the_full_size(tmp_path, limits, given, orientation):
    (tmp_path / "a.jpg").write_bytes(
        _jpeg(np.ascontiguousarray(np.rot90(_IMAGE, {1: 0, 6: 1}[orientation])), orientation)
    )
    box = (110.0, 130.0, 330.0, 400.0) if "box" in given else None
    first = extract(Record("a", "a.jpg"), tmp_path, Prepare())
    points = see(tmp_path / "a.jpg", Prepare(), True)[0].found.points5
    record = Record("a", "a.jpg", box=box, landmarks=tuple(map(tuple, points)) if "landmarks" in given else None)
    options = Prepare(landmarks="given" if "landmarks" in given else "detect")
    whole = extract(record, tmp_path, options)
    limits(2)
    small = extract(record, tmp_path, options)
    assert (small.status, small.reason) == (whole.status, whole.reason) and first.status == "found"
    assert small.box == whole.box if box else np.allclose(small.box, whole.box, atol=4)
    np.testing.assert_allclose(small.landmarks, whole.landmarks, atol=1)
    np.testing.assert_allclose(small.shape, whole.shape, atol=0.01)
    assert abs(small.face.astype(int) - whole.face).mean() < 4 and abs(small.crops.astype(int) - whole.crops).mean() < 6
    outside = extract(Record("a", "a.jpg", box=(500.0, 0.0, 600.0, 90.0)), tmp_path, options)
    assert outside.reason == "the given box is outside the image (440 x 480)"


def test_predict_gives_and_draws_faces_of_the_full_size(tmp_path, limits, trained: Bench):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(_jpeg())
    found = []
    for to in ("whole", "small"):
        arguments = ("--workers", "1", "--device", "cpu", "--annotate", tmp_path / to)
        result = run("predict", "-c", trained.spec, tmp_path / "in", *arguments)
        (line,) = map(json.loads, result.stdout.splitlines())
        found.append(line["faces"][0])
        limits(2)
    np.testing.assert_allclose(found[1]["box"], found[0]["box"], atol=4)
    np.testing.assert_allclose(found[1]["landmarks"], found[0]["landmarks"], atol=4)
    whole, small = (cv2.imread(str(tmp_path / to / "a.jpg")) for to in ("whole", "small"))
    assert whole.shape == (480, 440, 3) and small.shape == (240, 220, 3)
    # The box is drawn at the face's position in the reduced image.
    drawn = abs(small.astype(int) - decode(_jpeg()).pixels[..., ::-1]).max(2) > 60
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    left, top, right, bottom = np.array(found[1]["box"]) / 2
    assert abs(columns[0] - left) < 4 and abs(rows[-1] - bottom) < 4 and columns[-1] > right - 4 and rows[0] < top + 4


@pytest.mark.parametrize(
    ("data", "limit", "reason"),
    [
        (_jpeg(), 200_000, "more than 0 megapixels: make it smaller"),
        (_jpeg()[:-2000], 400_000, "damaged image: truncated"),
        (_jpeg()[:300] + b"\xff\xd9", 400_000, "damaged image: "),
        (encoded(_IMAGE, "PNG"), 400_000, "more than 0 megapixels: make it smaller, or save it as a JPEG file"),
    ],
)
def test_images_that_are_refused_above_the_limit(limits, monkeypatch, data, limit, reason):
    limits(2)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", limit)
    with pytest.raises(Unreadable, match=f"^{reason}"):
        decode(data)


def test_progression_that_takes_too_much_memory_is_refused(limits, monkeypatch):
    limits(2)
    monkeypatch.setattr(images, "_MAX_COEFFICIENTS", 3 * 440 * 480)
    assert decode(_jpeg(progressive=True, subsampling=2)).scale == 2 and decode(_jpeg(subsampling=0)).scale == 2
    with pytest.raises(Unreadable, match=r"a progressive JPEG .* save it as a baseline JPEG"):
        decode(_jpeg(progressive=True, subsampling=0))


_MEASURE = """
import resource, sys
from fercli.spec import Prepare
from fercli.faces.images import decode
from fercli.predict.faces import see
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(decode(sys.argv[1]).size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(*see(sys.argv[1], Prepare(), True)[0].found.box)
"""


@pytest.mark.slow
def test_a_photograph_of_108_megapixels(tmp_path):
    grey = np.full((9000, 12000), 110, np.uint8)
    face = cv2.resize(_DRAWN.image, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    grey[3000 : 3000 + face.shape[0], 5000 : 5000 + face.shape[1]] = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    # The orientation requires a turn by 180 degrees.
    (tmp_path / "a.jpg").write_bytes(_jpeg(grey[::-1, ::-1], 3))
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    size, peak, box = done.stdout.splitlines()
    assert size == "(12000, 9000)" and int(peak) < 250_000, "KiB: the whole image takes 324 MB"
    expected = see(_DRAWN.image, Prepare(), True)[0].found.box
    np.testing.assert_allclose(np.array(box.split(), float), 8 * np.array(expected) + (5000, 3000) * 2, atol=40)
