"""A csv that lists images and labels, and optionally split, subject, box and landmarks."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    WrongOption,
    code_meanings,
    folder_holding,
)
from fercli.datasets.protocol import WHOLE, default_protocol, known_split, split_name
from fercli.datasets.records import Box, Points, Record
from fercli.expressions import UNLABELLED

#: Column names by which each column is found where the user names none; case does not matter.
_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "image", "file", "filename", "file_name", "image_name", "image_path", "img", "name"),
    "label": ("label", "emotion", "expression", "class", "labels"),
    "split": ("split", "usage", "part", "partition", "set", "subset", "phase", "fold", "data_split", "split_name"),
    "subject": ("subject", "person", "identity", "subject_id", "person_id"),
}
_BOX = ("left", "top", "right", "bottom")
_LANDMARKS = tuple(f"{p}_{axis}" for p in ("leye", "reye", "nose", "lmouth", "rmouth") for axis in "xy")


def parse(
    root: Path,
    collector: Collector,
    file: str | None = None,
    images: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    subject_column: str | None = None,
    box_columns: Sequence[str] = _BOX,
    landmark_columns: Sequence[str] = _LANDMARKS,
    codes: str | Mapping[int, str] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the csv.

    Args:
        root: folder of the csv; paths in it are relative to `images`.
        collector: takes the records.
        file: the csv's name (default: the only csv there is).
        images: subfolder of the images (default: the root, or ``images`` where they lie there).
        path_column, label_column, split_column, subject_column: column names (default: the usual ones); "" stands for
            none. With `label_column` "" the set is unlabelled, as it is where the csv has nothing but the columns known
            here and no labels; a csv with other columns has to be told which holds them. An empty label is an
            unlabelled image.
        box_columns: four: left, top, right, bottom. Used where all are there. A picture may then be listed once for
            every face: its box, as written, is part of the face's id.
        landmark_columns: ten: x and y of the image-left eye, image-right eye, nose tip, image-left and image-right
            mouth corner. Used where all are there.
        codes: what numbers in the label column mean: a dataset's name (``fer2013``) or {code: expression}.

    Raises WrongOption for a column or a class name that does not exist, and where labels are not found or understood.
    """
    table = _table(root, file)
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        header = opened.readline()
        opened.seek(0)
        delimiter = max(",;\t", key=header.count)
        rows = csv.DictReader(opened, delimiter=delimiter, skipinitialspace=True)
        columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
        asked = {"path": path_column, "label": label_column, "split": split_column, "subject": subject_column}
        found = {kind: _column(columns, kind, name, table) for kind, name in asked.items()}
        if found["path"] is None:
            raise WrongLayout(
                f"{table.name} has no column of paths (path, image, file, filename, ...; it has: {_listed(columns)})",
                "name the column with --option path_column=..., in a run spec data.datasets.{name}.options",
            )
        box_names = _columns(columns, "box_columns", box_columns, _BOX, table)
        landmark_names = _columns(columns, "landmark_columns", landmark_columns, _LANDMARKS, table)
        if found["label"] is None and label_column is None:
            _need_no_label(columns, {*found.values(), *box_names, *landmark_names}, table)
        others: dict[str, set[str]] = {}  # columns that could hold splits under another name, with their values
        if found["split"] is None and split_column is None:
            used = {*found.values(), *box_names, *landmark_names}
            others = {name: set() for name in columns.values() if name not in used}
        meanings = code_meanings(codes)
        folder = images
        if folder is None:
            paths = ((row[found["path"]] or "").strip() for row in rows)
            folder = folder_holding(root, ("", "images"), filter(None, paths)) or ""
            opened.seek(0)
            rows = csv.DictReader(opened, delimiter=delimiter, skipinitialspace=True)
        for row in rows:
            path = (row[found["path"]] or "").strip()
            if not path:
                collector.leave_out("row without a path")
                continue
            label = _label(row[found["label"]] if found["label"] else "", meanings, collector)
            if label is None:
                continue
            if others:
                _keep_splits(others, row)
            split = split_name(row[found["split"]] or "") if found["split"] else WHOLE
            subject = (row[found["subject"]] or "").strip() if found["subject"] else ""
            box = _box(row, box_names)
            collector.add(
                Record(
                    id=f"{path}#{','.join(row[name].strip() for name in box_names)}" if box else path,
                    path=f"{folder}/{path}" if folder else path,
                    label=label,
                    split=split or WHOLE,
                    subject=subject or None,
                    box=box,
                    landmarks=_points(row, landmark_names),
                )
            )
    _need_no_split(others, table)
    return default_protocol(record.split for record in collector.records)


def _table(root: Path, file: str | None) -> Path:
    if file is not None:
        if not (root / file).is_file():
            raise WrongOption(f"option file is '{file}', which is not in {root}")
        return root / file
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    if len(tables) != 1:
        names = ", ".join(p.name for p in tables) or "there is none"
        hint = "name the list with --option file=NAME, in a run spec data.datasets.{name}.options: {{file: NAME}}"
        raise WrongLayout(f"not exactly one csv ({names})", hint)
    return tables[0]


def _column(columns: Mapping[str, str], kind: str, asked: str | None, table: Path) -> str | None:
    if asked is None:
        return next((columns[name] for name in _USUAL_NAMES[kind] if name in columns), None)
    word = str(asked).strip().lower()
    if word and word not in columns:
        raise WrongOption(f"{table.name} has no column '{asked}' (it has: {_listed(columns)})")
    return columns[word] if word else None


def _columns(
    columns: Mapping[str, str], option: str, asked: Sequence[str], usual: Sequence[str], table: Path
) -> list[str]:
    """Return the columns asked for as the csv writes them; none where one is missing, if these are the usual ones."""
    if isinstance(asked, str) or not isinstance(asked, Sequence) or len(asked) != len(usual):
        raise WrongOption(f"option {option} is '{asked}', not a list of {len(usual)} columns")
    names = [columns.get(str(name).strip().lower()) for name in asked]
    if all(names):
        return names
    if tuple(asked) != tuple(usual):
        _column(columns, option, str(asked[names.index(None)]), table)
    return []


def _need_no_label(columns: Mapping[str, str], used: Set[str | None], table: Path) -> None:
    """Raise WrongOption unless nothing in the csv could be a label: a set must not turn out unlabelled unnoticed."""
    known = {name for names in _USUAL_NAMES.values() for name in names} | {*_BOX, *_LANDMARKS}
    others = [column for name, column in columns.items() if name not in known and column not in used]
    if others:
        raise WrongOption(
            f"{table.name} has no column of labels (label, emotion, expression, ...; it has: {_listed(columns)}): name "
            "it with the option label_column, or say label_column: '' if the set is unlabelled"
        )


def _keep_splits(others: dict[str, set[str]], row: Mapping[str, str]) -> None:
    """Add a row's values to those of the columns that could hold splits; a column with another value is dropped."""
    for name, values in list(others.items()):
        value = (row[name] or "").strip()
        if _is_flag(name) or known_split(value):
            if len(values) < 3:  # to be shown
                values.add(value)
        elif value:
            del others[name]


def _need_no_split(others: Mapping[str, Set[str]], table: Path) -> None:
    """Raise WrongOption where a column that is not used looks like splits: all its values are, or its name says so."""
    for name, values in others.items():
        if values:
            raise WrongOption(
                f"{table.name}: the column '{name.strip()}' ({', '.join(sorted(values))}) looks like splits: name "
                f"it with --option split_column={name.strip()}, or say split_column: '' if it is something else"
            )


def _is_flag(name: str) -> bool:
    """Tell whether a column's name is that of one split: ``train``, ``is_test``."""
    return known_split(re.sub(r"^is(?=[\W_])", "", name.strip().lower())) is not None


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(column.strip() for column in columns.values())


def _label(text: str | None, meanings: dict[int, int | None], collector: Collector) -> int | None:
    text = (text or "").strip()
    if not text:
        return UNLABELLED
    if text.lstrip("-").isdigit():
        if not meanings:
            raise WrongOption(f"labels are numbers (the first is {text}): say what they mean with the option codes")
        return collector.label(meanings, text)
    return collector.named_label(text)


def _floats(row: Mapping[str, str], names: Sequence[str]) -> list[float]:
    try:
        return [float(row[name]) for name in names]
    except (TypeError, ValueError):
        return []


def _box(row: Mapping[str, str], names: Sequence[str]) -> Box | None:
    values = _floats(row, names)
    return tuple(values) if values else None


def _points(row: Mapping[str, str], names: Sequence[str]) -> Points | None:
    values = _floats(row, names)
    return tuple(zip(values[0::2], values[1::2], strict=True)) if values else None


READER = Reader(layout="a csv with a column of paths and one of labels, and the images it lists", parse=parse)
