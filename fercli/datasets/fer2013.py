"""FER2013 (ICML 2013 challenge): the csv of pixels, or the folders of pictures that circulate; official parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fercli.datasets.base import Collector, Reader, WrongLayout, WrongOption, first_existing, images_under, subfolders
from fercli.datasets.records import Record
from fercli.expressions import CODES, label_of

#: Our names of the parts that the column Usage gives.
SPLITS = {"training": "train", "publictest": "public-test", "privatetest": "private-test"}


def parse(root: Path, collector: Collector, score: str = "private-test") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the csv where there is one, else the folders. `score` is ``private-test`` or ``public-test``.

    The published cross-domain lists do not say on which of the two test parts they score: hence the choice.
    """
    if score not in ("private-test", "public-test"):
        raise WrongOption(f"option score is '{score}', not 'private-test' or 'public-test'")
    table = first_existing(root, "fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
    if table is not None:
        _parse_csv(root, table, collector)
    else:
        _parse_folders(root, collector)
    return ("train",), (score,)


def _parse_csv(root: Path, table: Path, collector: Collector) -> None:
    path = table.relative_to(root).as_posix()
    for number, (offset, split, code) in enumerate(pixel_rows(table)):
        if split is None:
            collector.leave_out("row of an unknown Usage" if code else "unreadable row")
            continue
        label = collector.label(CODES["fer2013"], code)
        if label is not None:
            collector.add(Record(id=f"{split}-{number:05d}", path=path, label=label, split=split, offset=offset))


def pixel_rows(table: Path) -> Iterator[tuple[int, str | None, str]]:
    """Yield (byte offset, split, emotion code) of every row of fer2013.csv below its header, blank lines skipped.

    The split is None where Usage is none of the three, and the code is then "" too where the row has not as many
    fields as the header. Raises WrongLayout where a column is missing.
    """
    rows = _rows_with_offsets(table)
    _, header = next(rows, (0, b""))
    columns = [c.strip(b' "\r\n').lower() for c in header.removeprefix(b"\xef\xbb\xbf").split(b",")]
    missing = [name for name in ("emotion", "pixels", "Usage") if name.lower().encode() not in columns]
    if missing:
        raise WrongLayout(f"{table.name} lacks the column {' and '.join(missing)}")
    emotion, usage = columns.index(b"emotion"), columns.index(b"usage")
    for offset, row in rows:
        fields = row.split(b",")
        if len(fields) != len(columns):
            yield offset, None, ""
            continue
        part = fields[usage].strip(b' "\r\n').decode("utf-8", "replace").lower()
        yield offset, SPLITS.get(part), fields[emotion].strip(b' "\r\n').decode("utf-8", "replace") or "?"


def _rows_with_offsets(table: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with table.open("rb") as file:
        for row in file:
            if row.strip():
                yield offset, row
            offset += len(row)


def _parse_folders(root: Path, collector: Collector) -> None:
    parts = [part for part in subfolders(root) if any(label_of(c.name) is not None for c in subfolders(part))]
    if not parts:
        raise WrongLayout("no fer2013.csv and no train/angry/ ... folders")
    for part in parts:
        for folder in subfolders(part):
            label = label_of(folder.name)
            for path in images_under(folder, root, collector):
                name = path.rsplit("/", 1)[-1]
                split = SPLITS.get(name.split("_", 1)[0].lower())
                if label is None:
                    collector.leave_out_class(folder.name)
                elif split is None:
                    collector.leave_out("image not named Training_, PublicTest_ or PrivateTest_")
                else:
                    collector.add(Record(id=path, path=path, label=label, split=split))


READER = Reader(
    layout="fer2013.csv, or {train,validation,test}/{angry,...}/{Training,PublicTest,PrivateTest}_123.jpg",
    parse=parse,
)
