"""AffectNet (Mollahosseini et al., TAC 2019), manually annotated part: the csv release, the npy release, or a
folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.class_folders import find_classes, labelled_pictures
from fercli.datasets.parsing import five_of_68, number_in, whole_number
from fercli.datasets.protocol import Protocol, default_protocol
from fercli.datasets.reader import Box, Collector, Points, Reader, Record, WrongLayout
from fercli.datasets.tree_files import count_unlisted, first_existing, folder_holding, is_image_name, table_rows
from fercli.expressions import NUM_EXPRESSIONS

if TYPE_CHECKING:
    import numpy as np

#: 0 neutral 1 happy 2 sad 3 surprise 4 fear 5 disgust 6 anger 7 contempt 8 none 9 uncertain 10 no face.
CODES: dict[int, int | None] = {0: 6, 1: 3, 2: 4, 3: 0, 4: 1, 5: 2, 6: 5, 7: None, 8: None, 9: None, 10: None}

# The scored split is read first: an image on both lists stays in it and counts as listed twice in training.
_LISTS = {"val": "validation.csv", "train": "training.csv"}
_PARTS = {"val": "val_set", "train": "train_set"}
_LIST_FOLDERS = ("", "Manually_Annotated_file_lists/", "Manually_Annotated/", "Manually_Annotated_compressed/")
_IMAGE_FOLDERS = (
    "",
    "Manually_Annotated/Manually_Annotated_Images",
    "Manually_Annotated_Images",
    "Manually_Annotated_compressed/Manually_Annotated_Images",
    "Manually_Annotated",
    "images",
)
#: Names of the codes outside the seven expressions, used to count them.
_OUTSIDE = {7: "contempt", 8: "none", 9: "uncertain", 10: "no-face"}


def parse(root: Path, collector: Collector) -> Protocol:
    """Read training.csv and validation.csv if they exist, else train_set/ and val_set/, else train/0/ ... val/7/.

    No test split was released, so the validation split is scored. The csv release has boxes and landmarks in pixels of
    the original image. The newer release has landmarks only, in pixels of its cropped images.
    """
    names = {split: [folder + name for folder in _LIST_FOLDERS] for split, name in _LISTS.items()}
    lists = {split: first_existing(root, *candidates) for split, candidates in names.items()}
    parts = {split: root / name for split, name in _PARTS.items() if (root / name / "annotations").is_dir()}
    if any(lists.values()):
        parts = {split: table for split, table in lists.items() if table}
        listed: set[str] = set()
        folder = folder_holding(root, _IMAGE_FOLDERS, _names(parts.values()))
        if folder is None:
            folder = next((name for name in _IMAGE_FOLDERS if name and (root / name).is_dir()), _IMAGE_FOLDERS[1])
        for split, table in parts.items():
            _read_list(table, folder, split, collector, listed)
        for parent in sorted({name.rpartition("/")[0] for name in listed}):
            if (root / folder / parent).is_dir():
                count_unlisted(root / folder / parent, listed, collector, prefix=f"{parent}/" if parent else "")
    elif parts:
        for split, part in parts.items():
            _read_part(root, part, split, collector)
    else:
        return _parse_folders(root, collector)
    return ("train",), ("val",)


def _parse_folders(root: Path, collector: Collector) -> Protocol:
    """Read class folders named after an expression or its code, as third parties have made them from the releases."""
    folders = find_classes(root, collector)
    if not folders:
        raise WrongLayout("no training.csv, no train_set/annotations and no class folders train/0/ ...")
    for path, label, split in labelled_pictures(folders, root, collector, lambda code: _label(code, collector)):
        collector.add(Record(id=path, path=path, label=label, split=split))
    return default_protocol(record.split for record in collector.records)


_rows = partial(table_rows, needed=("subDirectory_filePath", "expression"))


def _names(tables: Iterable[Path]) -> Iterator[str]:
    """Yield the images listed, table by table."""
    rows = ((row, columns["subdirectory_filepath"]) for table in tables for columns, row in _rows(table))
    return (row[at].strip() for row, at in rows if at < len(row))


def _read_list(table: Path, folder: str, split: str, collector: Collector, listed: set[str]) -> None:
    """Collect the rows of one csv and add their images to `listed`."""
    for columns, row in _rows(table):
        path_at, code_at = columns["subdirectory_filepath"], columns["expression"]
        if len(row) <= max(path_at, code_at):
            collector.leave_out("unreadable row")
            continue
        name = row[path_at].strip()
        listed.add(name)
        label = _label(row[code_at], collector)
        if label is not None:
            path = f"{folder}/{name}" if folder else name
            box = _box(row, [columns.get(f"face_{side}") for side in ("x", "y", "width", "height")])
            points = _points(row, columns.get("facial_landmarks"))
            collector.add(Record(id=name, path=path, label=label, split=split, box=box, landmarks=points))


def _label(text: str, collector: Collector) -> int | None:
    code = whole_number(text)
    if code in _OUTSIDE:
        return collector.named_label(_OUTSIDE[code])
    return collector.label(CODES, text.strip())


def _box(row: Sequence[str], at: Sequence[int | None]) -> Box | None:
    numbers = [number_in(row[i]) if i is not None and i < len(row) else None for i in at]
    if None in numbers:
        return None  # NULL if the annotators found no face
    left, top, width, height = numbers
    return (left, top, left + width, top + height) if width > 0 and height > 0 else None


def _points(row: Sequence[str], at: int | None) -> Points | None:
    try:
        return five_of_68(row[at].split(";"))
    except (IndexError, TypeError, ValueError):
        return None


def _read_part(root: Path, part: Path, split: str, collector: Collector) -> None:
    read = _NpyReader()
    annotations = part / "annotations"
    with os.scandir(annotations) as entries:
        files = {entry.name for entry in entries}
    images = {}
    if (part / "images").is_dir():
        with os.scandir(part / "images") as entries:
            images = {os.path.splitext(e.name)[0]: e.name for e in entries if is_image_name(e.name)}
    stems = sorted(name.removesuffix("_exp.npy") for name in files if name.endswith("_exp.npy"))
    collector.leave_out("file without row", len(images.keys() - set(stems)))
    for stem in stems:
        try:
            code = str(read(annotations / f"{stem}_exp.npy").item())
        except (OSError, ValueError) as failure:
            collector.leave_out(f"unreadable _exp.npy ({_reason(failure)})")
            continue
        label = _label(code, collector)
        if label is None:
            continue
        points = None
        if f"{stem}_lnd.npy" in files:
            try:
                points = five_of_68(read(annotations / f"{stem}_lnd.npy").ravel().tolist())
            except (OSError, TypeError, ValueError) as failure:
                collector.leave_out(f"unreadable _lnd.npy, face kept ({_reason(failure)})")
        path = (part / "images" / images.get(stem, f"{stem}.jpg")).relative_to(root).as_posix()
        collector.add(Record(id=f"{split}/{stem}", path=path, label=label, split=split, landmarks=points))


class _NpyReader:
    """np.load for many small files with few distinct headers. A known header is not parsed again: 5 times as fast."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, tuple[np.dtype, int]] = {}

    def __call__(self, path: Path) -> np.ndarray:
        """Return the array. Raises OSError if the file cannot be read and ValueError if it is not a complete npy."""
        import numpy as np

        with open(path, "rb", buffering=0) as file:
            data = file.read()
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, count = self._kinds.get(data[:start], (None, 0))
        if dtype is not None and len(data) == start + dtype.itemsize * count:
            return np.frombuffer(data, dtype, count, start)
        try:
            array = np.load(BytesIO(data), allow_pickle=False)
        except EOFError as failure:
            raise ValueError(str(failure)) from None
        if isinstance(array, np.ndarray) and array.flags.c_contiguous:
            self._kinds[data[:start]] = (array.dtype, array.size)
            return array
        raise ValueError("not an array")


def _reason(failure: Exception) -> str:
    return (
        "empty, truncated or not an npy file" if isinstance(failure, ValueError) else os.strerror(failure.errno).lower()
    )


READER = Reader(
    layout="training.csv and validation.csv with Manually_Annotated_Images/ (or Manually_Annotated/...), or "
    "{train_set,val_set}/{images/1.jpg,annotations/1_exp.npy}, or a folder per class {train,val}/0/1.jpg ...",
    parse=parse,
    codes=CODES,
    tree="""\
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
    card=DatasetCard(
        title="AffectNet, manually annotated part",
        about="web images, with landmarks",
        apply="http://mohammadmahoor.com/affectnet/",
        licence="research; agreement signed by a professor",
        split="official",
        split_note="scored on val: no test split was released",
        paper="Mollahosseini, Hasani and Mahoor: AffectNet: a database for facial expression, valence, and arousal "
        "computing in the wild. TAC 2019",
        # field (github.com/coder-xinxiaohai/AffectNet_Processing); both releases have the same seven classes
        releases=(
            Official.of_splits(train=(14090, 6378, 3803, 134415, 25459, 24882, 74874), val=(500,) * NUM_EXPRESSIONS),
        ),
    ),
)
