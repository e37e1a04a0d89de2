"""The trees that the readers expect, as a user sees them in a file manager: what lies where, and what is in it."""

from __future__ import annotations

import inspect
from typing import Any

from fercli.datasets.base import Reader

#: By the reader's name; below the folder that is given to fercli.
LAYOUTS: dict[str, str] = {
    "raf-db": """\
EmoLabel/
  list_patition_label.txt                    rows: train_00001.jpg 5
Image/
  original/train_00001.jpg ...               or aligned/train_00001_aligned.jpg ...
Annotation/                                  where you have it
  manual/train_00001_manu_attri.txt          five landmarks, then gender, race, age
  boundingbox/train_00001_boundingbox.txt    left top right bottom

or as on Kaggle, possibly below DATASET/:
train/
  1/train_00001_aligned.jpg ...              and 2/ ... 7/, the codes of the list
test/
  1/test_0002_aligned.jpg ...
train_labels.csv, test_labels.csv            where you have them: image,label""",
    "ck+": """\
cohn-kanade-images/
  S005/001/S005_001_00000011.png ...         a folder per sequence
Emotion/
  S005/001/S005_001_00000011_emotion.txt     one number; no file: no label
Landmarks/                                   where you have it
  S005/001/S005_001_00000011_landmarks.txt   68 points

or CK+48:
anger/S010_004_00000017.png ...              and contempt/ disgust/ fear/ happy/ ...""",
    "jaffe": """\
KA.AN1.39.tiff                               subject . expression and take . number
KM.NE1.1.tiff ...                            in the folder or below it""",
    "sfew": """\
Train/
  Angry/*.png ...                            and Disgust/ Fear/ Happy/ ... (or all below imgs/)
Val/
  Angry/*.png ...
Test/*.png                                   where you have it: no labels

or the aligned faces:
Train/Train_Aligned_Faces/Angry/*.png ...
Val/Val_Aligned_Faces_new/Val_Aligned_Faces/Angry/*.png ...""",
    "fer2013": """\
fer2013.csv                                  columns: emotion,pixels,Usage, in any order
                                             or icml_face_data.csv, or one csv of another name;
                                             without Usage all of it is for training

or folders:
train/
  angry/Training_3908.jpg ...                and disgust/ fear/ happy/ neutral/ sad/ surprise/
test/
  angry/PrivateTest_88305.jpg ...            PublicTest_... and PrivateTest_...""",
    "expw": """\
label/
  label.lst                                  name face top left right bottom confidence label
data/image/origin/                           or image/origin/
  afraid_African_214.jpg ...""",
    "afe": """\
annos/TrainTest/
  Train.csv                                  rows: path left top right bottom emotion
  Test.csv
src/image/                                   or images/, image/, or beside annos/
  PATH ...                                   as the rows name them""",
    "affectnet": """\
training.csv                                 subDirectory_filePath, face_x, ..., expression, ...
validation.csv                               (or both in Manually_Annotated_file_lists/)
Manually_Annotated_Images/                   or Manually_Annotated/Manually_Annotated_Images/
  103/29a31ebf1567693f4644c8ba3476ca9a.jpg ...

or the newer release:
train_set/
  images/0.jpg ...
  annotations/0_exp.npy, 0_lnd.npy ...       expression, 68 points
val_set/
  images/ annotations/

or a folder per class:
train/
  0/*.jpg ...                                codes 0 to 7, or names: neutral/ happy/ ...
val/                                         or test/
  0/*.jpg ...""",
    "ferplus": """\
fer2013new.csv                               columns: Usage, Image name, votes
fer2013.csv                                  or icml_face_data.csv: rows in the same order

or, made by FERPlus's script, beside fer2013new.csv (or below data/ or images/):
FER2013Train/fer0000000.png ...
FER2013Valid/ FER2013Test/""",
    "oulu-casia": """\
VL/                                          visible light, and NI/ near infrared
  Strong/                                    and Weak/ Dark/
    P001/Anger/000.jpeg ...                  and Disgust/ Fear/ Happiness/ Sadness/ Surprise/
                                             possibly all below OriginalImg/ or B_OriginalImg/

or the dataset's own crops:
PreProcess_Img/VL_Acropped/Strong/P001/Anger/000.jpeg ...""",
    "mmi": """\
Sessions/
  1/session.xml, S001-001.xml                as downloaded
    S001-001.avi
    S001-001_00001.png ...                   its frames: ffmpeg -i S001-001.avi S001-001_%05d.png

or a list:
list/list.txt                                rows: image code
images/IMAGE ...""",
    "folders": """\
happy/*.jpg ...                              a folder per expression, under its usual names
sad/*.jpg ...

or with splits, under their usual names:
train/happy/*.jpg ...                        and val/ test/ (Training, train_set, valid, ...)

or with numbers, explained by the option codes:
train/1/*.jpg ...""",
    "csv": """\
list.csv                                     columns: paths (path, image, file, ...) and labels
                                             (label, emotion, expression, ...); if you have them
                                             split, subject, leye_x, leye_y, ... rmouth_y, and
                                             left, top, right, bottom (or xmin, ...; or x1, ...;
                                             or x, y, w, h; with face_ or bbox_ before them)
                                             a picture of several faces: a row and a box for each
images/PATH ...                              or beside the csv

Labels under another name need the option label_column; a set without labels has only the columns
above, or says label_column: ''. Boxes are in pixels; under another name they need box_columns.""",
}

_SPLIT = "subject (adapted on train, scored on test: other people) or all (one part for both)"
_PEAK = "frames of a sequence that show its expression, 1 or more"
_FILE = "the csv of pixels (default: fer2013.csv or icml_face_data.csv, else the only csv of emotion and pixels)"
#: Of every reader.
_PROTOCOL = {
    "adapt": "splits that train or are adapted to: one, a list, or all (default: the dataset's protocol)",
    "score": "splits that are scored, in the same way; one that is also adapted to must be named here",
}

_OWN: dict[str, dict[str, str]] = {
    "raf-db": {"images": "original or aligned (default: the originals where they are there)"},
    "ck+": {"peak": f"{_PEAK}; CK+48 folders hold 3", "split": _SPLIT},
    "jaffe": {},
    "sfew": {"images": "frames or aligned (default: the frames where they are there)"},
    "fer2013": {"file": _FILE},
    "expw": {},
    "afe": {"images": "folder below which the paths listed lie (default: src/image, images, image or the root)"},
    "affectnet": {},
    "ferplus": {
        "vote": "majority (more than half of the votes, the paper's rule) or plurality (most of the votes)",
        "file": _FILE,
    },
    "oulu-casia": {
        "spectrum": "VL (visible light) or NI (near infrared)",
        "lighting": "Strong, Weak or Dark",
        "peak": _PEAK,
        "split": _SPLIT,
    },
    "mmi": {"peak": f"{_PEAK}; a list names its frames itself", "split": _SPLIT},
    "folders": {"codes": "what class folders that are numbers mean: a dataset's name (raf-db) or {1: surprise, ...}"},
    "csv": {
        "file": "the csv's name (default: the only csv in the folder)",
        "images": "folder of the pictures (default: the csv's own, or images/ where they lie there)",
        "path_column": "column of paths (default: path, image, file, filename, name, ...)",
        "label_column": "column of labels (default: label, emotion, expression, class); '' if unlabelled",
        "split_column": "column of train, val, test (default: split, usage, part, set, ...); '' for none",
        "subject_column": "column of people (default: subject, person, identity, ...); '' for none",
        "box_columns": "list of four columns, in pixels, or one with all four numbers (default: left, top, right, "
        "bottom, or xmin, ymin, ..., or x, y, w, h, ...); '' for none",
        "box_format": "corners (left, top, right, bottom) or size (left, top, width, height); default: what the "
        "columns' names say",
        "landmark_columns": "list of ten, x and y of eyes, nose, mouth corners (default: leye_x ... rmouth_y); '' for "
        "none",
        "codes": "what labels that are numbers mean: a dataset's name (fer2013) or {0: anger, ...}",
    },
}

#: What each option of a reader may be, a line each, by the names of reader and option.
OPTIONS: dict[str, dict[str, str]] = {name: {**own, **_PROTOCOL} for name, own in _OWN.items()}
OPTIONS["fer2013"]["score"] = OPTIONS["ferplus"]["score"] = "the part scored: private-test (default) or public-test"


def tree_of(name: str, reader: Reader) -> list[str]:
    """Return the lines of the tree that a reader expects; of a reader from outside, its own line."""
    return LAYOUTS[name].splitlines() if name in LAYOUTS else [reader.layout]


def options_of(name: str, reader: Reader) -> list[dict[str, Any]]:
    """Return ``name``, ``default`` and ``values`` (in words) of each option of a reader.

    The default is None where there is none; values are "" where a reader from outside does not say.
    """
    texts = OPTIONS.get(name, _PROTOCOL)
    told = []
    for option, default in reader.options.items():
        needed = default is inspect.Parameter.empty
        values = texts.get(option, "must be given" if needed else "")
        told.append({"name": option, "default": None if needed else default, "values": values})
    return told
