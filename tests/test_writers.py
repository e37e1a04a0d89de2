"""Procedural faces in every dataset's own layout: what lies on disk, and what the readers make of it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from fercli.datasets import STAND_IN_MARKER, read_dataset, writers
from fercli.datasets.reader import Listing
from fercli.datasets.writers.points import sixty_eight
from fercli.errors import FercliError
from fercli.faces.synthetic import LAB, STREET, STUDIO, THUMBNAIL, Face, render, sequence

SU, FE, DI, HA, SA, AN, NE = range(7)
NAMES = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
SMALL = replace(STUDIO, size=(88, 96))


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    """Two people with the seven expressions each, 88x96 in colour."""
    return [render(SMALL, identity, label, 5) for identity in (3, 1) for label in range(7)]


@pytest.fixture(scope="module")
def takes() -> list[list[Face]]:
    """Sequences of five frames: the six expressions shown by three people in turn."""
    return [sequence(SMALL, (7, 4, 9)[label % 3], label, 2, 5) for label in range(6)]


def read(name: str, root: Path, **options: object) -> Listing:
    """Read a stand-in, whose every picture must be there."""
    listing = read_dataset("mine", name, root, **options)
    assert listing.stand_in
    assert all((root / record.path).is_file() for record in listing)
    return listing


def labels(records: Iterable) -> list[int]:
    return [record.label for record in records]


def part(listing: Listing, split: str) -> list:
    return [record for record in listing if record.split == split]


def image(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def same_points(records: Iterable, faces: Iterable[Face], atol: float) -> None:
    np.testing.assert_allclose([r.landmarks for r in records], [f.landmarks for f in faces], atol=atol)


def same_boxes(records: Iterable, faces: Iterable[Face], atol: float) -> None:
    np.testing.assert_allclose([r.box for r in records], [f.box for f in faces], atol=atol)


# What every writer promises

FROM_FACES: dict[str, Callable[[Path, Iterable[Face]], Path]] = {
    "raf-db": lambda root, items: writers.write_raf_db(root, items, [], with_aligned=True),
    "fer2013": lambda root, items: writers.write_fer2013(root, items),
    "fer2013-folders": lambda root, items: writers.write_fer2013_folders(root, items),
    "ferplus": lambda root, items: writers.write_ferplus(root, items),
    "expw": lambda root, items: writers.write_expw(root, items),
    "sfew": lambda root, items: writers.write_sfew(root, items, []),
    "afe": lambda root, items: writers.write_afe(root, items, []),
    "affectnet-csv": lambda root, items: writers.write_affectnet_csv(root, items, []),
    "affectnet-npy": lambda root, items: writers.write_affectnet_npy(root, items, []),
    "mmi-list": lambda root, items: writers.write_mmi_list(root, items),
    "folders": lambda root, items: writers.write_class_folders(root, {"train": items}),
    "csv": lambda root, items: writers.write_csv(root, {"train": items}),
}
FROM_SEQUENCES: dict[str, Callable[[Path, Iterable[list[Face]]], Path]] = {
    "ck+": lambda root, items: writers.write_ck_plus(root, items),
    "ck+48": lambda root, items: writers.write_ck_plus_48(root, items),
    "oulu-casia": lambda root, items: writers.write_oulu_casia(root, items),
    "mmi": lambda root, items: writers.write_mmi(root, items),
}


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", [*FROM_FACES, *FROM_SEQUENCES])
def test_a_root_is_whole_and_marked_or_not_there(tmp_path, faces, takes, name):
    write = FROM_FACES.get(name) or FROM_SEQUENCES[name]
    items = faces[:3] if name in FROM_FACES else takes[:2]

    def cut_off() -> Iterator:
        yield items[0]
        raise KeyboardInterrupt

    root = tmp_path / "data" / "mine"
    with pytest.raises(KeyboardInterrupt):
        write(root, cut_off())
    assert not root.exists() and (tmp_path / "data/mine.partial").is_dir()
    assert write(root, iter(items)) == root
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["mine"]
    assert "no photographs, no real people" in (root / STAND_IN_MARKER).read_text()
    before = contents(root)
    assert len(before) > 2 or name == "fer2013"
    with pytest.raises(FercliError, match="exists already"):
        write(root, items)
    assert contents(root) == before
    (tmp_path / "again").mkdir()
    assert contents(write(tmp_path / "again", items)) == before


# Sequences


def test_strength_is_the_way_from_neutral_to_the_peak():
    for domain, label in ((LAB, SU), (STREET, AN), (THUMBNAIL, HA), (STUDIO, NE)):
        plain, peak = render(domain, 5, label, 3), render(domain, 5, label, 3, strength=1)
        assert np.array_equal(plain.image, peak.image) and np.array_equal(plain.landmarks, peak.landmarks)
        assert plain.box == peak.box
    still = replace(STUDIO, au_noise=1.0, yaw=0, pitch=0)
    frames = sequence(still, 6, HA, 1, 5)
    assert [f.label for f in frames] == [HA] * 5 and {f.identity for f in frames} == {6}
    widths = [float(np.linalg.norm(f.landmarks[4] - f.landmarks[3])) for f in frames]
    assert widths == sorted(widths) and widths[-1] > 1.15 * widths[0]
    # The camera, the pose and the light stay: eyes, nose and the picture's border do not move.
    assert all(np.abs(f.landmarks[:3] - frames[0].landmarks[:3]).max() < 1.5 for f in frames)
    assert all(np.abs(f.image[:20].astype(int) - frames[0].image[:20]).max() <= 1 for f in frames)
    # At rest nothing shows, not even the stray unit: another expression of the same muscles is the same face.
    mouth = {label: render(still, 6, label, 1, strength=0) for label in range(7)}
    reach = [np.linalg.norm(np.diff(f.landmarks[3:], axis=0)) / np.ptp(f.landmarks[:2, 0]) for f in mouth.values()]
    assert np.ptp(reach) < 0.02


def test_faces_are_what_they_were_before_strengths():
    """The demo's figures rest on them: numbers taken from the code before it knew strengths, rounded."""
    face = render(LAB, 50, FE, 7)
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


@pytest.mark.parametrize(("arguments", "words"), [((1.5,), "strength 1.5"), ((-0.1,), "strength -0.1")])
def test_a_strength_outside_its_range_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        render(STUDIO, 0, HA, 0, *arguments)
    with pytest.raises(ValueError, match="at least 2 frames"):
        sequence(STUDIO, 0, HA, 0, 1)


def test_sixty_eight_points_keep_the_five():
    five = render(replace(STUDIO, roll=30.0), 2, HA, 1).landmarks.astype(float)
    points = sixty_eight(five)
    assert points.shape == (68, 2)
    for corners, eye in (((36, 39), 0), ((42, 45), 1)):
        np.testing.assert_allclose(points[list(corners)].mean(0), five[eye], atol=1e-9)
        np.testing.assert_allclose(points[corners[0] : corners[0] + 6].mean(0), five[eye], atol=1e-9)
    np.testing.assert_allclose(points[[30, 48, 54]], five[2:], atol=1e-9)
    # In a level face: image-left first, chin below the mouth, brows above the eyes, the lips in their order.
    level = sixty_eight(np.array([(30, 40), (70, 40), (50, 62), (36, 85), (64, 85)]))
    assert level[0, 0] < 30 and level[16, 0] > 70 and level[8, 1] > 100
    assert (level[17:27, 1] < level[36:48, 1].min()).all() and (np.diff(level[17:27, 0]) > 0).all()
    assert (np.diff(level[27:31, 1]) > 0).all() and (np.diff(level[31:36, 0]) > 0).all()
    assert level[51, 1] < level[62, 1] < level[66, 1] < level[57, 1]
    assert (np.diff(level[48:55, 0]) > 0).all() and (np.diff(level[54:60, 0]) < 0).all()


# RAF-DB


def test_raf_db_aligned(tmp_path, faces):
    root = writers.write_raf_db(tmp_path / "raf", faces[:10], faces[10:], with_aligned=True)
    listing = read("raf-db", root, images="aligned")
    assert labels(listing) == [f.label for f in faces]
    assert [r.path for r in listing][9:11] == [
        "Image/aligned/train_00010_aligned.jpg",
        "Image/aligned/test_0001_aligned.jpg",
    ]
    assert all(image(root / r.path).shape == (100, 100, 3) for r in listing)
    assert all(r.box is None and r.landmarks is None for r in listing)
    original = read("raf-db", root)
    same_points(original, faces, 1e-3)
    same_boxes(original, faces, 1e-3)


# FER2013 and FERPlus


def test_fer2013_folders(tmp_path, faces):
    root = writers.write_fer2013_folders(tmp_path / "fer", faces[:7], faces[7:9], faces[9:])
    folders = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert sorted(p.name for p in (root / "train").iterdir()) == folders
    assert sorted(p.name for p in (root / "test").iterdir()) == folders
    assert len(list((root / "train/angry").glob("Training_*.jpg"))) == 1
    assert len(list((root / "test").glob("surprise/PublicTest_*.jpg"))) == 1
    assert len(list((root / "test").glob("sad/PrivateTest_*.jpg"))) == 1
    listing = read("fer2013", root)
    assert sorted(labels(part(listing, "train"))) == list(range(7))
    assert sorted(labels(part(listing, "public-test"))) == [SU, FE]
    assert sorted(labels(part(listing, "private-test"))) == [DI, HA, SA, AN, NE]
    assert all(image(root / r.path).shape == (48, 48) for r in listing) and not listing.left_out


def test_ferplus_rows_and_votes(tmp_path, faces):
    root = writers.write_ferplus(
        tmp_path / "plus", faces[:7], faces[7:9], faces[9:12], contempt=faces[12:13], undecided=faces[13:], not_faces=1
    )
    old = list(csv.DictReader((root / "fer2013.csv").open()))
    new = list(csv.DictReader((root / "fer2013new.csv").open()))
    votes = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]
    assert list(new[0]) == ["Usage", "Image name", *votes]
    assert [row["Usage"] for row in old] == [row["Usage"] for row in new]
    assert Counter(row["Usage"] for row in old) == {"Training": 10, "PublicTest": 2, "PrivateTest": 3}
    assert all(sum(int(row[name]) for name in votes) == 10 for row in new)
    most = [max(votes, key=lambda name: int(row[name])) for row in new]
    assert most == [*NAMES, "contempt", "unknown", "NF", "surprise", "fear", "disgust", "happiness", "sadness"]
    assert [row["Image name"] for row in new][8:11] == ["fer0000008.png", "", "fer0000009.png"]
    # Rows 5, 10 and 15 of FER2013 are wrong: happy is 3, sad 4, anger 0.
    assert [int(row["emotion"]) for row in old][3:6] == [3, 0, 0]
    assert all(len(row["pixels"].split()) == 2304 for row in old)


def test_ferplus_goes_by_the_votes(tmp_path, faces):
    root = writers.write_ferplus(
        tmp_path / "plus", faces[:7], faces[7:9], faces[9:12], contempt=faces[12:13], undecided=faces[13:], not_faces=1
    )
    listing = read("ferplus", root)
    assert labels(part(listing, "train")) == list(range(7))
    assert labels(part(listing, "public-test")) == [SU, FE]
    assert labels(part(listing, "private-test")) == [DI, HA, SA]
    assert sum(listing.left_out.values()) == 3 and any("contempt" in reason for reason in listing.left_out)
    for record in listing:
        with (root / record.path).open("rb") as table:
            table.seek(record.offset)
            assert len(table.readline().split(b",")[1].split()) == 2304


# CK+


def test_ck_plus_as_released(tmp_path, takes):
    contempt, unlabelled = sequence(SMALL, 7, NE, 3, 3), sequence(SMALL, 2, HA, 4, 3)
    root = writers.write_ck_plus(tmp_path / "ck", takes, [contempt], [unlabelled])
    # Identities 7, 4, 9 and 2 come in this order; each takes the expressions n and n + 3, 7 the contempt as well.
    codes = {"S005/001": 7, "S010/001": 4, "S011/001": 3, "S005/002": 5, "S010/002": 6, "S011/002": 1, "S005/003": 2}
    texts = {p.parent.relative_to(root / "Emotion").as_posix(): p for p in root.glob("Emotion/*/*/*_emotion.txt")}
    assert {place: path.read_text() for place, path in texts.items()} == {
        place: f"   {code}.0000000e+00\n" for place, code in codes.items()
    }
    assert texts["S005/001"].name == "S005_001_00000005_emotion.txt"
    assert texts["S005/003"].name == "S005_003_00000003_emotion.txt"
    assert (root / "Emotion/S014/001").is_dir() and not list((root / "Emotion/S014/001").iterdir())
    frames = sorted(p.name for p in (root / "cohn-kanade-images/S005/001").iterdir())
    assert frames == [f"S005_001_0000000{n}.png" for n in range(1, 6)]
    first = image(root / "cohn-kanade-images/S005/001/S005_001_00000001.png")
    assert first.shape == (96, 88)
    np.testing.assert_array_equal(first, cv2.cvtColor(takes[0][0].image, cv2.COLOR_RGB2GRAY))
    points = np.loadtxt(root / "Landmarks/S011/002/S011_002_00000004_landmarks.txt")
    assert points.shape == (68, 2)
    face = takes[5][3].landmarks
    np.testing.assert_allclose((points[36] + points[39]) / 2, face[0], atol=1e-4)
    np.testing.assert_allclose((points[42] + points[45]) / 2, face[1], atol=1e-4)
    np.testing.assert_allclose(points[[30, 48, 54]], face[2:], atol=1e-4)
    assert len(list(root.rglob("*.png"))) == len(list(root.rglob("*_landmarks.txt"))) == 6 * 5 + 3 + 3


def test_ck_plus_round_trip(tmp_path, takes):
    contempt, unlabelled = sequence(SMALL, 7, NE, 3, 3), sequence(SMALL, 2, HA, 4, 3)
    root = writers.write_ck_plus(tmp_path / "ck", takes, [contempt], [unlabelled])
    listing = read("ck+", root)
    # Of each labelled sequence the first frame is neutral and the last three are its expression; of contempt's three
    # frames only the first is anything of ours.
    expected = {}
    for label, take in enumerate(takes):
        subject, number = ("S005", "S010", "S011")[label % 3], 1 + label // 3
        for frame, its_label in ((1, NE), (3, label), (4, label), (5, label)):
            name = f"{subject}/00{number}/{subject}_00{number}_0000000{frame}.png"
            expected[name] = its_label, take[frame - 1]
    expected["S005/003/S005_003_00000001.png"] = (NE, contempt[0])
    assert {r.id: r.label for r in listing} == {name: label for name, (label, _) in expected.items()}
    same_points(listing, [expected[r.id][1] for r in listing], 1e-4)
    assert {r.subject: r.split for r in listing} == {"S005": "train", "S010": "train", "S011": "test"}
    assert all(r.id.startswith(r.subject) for r in listing)
    assert listing.left_out == {"contempt (outside the seven)": 2, "sequence without emotion label": 1}


def test_ck_plus_has_123_people():
    assert len(set(writers.CK_PLUS_SUBJECTS)) == 123
    assert {"S005", "S010", "S046", "S122", "S124", "S138", "S160", "S501", "S895", "S999"} <= {
        *writers.CK_PLUS_SUBJECTS
    }


def test_ck_plus_48_folders(tmp_path, takes):
    root = writers.write_ck_plus_48(tmp_path / "ck48", takes, [sequence(SMALL, 7, NE, 3, 3)])
    folders = ["anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"]
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == folders
    assert sorted(p.name for p in (root / "surprise").iterdir()) == [f"S005_001_0000000{n}.png" for n in (3, 4, 5)]
    assert sorted(p.name for p in (root / "contempt").iterdir()) == [f"S005_003_0000000{n}.png" for n in (1, 2, 3)]
    assert all(image(path).shape == (48, 48) for path in root.rglob("*.png"))
    assert len(list(root.rglob("*.png"))) == 7 * 3
    listing = read("ck+", root)
    assert sorted(labels(listing)) == sorted([*range(6)] * 3) and listing.left_out == {
        "contempt (outside the seven)": 3
    }
    assert {(r.subject, r.split) for r in listing} == {("S005", "train"), ("S010", "train"), ("S011", "test")}
    assert {r.label for r in listing if r.subject == "S011"} == {DI, AN}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda root, take, other: writers.write_ck_plus(root, [other]), "no sequence of CK"),
        (lambda root, take, other: writers.write_ck_plus(root, [[take[0], other[0]]]), "one person"),
        (lambda root, take, other: writers.write_ck_plus_48(root, [[]]), "at least one frame"),
        (lambda root, take, other: writers.write_oulu_casia(root, [other]), "no neutral sequences"),
        (lambda root, take, other: writers.write_oulu_casia(root, [take, take]), "P001 shows surprise twice"),
        (lambda root, take, other: writers.write_mmi(root, [other]), "no neutral sequences"),
        (lambda root, take, other: writers.write_mmi_list(root, other), "no neutral faces"),
    ],
)
def test_sequences_that_no_such_dataset_has_are_refused(tmp_path, takes, faces, write, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "mine", takes[0], [faces[6]])
    assert not (tmp_path / "mine").exists()


# SFEW


def test_sfew_frames_and_aligned_faces(tmp_path, faces):
    root = writers.write_sfew(tmp_path / "sfew", faces[:7], faces[7:], faces[3:5])
    folders = ["Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
    places = ["Train", "Train/Train_Aligned_Faces", "Val", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces"]
    for place in places:
        found = sorted(p.name for p in (root / place).iterdir() if "_" not in p.name)
        assert found == folders
        assert all(len(list((root / place / name).glob("*.png"))) == 1 for name in folders)
    frame, cut = (root / place / "Happy/Film3_000160240_00000004.png" for place in places[:2])
    np.testing.assert_array_equal(image(frame)[..., ::-1], faces[3].image)
    assert image(cut).shape == (181, 143, 3)
    assert len(list((root / "Test").glob("*.png"))) == len(list((root / "Test/Test_Aligned_Faces").iterdir())) == 2
    for kind, prefix, shape in (("frames", "", (96, 88, 3)), ("aligned", "_Aligned", (181, 143, 3))):
        listing = read("sfew", root, images=kind)
        assert sorted(labels(part(listing, "train"))) == sorted(labels(part(listing, "val"))) == list(range(7))
        assert labels(part(listing, "test")) == [-1, -1] and len({r.id for r in listing}) == 16
        assert all(image(root / r.path).shape == shape and prefix in r.path for r in listing)
        for record in part(listing, "train"):
            assert record.id == f"Film3_{40 * (record.label + 1):06d}240_{record.label + 1:08d}.png"
    only = writers.write_sfew(tmp_path / "cut", faces[:7], faces[7:], frames=False)
    assert len(list(only.rglob("*.png"))) == 14 and not (only / "Train/Happy").exists()
    assert len(read("sfew", only)) == 14


# Oulu-CASIA


def test_oulu_casia_layout(tmp_path, takes):
    root = writers.write_oulu_casia(tmp_path / "oulu", takes, lights=("VL/Strong", "NI/Dark"), below="OriginalImg")
    assert sorted(p.relative_to(root).as_posix() for p in root.glob("*/*/*/*/*")) == sorted(
        f"OriginalImg/{light}/{place}"
        for light in ("VL/Strong", "NI/Dark")
        for place in ("P001/Surprise", "P002/Fear", "P003/Disgust", "P001/Happiness", "P002/Sadness", "P003/Anger")
    )
    names = sorted(p.name for p in (root / "OriginalImg/VL/Strong/P003/Anger").iterdir())
    assert names == ["000.jpeg", "001.jpeg", "002.jpeg", "003.jpeg", "004.jpeg"]
    peak = image(root / "OriginalImg/VL/Strong/P003/Anger/004.jpeg")[..., ::-1]
    assert np.abs(peak.astype(float) - takes[5][4].image).mean() < 6
    assert image(root / "OriginalImg/NI/Dark/P003/Anger/004.jpeg").ndim == 2


@pytest.mark.parametrize("below", ["", "OriginalImg"])
def test_oulu_casia_round_trip(tmp_path, takes, below):
    root = writers.write_oulu_casia(tmp_path / "oulu", takes, lights=("VL/Strong", "NI/Dark"), below=below)
    for options, light in (({}, "VL/Strong"), ({"spectrum": "NI", "lighting": "Dark"}, "NI/Dark")):
        listing = read("oulu-casia", root, **options)
        assert len(listing) == 6 * 4 and not listing.left_out
        for record in listing:
            assert f"{light}/{record.subject}/" in record.path
            frame = int(record.path[-8:-5])
            folder = record.path.split("/")[-2]
            named = {"Surprise": SU, "Fear": FE, "Disgust": DI, "Happiness": HA, "Sadness": SA, "Anger": AN}[folder]
            assert (record.label, frame) in {(NE, 0), (named, 2), (named, 3), (named, 4)}
        assert Counter(r.subject for r in listing) == {"P001": 8, "P002": 8, "P003": 8}
        assert len({(r.subject, r.split) for r in listing}) == 3


# MMI


def test_mmi_sessions(tmp_path, takes):
    scream, unlabelled, side = (sequence(SMALL, 7, HA, seed, 3) for seed in (3, 4, 5))
    root = writers.write_mmi(tmp_path / "mmi", takes, [scream], [unlabelled], [side])
    emotions = {
        int(p.parent.name): [
            tag.get("Value") for tag in ElementTree.parse(p).iter("Metatag") if tag.get("Name") == "Emotion"
        ]
        for p in root.glob("Sessions/*/S*.xml")
    }
    # Surprise 6, fear 3, disgust 2, happiness 4, sadness 5, anger 1.
    assert emotions == {1: ["6"], 2: ["3"], 3: ["2"], 4: ["4"], 5: ["5"], 6: ["1"], 7: ["7"], 8: [], 9: ["4"]}
    names = {p.name for p in (root / "Sessions/4").iterdir()}
    assert names == {"session.xml", "S001-002.xml", "S001-002.avi", *(f"S001-002_0000{n}.png" for n in range(1, 10))}
    video = cv2.VideoCapture(str(root / "Sessions/4/S001-002.avi"))
    film = [video.read()[1][..., ::-1] for _ in range(9)]
    assert not video.read()[0]
    for frame, face in zip(film, [*takes[3], *takes[3][3::-1]], strict=True):
        assert np.abs(frame.astype(float) - face.image).mean() < 6
    listing = read("mmi", root)
    # Of nine frames, to the apex and back, the middle three are the expression and the first is neutral.
    assert {r.id for r in listing if r.subject == "S001"} == {
        f"{clip}/{clip}_0000{n}.png" for clip in ("S001-001", "S001-002") for n in (1, 4, 5, 6)
    }
    order = ["S001-001", "S002-001", "S003-001", "S001-002", "S002-002", "S003-002"]
    for record in listing:
        clip, frame = record.id.split("/")[0], record.id[-5]
        assert record.label == (NE if frame == "1" else order.index(clip)) and record.subject == clip[:4]
    assert len(listing) == 6 * 4 and len({(r.subject, r.split) for r in listing}) == 3
    assert sum(listing.left_out.values()) == 3
    with pytest.raises(FercliError, match="ffmpeg"):
        read_dataset("mine", "mmi", writers.write_mmi(tmp_path / "films", takes, frames=False))


def test_mmi_list(tmp_path, faces):
    six = [face for face in faces if face.label != NE]
    root = writers.write_mmi_list(tmp_path / "mmi", six)
    names = ["anger", "disgust", "fear", "happiness", "sadness", "surprise"]
    rows = [line.split(" ") for line in (root / "list/list.txt").read_text().splitlines()]
    assert [names[int(code)] for _, code in rows] == NAMES[:6] * 2
    assert [name for name, _ in rows][5:7] == ["S001-006_00031.jpg", "S002-001_00031.jpg"]
    points = np.loadtxt(root / "annos/landmark_5/S002-003_00031.txt")
    np.testing.assert_allclose(points, six[8].landmarks, atol=0.5)
    np.testing.assert_allclose(np.loadtxt(root / "annos/bbox/S002-003_00031.txt"), six[8].box, atol=0.5)
    listing = read("mmi", root)
    assert labels(listing) == [face.label for face in six] and not listing.left_out
    assert [r.subject for r in listing] == ["S001"] * 6 + ["S002"] * 6


# AFE


def test_afe_rows(tmp_path, faces):
    root = writers.write_afe(tmp_path / "afe", faces[:7], faces[7:])
    rows = [line.split(" ") for line in (root / "annos/TrainTest/Train.csv").read_text().splitlines()]
    codes = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
    assert [codes[int(row[5])] for row in rows] == NAMES
    assert [[int(v) for v in row[1:5]] for row in rows] == [[round(v) for v in face.box] for face in faces[:7]]
    assert (root / "src/image" / rows[0][0]).is_file()
    assert len((root / "annos/TrainTest/Test.csv").read_text().splitlines()) == 7


def test_afe_round_trip(tmp_path, faces):
    listing = read("afe", writers.write_afe(tmp_path / "afe", faces[:9], faces[9:]))
    for split, expected in (("train", faces[:9]), ("test", faces[9:])):
        assert labels(part(listing, split)) == [f.label for f in expected]
        same_boxes(part(listing, split), expected, 0.5)
    assert not listing.left_out


# AffectNet


def test_affectnet_csv_rows(tmp_path, faces):
    root = writers.write_affectnet_csv(tmp_path / "aff", faces[:7], faces[7:12], faces[12:13], faces[13:])
    rows = list(csv.DictReader((root / "Manually_Annotated_file_lists/training.csv").open()))
    columns = "subDirectory_filePath face_x face_y face_width face_height facial_landmarks expression valence arousal"
    assert list(rows[0]) == columns.split()
    codes = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt", "none"]
    assert [codes[int(row["expression"])] for row in rows] == [*NAMES, "contempt", "none"]
    assert [row["valence"] for row in rows][-2:] == ["0.25", "-2"]
    row, (left, top, right, bottom) = rows[2], (round(v) for v in faces[2].box)
    assert [int(row[f"face_{k}"]) for k in ("x", "y", "width", "height")] == [left, top, right - left, bottom - top]
    points = np.array([float(v) for v in row["facial_landmarks"].split(";")]).reshape(68, 2)
    np.testing.assert_allclose(points[[30, 48, 54]], faces[2].landmarks[2:], atol=0.006)
    assert (root / "Manually_Annotated_Images" / row["subDirectory_filePath"]).is_file()
    assert len((root / "Manually_Annotated_file_lists/validation.csv").read_text().splitlines()) == 6


def test_affectnet_csv_round_trip(tmp_path, faces):
    root = writers.write_affectnet_csv(tmp_path / "aff", faces[:7], faces[7:12], faces[12:13], faces[13:])
    listing = read("affectnet", root)
    for split, expected in (("train", faces[:7]), ("val", faces[7:12])):
        assert labels(part(listing, split)) == [f.label for f in expected]
        same_points(part(listing, split), expected, 0.006)
        same_boxes(part(listing, split), expected, 0.5)
    assert sum(listing.left_out.values()) == 2 and any("contempt" in reason for reason in listing.left_out)
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("val",))


def test_affectnet_npy_round_trip(tmp_path, faces):
    root = writers.write_affectnet_npy(tmp_path / "aff", faces[:7], faces[7:12], faces[12:])
    assert int(np.load(root / "train_set/annotations/9_exp.npy")) == 1  # the fourth face: happy
    assert np.load(root / "train_set/annotations/9_lnd.npy").shape == (136,)
    listing = read("affectnet", root)
    assert sorted(labels(part(listing, "train"))) == list(range(7))
    assert sorted(labels(part(listing, "val"))) == [SU, FE, DI, HA, SA]
    assert listing.left_out and sum(listing.left_out.values()) == 2
    for record in listing:
        # The crop is upright and 224x224: its points are the face's, scaled and shifted.
        face = faces[record.label + 7 * (record.split == "val")].landmarks
        given = np.array(record.landmarks)
        scale = (given[1, 0] - given[0, 0]) / (face[1, 0] - face[0, 0])
        np.testing.assert_allclose(given - given[0], scale * (face - face[0]), atol=0.01)
        assert image(root / record.path).shape == (224, 224, 3) and (given > 0).all() and (given < 224).all()


# A csv


def test_csv_round_trip(tmp_path, faces):
    root = writers.write_csv(tmp_path / "csv", {"train": faces[:9], "test": faces[9:13]}, contempt=faces[13:])
    listing = read("csv", root)
    for split, expected in (("train", faces[:9]), ("test", faces[9:13])):
        records = part(listing, split)
        assert labels(records) == [f.label for f in expected]
        assert [r.subject for r in records] == [f"person-{f.identity}" for f in expected]
        same_points(records, expected, 1e-3)
        same_boxes(records, expected, 1e-3)
        boxes = [",".join(f"{v:.3f}" for v in f.box) for f in expected]
        assert [r.id for r in records] == [f"{split}_{i:05d}.png#{box}" for i, box in enumerate(boxes, 1)]
    assert listing.left_out == {"contempt (outside the seven)": 1}
    np.testing.assert_array_equal(image(root / listing.records[0].path)[..., ::-1], faces[0].image)
