"""Procedural faces: their guarantees, and the dataset layouts in which they are written, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import DOMAINS, STREET, THUMBNAIL, write_class_folders, write_expw, write_fer2013

from fercli.datasets import SYNTHETIC_MARKER, read_dataset
from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.synthetic.domains import between
from fercli.synthetic.render import LAB, STUDIO, Face, render, sample
from fercli.synthetic.writers import write_csv, write_jaffe, write_raf_db


@pytest.fixture(scope="module")
def studio():
    return list(sample(STUDIO, 16, seed=3, identities=5))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: d.name)
def test_a_face_is_a_function_of_its_arguments(domain):
    first, other = render(domain, 4, 3, 7), render(domain, 4, 3, 8)
    np.random.seed(99)
    np.random.random(5)
    again = render(domain, 4, 3, 7)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.landmarks, again.landmarks)
    assert first.box == again.box
    assert not np.array_equal(first.image, other.image)


def test_workers_do_not_change_the_sample():
    alone = list(sample(THUMBNAIL, 20, seed=5, identities=4))
    shared = list(sample(THUMBNAIL, 20, seed=5, identities=4, workers=2))
    assert [f.label for f in alone] == [f.label for f in shared]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(alone, shared, strict=True))
    other = list(sample(THUMBNAIL, 20, seed=6, identities=4))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: d.name)
def test_threads_do_not_change_a_face(domain):
    before = cv2.getNumThreads()
    try:
        pictures = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            pictures.append(np.stack([render(domain, i, i % 7, i).image for i in range(6)]))
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


def test_labels_are_balanced():
    faces = list(sample(THUMBNAIL, 23, seed=1, identities=[3, 8]))
    counts = np.bincount([f.label for f in faces], minlength=7)
    assert counts.min() == 3 and counts.max() == 4
    assert {f.identity for f in faces} == {3, 8}
    assert [f.label for f in faces] != sorted(f.label for f in faces)


def test_a_bad_expression_or_no_people_are_refused():
    with pytest.raises(ValueError, match="expression 7"):
        render(STUDIO, 0, 7, 0)
    with pytest.raises(ValueError, match="identity"):
        sample(STUDIO, 3, 0, identities=[])


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: d.name)
def test_the_seven_expressions_differ(domain):
    """With everything else fixed, brows, eyes and mouth change visibly between any two expressions."""
    still = replace(
        domain, roll=0, yaw=0, pitch=0, wander=0, blur=(0.3, 0.3), noise=(0, 0), jpeg=None, au_jitter=0, au_noise=0,
        face_width=(0.55, 0.55), background=(99, 99), clutter=0, ambient=(0.5, 0.5), light_side=0,
        light_above=(0.3, 0.3), tint=0, contrast=(1, 1), gamma=(1, 1), brightness=(0, 0), intensity=(0.85, 0.85),
        saturation=(0, 0),
    )  # fmt: skip
    takes = np.array([[_inner_face(render(still, 2, e, s)) for s in (0, 1, 2)] for e in range(7)])
    means = takes.mean(1)
    apart = np.sqrt(((means[:, None] - means[None]) ** 2).mean((2, 3)))
    nearest = apart[~np.eye(7, dtype=bool)].min()
    assert nearest > 4, apart.round(1)


def _inner_face(face):
    """Return a grey 48x48 patch around the eyes and mouth, aligned by the drawn landmarks."""
    target = np.array([(14, 16), (34, 16), (24, 40)], np.float32)
    source = np.stack([*face.landmarks[:2], face.landmarks[3:].mean(0)]).astype(np.float32)
    grey = cv2.cvtColor(face.image, cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(grey, cv2.getAffineTransform(source, target), (48, 48), flags=cv2.INTER_AREA).astype(float)


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: d.name)
def test_landmarks_and_box_are_in_the_image_in_their_order(domain):
    width, height = domain.size
    for face in sample(domain, 21, seed=2, identities=7):
        assert face.image.shape == (height, width, 3) and face.image.dtype == np.uint8
        points = face.landmarks
        assert points.shape == (5, 2) and points.dtype == np.float32
        assert (points >= 0).all() and (points <= (width - 1, height - 1)).all()
        left_eye, right_eye, nose, left_mouth, right_mouth = points
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        left, top, right, bottom = face.box
        assert 0 <= left < right <= width - 1 and 0 <= top < bottom <= height - 1
        assert (points > (left, top)).all() and (points < (right, bottom)).all()


def test_domains_look_as_described():
    looks = {d.name: np.stack([f.image for f in sample(d, 14, 0, identities=7)]).astype(float) for d in DOMAINS}
    assert LAB.size == (256, 256) and THUMBNAIL.size == (48, 48)
    for name, images in looks.items():
        colour = np.ptp(images, axis=3).mean()
        assert (colour == 0) == (name in ("lab", "thumbnail")), (name, colour)
    grain = {name: np.abs(np.diff(images[:, :8, :8], axis=2)).mean() for name, images in looks.items()}
    assert grain["lab"] > 1.5 * grain["studio"]
    brightness = {name: images.mean((1, 2, 3)).std() for name, images in looks.items()}
    assert looks["lab"].std() < looks["studio"].std() and brightness["street"] > brightness["lab"]


def test_the_same_person_has_other_proportions_in_another_population():
    calm = {"roll": 0, "yaw": 0, "pitch": 0, "au_noise": 0, "au_jitter": 0}
    ratio = {}
    for domain in (STUDIO, LAB):
        points = render(replace(domain, **calm), 11, 6, 0).landmarks
        ratio[domain.name] = (points[4, 0] - points[3, 0]) / (points[1, 0] - points[0, 0])
    assert ratio["lab"] < 0.9 * ratio["studio"]


def test_between_begins_at_one_domain_and_ends_at_the_other():
    for one, other in ((STUDIO, LAB), (LAB, STREET), (STREET, THUMBNAIL), (STUDIO, STUDIO)):
        for share, end in ((0.0, one), (1.0, other)):
            made = between(one, other, share, end.name)
            for name, value in vars(end).items():
                got = getattr(made, name)
                if name in ("gains", "rest"):  # the other's habits are included, without effect
                    rest = 1.0 if name == "gains" else 0.0
                    assert {k: v for k, v in dict(got).items() if not np.isclose(v, rest)} == pytest.approx(dict(value))
                elif name == "proportions":
                    assert {k: pytest.approx(v) for k, v in vars(value).items()} == vars(got)
                elif name in ("name", "size", "grey", "supersample", "clutter") or value is None:
                    assert got == value, name
                else:
                    assert np.allclose(got, value, atol=1e-12), name


def test_half_way_is_half_way():
    made = between(STUDIO, LAB, 0.5, "half")
    assert made.name == "half"
    assert (made.size, made.grey) == (LAB.size, LAB.grey)
    assert made.blur == pytest.approx(((0.3 + 1.5) / 2, (0.6 + 2.3) / 2))
    assert made.noise == pytest.approx((2.5, 5.5))
    assert made.brightness == pytest.approx((-5, 5))
    assert made.glasses == pytest.approx(0.06)
    assert made.proportions.mouth_width == pytest.approx((0.94, 0.06))
    assert dict(made.gains) == pytest.approx({26: 0.9, 12: 0.95, 4: 1.05})
    assert dict(made.rest) == pytest.approx({15: 0.05})
    assert (between(STUDIO, LAB, 0.49, "x").size, between(STUDIO, LAB, 0.49, "x").grey) == (STUDIO.size, False)


def test_each_step_of_a_shift_goes_further_in_every_parameter():
    steps = [between(STUDIO, LAB, share, "x") for share in (0.0, 0.3, 0.6, 1.0, 1.3, 2.0)]
    for name in ("blur", "noise", "contrast", "gamma", "intensity", "background", "light_side", "relief"):
        line = np.array([np.atleast_1d(getattr(step, name)) for step in steps])
        changes = np.diff(line, axis=0) * np.sign(line[3] - line[0])
        assert (changes >= -1e-12).all() and changes.any(), name


@pytest.mark.parametrize("share", [1.3, 2.0, 4.0])
def test_beyond_the_other_domain_nothing_becomes_negative(share):
    made = between(STUDIO, LAB, share, "beyond")
    for name in ("glasses", "beard", "noise", "blur", "melanin", "saturation", "wander", "roll", "line", "intensity"):
        assert np.min(getattr(made, name)) >= 0, name
    assert made.brightness == pytest.approx((-5, 5))


@pytest.mark.parametrize(("one", "other"), [(STUDIO, LAB), (STREET, LAB), (STREET, replace(STREET, jpeg=(80, 95)))])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0, 1.3])
def test_a_domain_between_two_can_be_drawn(one, other, share):
    made = between(one, other, share, "between")
    first, again = render(made, 3, 4, 5), render(made, 3, 4, 5)
    assert first.image.shape == (made.size[1], made.size[0], 3)
    assert np.array_equal(first.image, again.image)
    assert first.image.std() > 5


def test_faces_are_what_they_always_were():
    """The demo's results depend on them: rounded numbers from the code of the first release."""
    face = render(LAB, 50, 1, 7)
    five = [(98.75, 101.02), (155.64, 103.15), (126.42, 131.32), (104.22, 162.49), (145.64, 164.16)]
    np.testing.assert_allclose(face.landmarks, five, atol=0.01)
    np.testing.assert_allclose(face.box, (59.16, 62.36, 194.22, 199.05), atol=0.01)
    level = face.image[..., 0].reshape(4, 64, 4, 64).mean((1, 3))
    expected = [
        (79.9, 84.4, 80.4, 83.0),
        (81.3, 166.4, 155.5, 80.2),
        (77.5, 144.3, 134.2, 80.4),
        (77.5, 92.3, 86.3, 77.5),
    ]
    np.testing.assert_allclose(level, expected, atol=0.3)


def test_raf_db_layout(tmp_path, studio):
    root = write_raf_db(tmp_path / "raf", studio[:12], studio[12:])
    assert "procedural" in (root / SYNTHETIC_MARKER).read_text()
    lines = (root / "EmoLabel/list_patition_label.txt").read_text().splitlines()
    assert len(lines) == 16 and lines[0].startswith("train_00001.jpg ") and lines[12].startswith("test_0001.jpg ")
    names = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
    assert [EXPRESSIONS.index(names[int(line.split()[1]) - 1]) for line in lines] == [f.label for f in studio]
    for line, face in zip(lines, studio, strict=True):
        stem = line.split(".")[0]
        image = cv2.imread(str(root / "Image/original" / f"{stem}.jpg"))[..., ::-1]
        assert image.shape == face.image.shape and np.abs(image.astype(float) - face.image).mean() < 6
        numbers = [float(v) for v in (root / f"Annotation/manual/{stem}_manu_attri.txt").read_text().split()]
        assert len(numbers) == 13 and np.allclose(np.reshape(numbers[:10], (5, 2)), face.landmarks, atol=1e-3)
        box = [float(v) for v in (root / f"Annotation/boundingbox/{stem}_boundingbox.txt").read_text().split()]
        assert np.allclose(box, face.box, atol=1e-3)


def test_jaffe_layout(tmp_path):
    faces = list(sample(LAB, 24, seed=1, identities=range(50, 53)))
    root = write_jaffe(tmp_path / "jaffe", faces)
    files = sorted(p.name for p in root.glob("*.tiff"))
    assert len(files) == 24
    for name in files:
        subject, expression, serial, _ = name.split(".")
        assert len(subject) == 2 and expression[:2] in {"SU", "FE", "DI", "HA", "SA", "AN", "NE"}
        assert int(expression[2:]) >= 1 and int(serial) >= 1
        image = cv2.imread(str(root / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (256, 256) and image.dtype == np.uint8
    code = ["SU", "FE", "DI", "HA", "SA", "AN", "NE"][faces[0].label]
    first = cv2.imread(str(root / f"KA.{code}1.1.tiff"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(first, faces[0].image[..., 0])


def test_jaffe_has_ten_subjects_of_256_pixels(tmp_path, studio):
    with pytest.raises(ValueError, match="256x256"):
        write_jaffe(tmp_path / "a", studio[:1])
    with pytest.raises(ValueError, match="10 subjects"):
        write_jaffe(tmp_path / "b", (render(LAB, i, 0, 0) for i in range(11)))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_fer2013_layout(tmp_path, studio):
    faces = list(sample(THUMBNAIL, 9, seed=1, identities=3))
    root = write_fer2013(tmp_path / "fer", faces[:5], faces[5:7], faces[7:] + studio[:1])
    rows = [row.split(",") for row in (root / "fer2013.csv").read_text().splitlines()]
    assert rows[0] == ["emotion", "pixels", "Usage"] and len(rows) == 11
    assert [row[2] for row in rows[1:]] == ["Training"] * 5 + ["PublicTest"] * 2 + ["PrivateTest"] * 3
    names = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    for row, face in zip(rows[1:10], faces, strict=True):
        assert EXPRESSIONS.index(names[int(row[0])]) == face.label
        assert np.array_equal(np.reshape([int(v) for v in row[1].split()], (48, 48)), face.image[..., 0])
    assert len(rows[10][1].split()) == 2304


def test_expw_layout(tmp_path):
    faces = list(sample(STREET, 9, seed=1, identities=6))
    root = write_expw(tmp_path / "expw", faces)
    rows = [line.split(" ") for line in (root / "label/label.lst").read_text().splitlines()]
    assert len(rows) == 9 and all(len(row) == 8 for row in rows)
    names = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    assert [EXPRESSIONS.index(names[int(row[7])]) for row in rows] == [f.label for f in faces]
    assert [int(row[1]) for row in rows] == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    for row, face in zip(rows, faces, strict=True):
        image = cv2.imread(str(root / "data/image/origin" / row[0]))[..., ::-1]
        top, left, right, bottom = (int(v) for v in row[2:6])
        assert image.shape[1] == STREET.size[0] * sum(other[0] == row[0] for other in rows)
        given = [round(v) for v in face.box]
        patch = face.image[given[1] : given[3], given[0] : given[2]].astype(float)
        assert np.abs(image[top:bottom, left:right] - patch).mean() < 8


def test_class_folders(tmp_path, studio):
    root = write_class_folders(tmp_path / "folders", {"train": studio[:10], "test": studio[10:]})
    for split, faces in (("train", studio[:10]), ("test", studio[10:])):
        found = [(p.parent.name, p.stem) for p in sorted((root / split).rglob("*.jpg"), key=lambda p: p.stem)]
        assert [name for name, _ in found] == [EXPRESSIONS[f.label] for f in faces]
        assert sorted(p.name for p in (root / split).iterdir()) == sorted(EXPRESSIONS)


# Datasets are written completely or not at all

SMALL = replace(STUDIO, size=(88, 96))


@pytest.fixture(scope="module")
def small() -> list[Face]:
    """Return two people with all seven expressions, 88x96 in colour."""
    return [render(SMALL, identity, label, 5) for identity in (3, 1) for label in range(7)]


WRITERS: dict[str, Callable[[Path, Iterable[Face]], Path]] = {
    "raf-db": lambda root, items: write_raf_db(root, items, []),
    "jaffe": lambda root, items: write_jaffe(root, (replace(face, image=SQUARE) for face in items)),
    "fer2013": lambda root, items: write_fer2013(root, items),
    "expw": lambda root, items: write_expw(root, items),
    "folders": lambda root, items: write_class_folders(root, {"train": items}),
    "csv": lambda root, items: write_csv(root, {"train": items}),
}
SQUARE = np.full((256, 256, 3), 128, np.uint8)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_is_complete_and_marked_or_does_not_exist(tmp_path, small, name):
    write, items = WRITERS[name], small[:3]

    def cut_off() -> Iterator:
        yield items[0]
        raise KeyboardInterrupt

    root = tmp_path / "data" / "mine"
    with pytest.raises(KeyboardInterrupt):
        write(root, cut_off())
    assert not root.exists() and (tmp_path / "data/mine.partial").is_dir()
    assert write(root, iter(items)) == root
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["mine"]
    assert "no photographs, no real people" in (root / SYNTHETIC_MARKER).read_text()
    before = contents(root)
    assert len(before) > 2 or name == "fer2013"
    with pytest.raises(FercliError, match="already exists"):
        write(root, items)
    assert contents(root) == before
    (tmp_path / "again").mkdir()
    assert contents(write(tmp_path / "again", items)) == before


def test_csv_round_trip(tmp_path, small):
    root = write_csv(tmp_path / "csv", {"train": small[:9], "test": small[9:]})
    listing = read_dataset("mine", "csv", root)
    assert listing.synthetic and not listing.left_out
    for split, expected in (("train", small[:9]), ("test", small[9:])):
        records = [record for record in listing if record.split == split]
        assert [r.label for r in records] == [f.label for f in expected]
        assert [r.subject for r in records] == [f"person-{f.identity}" for f in expected]
        np.testing.assert_allclose([r.landmarks for r in records], [f.landmarks for f in expected], atol=1e-3)
        np.testing.assert_allclose([r.box for r in records], [f.box for f in expected], atol=1e-3)
        boxes = [",".join(f"{v:.3f}" for v in f.box) for f in expected]
        assert [r.id for r in records] == [f"{split}_{i:05d}.png#{box}" for i, box in enumerate(boxes, 1)]
    np.testing.assert_array_equal(cv2.imread(str(root / listing.records[0].path))[..., ::-1], small[0].image)


def test_mediapipe_finds_the_faces_where_they_are_drawn():
    os.environ.setdefault("GLOG_minloglevel", "3")
    face_mesh = pytest.importorskip("mediapipe.python.solutions.face_mesh")
    errors, tried = [], 0
    options = {"static_image_mode": True, "max_num_faces": 1, "min_detection_confidence": 0.5}
    with face_mesh.FaceMesh(**options) as mesh:
        for domain in (STUDIO, LAB, STREET):
            for face in sample(domain, 14, seed=8, identities=14):
                tried += 1
                found = mesh.process(face.image).multi_face_landmarks
                if not found:
                    continue
                size = face.image.shape[1::-1]
                points = np.array([(p.x, p.y) for p in found[0].landmark]) * size - 0.5
                five = np.stack([points[[33, 133]].mean(0), points[[263, 362]].mean(0), *points[[4, 61, 291]]])
                eye_distance = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
                errors.append(np.linalg.norm(five - face.landmarks, axis=1) / eye_distance)
    assert len(errors) >= tried - 1
    assert np.median(errors) < 0.06 and np.percentile(errors, 95) < 0.15
