"""Every reader on a small, realistic tree of its layout."""

from __future__ import annotations

import os
import re
from pathlib import Path

import drawn
import numpy as np
import pytest
from trees import AFFECTNET, refusal, rows, touch, write

from fercli.datasets import READERS, SYNTHETIC_MARKER, expw, read_dataset
from fercli.expressions import EXPRESSIONS, is_outside, label_of
from fercli.faces.images import decode_pixels, read_pixels
from fercli.synthetic import writers
from fercli.synthetic.render import LAB, Face, render

SU, FE, DI, HA, SA, AN, NE = range(7)
FROZEN_EXPW = ["train", "test", "test", "test", "train", "train", "train", "train", "test", "train", "train", "train"]


def pixels(value: int = 7) -> str:
    return " ".join([str(value)] * 2304)


# RAF-DB

THREE_FIELDS = "row with 3 fields (expected: an image and its code)"


def raf_db(root: Path, labels: str | bytes, listed: str = "EmoLabel/list_patition_label.txt") -> Path:
    write(root, listed, labels)
    touch(root, "Image/original/train_00001.jpg", "Image/aligned/train_00001_aligned.jpg")
    return root


def test_raf_db_labels_splits_box_and_landmarks(tmp_path):
    lines = [f"{part}_{i:05d}.jpg {i}" for i in range(1, 8) for part in ("train", "test")]
    root = raf_db(tmp_path, "\n".join(lines))
    points = "10.5\t20\n30 21\n20 30\n12 40\n28 41.25\n1\n0\n2\n"
    write(root, "Annotation/manual/train_00001_manu_attri.txt", points)
    write(root, "Annotation/boundingbox/train_00001_boundingbox.txt", "1.5 2 60.25 70\n")
    listing = read_dataset("raf", "raf-db", root)
    assert [r.label for r in listing if r.split == "train"] == [SU, FE, DI, HA, SA, AN, NE]
    assert [r.label for r in listing if r.split == "test"] == [SU, FE, DI, HA, SA, AN, NE]
    first = listing.records[0]
    assert (first.id, first.path) == ("train_00001.jpg", "Image/original/train_00001.jpg")
    assert first.box == (1.5, 2, 60.25, 70)
    assert first.landmarks == ((10.5, 20), (30, 21), (20, 30), (12, 40), (28, 41.25))
    assert listing.records[1].box is None and listing.records[1].landmarks is None
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))


def test_raf_db_aligned_images_do_not_use_annotations_of_the_originals(tmp_path):
    root = raf_db(tmp_path, "train_00001.jpg 5\n")
    write(root, "Annotation/boundingbox/train_00001_boundingbox.txt", "1 2 60 70")
    (record,) = read_dataset("raf", "raf-db", root, images="aligned")
    assert (record.path, record.box) == ("Image/aligned/train_00001_aligned.jpg", None)


@pytest.mark.parametrize(
    ("labels", "kept", "left_out"),
    [
        ("train_00001.jpg 5\ntrain_00001.jpg 5\n", [SA], {"listed twice": 1}),
        ("train_00001.jpg 5\ntrain_00001.jpg 6\n", [SA], {"listed twice with different labels": 1}),
        ("train_00001.jpg 5\ntrain_00002.jpg 9\n", [SA], {"unknown code '9'": 1}),
        ("train_00001.jpg 5\ntrain_00002.jpg\nsomething else 3\n", [SA], {"unreadable row": 2}),
        (b"\xef\xbb\xbftrain_00001.jpg 5\r\n\r\ntest_0001.jpg 1\r\n", [SA, SU], {}),
        ("train_00001.jpg 5 train\ntest_0001.jpg 1\tTest \n", [SA, SU], {}),
        ("train_00001.jpg 5\ntrain_00002.jpg 5 4\ntest_0001.jpg 1 train\n", [SA], {THREE_FIELDS: 2}),
        ("train_two words.jpg 5 0.93\ntrain_00001.jpg 5\n", [SA], {THREE_FIELDS: 1}),
    ],
)
def test_raf_db_awkward_label_lists(tmp_path, labels, kept, left_out):
    listing = read_dataset("raf", "raf-db", raf_db(tmp_path, labels))
    assert [r.label for r in listing] == kept
    assert listing.left_out == left_out


def test_raf_db_accepts_the_correctly_spelt_list_and_keeps_rows_without_files(tmp_path):
    root = raf_db(tmp_path, "train_00009.jpg 4\n", "EmoLabel/list_partition_label.txt")
    assert rows(read_dataset("raf", "raf-db", root), "path", "label") == [("Image/original/train_00009.jpg", HA)]


def raf_db_folders(root: Path, *parts: str) -> Path:
    for part in parts:
        split = part.rsplit("/", 1)[-1]
        touch(root, *(f"{part}/{code}/{split}_0000{code}_aligned.jpg" for code in range(1, 8)))
    return root


@pytest.mark.parametrize("above", ["", "DATASET/", "archive/DATASET/"])
@pytest.mark.parametrize("beside", ["", "archive/"])
def test_raf_db_class_folders_as_on_kaggle(tmp_path, above, beside):
    root = raf_db_folders(tmp_path, f"{above}train", f"{above}test")
    if above.startswith(beside):
        write(root, f"{beside}train_labels.csv", "image,label\ntrain_00002_aligned.jpg,2\ntrain_00009_aligned.jpg,1\n")
    listing = read_dataset("raf", "raf-db", root)
    assert [r.label for r in listing if r.split == "train"] == [SU, FE, DI, HA, SA, AN, NE]
    assert [r.label for r in listing if r.split == "test"] == [SU, FE, DI, HA, SA, AN, NE]
    assert ("train_00003.jpg", f"{above}train/3/train_00003_aligned.jpg") in rows(listing, "id", "path")
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))
    assert listing.left_out == ({"row without file": 1} if above.startswith(beside) else {})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"train_labels.csv": "image,label\ntrain_00002_aligned.jpg,4\n"},
            "_labels.csv gives happiness for DATASET/train/2/train_00002_aligned.jpg, but its folder gives fear in ",
        ),
        ({"test_labels.csv": "name,label\nx.jpg,4\n"}, "test_labels.csv lacks the column image"),
        (
            {"DATASET/train/4/test_0002_aligned.jpg": ""},
            "train/4/test_0002_aligned.jpg is named as a test image but is in a folder of train images",
        ),
        (
            {"DATASET/train/4/train_00001.jpg": ""},
            "train_00001_aligned.jpg and DATASET/train/4/train_00001.jpg are the same image of RAF-DB by their names",
        ),
        ({"DATASET/train/0/train_1.jpg": ""}, "the class folder DATASET/train/0/ is not a code of RAF-DB (1 to 7) in "),
    ],
)
def test_raf_db_class_folders_that_contradict_stop(tmp_path, files, words):
    root = raf_db_folders(tmp_path, "DATASET/train", "DATASET/test")
    for name, text in files.items():
        write(root, name, text)
    assert words in refusal("raf-db", root)


# JAFFE


def test_jaffe_labels_come_from_the_names(tmp_path):
    names = ["KA.AN1.39", "KA.DI1.42", "KA.FE1.45", "KA.HA1.29", "KA.NE1.26", "KR.SA3.79", "KA.SU1.36"]
    touch(tmp_path, *(f"{name}.tiff" for name in names), "README", "thing.tiff")
    listing = read_dataset("j", "jaffe", tmp_path)
    assert [r.label for r in listing] == [AN, DI, FE, HA, NE, SU, SA]
    assert listing.records[-1].subject == "KR" and listing.records[-1].id == "KR.SA3.79.tiff"
    assert (listing.adapt_splits, listing.score_splits) == (("all",), ("all",))
    assert listing.left_out == {"files without an ending": 1, "image not named like KM.NE1.1.tiff": 1}


# FER2013


def test_fer2013_csv(tmp_path):
    body = "".join(f"{code},{pixels()},Training\n" for code in range(7))
    body += f"3,{pixels()},PublicTest\n4,{pixels()},PrivateTest\n9,{pixels()},PrivateTest\n3,{pixels()},Elsewhere\n3\n"
    write(tmp_path, "fer2013.csv", "emotion,pixels,Usage\n" + body)
    listing = read_dataset("f", "fer2013", tmp_path)
    assert [r.label for r in listing] == [AN, DI, FE, HA, SA, SU, NE, HA, SA]
    assert [r.split for r in listing][-2:] == ["public-test", "private-test"]
    assert listing.left_out == {"unknown code '9'": 1, "row of an unknown Usage": 1, "unreadable row": 1}
    data = (tmp_path / "fer2013.csv").read_bytes()
    assert all(r.cropped and data[r.offset :].split(b"\n", 1)[0].count(b",") == 2 for r in listing)
    assert len({r.id for r in listing}) == len(listing)
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("private-test",))
    assert read_dataset("f", "fer2013", tmp_path, score="public-test").score_splits == ("public-test",)


#: Contents of a folder: each csv's header and rows, with `P` for the pixels.
P = pixels()
KAGGLE = {
    "icml_face_data.csv": f"emotion, Usage, pixels\n3,Training,{P}\n4,PublicTest,{P}\n5,PrivateTest,{P}\n",
    "train.csv": f'emotion,pixels\n3,"{P}"\n',
    "test.csv": f'pixels\n"{P}"\n',
}
QUOTED = f'\ufeffUsage,"emotion", pixels\r\nTraining,3,"{P}"\r\n'
CK = f'emotion,pixels,Usage\n0,"{P}",Training\n7,{P},Training\n6,{P},PublicTest\n5,{P},Private Test\n'


@pytest.mark.parametrize(
    ("files", "options", "faces", "score"),
    [
        (KAGGLE, {}, [(HA, "train"), (SA, "public-test"), (SU, "private-test")], "private-test"),
        (KAGGLE, {"file": "train.csv"}, [(HA, "train")], "private-test"),
        ({"fer2013.csv": QUOTED}, {}, [(HA, "train")], "private-test"),
        ({"train.csv": KAGGLE["train.csv"], "test.csv": KAGGLE["test.csv"]}, {}, [(HA, "train")], "private-test"),
        ({"train.csv": KAGGLE["train.csv"]}, {"score": "train"}, [(HA, "train")], "train"),
        (
            {"ckextended.csv": CK},
            {},
            [(AN, "train"), (NE, "public-test"), (SU, "private-test")],
            "private-test",
        ),
        (
            {"x/Mine.CSV": f"PIXELS,Emotion,USAGE\n{P},3,train_set\n{P},4,Test\n"},
            {},
            [(HA, "train"), (SA, "test")],
            "test",
        ),
    ],
)
def test_fer2013_csvs_of_other_names(tmp_path, files, options, faces, score):
    for name, text in files.items():
        write(tmp_path, name, text)
    listing = read_dataset("f", "fer2013", tmp_path, **options)
    assert rows(listing, "label", "split") == faces
    assert (listing.adapt_splits, listing.score_splits) == (("train",), (score,))
    assert listing.left_out == ({"unknown code '7'": 1} if "ckextended.csv" in files else {})
    for record in listing:
        assert (decode_pixels(read_pixels(tmp_path / record.path, record.offset)) == 7).all()


def test_several_csvs_of_pixels_stop_and_name_the_option(tmp_path):
    write(tmp_path, "a.csv", KAGGLE["train.csv"])
    write(tmp_path, "b.csv", CK)
    said = refusal("fer2013", tmp_path)
    assert "several csvs with emotion and pixels (a.csv, b.csv)" in said and "--option file=NAME" in said
    assert len(read_dataset("f", "fer2013", tmp_path, file="b.csv")) == 3


def test_fer2013_folders(tmp_path):
    touch(
        tmp_path,
        "train/angry/Training_1.jpg",
        "validation/happy/PublicTest_2.jpg",
        "test/sad/PrivateTest_3.jpg",
        "test/surprise/PublicTest_4.jpg",
        "test/contempt/PrivateTest_5.jpg",
        "test/sad/whatever.jpg",
        "test/sad/.DS_Store",
    )
    listing = read_dataset("f", "fer2013", tmp_path)
    assert all(record.cropped for record in listing)
    assert sorted(rows(listing, "id", "label", "split")) == [
        ("test/sad/PrivateTest_3.jpg", SA, "private-test"),
        ("test/surprise/PublicTest_4.jpg", SU, "public-test"),
        ("train/angry/Training_1.jpg", AN, "train"),
        ("validation/happy/PublicTest_2.jpg", HA, "public-test"),
    ]
    assert listing.left_out == {
        "contempt (outside the seven)": 1,
        "image not named Training_, PublicTest_ or PrivateTest_": 1,
    }


# ExpW


@pytest.mark.parametrize("images", ["data/image/origin", "image/origin"])
def test_expw_boxes_faces_and_codes(tmp_path, images):
    write(
        tmp_path,
        "label/label.lst",
        "a b.jpg 0 10 20 120 130 55.5 3\na b.jpg 1 5 200 290 99 40 0\nc.jpg 0 x 1 2 3 4 5\n",
    )
    touch(tmp_path, f"{images}/a b.jpg")
    listing = read_dataset("e", "expw", tmp_path)
    assert rows(listing, "id", "path", "label", "box") == [
        ("a b.jpg#0", f"{images}/a b.jpg", HA, (20, 10, 120, 130)),
        ("a b.jpg#1", f"{images}/a b.jpg", AN, (200, 5, 290, 99)),
    ]
    assert listing.left_out == {"unreadable row": 1}


def test_expw_split_is_frozen_by_image_and_about_a_fifth():
    names = [f"image_{i}.jpg" for i in range(5000)]
    parts = [expw.split_of(name) for name in names]
    assert 0.18 < parts.count("test") / len(parts) < 0.22
    # Frozen: these must never change, or results would no longer be comparable.
    assert [expw.split_of(f"image_{i}.jpg") for i in range(12)] == FROZEN_EXPW


def test_expw_no_image_is_in_both_splits(tmp_path):
    write(tmp_path, "label/label.lst", "".join(f"{i // 3}.jpg {i % 3} 0 0 9 9 1 6\n" for i in range(300)))
    touch(tmp_path, "image/origin/0.jpg")
    listing = read_dataset("e", "expw", tmp_path)
    sides = [{r.path for r in listing if r.split == split} for split in ("train", "test")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


# Folders


def test_folders_per_class(tmp_path):
    touch(tmp_path, "Happy/a.jpg", "happy_faces/b.jpg", "SAD/sub/c.PNG", "Contempt/d.jpg", "neutral/notes.txt")
    listing = read_dataset("f", "folders", tmp_path)
    assert rows(listing, "id", "label", "split") == [("Happy/a.jpg", HA, "all"), ("SAD/sub/c.PNG", SA, "all")]
    assert listing.left_out == {
        "contempt (outside the seven)": 1,
        "unknown class 'happy_faces'": 1,
        ".txt files": 1,
    }
    assert (listing.adapt_splits, listing.score_splits) == (("all",), ("all",))


@pytest.mark.parametrize(
    ("names", "options", "labels", "left_out"),
    [
        ("1 2 7 8", {"codes": "raf-db"}, [SU, FE, NE], {"unknown code '8'": 1}),
        ("0 1 07", {"codes": "affectnet"}, [NE, HA], {"label '7' outside the seven": 1}),
        ("0 1", {"codes": {0: "sad", "1": "contempt"}}, [SA], {"label '1' outside the seven": 1}),
        ("0 1 happy", {}, [HA], {"unknown class '0'": 1, "unknown class '1'": 1}),
        ("0_angry 1-Happy 02._sad 7_contempt", {}, [SA, AN, HA], {"7_contempt (outside the seven)": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("above", ["", "archive/", "train/"])
def test_class_folders_that_are_numbers(tmp_path, names, options, labels, left_out, above):
    touch(tmp_path, *(f"{above}{name}/1.jpg" for name in names.split()))
    listing = read_dataset("f", "folders", tmp_path, **options)
    assert [r.label for r in listing] == labels and listing.left_out == left_out
    assert {r.split for r in listing} == {"train" if above == "train/" else "all"}


@pytest.mark.parametrize(
    ("parts", "adapt", "score"),
    [
        (("train", "test"), ("train",), ("test",)),
        (("Training", "Validation"), ("train",), ("val",)),
        (("train", "valid", "test"), ("train",), ("test",)),
        (("train",), ("train",), ("test",)),
        (("trainset", "val_set"), ("train",), ("val",)),
    ],
)
def test_folders_per_split_and_class(tmp_path, parts, adapt, score):
    touch(tmp_path, *(f"{part}/fear/1.jpg" for part in parts), "readme/x.jpg")
    listing = read_dataset("f", "folders", tmp_path)
    assert (listing.adapt_splits, listing.score_splits) == (adapt, score)
    assert len(listing) == len(parts) and {r.label for r in listing} == {FE}
    assert listing.left_out == {"image in readme/": 1}


def test_folders_list_everything_named_like_an_image(tmp_path):
    """A folder and a dangling link named like images become records, to be rejected with a reason."""
    (tmp_path / "happy" / "folder.jpg").mkdir(parents=True)
    (tmp_path / "happy" / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [r.id for r in read_dataset("f", "folders", tmp_path)] == ["happy/folder.jpg", "happy/link.jpg"]


def test_names_that_are_not_utf8(tmp_path):
    os.makedirs(tmp_path / "sad")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/sad/\xff\xfe.jpg")).write_bytes(b"")
    (tmp_path / "sad" / "two\nlines.jpg").write_bytes(b"")
    assert len(read_dataset("f", "folders", tmp_path)) == 2


# csv


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("image,emotion\na.jpg,happiness\nb.jpg,Sad\n", {}),
        ("Filename;Expression\na.jpg;HA\nb.jpg;sadness\n", {}),
        ("path\tlabel\tnote\na.jpg\tjoy\tx\nb.jpg\tsad\ty\n", {}),
        ("what,where\nhappy,a.jpg\nsad,b.jpg\n", {"path_column": "where", "label_column": "What"}),
        ("image,label\na.jpg,3\nb.jpg,4\n", {"codes": "fer2013"}),
        ("image,label\na.jpg,1\nb.jpg,2\n", {"codes": {1: "happy", 2: "sad"}}),
        ("\ufeffimage,emotion\r\na.jpg,happy\r\nb.jpg,sad\r\n", {"file": "list.csv"}),
    ],
)
def test_csv_of_paths_and_labels(tmp_path, text, options):
    write(tmp_path, "list.csv", text)
    touch(tmp_path, "images/a.jpg")
    listing = read_dataset("c", "csv", tmp_path, **options)
    assert rows(listing, "id", "path", "label", "split") == [
        ("a.jpg", "images/a.jpg", HA, "all"),
        ("b.jpg", "images/b.jpg", SA, "all"),
    ]


def test_csv_whose_first_rows_have_no_file(tmp_path):
    write(tmp_path, "l.csv", "image,label\n,sad\ngone.jpg,sad\na.jpg,happy\n")
    touch(tmp_path, "images/a.jpg")
    assert [r.path for r in read_dataset("c", "csv", tmp_path)] == ["images/gone.jpg", "images/a.jpg"]


def test_csv_with_everything(tmp_path):
    points = "leye_x,leye_y,reye_x,reye_y,nose_x,nose_y,lmouth_x,lmouth_y,rmouth_x,rmouth_y"
    header = f"path,label,split,subject,left,top,right,bottom,{points}\n"
    write(
        tmp_path, "l.csv", header + "x/1.png,fear,Train,P1,1,2,3,4,1,2,3,4,5,6,7,8,9,10\nx/2.png,,test,,,,,," + "," * 10
    )
    touch(tmp_path, "pics/x/1.png")
    one, two = read_dataset("c", "csv", tmp_path, images="pics")
    assert (one.path, one.split, one.subject, one.box) == ("pics/x/1.png", "train", "P1", (1, 2, 3, 4))
    assert one.landmarks == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))
    assert (two.label, two.split, two.subject, two.box, two.landmarks) == (-1, "test", None, None, None)


def test_csv_with_several_faces_per_image(tmp_path):
    """A box as written is part of the id. Without a box, the id is the path."""
    write(
        tmp_path,
        "l.csv",
        "image,label,left,top,right,bottom\n"
        "a.jpg,happy,1,2, 3.50,4\na.jpg,sad,5,6,7,8\na.jpg,happy,1,2,3.5,4.0\n"
        "b.jpg,happy,,,,\nc.jpg,sad,1,2,three,4\n",
    )
    listing = read_dataset("c", "csv", tmp_path)
    assert rows(listing, "id", "path", "label", "box") == [
        ("a.jpg#1,2,3.50,4", "a.jpg", HA, (1, 2, 3.5, 4)),
        ("a.jpg#5,6,7,8", "a.jpg", SA, (5, 6, 7, 8)),
        ("b.jpg", "b.jpg", HA, None),
    ]
    assert listing.left_out == {"listed twice": 1, "row with an unreadable box": 1}


@pytest.mark.parametrize(
    ("text", "options", "found", "left_out"),
    [
        # Unlabelled only if it is obvious or asked for.
        ("file\n1.png\n2.png\n2.png\n", {}, [("1.png", -1), ("2.png", -1)], {"listed twice": 1}),
        ("image,usage,person\n1.jpg,all,me\n", {}, [("1.jpg", -1)], {}),
        ("image,left,top,right,bottom\n1.jpg,,,,\n", {}, [("1.jpg", -1)], {}),
        ("picture\n1.jpg\n", {"path_column": "picture"}, [("1.jpg", -1)], {}),
        ("image,mood\n1.jpg,sad\n", {"label_column": ""}, [("1.jpg", -1)], {}),
        ("image,label\n1.jpg,sad\n", {"label_column": ""}, [("1.jpg", -1)], {}),
        (
            "file,label\n1.png,1\n2.png,7\n",
            {"codes": {"1": "happy", 7: "Contempt"}},
            [("1.png", HA)],
            {"label '7' outside the seven": 1},
        ),
        (
            "file,label\n1.png,happy\n2.png,contempt\n3.png,hapy\n,sad\n",
            {},
            [("1.png", HA)],
            {"contempt (outside the seven)": 1, "unknown label 'hapy'": 1, "row without a path": 1},
        ),
        (
            "image,label\na,happy\na,Happiness\nb,\nb,\nc,contempt\nc,contempt\n",
            {},
            [("a", HA), ("b", -1)],
            {"listed twice": 2, "contempt (outside the seven)": 2},
        ),
    ],
)
def test_rows_of_a_csv_that_are_kept_and_left_out(tmp_path, text, options, found, left_out):
    write(tmp_path, "l.csv", text)
    listing = read_dataset("c", "csv", tmp_path, **options)
    assert rows(listing, "id", "label") == found and listing.left_out == left_out


def test_a_file_instead_of_a_folder_is_a_one_line_error(tmp_path):
    write(tmp_path, "mine.zip", "")
    said = f"mine: {tmp_path / 'mine.zip'} is a file, not a folder; expected: 213"
    assert refusal("jaffe", tmp_path / "mine.zip").startswith(said)


# Errors are one line


@pytest.mark.parametrize("folder", ["", "nowhere"])
@pytest.mark.parametrize("reader", READERS)
def test_a_folder_missing_or_of_another_layout_is_named_with_the_layout_expected(tmp_path, reader, folder):
    touch(tmp_path, "holiday/beach.txt")
    message = refusal(reader, tmp_path / folder)
    assert str(tmp_path / folder) in message and READERS[reader].layout in message


@pytest.mark.parametrize(
    ("reader", "files", "options", "words"),
    [
        ("jafe", {}, {}, "did you mean jaffe"),
        ("jaffe", {}, {"peak": 1}, "no option 'peak' (it has: adapt, score)"),
        ("fer2013", {"fer2013.csv": "emotion,Usage\n3,Training\n"}, {}, "fer2013.csv lacks the column pixels"),
        ("fer2013", {"test.csv": "pixels\n1 2\n"}, {}, "test.csv lacks the column emotion in "),
        (
            "folders",
            {"train/1/1.jpg": "", "train/7/1.jpg": ""},
            {},
            "/train are numbers (1, 7); give their meaning with ",
        ),
        ("folders", {"train/1/1.jpg": "", "train/7/1.jpg": ""}, {}, "(raf-db: 1 surprise, 2 fear, 3 disgust, "),
        ("folders", {"train/1/1.jpg": "", "train/7/1.jpg": ""}, {}, "data.datasets.mine.options: {codes: NAME}"),
        ("folders", {"0/1.jpg": "", "1/1.jpg": ""}, {}, "fer2013 and expw: 0 anger, 1 disgust, "),
        ("folders", {"train/0/1.jpg": "", "test/happy/1.jpg": ""}, {}, "/train are numbers (0); give their meaning"),
        ("folders", {"0/1.jpg": ""}, {"codes": "raf"}, "option codes is 'raf', not one of raf-db, "),
        (
            "raf-db",
            {"EmoLabel/list_patition_label.txt": "train_00001.jpg 1\n"},
            {},
            "no Image/original and no Image/aligned in",
        ),
        (
            "raf-db",
            {"EmoLabel/list_patition_label.txt": "train_00001.jpg 1\n"},
            {"images": "aligned"},
            "no Image/aligned in",
        ),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {}, "codes"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": "nope"}, "option codes"),
        ("csv", {"a.csv": "picture,label\nx.jpg,sad\n"}, {}, "no path column"),
        ("csv", {"a.csv": "image,label\n"}, {"label_column": "mood"}, "no column 'mood' (it has: image, label)"),
        ("csv", {"a.csv": "image\n", "b.csv": "image\n"}, {}, "not exactly one csv (a.csv, b.csv) in "),
        ("csv", {}, {}, "not exactly one csv (there is none) in "),
        ("csv", {}, {}, "with --option file=NAME, or in a run spec with data.datasets.mine.options: {file: NAME}"),
        ("csv", {"a.csv": "picture\nx.jpg\n"}, {}, "it has: picture) in "),
        (
            "csv",
            {"a.csv": "picture\nx.jpg\n"},
            {},
            "path_column=..., or in a run spec under data.datasets.mine.options",
        ),
        (
            "csv",
            {"a.csv": "image,mood\nx.jpg,sad\n"},
            {},
            "no label column (label, emotion, expression, ...; it has:",
        ),
        ("csv", {"a.csv": "image,mood\nx.jpg,sad\n"}, {}, "it has: image, mood); name it with the option label_column"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": {"happy": 3}}, "'happy' is not an integer"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": {True: "sad"}}, "'True' is not an integer"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": {1.5: "sad"}}, "'1.5' is not an integer"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": {0: "hapy"}}, "option codes: 'hapy' (of 0)"),
        ("csv", {"a.csv": "image,label\nx.jpg,3\n"}, {"codes": ["sad"]}, "neither a dataset's name nor {0: anger"),
        ("csv", {"a.csv": "image,label\nx.jpg,sad\n"}, {"box_columns": "l,t,r,b"}, "not a list of 4 columns"),
        ("csv", {"a.csv": "image,label\nx.jpg,sad\n"}, {"box_columns": list("ltrb")}, "no column 'l'"),
        ("csv", {"a.csv": "image,label\nx.jpg,contempt\n"}, {}, "1 contempt (outside the seven)"),
        ("folders", {"contempt/1.jpg": ""}, {}, "expected: a folder per expression"),
        # Missing columns.
        (
            "raf-db",
            {"EmoLabel/list_patition_label.txt": "train_00001.jpg\n", "Image/original/train_a.jpg": ""},
            {},
            "list_patition_label.txt lacks a column",
        ),
        (
            "expw",
            {"label/label.lst": "a.jpg 0 1 2 3 4 9.5\n", "image/origin/a.jpg": ""},
            {},
            "label.lst lacks a column",
        ),
        ("afe", {"annos/TrainTest/Train.csv": "a.jpg 1 2 3 3\n", "images/a.jpg": ""}, {}, "Train.csv lacks a column"),
        (
            "affectnet",
            {"training.csv": "subDirectory_filePath,face_x\na.jpg,1\n", "Manually_Annotated_Images/a.jpg": ""},
            {},
            "training.csv lacks the column expression",
        ),
        (
            "csv",
            {"l.csv": "picture,label\na.jpg,3\n", "images/a.jpg": ""},
            {"codes": "fer2013"},
            "l.csv has no path column",
        ),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(tmp_path, reader, files, options, words):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert words in refusal(reader, tmp_path, **options)


#: Each dataset's codes as named in its own documentation.
CODE_NAMES = {
    "raf-db": "1 surprise 2 fear 3 disgust 4 happiness 5 sadness 6 anger 7 neutral",
    "fer2013": "0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral",
    "expw": "0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral",
    "ck+": "0 neutral 1 anger 2 contempt 3 disgust 4 fear 5 happy 6 sadness 7 surprise",
    "afe": "0 angry 1 disgust 2 fear 3 happy 4 neutral 5 sad 6 surprise",
    "affectnet": "0 neutral 1 happy 2 sad 3 surprise 4 fear 5 disgust 6 anger 7 contempt 8 none 9 uncertain 10 no-face",
    "mmi": "0 anger 1 disgust 2 fear 3 happiness 4 sadness 5 surprise",
}


def test_every_dataset_with_codes_is_tested():
    assert set(CODE_NAMES) == {name for name, reader in READERS.items() if reader.codes}


@pytest.mark.parametrize("name", CODE_NAMES)
def test_every_label_map_agrees_with_the_expressions_by_name(name):
    words = CODE_NAMES[name].split()
    named = dict(zip(map(int, words[0::2]), words[1::2], strict=True))
    codes = READERS[name].codes
    assert codes == {code: label_of(word) for code, word in named.items()}
    assert all(label_of(word) is not None or is_outside(word) for word in named.values())
    every = set(range(len(EXPRESSIONS))) - ({NE} if name == "mmi" else set())
    assert {label for label in codes.values() if label is not None} == every


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("Happy", HA), (" HAPPINESS ", HA), ("joy", HA), ("Suprise", SU), ("surprised", SU), ("scared", FE),
        ("disgusted", DI), ("SAD", SA), ("angry", AN), ("Neutral", NE), ("hapy", None), ("contempt", None), ("", None),
    ],
)  # fmt: skip
def test_names_people_use(word, label):
    assert label_of(word) == label


@pytest.mark.parametrize("word", ["Contempt", "None", "no_face", "No Face", "NF", "unknown", "Uncertain"])
def test_names_outside_the_seven_are_known_as_such(word):
    assert is_outside(word) and label_of(word) is None


# Realistic label files: the same faults for every reader that reads one

_PIXELS = pixels()
_POINTS = ";".join(["1.5;2.5"] * 68)


def _affectnet(name: str, code: str) -> str:
    return f"{name},1,2,3,4,{_POINTS},{code},0,0"


#: reader: (label file, header or "", row of a name and a code, codes of happy and sad, other files, options)
LABEL_FILES = {
    "raf-db": (
        "EmoLabel/list_patition_label.txt", "", "train_{name} {code}".format, ("4", "5"),
        ("Image/original/train_a.jpg",), {},
    ),
    "expw": ("label/label.lst", "", "{name} 0 1 2 3 4 9.5 {code}".format, ("3", "4"), ("image/origin/a.jpg",), {}),
    "afe": ("annos/TrainTest/Train.csv", "", "{name} 1 2 3 4 {code}".format, ("3", "5"), ("images/a.jpg",), {}),
    "affectnet": (
        "training.csv", AFFECTNET, _affectnet, ("1", "2"), ("Manually_Annotated_Images/a.jpg",), {},
    ),
    "csv": ("l.csv", "image,label", "{name},{code}".format, ("3", "4"), ("images/a.jpg",), {"codes": "fer2013"}),
}  # fmt: skip


def _label_file(root: Path, reader: str, lines: list[tuple[str, str]], ending: str = "\n", start: str = "") -> dict:
    file, header, row, _, others, options = LABEL_FILES[reader]
    touch(root, *others)
    text = ending.join([*([header] if header else []), *(row(name=name, code=code) for name, code in lines), ""])
    write(root, file, os.fsencode(start + text))
    return options


@pytest.mark.parametrize("reader", LABEL_FILES)
@pytest.mark.parametrize(("ending", "start"), [("\r\n", "\ufeff"), ("\n\n", ""), ("\r\n\r\n", "\ufeff"), ("\n", "")])
def test_line_ends_byte_order_marks_and_blank_lines_do_not_matter(tmp_path, reader, ending, start):
    happy, sad = LABEL_FILES[reader][3]
    options = _label_file(tmp_path, reader, [("a.jpg", happy), ("b.jpg", sad)], ending, start)
    listing = read_dataset("mine", reader, tmp_path, **options)
    assert [r.label for r in listing] == [HA, SA] and listing.left_out == {}


@pytest.mark.parametrize("reader", LABEL_FILES)
def test_faults_of_label_files_are_counted_and_the_good_rows_kept(tmp_path, reader):
    happy, sad = LABEL_FILES[reader][3]
    # A csv with contradictory rows is refused: see tests/test_csv_list.py.
    contradicting = [] if reader == "csv" else [("a.jpg", sad)]
    lines = [
        ("a.jpg", happy), ("a.jpg", happy), *contradicting, ("b.jpg", "77"), ("c.jpg", "x"), ("two words.jpg", sad),
        ("\udcff.jpg", happy),
    ]  # fmt: skip
    options = _label_file(tmp_path, reader, lines)
    listing = read_dataset("mine", reader, tmp_path, **options)
    assert [r.label for r in listing] == [HA, SA, HA]
    ends = ("a.jpg", "two words.jpg", "\udcff.jpg")
    assert all(record.path.endswith(end) for record, end in zip(listing, ends, strict=True))
    assert listing.left_out == {
        "listed twice": 1,
        **({"listed twice with different labels": 1} if contradicting else {}),
        "unknown code '77'": 1,
        "unknown label 'x'" if reader == "csv" else "unknown code 'x'": 1,
    }


@pytest.mark.parametrize("reader", LABEL_FILES)
def test_codes_are_integers_in_any_notation(tmp_path, reader):
    happy, sad = LABEL_FILES[reader][3]
    odd = ["--1", "²", "1_0", "１", f"{sad}.5", "9" * 5000, "nan"]
    codes = [f"{happy}.0", f"{sad}.", f"{sad}.000e+00", *odd]
    options = _label_file(
        tmp_path, reader, [(f"{name}.jpg", code) for name, code in zip("abcdefghij", codes, strict=True)]
    )
    listing = read_dataset("mine", reader, tmp_path, **options)
    assert [record.label for record in listing] == [HA, SA, SA]
    assert sum(listing.left_out.values()) == len(odd)
    assert all("unknown" in reason and len(reason) < 80 for reason in listing.left_out)


def test_an_invalid_expw_face_number_is_counted(tmp_path):
    touch(tmp_path, "image/origin/a.jpg")
    write(tmp_path, "label/label.lst", "a.jpg 1_0 1 2 3 4 9 3\na.jpg ² 1 2 3 4 9 3\na.jpg 1 1 2 3 4 9 3\n")
    listing = read_dataset("mine", "expw", tmp_path)
    assert [record.id for record in listing] == ["a.jpg#1"] and listing.left_out == {"unreadable row": 2}


@pytest.mark.parametrize(
    ("reader", "file"),
    [("raf-db", "Image/original/{}"), ("expw", "image/origin/{}"), ("affectnet", "Manually_Annotated_Images/{}")],
)
def test_files_without_a_row_are_counted(tmp_path, reader, file):
    happy, _ = LABEL_FILES[reader][3]
    options = _label_file(tmp_path, reader, [("a.jpg", happy), ("unknown.jpg", "77")])
    listed = "train_unknown.jpg" if reader == "raf-db" else "unknown.jpg"
    touch(tmp_path, *(file.format(name) for name in ("extra.jpg", "more.PNG", "notes.txt", ".hidden.jpg", listed)))
    assert read_dataset("mine", reader, tmp_path, **options).left_out == {"unknown code '77'": 1, "file without row": 2}


def test_an_invalid_csv_is_a_one_line_error(tmp_path):
    write(tmp_path, "l.csv", "image,label\n" + '"' + "x" * 200_000 + "\n")
    assert re.search("mine: a csv in .* cannot be read", refusal("csv", tmp_path))


def test_raf_db_aligned_files_without_a_row(tmp_path):
    root = raf_db(tmp_path, "train_00001.jpg 5\n")
    touch(root, "Image/aligned/test_0001_aligned.jpg")
    assert read_dataset("raf", "raf-db", root, images="aligned").left_out == {"file without row": 1}


# Round trips with the procedural faces


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return [render(LAB, identity, label, 5) for identity in range(2) for label in range(7)]


def test_the_readers_read_what_the_writers_write(tmp_path, faces):
    labels = [face.label for face in faces]
    writers.write_raf_db(tmp_path / "raf", faces[:7], faces[7:])
    writers.write_jaffe(tmp_path / "jaffe", faces)
    drawn.write_fer2013(tmp_path / "fer", faces[:7], faces[7:9], faces[9:])
    drawn.write_expw(tmp_path / "expw", faces)
    drawn.write_class_folders(tmp_path / "folders", {"train": faces[:7], "test": faces[7:]})
    for reader, folder in (("raf-db", "raf"), ("fer2013", "fer"), ("expw", "expw")):
        listing = read_dataset(reader, reader, tmp_path / folder)
        assert [r.label for r in listing] == labels and listing.synthetic and not listing.left_out, reader
        assert all((tmp_path / folder / r.path).exists() for r in listing)
    for reader, folder in (("jaffe", "jaffe"), ("folders", "folders")):
        listing = read_dataset(reader, reader, tmp_path / folder)
        assert sorted(r.label for r in listing) == sorted(labels) and listing.synthetic and not listing.left_out
    raf = read_dataset("raf", "raf-db", tmp_path / "raf").records
    np.testing.assert_allclose([r.landmarks for r in raf], [face.landmarks for face in faces], atol=1e-3)
    np.testing.assert_allclose([r.box for r in raf], [face.box for face in faces], atol=1e-3)
    assert len({r.subject for r in read_dataset("j", "jaffe", tmp_path / "jaffe")}) == 2


def test_only_the_marker_makes_it_synthetic(tmp_path):
    touch(tmp_path, "sad/1.jpg")
    assert not read_dataset("f", "folders", tmp_path).synthetic
    touch(tmp_path, SYNTHETIC_MARKER)
    assert read_dataset("f", "folders", tmp_path).synthetic


def test_raf_db_class_folders_of_images_with_other_names(tmp_path):
    """Names that are not from the release may occur in several folders. Names from the release give the split."""
    touch(tmp_path, "a/train/4/1.jpg", "a/train/5/1.jpg", "a/test/6/1.jpg", "a/test/4/1.jpg")
    assert [(r.split, r.label) for r in read_dataset("r", "raf-db", tmp_path / "a")] == [
        *(("test", 3), ("test", 5), ("train", 3), ("train", 4)),
    ]
    touch(tmp_path, "b/4/train_00001_aligned.jpg", "b/5/test_0002_aligned.jpg", "b/6/test_0003.jpg")
    listing = read_dataset("r", "raf-db", tmp_path / "b")
    assert [(r.id, r.split) for r in listing] == [
        *(("train_00001.jpg", "train"), ("test_0002.jpg", "test"), ("test_0003.jpg", "test")),
    ]
    assert (listing.adapt_splits, listing.score_splits) == (("train",), ("test",))
    touch(tmp_path, "c/train/4/train_00001_aligned.jpg", "c/val/4/train_00002_aligned.jpg")
    assert [r.split for r in read_dataset("r", "raf-db", tmp_path / "c")] == ["train", "val"]
