"""A csv that lists images and labels, and optionally split, subject, box and landmarks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, islice
from pathlib import Path

from fercli.console import brief
from fercli.datasets.codes import ask_for_codes, code_meanings
from fercli.datasets.csv_boxes import (
    FORMATS,
    BoxColumns,
    are_shares,
    check_boxes,
    chosen_box_columns,
    find_box_columns,
    is_box_name,
    is_empty,
)
from fercli.datasets.csv_paths import ListedPictures
from fercli.datasets.parsing import number_in, whole_number
from fercli.datasets.protocol import WHOLE, default_protocol, known_split, plain_name, split_name
from fercli.datasets.reader import Box, Collector, Points, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.tree_files import chosen_file, is_image_name
from fercli.expressions import UNLABELLED

#: Default names by which each column is found. Case, spaces, `_`, `-` and `.` do not matter.
_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "image", "file", "filename", "imagename", "imagepath", "img", "name"),
    "label": ("label", "emotion", "expression", "class", "labels"),
    "split": ("split", "usage", "part", "partition", "set", "subset", "phase", "fold", "datasplit", "splitname"),
    "subject": ("subject", "person", "identity", "subjectid", "personid"),
}
LANDMARKS = tuple(f"{p}_{axis}" for p in ("leye", "reye", "nose", "lmouth", "rmouth") for axis in "xy")
#: Columns that number the rows. pandas writes them without a name or as `Unnamed: 0`.
_INDEX = re.compile(r"(unnamed:\d+|index|)")
#: How many rows are searched for the images' folder. It is more than one because listed images may be missing.
_FIRST_ROWS = 1000


def parse(
    root: Path,
    collector: Collector,
    file: str | None = None,
    images: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    subject_column: str | None = None,
    box_columns: Sequence[str] | str | None = None,
    box_format: str | None = None,
    landmark_columns: Sequence[str] | str | None = None,
    codes: str | Mapping[int, str] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the csv.

    Args:
        root: folder of the csv. Paths in the csv are relative to `images`.
        collector: receives the records.
        file: the csv's name (default: the only csv in the folder).
        images: subfolder of the images (default: the root, or ``images`` if they are there).
        path_column, label_column, split_column, subject_column: column names (default: the usual ones); "" means none.
            With `label_column` "" the dataset is unlabelled. It is also unlabelled if the csv has no label column and
            only columns known here. If it has other columns, `label_column` is required. An empty label means an
            unlabelled image.
        box_columns: four columns, or one that contains all four numbers, in pixels; "" or [] means no boxes. Default:
            the columns with the usual names of a box (left, top, right, bottom; xmin, ...; x1, ...; x, y, w, h; with
            or without the prefix face_ or bbox_), in any order. An image may then be listed once per face: its box, as
            written, is part of the face's id.
        box_format: ``corners`` (left, top, right, bottom) or ``size`` (left, top, width, height). Default: as the
            columns' names imply. There is no default for a single column or if the names imply nothing.
        landmark_columns: ten columns: x and y of the image-left eye, image-right eye, nose tip, image-left and
            image-right mouth corner (default: leye_x, leye_y, ... rmouth_y if they exist); "" or [] means none.
        codes: the meaning of numbers in the label column: a dataset's name (``fer2013``) or {code: expression}.

    Raises WrongOption for a column or a class name that does not exist, for labels that are not found or not
    understood, for boxes that are not understood or not plausible, and for contradictory rows of one image.
    """
    table = _table(root, file)
    rows = _rows(table)
    columns = _Columns(table, next(rows, []))
    first = list(islice(rows, _FIRST_ROWS))
    path_at = columns.find("path", path_column)
    if path_at is None:
        raise _no_paths(table, columns)
    label_at, split_at, subject_at = (
        columns.find(kind, asked)
        for kind, asked in (("label", label_column), ("split", split_column), ("subject", subject_column))
    )
    landmarks_at = _landmark_columns(columns, landmark_columns)
    known = {path_at, label_at, split_at, subject_at, *landmarks_at} - {None}
    boxes = _box_columns(columns, box_columns, box_format, first, known)
    if label_at is None and label_column is None:
        _need_no_label(columns, {*known, *boxes.at})
    others: dict[int, set[str]] = {}  # columns that could contain splits under another name, with their values
    if split_at is None and split_column is None:
        others = {i: set() for i, name in enumerate(columns.names) if name and i not in {*known, *boxes.at}}
    meanings = code_meanings(codes)
    pictures = ListedPictures(root)
    folder = _picture_folder(images, pictures, (_cell(row, path_at) for row in first))
    faces = _Faces(table)
    for row in chain(first, rows):
        written = _cell(row, path_at)
        if not written:
            collector.leave_out("row without a path")
            continue
        name, path, _ = pictures.find(written, folder)
        try:
            box_text, box = boxes.read(row)
        except ValueError:
            collector.leave_out("row with an unreadable box")
            continue
        label_text = _cell(row, label_at)
        label = _label(label_text, meanings, collector)
        split = split_name(_cell(row, split_at)) if split_at is not None else WHOLE
        repeated = faces.is_repeated(path, box, label, label_text, split)
        if label is None:
            continue
        if repeated:
            collector.leave_out("listed twice")
            continue
        if others:
            _keep_splits(others, columns, row)
        collector.add(
            Record(
                id=f"{name}#{box_text}" if box else name,
                path=path,
                label=label,
                split=split or WHOLE,
                subject=_cell(row, subject_at) or None,
                box=box,
                landmarks=_points(row, landmarks_at, collector),
            )
        )
    check_boxes(root, collector.records, boxes.format, table.name)
    _check_landmarks(collector.records, table)
    _need_no_split(others, columns)
    return default_protocol(record.split for record in collector.records)


class _Columns:
    """The columns of a csv, by name."""

    def __init__(self, table: Path, header: Sequence[str]):
        self.table = table
        self.names = [name.strip() for name in header]
        self._at: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            self._at.setdefault(plain_name(name), []).append(i)

    def __str__(self) -> str:
        return brief(", ".join(name for name in self.names if name), 600) or "nothing"

    def find(self, kind: str, asked: str | None) -> int | None:
        """Return the column asked for (default: the first with a usual name); None for "" and if there is none."""
        option = f"{kind}_column"
        if asked is None:
            usual = [self._only(self._at[name], option) for name in _USUAL_NAMES[kind] if name in self._at]
            if kind == "label" and len(usual) > 1:
                names = ", ".join(self.names[i] for i in usual)
                raise WrongOption(
                    f"{self.table.name} has several columns that could contain the labels ({names}); name one with the "
                    f"option {option}"
                )
            return usual[0] if usual else None
        return self.named(str(asked), option) if str(asked).strip() else None

    def named(self, name: str, option: str) -> int:
        """Return the one column of this name. Case, spaces and separators are ignored if no name matches exactly.

        Raises WrongOption, naming the option, if there is no such column or more than one.
        """
        exact = [i for i, column in enumerate(self.names) if column == name.strip()]
        found = exact or self._at.get(plain_name(name), [])
        if not found:
            raise WrongOption(
                f"{self.table.name} has no column '{name}' (it has: {self}); name one of these with the option {option}"
            )
        return self._only(found, option)

    def _only(self, found: Sequence[int], option: str) -> int:
        if len(found) > 1:
            alike = ", ".join(f"'{self.names[i]}'" for i in found)
            raise WrongOption(
                f"{self.table.name} has {len(found)} columns with the same name ({alike}); rename all but one, or name "
                f"another with the option {option}"
            )
        return found[0]

    def has(self, name: str) -> bool:
        """Return whether there is a column of this name."""
        return plain_name(name) in self._at

    def several(self, option: str, asked: Sequence[str] | str, count: int) -> list[int]:
        """Return the columns that an option lists, none for "" and []. Raises WrongOption if it is not such a list."""
        if isinstance(asked, str):
            if not asked.strip():
                return []
            if not self.has(asked):
                raise WrongOption(
                    f"option {option} is '{asked}', not a list of {count} columns such as [a, b, ...] "
                    f"({self.table.name} has: {self})"
                )
            asked = [asked]
        if not isinstance(asked, Sequence):
            raise WrongOption(f"option {option} is '{asked}', not a list of {count} columns")
        at = [self.named(str(name), option) for name in asked]
        if len(set(at)) < len(at):
            raise WrongOption(f"option {option} is '{', '.join(map(str, asked))}', which names a column twice")
        return at


class _Faces:
    """The faces listed so far. Rows may repeat each other but must not contradict each other."""

    def __init__(self, table: Path):
        self._table = table
        self._labels: dict[tuple[str, Box | None], tuple[object, str, str]] = {}
        self._have_boxes: dict[str, bool] = {}

    def is_repeated(self, path: str, box: Box | None, label: int | None, text: str, split: str) -> bool:
        """Return whether a face was listed before. `label` is the meaning of its row's text; None if outside the seven.

        Raises WrongOption if it was listed with another label or in another split, because using the first row would be
        a guess. It also raises if only some rows of an image have a box, because using the largest face for a row
        without one would be a guess too.
        """
        if self._have_boxes.setdefault(path, box is not None) != (box is not None):
            raise WrongOption(
                f"{self._table.name} lists {path} with a face box in one row and without one in another; give a box in "
                "every row of an image with several faces, or keep one row"
            )
        meaning = text.lower() if label is None else label
        if (path, box) not in self._labels:
            self._labels[path, box] = (meaning, text, split)
            return False
        before, its_text, its_split = self._labels[path, box]
        if before == meaning and split == its_split:
            return True
        if before == meaning:
            raise WrongOption(
                f"{self._table.name} lists {path} in {its_split or 'no split'} and in {split or 'no split'}; keep one "
                "of the rows"
            )
        words = " and ".join(f"as '{word}'" if word else "without a label" for word in (its_text, text))
        which = "with the same box" if box else "and no box distinguishes the faces"
        cure = "" if box else "name the box columns with the option box_columns, or "
        raise WrongOption(f"{self._table.name} lists {path} {words}, {which}; {cure}keep one of the rows")


def _table(root: Path, file: str | None) -> Path:
    if file is not None:
        return chosen_file(root, file)
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    if len(tables) != 1:
        names = ", ".join(p.name for p in tables) or "there is none"
        hint = (
            "name the csv with --option file=NAME, or in a run spec with data.datasets.{name}.options: {{file: NAME}}"
        )
        raise WrongLayout(f"not exactly one csv ({names})", hint)
    return tables[0]


def _rows(table: Path) -> Iterator[list[str]]:
    """Yield the header, then the rows. Blank lines and Excel's ``sep=;`` line are skipped."""
    with table.open("rb") as raw:
        wide = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")
    with table.open(encoding="utf-16" if wide else "utf-8-sig", errors="surrogateescape", newline="") as opened:
        lines = (line for line in opened if line.strip())
        first = next(lines, "")
        told = re.fullmatch(r'"?sep=(.)"?\s*', first)
        if told:
            first = next(lines, "")
        delimiter = told[1] if told else max(",;\t|", key=first.count)
        rows = csv.reader(chain((first,), opened), delimiter=delimiter, skipinitialspace=True)
        yield from (row for row in rows if row)


def _no_paths(table: Path, columns: _Columns) -> WrongLayout:
    if any(map(is_image_name, columns.names)):
        return WrongLayout(
            f"no column names in the first line of {table.name} (it reads: {columns})",
            "add a header line above it, such as path,label",
        )
    if columns.has("pixels"):
        return WrongLayout(
            f"{table.name} contains pixels but no image paths",
            "use the reader fer2013: data.datasets.{name}.reader=fer2013",
        )
    return WrongLayout(
        f"{table.name} has no path column (path, image, file, filename, ...; it has: {columns})",
        "name the column with --option path_column=..., or in a run spec under data.datasets.{name}.options",
    )


def _landmark_columns(columns: _Columns, asked: Sequence[str] | str | None) -> list[int]:
    if asked is not None:
        at = columns.several("landmark_columns", asked, len(LANDMARKS))
        if len(at) not in (0, len(LANDMARKS)):
            named = ", ".join(columns.names[i] for i in at)
            raise WrongOption(f"option landmark_columns needs {len(LANDMARKS)} columns, not {len(at)} ({named})")
        return at
    missing = [name for name in LANDMARKS if not columns.has(name)]
    if len(missing) == len(LANDMARKS):
        return []
    if missing:
        raise WrongOption(
            f"{columns.table.name} has landmarks but no column {', '.join(missing)}; name all ten columns with the "
            "option landmark_columns, or set landmark_columns: '' to use no landmarks"
        )
    return [columns.named(name, "landmark_columns") for name in LANDMARKS]


def _box_columns(
    columns: _Columns,
    asked: Sequence[str] | str | None,
    form: str | None,
    first: Sequence[Sequence[str]],
    known: Iterable[int],
) -> BoxColumns:
    if form not in (None, *FORMATS):
        raise WrongOption(
            f"option box_format is '{form}', not 'corners' (left, top, right, bottom) or 'size' (left, top, width, "
            "height)"
        )
    if asked is None:
        return find_box_columns(columns.names, first[:100], form, known, columns.table.name)
    at = columns.several("box_columns", asked, 4)
    if len(at) not in (0, 1, 4):
        named = ", ".join(columns.names[i] for i in at)
        raise WrongOption(f"option box_columns needs 4 columns, not {len(at)} ({named})")
    return chosen_box_columns(columns.names, at, form, columns.table.name) if at else BoxColumns()


def _need_no_label(columns: _Columns, used: set[int]) -> None:
    """Raise WrongOption if a column could contain labels: a dataset must not become unlabelled unnoticed."""
    known = {name for names in _USUAL_NAMES.values() for name in names} | set(map(plain_name, LANDMARKS))
    others = [
        name
        for i, name in enumerate(columns.names)
        if i not in used
        and plain_name(name) not in known
        and not _INDEX.fullmatch(plain_name(name))
        and not is_box_name(name)
    ]
    if others:
        raise WrongOption(
            f"{columns.table.name} has no label column (label, emotion, expression, ...; it has: {columns}); name it "
            "with the option label_column, or set label_column: '' if the dataset is unlabelled"
        )


def _picture_folder(images: str | None, pictures: ListedPictures, paths: Iterable[str]) -> str:
    """Return the images' folder below the root: the one asked for, else the first that contains one of the images."""
    if images is not None:
        return str(images).rstrip("/")
    tries = ((path, folder) for path in paths if path and not path.startswith("/") for folder in ("", "images"))
    return next((folder for path, folder in tries if pictures.find(path, folder)[2]), "")


def _keep_splits(others: dict[int, set[str]], columns: _Columns, row: Sequence[str]) -> None:
    """Record a row's values in the columns that could contain splits. A column with any other value is dropped."""
    for at, values in list(others.items()):
        value = _cell(row, at)
        if _is_flag(columns.names[at]) or known_split(value):
            if len(values) < 3:  # for the message
                values.add(value)
        elif value:
            del others[at]


def _need_no_split(others: Mapping[int, Set[str]], columns: _Columns) -> None:
    """Raise WrongOption if an unused column looks like splits, by all its values or by its name."""
    for at, values in others.items():
        if values:
            name = columns.names[at]
            raise WrongOption(
                f"{columns.table.name}: the column '{name}' ({', '.join(sorted(values))}) looks like splits; name it "
                f"with --option split_column={name}, or set split_column: '' if it is something else"
            )


def _is_flag(name: str) -> bool:
    """Return whether a column has the name of one split: ``train``, ``is_test``."""
    return known_split(re.sub(r"^is(?=[\W_])", "", name.strip().lower())) is not None


def _label(text: str, meanings: dict[int, int | None], collector: Collector) -> int | None:
    if not text:
        return UNLABELLED
    number = whole_number(text)
    if number is not None:
        if not meanings:
            raise WrongOption(f"labels are numbers (the first is {text}); {ask_for_codes([number])}")
        return collector.label(meanings, text)
    return collector.named_label(text)


def _cell(row: Sequence[str], at: int | None) -> str:
    return row[at].strip() if at is not None and at < len(row) else ""


def _points(row: Sequence[str], at: Sequence[int], collector: Collector) -> Points | None:
    cells = [_cell(row, i) for i in at]
    if all(map(is_empty, cells)):
        return None
    values = list(map(number_in, cells))
    if None in values:
        collector.leave_out("unreadable landmarks, face kept")
        return None
    return tuple(zip(values[0::2], values[1::2], strict=True))


def _check_landmarks(records: Sequence[Record], table: Path) -> None:
    points = [point for record in records for point in record.landmarks or ()]
    if points and are_shares(value for point in points for value in point):
        raise WrongOption(
            f"{table.name}: the landmarks are fractions of the image, not pixels; multiply them by the image's "
            "width and height, or set landmark_columns: '' to use no landmarks"
        )


READER = Reader(
    layout="a csv with a path column and a label column, and the images it lists",
    parse=parse,
    tree="""\
list.csv                                     columns: paths (path, image, file, ...) and labels
                                             (label, emotion, expression, ...); optional:
                                             split, subject, leye_x, leye_y, ... rmouth_y, and
                                             left, top, right, bottom (or xmin, ...; or x1, ...;
                                             or x, y, w, h; with or without face_ or bbox_)
                                             image with several faces: one row and box per face
images/PATH ...                              or next to the csv

Labels under another name need the option label_column. A dataset without labels has only the
columns above, or needs label_column: ''. Boxes are in pixels; other names need box_columns.""",
    option_help={
        "file": "the csv's name (default: the only csv in the folder)",
        "images": "folder of the images (default: the csv's folder, or images/ if they are there)",
        "path_column": "path column (default: path, image, file, filename, name, ...)",
        "label_column": "label column (default: label, emotion, expression, class); '' if unlabelled",
        "split_column": "split column: train, val, test (default: split, usage, part, set, ...); '' for none",
        "subject_column": "subject column (default: subject, person, identity, ...); '' for none",
        "box_columns": "list of four columns, in pixels, or one column with all four numbers (default: left, top, "
        "right, bottom, or xmin, ymin, ..., or x, y, w, h, ...); '' for none",
        "box_format": "corners (left, top, right, bottom) or size (left, top, width, height); default: as the "
        "columns' names imply",
        "landmark_columns": "list of ten columns: x and y of eyes, nose, mouth corners (default: leye_x ... rmouth_y); "
        "'' for none",
        "codes": "meaning of numeric labels: a dataset's name (fer2013) or {0: anger, ...}",
    },
)
