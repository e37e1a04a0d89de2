"""The readers of the lab and film datasets (CK+, SFEW, Oulu-CASIA, MMI) on small, realistic trees of their layouts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from trees import refusal, rows, touch, write

from fercli.datasets import ck_plus, mmi, oulu_casia, read_dataset
from fercli.datasets.sequences import split_of

SU, FE, DI, HA, SA, AN, NE = range(7)

#: The 123 subjects of CK+. The ones for testing must never change, or results would no longer be comparable.
CK_SUBJECTS = [
    f"S{number:03d}"
    for number in (
        *(5, 10, 11, 14, 22, 26, 28, 29, 32, 34, 35, 37, 42, 44, 45, 46, *range(50, 123), *range(124, 140)),
        *(147, 148, 149, 151, 154, 155, 156, 157, 158, 160, *range(501, 507), 895, 999),
    )
]
CK_TEST = [f"S{i:03d}" for i in (11, 26, 37, 45, 57, 65, 99, 108, 113, 124, 138, 155, 505, 506)]
OULU_SUBJECTS = [f"P{i:03d}" for i in range(1, 81)]
OULU_TEST = [f"P{i:03d}" for i in (4, 5, 9, 10, 16, 19, 20, 24, 25, 42, 43, 46, 57, 59, 61, 64, 73)]


def assert_no_subject_in_both_splits(listing) -> None:
    sides = [{r.subject for r in listing if r.split == split} for split in ("train", "test")]
    assert all(sides) and not sides[0] & sides[1] and not {None} & (sides[0] | sides[1])
    assert {r.split for r in listing} == {"train", "test"}


# The split


def test_the_split_is_frozen_by_subject():
    assert len(CK_SUBJECTS) == 123
    assert [s for s in CK_SUBJECTS if split_of(s, ck_plus.ONE_IN) == "test"] == CK_TEST
    assert [s for s in OULU_SUBJECTS if split_of(s, oulu_casia.ONE_IN) == "test"] == OULU_TEST
    clips = [f"S{i:03d}" for i in range(28, 55)]
    assert [s for s in clips if split_of(s, mmi.ONE_IN) == "test"] == ["S028", "S032", "S037", "S040", "S045", "S052"]


def test_the_split_follows_its_own_description():
    number = int(hashlib.sha256(b"S011").hexdigest()[:8], 16)
    assert number % 10 == 0 and split_of("s011", 10) == split_of("S011", 10) == "test"
    number = int(hashlib.sha256(b"S010").hexdigest()[:8], 16)
    assert number % 10 != 0 and split_of("S010", 10) == "train"


# CK+


def sequence(root: Path, name: str, last: int, code: object = None, images: str = "cohn-kanade-images", first: int = 1):
    """Write one sequence of CK+ (name: S005/001), with its label if it has one."""
    stem = name.replace("/", "_")
    touch(root, *(f"{images}/{name}/{stem}_{i:08d}.png" for i in range(first, last + 1)))
    if code is not None:
        content = code if isinstance(code, bytes) else f"   {code:.7e}\n"
        write(root, f"Emotion/{name}/{stem}_{last:08d}_emotion.txt", content)


def test_ck_takes_the_last_three_frames_and_the_first_of_labelled_sequences(tmp_path):
    sequence(tmp_path, "S005/001", 11, 3)
    sequence(tmp_path, "S005/002", 20)
    (tmp_path / "Emotion/S005/002").mkdir()
    sequence(tmp_path, "S011/001", 12)
    listing = read_dataset("ck", "ck+", tmp_path)
    assert rows(listing, "id", "label") == [
        ("S005/001/S005_001_00000001.png", NE),
        ("S005/001/S005_001_00000009.png", DI),
        ("S005/001/S005_001_00000010.png", DI),
        ("S005/001/S005_001_00000011.png", DI),
    ]
    first = listing.records[0]
    assert first.path == "cohn-kanade-images/S005/001/S005_001_00000001.png"
    assert (first.subject, first.split, first.landmarks) == ("S005", "train", None)
    assert listing.left_out == {"sequence without emotion label": 2}
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))


def test_ck_codes_and_contempt(tmp_path):
    for code in range(8):
        sequence(tmp_path, f"S010/00{code}", 9, code)
    listing = read_dataset("ck", "ck+", tmp_path)
    peaks = {r.id[5:8]: r.label for r in listing if not r.id.endswith("00000001.png")}
    assert peaks == {"000": NE, "001": AN, "003": DI, "004": FE, "005": HA, "006": SA, "007": SU}
    # Contempt is left out and counted, but its neutral first frame is kept.
    assert rows(listing, "label").count((NE,)) == 8 + 3
    assert [r.label for r in listing if r.id.startswith("S010/002")] == [NE]
    assert listing.left_out == {"contempt (outside the seven)": 3}


def test_ck_counts_of_the_whole_release(tmp_path):
    """The benchmark's 1,254 images come from 327 labelled sequences of the release's 593, from its 123 subjects."""
    counts = {1: 45, 2: 18, 3: 59, 4: 25, 5: 69, 6: 28, 7: 83}
    codes = [code for code, count in counts.items() for _ in range(count)] + [None] * 266
    for i, code in enumerate(codes):
        sequence(tmp_path, f"{CK_SUBJECTS[i % 123]}/{i // 123 + 1:03d}", 6, code)
    listing = read_dataset("ck", "ck+", tmp_path)
    assert len(listing) == 1254
    assert [sum(r.label == label for r in listing) for label in range(7)] == [249, 75, 177, 207, 84, 135, 327]
    assert listing.left_out == {"sequence without emotion label": 266, "contempt (outside the seven)": 54}
    assert_no_subject_in_both_splits(listing)
    assert sorted({r.subject for r in listing if r.split == "test"}) == CK_TEST


@pytest.mark.parametrize(("peak", "last"), [(1, [11]), (2, [10, 11]), (5, [7, 8, 9, 10, 11]), (50, range(2, 12))])
def test_ck_peak_frames(tmp_path, peak, last):
    sequence(tmp_path, "S005/001", 11, 5)
    listing = read_dataset("ck", "ck+", tmp_path, peak=peak)
    assert [int(r.id[-12:-4]) for r in listing if r.label == HA] == list(last)
    assert [int(r.id[-12:-4]) for r in listing if r.label == NE] == [1]


def test_ck_split_all_is_one_split_for_both(tmp_path):
    sequence(tmp_path, "S005/001", 11, 5)
    sequence(tmp_path, "S011/001", 11, 5)
    listing = read_dataset("ck", "ck+", tmp_path, split="all")
    assert {r.split for r in listing} == {"all"} and {r.subject for r in listing} == {"S005", "S011"}
    assert (listing.adapt_splits, listing.score_splits) == (("all",), ("all",))


@pytest.mark.parametrize("images", ["cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images"])
@pytest.mark.parametrize("emotion", ["Emotion", "Emotion_labels/Emotion", "Emotion_labels"])
def test_ck_under_the_names_that_its_archives_unpack_to(tmp_path, images, emotion):
    sequence(tmp_path, "S005/001", 5, images=images)
    write(tmp_path, f"{emotion}/S005/001/S005_001_00000005_emotion.txt", "7.0000000e+00")
    touch(tmp_path, f"{images}/S005/001/.DS_Store", f"{images}/.DS_Store", f"{emotion}/S005/001/.DS_Store")
    touch(tmp_path, f"{emotion}/S005/001/._S005_001_00000005_emotion.txt", f"{images}/S005/001/._S005_001_00000005.png")
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [r.label for r in listing] == [NE, SU, SU, SU] and listing.left_out == {}
    assert all((tmp_path / r.path).is_file() for r in listing)


@pytest.mark.parametrize(
    ("content", "labels", "left_out"),
    [
        (b"\xef\xbb\xbf   6.0000000e+00\r\n\r\n", [NE, SA, SA, SA], {}),
        (b"6", [NE, SA, SA, SA], {}),
        (b"", [], {"unreadable emotion file": 1}),
        (b"sad\n", [], {"unreadable emotion file": 1}),
        (b"5.5\n", [], {"unreadable emotion file": 1}),
        (b"nan\n", [], {"unreadable emotion file": 1}),
        (b"0_5\n", [], {"unreadable emotion file": 1}),
        (b"5\n6\n", [], {"unreadable emotion file": 1}),
        (b"9.0000000e+00\n", [], {"unknown code '9'": 1}),
    ],
)
def test_ck_awkward_emotion_files(tmp_path, content, labels, left_out):
    sequence(tmp_path, "S010/001", 5, content)
    sequence(tmp_path, "S014/001", 5, 1)
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [r.label for r in listing] == [*labels, NE, AN, AN, AN]
    assert listing.left_out == left_out


@pytest.mark.parametrize(("other", "reason"), [(5, "listed twice"), (6, "listed twice with different labels")])
def test_ck_sequence_labelled_twice(tmp_path, other, reason):
    sequence(tmp_path, "S010/001", 5, 5)
    write(tmp_path, "Emotion/S010/001/S010_001_00000005_emotion.txt", "5")
    write(tmp_path, "Emotion/S010/001/S010_001_00000006_emotion.txt", str(other))
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [r.label for r in listing] == [NE, HA, HA, HA] and listing.left_out == {reason: 1}


def test_ck_labelled_frame_without_file_stays_a_record(tmp_path):
    sequence(tmp_path, "S010/001", 5, 5)
    (tmp_path / "cohn-kanade-images/S010/001/S010_001_00000005.png").unlink()
    write(tmp_path, "Emotion/S010/002/S010_002_00000014_emotion.txt", "7")
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [(r.id[5:], r.label) for r in listing] == [
        ("001/S010_001_00000001.png", NE),
        ("001/S010_001_00000003.png", HA),
        ("001/S010_001_00000004.png", HA),
        ("001/S010_001_00000005.png", HA),
        ("002/S010_002_00000014.png", SU),
    ]
    assert listing.left_out == {"sequence without its neutral first frame": 1}


def test_ck_no_frame_is_neutral_without_the_beginning_of_a_sequence(tmp_path):
    sequence(tmp_path, "S010/001", 14, 5, first=12)
    sequence(tmp_path, "S010/002", 1, 5)
    listing = read_dataset("ck", "ck+", tmp_path)
    assert rows(listing, "label") == [(HA,)] * 4
    assert listing.left_out == {"sequence without its neutral first frame": 2}


def test_ck_frames_after_the_labelled_one_are_not_its_peak(tmp_path):
    sequence(tmp_path, "S010/001", 6)
    write(tmp_path, "Emotion/S010/001/S010_001_00000005_emotion.txt", "5")
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [int(r.id[-12:-4]) for r in listing] == [1, 3, 4, 5]


def test_ck_landmarks_become_our_five(tmp_path):
    sequence(tmp_path, "S010/001", 5, 5)
    points = [(float(i), 1000.0 + i) for i in range(68)]
    text = "".join(f"   {x:.7e}   {y:.7e}\r\n" for x, y in points)
    folder = "Landmarks/S010/001/S010_001_0000000"
    write(tmp_path, f"{folder}5_landmarks.txt", text)
    write(tmp_path, f"{folder}4_landmarks.txt", text[:500])
    write(tmp_path, f"{folder}3_landmarks.txt", "x" + text)
    listing = read_dataset("ck", "ck+", tmp_path)
    given = [r.landmarks for r in listing]
    assert given[:3] == [None, None, None] and not any(r.cropped for r in listing)
    # The image-left eye's corners are 36 and 39, the other's 42 and 45; nose tip 30; mouth corners 48 and 54.
    assert given[3] == ((37.5, 1037.5), (43.5, 1043.5), (30, 1030), (48, 1048), (54, 1054))


@pytest.mark.parametrize("prefix", ["", "CK+48/"])
def test_ck48_folders(tmp_path, prefix):
    for take, folder in enumerate(("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"), 1):
        for subject in ("S010", "S011"):
            touch(tmp_path, *(f"{prefix}{folder}/{subject}_00{take}_000000{i}.png" for i in (17, 18, 19)))
    touch(tmp_path, f"{prefix}anger/copy of it.png", f"{prefix}anger/Thumbs.db", f"{prefix}misc/S010_001_00000001.png")
    listing = read_dataset("ck", "ck+", tmp_path)
    assert [(r.path.removeprefix(prefix).split("/")[0], r.label) for r in listing if r.id.startswith("S010")][::3] == [
        ("anger", AN),
        ("disgust", DI),
        ("fear", FE),
        ("happy", HA),
        ("sadness", SA),
        ("surprise", SU),
    ]
    assert len(listing) == 2 * 6 * 3 and all((tmp_path / r.path).is_file() and r.cropped for r in listing)
    assert {r.subject: r.split for r in listing} == {"S010": "train", "S011": "test"}
    assert_no_subject_in_both_splits(listing)
    assert listing.left_out == {
        "contempt (outside the seven)": 6,
        "image not named like S010_004_00000017.png": 1,
        ".db files": 1,
        "unknown class 'misc'": 1,
    }


def test_ck48_image_in_two_classes_counts_once(tmp_path):
    touch(tmp_path, "anger/S010_004_00000017.png", "fear/S010_004_00000017.png")
    listing = read_dataset("ck", "ck+", tmp_path)
    assert rows(listing, "label") == [(AN,)] and listing.left_out == {"listed twice with different labels": 1}


# SFEW


def sfew(root: Path, train: str = "Train", val: str = "Val", ending: str = "png") -> Path:
    for part, film in ((train, "AboutABoy"), (val, "Airheads")):
        for i, name in enumerate(("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")):
            touch(root, f"{part}/{name}/{film}_00010220{i}_0000000{i}.{ending}")
    return root


@pytest.mark.parametrize(
    ("train", "val", "images"),
    [
        ("Train", "Val", None),
        ("Train", "Val", "frames"),
        ("Train/imgs", "Val/imgs", None),
        ("train", "val", None),
        ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces", None),
        ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces", "aligned"),
        ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new", None),
        ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces", None),
        ("Train_Aligned_Faces", "Val_Aligned_Faces", None),
    ],
)
def test_sfew_in_every_form(tmp_path, train, val, images):
    listing = read_dataset("s", "sfew", sfew(tmp_path, train, val), images=images)
    for split, folder in (("train", train), ("val", val)):
        assert [r.label for r in listing if r.split == split] == [AN, DI, FE, HA, NE, SA, SU]
        assert {r.path.rsplit("/", 2)[0] for r in listing if r.split == split} == {folder}
    assert {r.subject for r in listing} == {None} and listing.left_out == {}
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("val",))


def test_sfew_prefers_the_frames_and_keeps_the_two_forms_apart(tmp_path):
    sfew(sfew(tmp_path), "Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces")
    touch(tmp_path, "Test/one.png", "Test/Test_Aligned_Faces/two.png", "Train/Annotations/Bboxs/Angry/x.txt")
    frames, aligned = read_dataset("s", "sfew", tmp_path), read_dataset("s", "sfew", tmp_path, images="aligned")
    assert len(frames) == len(aligned) == 15 and frames.left_out == aligned.left_out == {}
    assert not any("Aligned" in r.path for r in frames) and all("Aligned" in r.path for r in aligned)
    tested = [rows([r for r in one if r.split == "test"], "id", "label") for one in (frames, aligned)]
    assert tested == [[("one.png", -1)], [("two.png", -1)]]


def test_sfew_counts_what_it_leaves_out(tmp_path):
    sfew(tmp_path)
    touch(tmp_path, "Train/Contempt/a.png", "Train/Bored/b.png", "Train/stray.png", "Train/Sad/list.txt")
    touch(tmp_path, "Train/Happy/Airheads_000102200_00000000.png", "Val/Sad/Airheads_000102200_00000000.png")
    listing = read_dataset("s", "sfew", tmp_path)
    assert listing.left_out == {
        "contempt (outside the seven)": 1,
        "unknown class 'Bored'": 1,
        "image outside a class folder": 1,
        ".txt files": 1,
        "listed twice with different labels": 2,
    }
    # An image in two classes or splits stays in the scored split: no image is in both.
    assert rows([r for r in listing if r.id.startswith("Airheads_000102200")], "split", "label") == [("val", AN)]


def test_names_with_spaces_and_without_utf8(tmp_path):
    sfew(tmp_path)
    touch(tmp_path, "Val/Sad/two words\n.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/Val/Sad/\xff\xfe.png")).write_bytes(b"")
    assert len(read_dataset("s", "sfew", tmp_path)) == 16


# Oulu-CASIA

OULU_CLASSES = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")


def oulu(root: Path, folder: str, subjects: Sequence[str] = ("P001",), last: int = 14) -> Path:
    for subject in subjects:
        for name in OULU_CLASSES:
            touch(root, *(f"{folder}/{subject}/{name}/{i:03d}.jpeg" for i in range(last + 1)))
    return root


@pytest.mark.parametrize(
    "folder",
    [
        "VL/Strong",
        "OriginalImg/VL/Strong",
        "B_OriginalImg/OriginalImg/VL/Strong",
        "Oulu_CASIA_NIR_VIS/VL/Strong",
        "PreProcess_Img/VL_Acropped/Strong",
    ],
)
def test_oulu_takes_the_first_and_the_last_three_frames(tmp_path, folder):
    oulu(tmp_path, folder)
    touch(tmp_path, f"{folder}/P001/Fear/Thumbs.db", f"{folder}/P001/.DS_Store")
    listing = read_dataset("o", "oulu-casia", tmp_path)
    assert [r.label for r in listing] == [
        label for expression in (AN, DI, FE, HA, SA, SU) for label in (NE, expression, expression, expression)
    ]
    assert rows(listing, "id", "path", "subject")[:4] == [
        (f"VL/Strong/P001/Anger/{frame}.jpeg", f"{folder}/P001/Anger/{frame}.jpeg", "P001")
        for frame in ("000", "012", "013", "014")
    ]
    assert listing.left_out == {".db files": 1}
    assert {r.cropped for r in listing} == {"Acropped" in folder}
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))


def test_oulu_prefers_the_original_images_to_the_crops(tmp_path):
    oulu(oulu(tmp_path, "PreProcess_Img/VL_Acropped/Strong"), "OriginalImg/VL/Strong")
    assert all(r.path.startswith("OriginalImg/") for r in read_dataset("o", "oulu-casia", tmp_path))


def test_oulu_cameras_and_lights(tmp_path):
    for spectrum in ("VL", "NI"):
        for lighting in ("Strong", "Weak", "Dark"):
            oulu(tmp_path, f"{spectrum}/{lighting}")
    for spectrum in ("VL", "NI"):
        for lighting in ("Strong", "Weak", "Dark"):
            listing = read_dataset("o", "oulu-casia", tmp_path, spectrum=spectrum, lighting=lighting)
            assert len(listing) == 24 and all(r.path.startswith(f"{spectrum}/{lighting}/") for r in listing)


def test_oulu_split_by_subject(tmp_path):
    oulu(tmp_path, "VL/Strong", OULU_SUBJECTS, last=3)
    listing = read_dataset("o", "oulu-casia", tmp_path)
    assert [sum(r.label == label for r in listing) for label in range(7)] == [240] * 6 + [480]
    assert_no_subject_in_both_splits(listing)
    assert sorted({r.subject for r in listing if r.split == "test"}) == OULU_TEST
    whole = read_dataset("o", "oulu-casia", tmp_path, split="all")
    assert {r.split for r in whole} == {"all"} and whole.score_splits == ("all",)


def test_oulu_peak_and_what_is_left_out(tmp_path):
    touch(tmp_path, *(f"VL/Strong/P002/Anger/{i:03d}.jpeg" for i in (0, 1, 2, 10, 100)))
    touch(tmp_path, *(f"VL/Strong/P002/Fear/{i:03d}.jpeg" for i in (7, 8, 9)))
    touch(tmp_path, "VL/Strong/P002/Contempt/000.jpeg", "VL/Strong/P002/Smile/000.jpeg", "VL/Strong/new/Fear/000.jpeg")
    (tmp_path / "VL/Strong/P002/Sadness").mkdir()
    listing = read_dataset("o", "oulu-casia", tmp_path, peak=2)
    assert [(r.id.split("/", 3)[3], r.label) for r in listing] == [
        ("Anger/000.jpeg", NE),
        ("Anger/010.jpeg", AN),
        ("Anger/100.jpeg", AN),
        ("Fear/008.jpeg", FE),
        ("Fear/009.jpeg", FE),
    ]
    assert listing.left_out == {
        "contempt (outside the seven)": 1,
        "sequence without its neutral first frame": 1,
        "sequence without frames": 1,
        "unknown class 'Smile'": 1,
        "image outside a subject folder (P001, P002, ...)": 1,
    }


# MMI


def test_mmi_list_of_frames(tmp_path):
    names = [f"S0{28 + i}-00{i}_00{i} x.jpg" for i in range(6)]
    write(tmp_path, "list/list.txt", "\ufeff" + "\r\n\r\n".join(f"{name} {i}" for i, name in enumerate(names)))
    touch(tmp_path, *(f"images/{name}" for name in names[:5]), "images/S001-001_1.jpg", "images/notes.txt")
    listing = read_dataset("m", "mmi", tmp_path)
    assert [r.label for r in listing] == [AN, DI, FE, HA, SA, SU]
    assert rows(listing, "id", "path", "subject", "split")[0] == (names[0], f"images/{names[0]}", "S028", "test")
    # The last file is missing. Its record stays, to be rejected with a reason.
    assert len(listing) == 6 and listing.left_out == {"file without row": 1}
    assert_no_subject_in_both_splits(listing)


def test_mmi_list_with_the_benchmarks_boxes_and_landmarks(tmp_path):
    write(tmp_path, "list/list.txt", "S030-001_1.jpg 0\nS030-001_2.jpg 0\nS030-001_3.jpg 0\n")
    write(tmp_path, "annos/bbox/S030-001_1.txt", "10 20 110 140\n")
    write(tmp_path, "annos/landmark_5/S030-001_1.txt", "40 60\n80 61\n60 80\n45 100\n75 101\n")
    write(tmp_path, "annos/bbox/S030-001_2.txt", "10 20 110\n")
    write(tmp_path, "annos/landmark_5/S030-001_2.txt", "40 60\n80 61\n60 nan\n45 100\n75 101\n")
    touch(tmp_path, "images/S030-001_1.jpg")
    one, *others = read_dataset("m", "mmi", tmp_path)
    assert one.box == (10, 20, 110, 140)
    assert one.landmarks == ((40, 60), (80, 61), (60, 80), (45, 100), (75, 101))
    assert [(r.box, r.landmarks) for r in others] == [(None, None)] * 2


def test_mmi_awkward_lists(tmp_path):
    lines = ["S030-001.jpg 0", "S030-001.jpg 0", "S030-001.jpg 3", "S030-002.jpg 7", "S030-003.jpg", "face9.jpg 3"]
    write(tmp_path, "list.txt", "\n".join(lines))
    touch(tmp_path, "images/S030-001.jpg")
    listing = read_dataset("m", "mmi", tmp_path)
    assert rows(listing, "label", "split") == [(AN, "train")]
    nameless = "frame not named after its subject, S001-001... (accepted with the option split 'all')"
    left_out = {
        "listed twice": 1,
        "listed twice with different labels": 1,
        "unknown code '7'": 1,
        "unreadable row": 1,
    }
    assert listing.left_out == {**left_out, nameless: 1}
    whole = read_dataset("m", "mmi", tmp_path, split="all")
    assert rows(whole, "label", "split", "subject") == [(AN, "all", "S030"), (HA, "all", None)]
    assert whole.left_out == left_out


def session(root: Path, number: int, clip: str, emotion: object, frames: str | None, view: int = 0, count: int = 9):
    """Write one session as downloaded. `frames` is the pattern of its extracted frames."""
    folder = f"Sessions/{number}"
    track = f'<session sessionId="{number}"><track view="{view}" filename="{clip}.avi"/></session>'
    write(root, f"{folder}/session.xml", f'<?xml version="1.0" encoding="UTF-8"?>{track}')
    tag = "" if emotion is None else f'<Metatag Name="Emotion" Value="{emotion}"/>'
    write(
        root, f"{folder}/{clip}.xml", f'<FaceVideoAnnotation><Metatag Name="Sex" Value="1"/>{tag}</FaceVideoAnnotation>'
    )
    write(root, f"{folder}/{clip}-oao_aucs.xml", '<ActionUnits><Metatag Name="Emotion" Value="4"/></ActionUnits>')
    touch(root, f"{folder}/{clip}.avi")
    if frames is not None:
        touch(root, *(f"{folder}/{frames.format(i)}" for i in range(1, count + 1)))


@pytest.mark.parametrize("frames", ["S030-004_{:05d}.png", "S030-004/{:05d}.png", "S030-004/S030-004_{:05d}.jpg"])
def test_mmi_sessions_give_their_middle_and_first_frames(tmp_path, frames):
    session(tmp_path, 224, "S030-004", 6, frames)
    listing = read_dataset("m", "mmi", tmp_path)
    expected = [(1, NE), (4, SU), (5, SU), (6, SU)]
    assert rows(listing, "path", "label") == [(f"Sessions/224/{frames.format(i)}", label) for i, label in expected]
    assert {(r.subject, r.split) for r in listing} == {("S030", "train")} and listing.left_out == {}
    assert len(read_dataset("m", "mmi", tmp_path, peak=1)) == 2


def test_mmi_emotions_views_and_videos(tmp_path):
    for i in range(1, 10):
        session(tmp_path, i, f"S0{30 + i}-001", i, f"S0{30 + i}-001_{{}}.png", count=1)
    session(tmp_path, 20, "S050-001", 4, None)
    session(tmp_path, 21, "S021-001", 4, "S021-001_{}.png", view=1)
    session(tmp_path, 22, "S001-001", 4, "S001-001_{}.png", view=2)
    session(tmp_path, 23, "S050-002", None, "S050-002_{}.png")
    session(tmp_path, 24, "S050-003", "happy", "S050-003_{}.png")
    touch(tmp_path, "Sessions/25/session.xml")
    listing = read_dataset("m", "mmi", tmp_path)
    single = [r.label for r in listing if r.subject != "S001"]
    assert single == [AN, DI, FE, HA, SA, SU]
    assert [r.label for r in listing if r.subject == "S001"] == [NE, HA, HA, HA]
    assert listing.left_out == {
        "sequence without its neutral first frame": 6,
        "emotion 7 (outside the seven)": 1,
        "emotion 8 (outside the seven)": 1,
        "emotion 9 (outside the seven)": 1,
        "video without frames next to it (extract them: ffmpeg -i S001-001.avi S001-001_%05d.png)": 1,
        "session filmed from the side": 1,
        "session without emotion label": 3,
        "unreadable annotation file": 1,
    }


def test_mmi_sessions_split_by_subject(tmp_path):
    for i in range(28, 55):
        for take in (1, 2):
            session(tmp_path, 10 * i + take, f"S0{i}-00{take}", 1 + i % 6, f"S0{i}-00{take}/{{:05d}}.png", count=4)
    assert_no_subject_in_both_splits(read_dataset("m", "mmi", tmp_path))


def test_mmi_as_downloaded_gives_a_hint(tmp_path):
    session(tmp_path, 1, "S001-001", 1, None)
    assert "extract them: ffmpeg" in refusal("mmi", tmp_path)


# Errors are one line


@pytest.mark.parametrize(
    ("reader", "files", "options", "words"),
    [
        ("ck+", ["cohn-kanade-images/S005/001/S005_001_00000001.png"], {}, "no Emotion/"),
        ("ck+", ["cohn-kanade-images/S005/001/S005_001_00000001.png", "Emotion/a"], {}, "1 sequence without emotion"),
        ("ck+", ["anger/S010_004_00000017.png"], {"peak": 1}, "option peak is 1, but the CK+48"),
        ("ck+", ["anger/S010_004_00000017.png"], {"peak": 0}, "option peak is '0'"),
        ("ck+", ["anger/S010_004_00000017.png"], {"peak": "three"}, "option peak is 'three'"),
        ("ck+", ["anger/S010_004_00000017.png"], {"split": "none"}, "not 'subject' or 'all'"),
        ("ck+", ["contempt/S010_004_00000017.png"], {}, "no cohn-kanade-images/"),
        ("sfew", ["Train/Sad/1.png"], {}, "below Val/"),
        ("sfew", ["Train/Sad/1.png", "Val/Val_Aligned_Faces/Sad/2.png"], {}, "aligned faces of the other"),
        ("sfew", ["Train/Sad/1.png", "Val/Sad/2.png"], {"images": "aligned"}, "no class folders of aligned"),
        ("sfew", ["Train/Sad/1.png", "Val/Sad/2.png"], {"images": "faces"}, "'frames' or 'aligned'"),
        ("oulu-casia", ["VL/Strong/P001/Fear/000.jpeg"], {"lighting": "Dark"}, "no VL/Dark/"),
        ("oulu-casia", ["VL/Strong/P001/Fear/000.jpeg"], {"lighting": "dim"}, "not one of Strong, Weak, Dark"),
        ("oulu-casia", ["VL/Strong/P001/Fear/000.jpeg"], {"spectrum": "IR"}, "not one of VL, NI"),
        ("oulu-casia", ["VL/Strong/P001/Fear/000.jpeg"], {"peak": True}, "option peak"),
        ("mmi", ["list/list.txt"], {}, "no images/"),
        ("mmi", ["list/list.txt", "images/a.jpg"], {"peak": 5}, "names the frames"),
        ("mmi", ["Sessions/1/S001-001.avi"], {}, "no list/list.txt and no Sessions/*/session.xml"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(tmp_path, reader, files, options, words):
    touch(tmp_path, *files)
    assert words in refusal(reader, tmp_path, **options)


def test_a_list_without_codes_is_named(tmp_path):
    write(tmp_path, "list.txt", "S001-001.jpg\nS001-002.jpg\n")
    touch(tmp_path, "images/S001-001.jpg")
    assert "list.txt lacks a column" in refusal("mmi", tmp_path)
