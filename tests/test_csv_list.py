"""The csv reader: boxes under many names, contradictory rows, paths and labels written by other systems."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from PIL import Image
from trees import encoded, refusal, rows, touch, write

from fercli.datasets import read_dataset
from fercli.datasets.parsing import whole_number
from fercli.prepare import prepare
from fercli.spec import Prepare
from fercli.store import Store
from fercli.synthetic.render import STUDIO, Face, render

SU, FE, DI, HA, SA, AN, NE = range(7)
SIZE = (400, 300)
#: Two faces in each of four images of `SIZE`: left, top, right, bottom.
BOXES = [(20 + i, 30, 120, 150 + i) if i % 2 == 0 else (230, 90 + i, 350 + i, 240) for i in range(8)]
#: Formats of the csv columns.
CORNERS, SIZES = "{0},{1},{2},{3}", "{0},{1},{w},{h}"


def listed(root: Path, header: str, form: str = CORNERS, scale: float = 1, label: str = "happy sad") -> Path:
    """Write a csv of `BOXES`. Each row is an image, a box and a label."""
    lines = [f"image,{header},label"]
    for i, box in enumerate(BOXES):
        left, top, right, bottom = (round(v * scale, 4) if scale != 1 else v for v in box)
        cells = form.format(left, top, right, bottom, w=round(right - left, 4), h=round(bottom - top, 4))
        lines.append(f"{i // 2}.png,{cells},{label.split()[i % 2]}")
    return write(root, "list.csv", "\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path) -> Path:
    for i in range(4):
        write(tmp_path, f"{i}.png", encoded(Image.new("RGB", SIZE), "PNG"))
    return tmp_path


@pytest.mark.parametrize(
    ("header", "form"),
    [
        *(
            (header, CORNERS)
            for header in (
                "left,top,right,bottom", "xmin,ymin,xmax,ymax", "x_min,y_min,x_max,y_max", "X1,Y1,X2,Y2", "x0,y0,x1,y1",
                "x,y,x2,y2", "l,t,r,b", "bbox_x1,bbox_y1,bbox_x2,bbox_y2", "Face X1,Face Y1,Face X2,Face Y2",
                "box_left,box_top,box_right,box_bottom", "face_box.left,face_box.top,face_box.right,face_box.bottom",
                "minx,miny,maxx,maxy", "faceLeft,faceTop,faceRight,faceBottom", "bboxx1,bboxy1,bboxx2,bboxy2",
                "tl_x,tl_y,br_x,br_y", "xmin_px,ymin_px,xmax_px,ymax_px", "left,upper,right,lower",
            )
        ),
        *(
            (header, SIZES)
            for header in (
                "x,y,w,h", "x,y,width,height", "left,top,width,height", "face_x,face_y,face_width,face_height",
                "bbox-x,bbox-y,bbox-w,bbox-h", "xmin,ymin,width,height", "x1,y1,w,h", "BoundingBox.Left,"
                "BoundingBox.Top,BoundingBox.Width,BoundingBox.Height",
            )
        ),
        ("top,left,right,bottom", "{1},{0},{2},{3}"),
        ("ymin,xmin,ymax,xmax", "{1},{0},{3},{2}"),
        ("top,left,width,height", "{1},{0},{w},{h}"),
        ("width,height,xmin,ymin,xmax,ymax", "400,300,{0},{1},{2},{3}"),
        ("image_w,image_h,x,y,w,h", "400,300,{0},{1},{w},{h}"),
        ("face_width,head_x,head_y,left,top,right,bottom", "9,8,7,{0},{1},{2},{3}"),
    ],
)  # fmt: skip
def test_boxes_are_found_by_their_usual_names(root, header, form):
    listed(root, header, form)
    listing = read_dataset("mine", "csv", root)
    assert [record.box for record in listing] == BOXES
    assert [record.label for record in listing] == [HA, SA] * 4 and listing.left_out == {}
    unlabelled = (root / "list.csv").read_text().replace(",label", "").replace(",happy", "").replace(",sad", "")
    if "image_" not in header and "head" not in header:
        (root / "list.csv").write_text(unlabelled)
        assert {record.label for record in read_dataset("mine", "csv", root)} == {-1}


@pytest.mark.parametrize(
    ("header", "form", "options"),
    [
        ("a,b,c,d", CORNERS, {"box_columns": list("abcd"), "box_format": "corners"}),
        ("a,b,c,d", SIZES, {"box_columns": list("abcd"), "box_format": "size"}),
        ("d,c,b,a", "{3},{2},{1},{0}", {"box_columns": list("abcd"), "box_format": "corners"}),
        ("x,y,w,h", SIZES, {"box_columns": list("xywh")}),
        ("a,b,width,height", SIZES, {"box_columns": ["a", "b", "Width", "height"]}),
        ("left,top,right,bottom", SIZES, {"box_format": "size"}),
        ("x,y,w,h", CORNERS, {"box_format": "corners"}),
        ("x,y,w,h,x1,y1,x2,y2", "1,2,3,4,{0},{1},{2},{3}", {"box_columns": ["x1", "y1", "x2", "y2"]}),
        ("bbox", '"[{0}, {1}, {2}, {3}]"', {"box_format": "corners"}),
        ("face_box", "{0} {1} {w} {h}", {"box_format": "size"}),
        ("rect", '"[({0}, {1}) ({2}, {3})]"', {"box_format": "corners"}),
        ("where", '"{0},{1},{2},{3}"', {"box_format": "corners"}),
        ("where", '"{0},{1},{w},{h}"', {"box_columns": "where", "box_format": "size"}),
    ],
)
def test_options_say_which_columns_are_boxes_and_how_to_read_them(root, header, form, options):
    listed(root, header, form)
    assert [record.box for record in read_dataset("mine", "csv", root, **options)] == BOXES


def test_a_box_as_written_is_part_of_the_id(root):
    for header, form in (("left,top,right,bottom", CORNERS), ("bbox", '"[{0}, {1}, {2}, {3}]"')):
        listed(root, header, form)
        listing = read_dataset("mine", "csv", root, box_format="corners")
        assert [record.id for record in listing][:2] == ["0.png#20,30,120,150", "0.png#230,91,351,240"]
    listed(root, "x,y,w,h", SIZES)
    assert read_dataset("mine", "csv", root).records[0].id == "0.png#20,30,100,120"


@pytest.mark.parametrize(
    ("header", "form", "options", "words"),
    [
        # Columns that look like a box but are not understood.
        ("xmin,ymin,xmax,z", CORNERS, {}, "not understood (xmin, ymin, xmax); name the four with the option box_col"),
        ("xmin,ymin,xmax,z", CORNERS, {}, "set box_columns: '' to use no boxes"),
        ("x,y,a,b", CORNERS, {}, "not understood (x, y)"),
        ("face_x,face_y,width,height", SIZES, {}, "not understood (face_x, face_y)"),
        ("bbox_0,bbox_1,bbox_2,bbox_3", CORNERS, {}, "not understood (bbox_0, bbox_1, bbox_2, bbox_3)"),
        ("head_x,head_y,head_w,head_h", SIZES, {}, "not understood (head_x, head_y, head_w, head_h)"),
        ("bx,by,bw,bh", SIZES, {}, "not understood (bx, by, bw, bh)"),
        ("x1,y1,x2,y2,x3,y3,x4,y4", CORNERS + ",1,2,3,4", {}, "not understood (x1, y1, x2, y2"),
        ("left,top,right,bottom,xmin", CORNERS + ",1", {}, "not understood (left, top, right, bottom, xmin)"),
        ("x1,y1,x2,y2,face_x,face_y,face_w,face_h", CORNERS + "," + SIZES, {}, "has 2 boxes per row (x1, y1, x2, y2; "),
        ("cx,cy,w,h", SIZES, {}, "by their centre (cx, cy, w, h)"),
        ("x_center,y_center,width,height", SIZES, {}, "by their centre (x_center, y_center, width, height)"),
        ("cx,cy,w,h", SIZES, {"box_columns": ["cx", "cy", "w", "h"]}, "by their centre"),
        ("bbox", '"[{0}, {1}, {2}, {3}]"', {}, "column 'bbox' that looks like a face box; set the option box_f"),
        ("region", "{0} {1} {2} {3}", {}, "column 'region' that looks like a face box"),
        ("where", "{0} {1} {2} {3}", {"box_columns": "where"}, "the single column 'where' of list.csv; set box_"),
        # Invalid options.
        ("x,y,w,h", SIZES, {"box_format": "xywh"}, "option box_format is 'xywh', not 'corners' (left, top, right, b"),
        ("a,b,c,d", CORNERS, {"box_columns": ["a", "b"]}, "option box_columns needs 4 columns, not 2 (a, b)"),
        ("a,b,c,d", CORNERS, {"box_columns": list("abcc")}, "which names a column twice"),
        ("a,b,c,d", CORNERS, {"box_columns": list("abce")}, "no column 'e'"),
        ("top,left,bottom,right", "{1},{0},{3},{2}", {"box_columns": ["top", "left", "bottom", "right"]},
         "the order is left, top, right, bottom (or left, top, width, height); give left, top, right, bottom"),
        ("a,b,c,d", CORNERS, {"box_format": "size"}, "has no box columns (it has: image, a, b, c, d, label)"),
        # Numbers that contradict their format.
        ("left,top,right,bottom", SIZES, {}, "4 of 8 boxes end before they begin (the first: left 230, top 91, right"),
        ("left,top,right,bottom", SIZES, {}, "set box_format: size"),
        ("a,b,c,d", SIZES, {"box_columns": list("abcd")}, "whose names do not show their meaning (a, b, c, d)"),
        ("a,b,c,d", SIZES, {"box_columns": list("abcd"), "box_format": "corners"}, "set box_format: size"),
        ("x,y,w,h", CORNERS, {}, "read as corners (left, top, right, bottom), all would fit; set box_format: corners"),
        ("a,b,c,d", CORNERS, {"box_columns": list("abcd"), "box_format": "size"}, "set box_format: corners"),
    ],
)  # fmt: skip
def test_boxes_that_are_not_understood_stop_the_run(root, header, form, options, words):
    listed(root, header, form, label="happy happy")
    assert words in refusal("csv", root, **options)


@pytest.mark.parametrize(
    ("header", "form", "scale", "words"),
    [
        ("left,top,right,bottom", CORNERS, 1 / 400, "are fractions of the image, not pixels (the first: left 0.05,"),
        ("x,y,w,h", SIZES, 1 / 400, "multiply them by the image's width and height"),
        ("left,top,right,bottom", SIZES, 1 / 400, "are fractions of the image"),
        (
            "left,top,right,bottom",
            CORNERS,
            3,
            "beyond them (the first: left 60, top 90, right 360, bottom 450 in 0.png",
        ),
        ("left,top,right,bottom", CORNERS, 3, "which has 400 x 300 pixels); boxes must be in pixels"),
        ("x,y,w,h", SIZES, 3, "boxes compared with their images extend beyond them"),
    ],
)
def test_boxes_must_be_in_pixels_of_the_images(root, header, form, scale, words):
    listed(root, header, form, scale)
    assert words in refusal("csv", root)
    assert read_dataset("mine", "csv", root, box_columns=[], label_column="").left_out == {"listed twice": 4}


def test_without_the_images_boxes_are_not_checked(root):
    listed(root, "x,y,w,h", SIZES, 3)
    for i in range(4):
        (root / f"{i}.png").write_bytes(b"no image")
    assert len(read_dataset("mine", "csv", root)) == 8
    for i in range(4):
        (root / f"{i}.png").unlink()
    assert len(read_dataset("mine", "csv", root)) == 8


def test_boxes_may_extend_beyond_an_image_and_a_few_may_be_wrong(root):
    rows = [f"{i % 4}.png,happy,{i - 20},-10,{370 + i},330" for i in range(38)]
    rows += ["0.png,sad,300,200,40,50", "0.png,sad,900,900,990,990", "1.png,sad,-1,-1,-1,-1"]
    write(root, "list.csv", "image,label,x1,y1,x2,y2\n" + "\n".join(rows) + "\n")
    assert len(read_dataset("mine", "csv", root)) == 41


def test_boxes_may_refer_to_the_upright_sides_of_a_rotated_image(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(root, "0.jpg", encoded(Image.new("RGB", (400, 100)), "JPEG", exif=exif))
    write(root, "list.csv", "image,label,x1,y1,x2,y2\n0.jpg,happy,10,250,90,380\n0.jpg,sad,10,20,90,110\n")
    assert len(read_dataset("mine", "csv", root)) == 2
    write(root, "0.jpg", encoded(Image.new("RGB", (400, 100)), "JPEG"))
    assert len(read_dataset("mine", "csv", root, box_columns=["x1", "y1", "x2", "y2"])) == 2  # one of two
    write(root, "list.csv", "image,label,x1,y1,x2,y2\n0.jpg,happy,10,250,90,380\n")
    assert "extend beyond them" in refusal("csv", root)


@pytest.mark.parametrize(
    "header",
    [
        "width,height", "face_width,face_height", "r,g,b", "correct,direct_gaze,bbox_id,box_score,boxed", "left_eye_x,"
        "left_eye_y,right_eye_x,right_eye_y", "x1,y1,x2,y2,x3,y3,x4,y4,x5,y5", "x_0,x_1,x_67,y_0,y_1,y_67,AU01_r",
        "gaze_0_x,gaze_0_y,pose_Tx,pose_Rx", "x,top1", "Unnamed: 0,index",
    ],
)  # fmt: skip
def test_other_columns_are_not_boxes(tmp_path, header):
    write(tmp_path, "list.csv", f"image,label,{header}\n0.png,happy{',1' * (header.count(',') + 1)}\n")
    assert rows(read_dataset("mine", "csv", tmp_path), "id", "box") == [("0.png", None)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "a,happy\na,sad",
            "list.csv lists a as 'happy' and as 'sad', and no box distinguishes the faces; name the box col",
        ),
        ("a,happy\na,sad", "box_columns, or keep one of the rows"),
        ("a,happy\na,", "as 'happy' and without a label"),
        ("a,contempt\na,happy", "as 'contempt' and as 'happy'"),
        ("a,happy\n./a,sad", "lists a as 'happy' and as 'sad'"),
        ("a,happy,1,2,3,4\na,sad,1,2,3.0,4", "as 'happy' and as 'sad', with the same box; keep one of the rows"),
        ("a,happy,1,2,3,4\na,happy,,,,", "lists a with a face box in one row and without one in another"),
        ("a,happy\na,happy,1,2,3,4", "lists a with a face box in one row and without one in another"),
    ],
)
def test_rows_that_contradict_each_other_stop_the_run(tmp_path, lines, words):
    write(tmp_path, "list.csv", f"image,label,x1,y1,x2,y2\n{lines}\n")
    assert words in refusal("csv", tmp_path)


def test_an_unreadable_box_does_not_mean_the_largest_face(tmp_path):
    """A row without any numbers has no box. A row with anything else but four numbers is left out."""
    bad = ["1,2,,", "a,b,c,d", "1,2,nan,4", "1_0,2,30,40", "1,2,3,inf", "1,2,٣,9", "1,2"]
    none = ["", ",,,", "nan,NaN,NULL,None"]
    lines = [f"{i}.png,happy,{box}" for i, box in enumerate([*none, *bad, "1,2,30,4e1"])]
    write(tmp_path, "list.csv", "image,label,x1,y1,x2,y2\n" + "\n".join(lines) + "\n")
    listing = read_dataset("mine", "csv", tmp_path)
    assert [record.box for record in listing] == [None, None, None, (1, 2, 30, 40)]
    assert listing.left_out == {"row with an unreadable box": len(bad)}


POINTS = "leye_x,leye_y,reye_x,reye_y,nose_x,nose_y,lmouth_x,lmouth_y,rmouth_x,rmouth_y"


def test_landmarks_are_complete_or_absent(tmp_path):
    ten = ",".join(map(str, range(10)))
    write(tmp_path, "list.csv", f"image,label,{POINTS}\na,sad,{ten}\nb,sad,{',' * 9}\nc,sad,{ten[:-1]}x\n")
    listing = read_dataset("mine", "csv", tmp_path)
    assert [record.landmarks is None for record in listing] == [False, True, True]
    assert listing.left_out == {"unreadable landmarks, face kept": 1}
    write(tmp_path, "list.csv", f"image,label,{POINTS[:-9]}\na,sad,{ten[:-2]}\n")
    assert "has landmarks but no column rmouth_y; name all ten columns with the option landmark" in refusal(
        "csv", tmp_path
    )
    assert "option landmark_columns needs 10 columns, not 1 (label)" in refusal(
        "csv", tmp_path, landmark_columns=["label"]
    )
    assert len(read_dataset("mine", "csv", tmp_path, landmark_columns="")) == 1
    write(tmp_path, "list.csv", f"image,label,{POINTS}\na,sad{',0.5' * 10}\n")
    assert "the landmarks are fractions of the image, not pixels" in refusal("csv", tmp_path)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize(
    ("on_disk", "written", "path", "name"),
    [
        ("train/happy/1.jpg", "train\\happy\\1.jpg", "train/happy/1.jpg", "train/happy/1.jpg"),
        ("images/happy/1.jpg", ".\\happy\\1.jpg", "images/happy/1.jpg", "./happy/1.jpg"),
        ("images/happy/1.jpg", "./happy//1.jpg", "images/happy/1.jpg", "./happy//1.jpg"),
        ("images/happy/1.jpg", "{root}/images/happy/1.jpg", "images/happy/1.jpg", "{root}/images/happy/1.jpg"),
        (_decomposed("é/ö 1.jpg"), _composed("é/ö 1.jpg"), _decomposed("é/ö 1.jpg"), _composed("é/ö 1.jpg")),
        (_composed("é/ö 1.jpg"), _decomposed("é/ö 1.jpg"), _composed("é/ö 1.jpg"), _decomposed("é/ö 1.jpg")),
        ("Happy/1.JPG", "happy\\1.jpg", "Happy/1.JPG", "happy/1.jpg"),
        ("odd\\name.jpg", "odd\\name.jpg", "odd\\name.jpg", "odd\\name.jpg"),
        ("images/1.jpg", "gone\\2.jpg\n1.jpg", "images/gone/2.jpg", "gone/2.jpg"),
        ("A.jpg a.jpg", "A.JPG", "A.JPG", "A.JPG"),
    ],
)
def test_paths_as_other_systems_write_them(tmp_path, on_disk, written, path, name):
    touch(tmp_path, *(on_disk.split() if "A.jpg" in on_disk else [on_disk]))
    lines = "".join(f"{line.format(root=tmp_path)},happy\n" for line in written.split("\n"))
    write(tmp_path, "list.csv", "path,label\n" + lines)
    first = read_dataset("mine", "csv", tmp_path).records[0]
    assert (first.path, first.id) == (path, name.format(root=tmp_path))
    assert os.path.exists(tmp_path / path) == (path not in ("A.JPG", "images/gone/2.jpg"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3), (" 3 ", 3), ("-1", -1), ("+3", 3), ("03", 3), ("3.0", 3), ("3.", 3), ("3.0000e+00", 3), ("1e1", 10),
        ("3.5", None), ("--1", None), ("²", None), ("１", None), ("٣", None), ("1_0", None), ("", None), ("-", None),
        (".", None), ("nan", None), ("inf", None), ("1e-1", None), ("0x3", None), ("9" * 5000, None), ("1,0", None),
        ("happy", None), ("3 4", None),
    ],
)  # fmt: skip
def test_integers(text, number):
    assert whole_number(text) == number


def test_labels_written_as_floats(tmp_path):
    labels = ["3.0", "3.", "4.000e+00", "3.5", "--1", "²", "1_0", "9" * 5000, "-1", "9.0"]
    write(tmp_path, "list.csv", "path,label\n" + "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels)))
    listing = read_dataset("mine", "csv", tmp_path, codes={3.0: "happy", "4": "sad", 9: "other"})
    assert [record.label for record in listing] == [HA, HA, SA]
    assert listing.left_out == {
        **{f"unknown label '{label}'": 1 for label in ("3.5", "--1", "²", "1_0", "9" * 37 + "...")},
        "unknown code '-1'": 1,
        "label '9' outside the seven": 1,
    }
    assert "labels are numbers (the first is 3.0)" in refusal("csv", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff,Image Name,label\r\n0,1.jpg,sad\r\n",
        'Unnamed: 0;image;"label"\n0;"1.jpg";"sad"\n',
        "sep=;\nimage;label\n1.jpg;sad\n",
        "\n \nimage|label\n1.jpg|sad\n",
        "image,label\n1.jpg,sad\n".encode("utf-16"),
    ],
)
def test_forms_of_csv(tmp_path, text):
    write(tmp_path, "list.csv", text)
    assert rows(read_dataset("mine", "csv", tmp_path), "id", "label") == [("1.jpg", SA)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.jpg,happy\n2.jpg,sad\n", "no column names in the first line of list.csv (it reads: 1.jpg, happy)"),
        ("1.jpg,happy\n2.jpg,sad\n", "add a header line above it, such as path,label"),
        (
            "image,Label,label\n1.jpg,sad,happy\n",
            "2 columns with the same name ('Label', 'label'); rename all but one, or name",
        ),
    ],
)
def test_invalid_headers_stop_the_run(tmp_path, text, words):
    write(tmp_path, "list.csv", text)
    assert words in refusal("csv", tmp_path)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Face, Face]]:
    return [tuple(render(STUDIO, 2 * i + j, (HA, SA)[j], 3) for j in range(2)) for i in range(3)]


def test_each_face_of_an_image_gets_its_own_label(tmp_path, pairs):
    """The faces of an image are where their boxes are, with the happy one on the left."""
    lines = ["image,xmin,ymin,width,height,label"]
    for i, pair in enumerate(pairs):
        height, offset = max(face.image.shape[0] for face in pair), 0
        padded = [np.pad(face.image, ((0, height - face.image.shape[0]), (0, 0), (0, 0)), "edge") for face in pair]
        write(tmp_path, f"{i}.png", encoded(np.hstack(padded), "PNG"))
        for face, name in zip(pair, ("happy", "sad"), strict=True):
            left, top, right, bottom = face.box
            lines.append(f"{i}.png,{left + offset},{top},{right - left},{bottom - top},{name}")
            offset += face.image.shape[1]
            # The same face alone in its image.
            write(tmp_path, f"alone/{name}/{i}.png", encoded(face.image, "PNG"))
    write(tmp_path, "list.csv", "\n".join(lines) + "\n")
    here = Prepare(workers=1, backend="sequential")
    prepare(read_dataset("mine", "csv", tmp_path), tmp_path / "out", here)
    prepare(read_dataset("alone", "folders", tmp_path / "alone"), tmp_path / "one", here)
    store, alone = Store.open(tmp_path / "out"), Store.open(tmp_path / "one")
    assert store.labels.tolist() == [HA, SA] * len(pairs) and alone.labels.tolist() == [HA] * 3 + [SA] * 3
    for i in range(len(pairs)):
        for face, name in ((2 * i, i), (2 * i + 1, 3 + i)):
            distances = np.abs(alone.faces[:].astype(float) - store.faces[face]).mean((1, 2, 3))
            assert distances.argmin() == name


def test_the_command_says_which_option_to_set(root):
    listed(root, "left,top,right,bottom", SIZES)
    result = run("datasets", "check", "csv", root)
    assert result.exit_code == 1 and "set box_format: size" in result.stderr and result.stderr.count("\n") == 1
    for options in (["box_format=size"], ["box_columns=[left, top, right, bottom]", "box_format=size"]):
        result = run("datasets", "check", "csv", root, *(word for option in options for word in ("--option", option)))
        assert result.exit_code == 0 and "8 faces in 4 files" in result.stdout
    for nothing in ("box_columns=", "box_columns=[]", "box_columns=''"):
        result = run("datasets", "check", "csv", root, "--option", nothing)
        assert result.exit_code == 1 and "no box distinguishes the faces" in result.stderr


def test_errors_name_the_reader_or_option_that_helps(root):
    (root / "list.csv").write_text("emotion,pixels\n3,1 2 3\n")
    assert "list.csv contains pixels but no image paths" in refusal("csv", root)
    assert "the reader fer2013: data.datasets.mine.reader=fer2013" in refusal("csv", root)
    (root / "list.csv").write_text("image,label\n0.png,7\n")
    assert "as a dataset's name (raf-db: 1 surprise, 2 fear, " in refusal("csv", root)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image,label,split\n0.png,sad,train\n0.png,sad,test\n", "list.csv lists 0.png in train and in test; keep one"),
        ("image,emotion,label\n0.png,happy,1\n", "several columns that could contain the labels (label, emotion)"),
    ],
)
def test_rows_and_columns_that_contradict_each_other(root, rows, words):
    (root / "list.csv").write_text(rows)
    assert words in refusal("csv", root)
