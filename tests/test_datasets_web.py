"""The readers of AFE, AffectNet and FERPlus on small trees of their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trees import AFFECTNET, refusal, rows, write

from fercli.datasets import read_dataset
from fercli.datasets.parsing import five_of_68

SU, FE, DI, HA, SA, AN, NE = range(7)
#: 68 points: point i at (10 + i, 100 + 2 i).
POINTS_68 = [value for i in range(68) for value in (10.0 + i, 100.0 + 2 * i)]
FIVE = ((47.5, 175.0), (53.5, 187.0), (40.0, 160.0), (58.0, 196.0), (64.0, 208.0))


@pytest.mark.parametrize(
    ("values", "points"),
    [
        (POINTS_68, FIVE),
        ([str(v) for v in POINTS_68], FIVE),
        (POINTS_68[:-2], None),
        ([], None),
        ([0.0] * 136, None),
        ([float("nan")] * 136, None),
        ([float("inf")] * 136, None),
    ],
)
def test_five_points_of_68(values, points):
    assert five_of_68(values) == points


# AFE


def afe(root: Path, train: str, test: str = "x/9.jpg 1 2 3 4 3\n", images: str = "images") -> Path:
    write(root, "annos/TrainTest/Train.csv", train)
    write(root, "annos/TrainTest/Test.csv", test)
    write(root, f"{images}/x/9.jpg")
    return root


def test_afe_codes_boxes_and_splits(tmp_path):
    train = "".join(f"film one/{code}.jpg 10 20 110 140.5 {code}\n" for code in range(7))
    listing = read_dataset("a", "afe", afe(tmp_path, train))
    assert rows(listing, "split", "label", "path")[0] == ("test", HA, "images/x/9.jpg")
    assert [r.label for r in listing if r.split == "train"] == [AN, DI, FE, HA, NE, SA, SU]
    assert rows(listing, "id", "path", "box")[1] == (
        "film one/0.jpg#10,20,110,140.5",
        "images/film one/0.jpg",
        (10, 20, 110, 140.5),
    )
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))
    assert listing.left_out == {}


def test_afe_ids_of_several_faces_per_image_do_not_depend_on_other_rows(tmp_path):
    two = "a.jpg 0 0 9 9 3\na.jpg 20 0 29 9 5\n"
    both = [r.id for r in read_dataset("a", "afe", afe(tmp_path / "1", two)) if r.split == "train"]
    assert both == ["a.jpg#0,0,9,9", "a.jpg#20,0,29,9"]
    second = read_dataset("a", "afe", afe(tmp_path / "2", "a.jpg 20 0 29 9 5\n"))
    assert [r.id for r in second if r.split == "train"] == both[1:]


def test_afe_no_image_is_in_both_splits(tmp_path):
    train = "a.jpg 0 0 9 9 3\nb.jpg 0 0 9 9 3\nb.jpg 20 0 29 9 3\n"
    listing = read_dataset("a", "afe", afe(tmp_path, train, "b.jpg 40 0 49 9 5\nb.jpg 60 0 69 9 99\n"))
    assert rows(listing, "split", "id") == [("test", "b.jpg#40,0,49,9"), ("train", "a.jpg#0,0,9,9")]
    assert listing.left_out == {"training row of a test image": 2, "unknown code '99'": 1}


@pytest.mark.parametrize(
    ("images", "options", "path"),
    [
        ("image", {}, "image/x/9.jpg"),
        (".", {}, "x/9.jpg"),
        ("elsewhere", {"images": "elsewhere"}, "elsewhere/x/9.jpg"),
        ("nowhere", {}, "images/x/9.jpg"),
    ],
)
def test_afe_finds_the_images(tmp_path, images, options, path):
    listing = read_dataset("a", "afe", afe(tmp_path, "y.jpg 1 2 3 4 0\n", images=images), **options)
    assert listing.records[0].path == path


def test_afe_finds_the_images_if_the_first_rows_have_none(tmp_path):
    listing = read_dataset(
        "a", "afe", afe(tmp_path, "y.jpg 1 2 3 4 0\n", "gone.jpg 1 2 3 4 3\nx/9.jpg 1 2 3 4 3\n", ".")
    )
    assert [r.path for r in listing] == ["gone.jpg", "x/9.jpg", "y.jpg"]


def test_afe_header_and_unreadable_rows(tmp_path):
    train = "path left top right bottom emotion\na.jpg 1 2 3 4 3\nb.jpg 1 2 three 4 3\nc.jpg 1 2\n"
    listing = read_dataset("a", "afe", afe(tmp_path, train))
    assert [r.id for r in listing] == ["x/9.jpg#1,2,3,4", "a.jpg#1,2,3,4"] and listing.left_out == {"unreadable row": 2}


# AffectNet, the csv release

HEADER = f"{AFFECTNET}\n"


def line(name: str, code: object, box: str = "30,40,100,120", points: list[float] = POINTS_68) -> str:
    return f"{name},{box},{';'.join(map(str, points))},{code},0.1,-0.2\n"


@pytest.mark.parametrize(
    ("lists", "images"),
    [
        ("", "Manually_Annotated/Manually_Annotated_Images"),
        ("Manually_Annotated_file_lists/", "Manually_Annotated_Images"),
        ("Manually_Annotated/", "Manually_Annotated/Manually_Annotated_Images"),
        ("", "."),
    ],
)
def test_affectnet_csv(tmp_path, lists, images):
    write(tmp_path, f"{lists}training.csv", HEADER + "".join(line(f"7/{code}.jpg", code) for code in range(11)))
    write(tmp_path, f"{lists}validation.csv", HEADER + line("8/v.jpg", 1, box="NULL,NULL,NULL,NULL", points=[]))
    for name in ("8/v.jpg", *(f"7/{code}.jpg" for code in range(11))):
        write(tmp_path, f"{images}/{name}")
    listing = read_dataset("a", "affectnet", tmp_path)
    prefix = "" if images == "." else f"{images}/"
    assert rows(listing, "id", "path", "label", "split", "box", "landmarks")[:2] == [
        ("8/v.jpg", f"{prefix}8/v.jpg", HA, "val", None, None),
        ("7/0.jpg", f"{prefix}7/0.jpg", NE, "train", (30, 40, 130, 160), FIVE),
    ]
    assert [r.label for r in listing if r.split == "train"] == [NE, HA, SA, SU, FE, DI, AN]
    assert listing.left_out == {
        "contempt (outside the seven)": 1,
        "none (outside the seven)": 1,
        "uncertain (outside the seven)": 1,
        "no-face (outside the seven)": 1,
    }
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("val",))


def test_affectnet_csv_an_image_on_both_lists_stays_in_validation(tmp_path):
    write(tmp_path, "training.csv", HEADER + line("1/a.jpg", 1) + line("1/b.jpg", 2))
    write(tmp_path, "validation.csv", HEADER + line("1/a.jpg", 2))
    listing = read_dataset("a", "affectnet", tmp_path)
    assert rows(listing, "id", "split", "label") == [("1/a.jpg", "val", SA), ("1/b.jpg", "train", SA)]
    assert listing.left_out == {"listed twice with different labels": 1}


def test_affectnet_csv_finds_the_images_if_the_first_rows_have_none(tmp_path):
    write(tmp_path, "training.csv", HEADER + line("1/gone.jpg", 1) + line("1/a.jpg", 1))
    write(tmp_path, "Manually_Annotated/Manually_Annotated_Images/readme.txt")
    write(tmp_path, "Manually_Annotated_Images/1/a.jpg")
    paths = [r.path for r in read_dataset("a", "affectnet", tmp_path)]
    assert paths == ["Manually_Annotated_Images/1/gone.jpg", "Manually_Annotated_Images/1/a.jpg"]


def test_affectnet_csv_files_without_a_row_and_short_rows(tmp_path):
    write(tmp_path, "training.csv", HEADER + line("1/a.jpg", 1) + line("2/b.jpg", 7) + "1/c.jpg,1,2\n")
    for name in ("1/a.jpg", "1/extra.jpg", "2/b.jpg", "2/more.jpg", "3/not looked at.jpg"):
        write(tmp_path, f"Manually_Annotated_Images/{name}")
    listing = read_dataset("a", "affectnet", tmp_path)
    assert listing.left_out == {"contempt (outside the seven)": 1, "unreadable row": 1, "file without row": 2}
    assert listing.score_splits == ("val",)


def test_affectnet_class_folders(tmp_path):
    for name in ("train/0/a.jpg", "train/Happy/b.jpg", "train/7/c.jpg", "train/11/d.jpg", "val/6/e.jpg"):
        write(tmp_path, f"archive/{name}")
    listing = read_dataset("a", "affectnet", tmp_path)
    assert {r.id.removeprefix("archive/"): (r.label, r.split) for r in listing} == {
        "train/0/a.jpg": (NE, "train"),
        "train/Happy/b.jpg": (HA, "train"),
        "val/6/e.jpg": (AN, "val"),
    }
    assert listing.left_out == {"contempt (outside the seven)": 1, "unknown code '11'": 1}
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("val",))


# AffectNet, the release of npy files


def affectnet_part(root: Path, part: str, stem: str, code: object, points: object = None) -> None:
    write(root, f"{part}/images/{stem}.jpg")
    (root / part / "annotations").mkdir(exist_ok=True)
    np.save(root / part / "annotations" / f"{stem}_exp.npy", code)
    if points is not None:
        np.save(root / part / "annotations" / f"{stem}_lnd.npy", points)


def test_affectnet_npy(tmp_path):
    for code in range(8):
        affectnet_part(tmp_path, "train_set", f"{code}", str(code), np.array(POINTS_68))
    affectnet_part(tmp_path, "val_set", "0", 3, np.array(POINTS_68, np.float32).reshape(68, 2))
    affectnet_part(tmp_path, "val_set", "1", np.array(4), None)
    listing = read_dataset("a", "affectnet", tmp_path)
    assert rows(listing, "id", "path", "label", "landmarks")[:2] == [
        ("val/0", "val_set/images/0.jpg", SU, FIVE),
        ("val/1", "val_set/images/1.jpg", FE, None),
    ]
    train = [r for r in listing if r.split == "train"]
    assert [r.label for r in train] == [NE, HA, SA, SU, FE, DI, AN] and {r.landmarks for r in train} == {FIVE}
    assert listing.left_out == {"contempt (outside the seven)": 1}
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("val",))


def test_affectnet_npy_damaged_files_are_counted_and_the_rest_is_kept(tmp_path):
    for stem in ("a", "b", "c", "d", "e", "f", "g"):
        affectnet_part(tmp_path, "train_set", stem, "1", np.array(POINTS_68))
    annotations = tmp_path / "train_set/annotations"
    whole = (annotations / "a_exp.npy").read_bytes()
    (annotations / "b_exp.npy").write_bytes(b"")
    (annotations / "c_exp.npy").write_bytes(whole[:-2])
    (annotations / "d_exp.npy").write_bytes(b"<html>no npy</html>" * 20)
    np.save(annotations / "e_exp.npy", np.array([{"a": 1}], dtype=object))
    (annotations / "f_lnd.npy").write_bytes((annotations / "f_lnd.npy").read_bytes()[:200])
    np.save(annotations / "g_exp.npy", np.array([1, 2]))
    (annotations / "h_exp.npy").mkdir()
    write(tmp_path, "train_set/images/without.jpg")
    np.save(annotations / "nopicture_exp.npy", "2")
    listing = read_dataset("a", "affectnet", tmp_path)
    assert rows(listing, "id", "label") == [("train/a", HA), ("train/f", HA), ("train/nopicture", SA)]
    assert [r.landmarks for r in listing] == [FIVE, None, None]
    assert listing.left_out == {
        "file without row": 1,
        "unreadable _exp.npy (empty, truncated or not an npy file)": 5,
        "unreadable _exp.npy (is a directory)": 1,
        "unreadable _lnd.npy, face kept (empty, truncated or not an npy file)": 1,
    }


# FERPlus

FER = "emotion,pixels,Usage\n"
PLUS = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
PIXELS = " ".join(["7"] * 2304)


def ferplus(root: Path, labels: list[str], usages: list[str] | None = None) -> Path:
    """Write rows of fer2013new.csv, each `Usage,name,votes`, and a fer2013.csv with the same splits."""
    write(root, "fer2013new.csv", PLUS + "".join(f"{row}\n" for row in labels))
    parts = usages or [row.split(",", 1)[0] for row in labels]
    write(root, "fer2013.csv", FER + "".join(f"0,{PIXELS},{part}\n" for part in parts))
    return root


VOTES = [
    # votes: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF; majority; plurality
    ("4,0,0,1,3,2,0,0,0,0", None, NE),  # 4 of 9 after the single vote is dropped: no majority
    ("6,0,1,1,0,0,0,0,2,0", NE, NE),
    ("5,0,0,3,1,0,0,0,1,0", NE, NE),  # 5 of 8: the two single votes do not count
    ("4,0,0,4,1,0,0,0,1,0", None, None),  # a tie
    ("0,10,0,0,0,0,0,0,0,0", HA, HA),
    ("0,0,6,0,0,0,4,0,0,0", SU, SU),
    ("0,0,0,8,2,0,0,0,0,0", SA, SA),
    ("0,0,0,0,9,1,0,0,0,0", AN, AN),
    ("1,1,1,1,1,3,1,1,0,0", DI, DI),  # 3 of 3
    ("0,0,0,0,0,0,7,3,0,0", FE, FE),
    ("1,1,1,1,1,1,1,1,1,1", None, None),  # no votes remain
    ("0,0,0,0,0,0,0,0,0,0", None, None),
]


@pytest.mark.parametrize(("vote", "column"), [("majority", 1), ("plurality", 2)])
def test_ferplus_votes(tmp_path, vote, column):
    labels = [f"Training,fer{i:07d}.png,{row[0]}" for i, row in enumerate(VOTES)]
    listing = read_dataset("f", "ferplus", ferplus(tmp_path, labels), vote=vote)
    expected = [(f"fer{i:07d}.png", row[column]) for i, row in enumerate(VOTES) if row[column] is not None]
    assert rows(listing, "id", "label") == expected
    reason = "no majority" if vote == "majority" else "tie for most votes"
    assert listing.left_out == {reason: len(VOTES) - len(expected)}


def test_ferplus_leaves_out_labels_outside_the_seven(tmp_path):
    labels = [
        "Training,fer0000000.png,0,8,0,0,0,0,0,0,2,0",
        "Training,,0,0,0,0,0,0,0,0,0,10",
        "Training,fer0000001.png,0,2,0,0,0,0,0,8,0,0",
        "PublicTest,fer0000002.png,0,2,0,0,0,0,0,0,8,0",
        "PublicTest,fer0000003.png,0,0,0,0,0,0,0,0,0,10",
        "PrivateTest,fer0000004.png,0,0,0,0,many,0,0,0,0,10",
        "PrivateTest,fer0000007.png,1_0,0,0,0,0,0,0,0,0,0",
        "PrivateTest,fer0000005.png,9,0,0,0,0,0,0,0,0,1",
        "PublicTest,fer0000006.png,0,0,9,0,0,0,0,0,0,1",
    ]
    listing = read_dataset("f", "ferplus", ferplus(tmp_path, labels))
    assert rows(listing, "id", "label", "split") == [
        ("fer0000000.png", HA, "train"),
        ("fer0000005.png", NE, "private-test"),
        ("fer0000006.png", SU, "public-test"),
    ]
    assert listing.left_out == {
        "removed by FERPlus (no image name)": 1,
        "contempt (outside the seven)": 1,
        "unknown (outside the seven)": 1,
        "nf (outside the seven)": 1,
        "unreadable row": 2,
    }
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("private-test",))
    assert read_dataset("f", "ferplus", tmp_path, score="public-test").score_splits == ("public-test",)


def test_ferplus_points_to_the_row_with_the_same_number(tmp_path):
    write(tmp_path, "fer2013new.csv", PLUS + "Training,,0,0,0,0,0,0,0,0,0,10\n\nTraining,a.png,0,9,0,0,0,0,0,0,0,0\r\n")
    write(tmp_path, "fer2013.csv", f"\ufeff{FER}5,1 2 3,Training\r\n\r\n6,4 5 6,Training\r\n")
    (record,) = read_dataset("f", "ferplus", tmp_path)
    data = (tmp_path / record.path).read_bytes()
    assert data[record.offset :].startswith(b"6,4 5 6,Training")


@pytest.mark.parametrize("name", ["icml_face_data.csv", "my faces.csv", "fer2013/fer2013.csv"])
def test_ferplus_next_to_another_csv_with_the_same_rows(tmp_path, name):
    write(
        tmp_path, "fer2013new.csv", PLUS + "Training,a.png,0,9,0,0,0,0,0,0,0,0\nPrivateTest,b.png,9,0,0,0,0,0,0,0,0,0\n"
    )
    write(tmp_path, name, f"emotion, Usage, pixels\n5,Training,{PIXELS}\n6,PrivateTest,{PIXELS}\n")
    listing = read_dataset("f", "ferplus", tmp_path)
    assert rows(listing, "id", "path", "label", "split") == [
        ("a.png", name, HA, "train"),
        ("b.png", name, NE, "private-test"),
    ]


@pytest.mark.parametrize(
    ("usages", "words"),
    [
        (["Training"], "fer2013.csv ends at row 2, the other does not: their rows"),
        (["Training", "Training", "Training"], "fer2013new.csv ends at row 3, the other does not: their rows"),
        (["Training", "PublicTest"], "row 2 of fer2013new.csv and of fer2013.csv differ in Usage"),
    ],
)
def test_ferplus_never_pairs_files_whose_rows_do_not_match(tmp_path, usages, words):
    labels = [f"Training,fer{i}.png,0,9,0,0,0,0,0,0,0,0" for i in range(2)]
    assert words in refusal("ferplus", ferplus(tmp_path, labels, usages))


@pytest.mark.parametrize("base", ["", "data/", "images/"])
def test_ferplus_folders(tmp_path, base):
    votes = "0,9,0,0,0,0,0,0,0,0"
    parts = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    labels = [f"{usage},fer{i}.png,{votes}\n" for i, usage in enumerate(parts)]
    write(tmp_path, "fer2013new.csv", PLUS + "".join(labels))
    for i, folder in enumerate(parts.values()):
        write(tmp_path, f"{base}{folder}/fer{i}.png")
    write(tmp_path, f"{base}FER2013Test/fer0.png")
    write(tmp_path, f"{base}FER2013Test/label.csv")
    listing = read_dataset("f", "ferplus", tmp_path)
    assert all(record.cropped for record in listing)
    assert rows(listing, "id", "path", "split", "offset") == [
        ("fer0.png", f"{base}FER2013Train/fer0.png", "train", None),
        ("fer1.png", f"{base}FER2013Valid/fer1.png", "public-test", None),
        ("fer2.png", f"{base}FER2013Test/fer2.png", "private-test", None),
    ]
    assert listing.left_out == {"file without row": 1}


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"fer2013new.csv": PLUS}, {"vote": "guess"}, "option vote is 'guess'"),
        ({"fer2013new.csv": PLUS}, {"file": "f.csv"}, "option file is 'f.csv', which is not in "),
        ({"fer2013new.csv": PLUS}, {}, "no fer2013.csv and no FER2013Train/"),
        ({"fer2013.csv": FER}, {}, "no fer2013new.csv"),
        ({"fer2013.csv": FER, "fer2013new.csv": PLUS.replace(",NF", "")}, {}, "fer2013new.csv lacks the column NF"),
        ({"fer2013.csv": "emotion,pixels\n", "fer2013new.csv": PLUS}, {}, "fer2013.csv lacks the column Usage"),
    ],
)
def test_ferplus_errors_say_what_is_wrong(tmp_path, files, options, words):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert words in refusal("ferplus", tmp_path, **options)
