"""A csv that lists images and labels, and optionally split, subject, box and landmarks."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    WrongOption,
    default_protocol,
    folder_holding,
    split_name,
)
from fercli.datasets.records import Box, Points, Record
from fercli.expressions import CODES, UNLABELLED, label_of

#: Column names by which each column is found where the user names none; case does not matter.
_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "image", "file", "filename", "file_name", "image_name", "image_path", "img", "name"),
    "label": ("label", "emotion", "expression", "class", "labels"),
    "split": ("split", "usage", "part", "partition", "set", "subset"),
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
        path_column, label_column, split_column, subject_column: column names (default: the usual ones). A csv without
            a label column lists an unlabelled set; an empty label is an unlabelled image.
        box_columns: four: left, top, right, bottom. Used where all are there.
        landmark_columns: ten: x and y of the image-left eye, image-right eye, nose tip, image-left and image-right
            mouth corner. Used where all are there.
        codes: what numbers in the label column mean: a dataset's name (``fer2013``) or {code: expression}.
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
            raise WrongLayout(f"{table.name} has no column of paths (path, image, file, filename, ...)")
        box_names = _columns(columns, box_columns, 4)
        landmark_names = _columns(columns, landmark_columns, 10)
        meanings = _meanings(codes)
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
            split = split_name(row[found["split"]] or "") if found["split"] else "all"
            subject = (row[found["subject"]] or "").strip() if found["subject"] else ""
            collector.add(
                Record(
                    id=path,
                    path=f"{folder}/{path}" if folder else path,
                    label=label,
                    split=split or "all",
                    subject=subject or None,
                    box=_box(row, box_names),
                    landmarks=_points(row, landmark_names),
                )
            )
    return default_protocol(record.split for record in collector.records)


def _table(root: Path, file: str | None) -> Path:
    if file is not None:
        if not (root / file).is_file():
            raise WrongOption(f"option file is '{file}', which is not in {root}")
        return root / file
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    if len(tables) != 1:
        names = ", ".join(p.name for p in tables) or "none"
        raise WrongLayout(f"not exactly one csv ({names}): name it with the option file")
    return tables[0]


def _column(columns: Mapping[str, str], kind: str, asked: str | None, table: Path) -> str | None:
    if asked is None:
        return next((columns[name] for name in _USUAL_NAMES[kind] if name in columns), None)
    if asked.strip().lower() not in columns:
        raise WrongOption(f"{table.name} has no column '{asked}' (it has: {', '.join(columns.values())})")
    return columns[asked.strip().lower()]


def _columns(columns: Mapping[str, str], asked: Sequence[str], count: int) -> list[str]:
    names = [columns.get(name.strip().lower()) for name in asked]
    return [name for name in names if name] if len(names) == count and all(names) else []


def _meanings(codes: str | Mapping[int, str] | None) -> dict[int, int | None]:
    if codes is None:
        return {}
    if isinstance(codes, str):
        if codes not in CODES:
            raise WrongOption(f"option codes is '{codes}', none of {', '.join(CODES)}")
        return CODES[codes]
    return {int(code): label_of(str(name)) for code, name in codes.items()}


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
