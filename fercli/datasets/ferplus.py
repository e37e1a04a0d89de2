"""FERPlus (Barsoum et al., ICMI 2016): FER2013's images, each labelled again by ten people, in the official splits."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.fer2013 import FILE_HELP, SCORE_HELP, pixel_rows, pixel_table, usage_split
from fercli.datasets.parsing import whole_number
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.tree_files import count_unlisted, first_existing

#: Columns of votes, in the order of fer2013new.csv; their names are mapped by `fercli.expressions`.
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")

_FOLDERS = {"train": "FER2013Train", "public-test": "FER2013Valid", "private-test": "FER2013Test"}


def parse(root: Path, collector: Collector, vote: str = "majority", file: str | None = None) -> Protocol:
    """Read fer2013new.csv next to FER2013's csv, whose rows are in the same order, or next to folders of its images.

    Args:
        root: folder of fer2013new.csv.
        collector: receives the records.
        vote: ``majority`` or ``plurality``. ``majority`` is the rule of the paper's code: options with a single vote
            are dropped, and the label is the option with more than half of the remaining votes. ``plurality`` takes
            the option with the most votes.
        file: FER2013's csv (default: as `fercli.datasets.fer2013.pixel_table` finds it).

    Images without a majority, with a tie for most votes, or won by contempt, unknown or NF (not a face) are counted and
    left out.
    """
    if vote not in ("majority", "plurality"):
        raise WrongOption(f"option vote is '{vote}', not 'majority' or 'plurality'")
    table = first_existing(root, "fer2013new.csv", "FERPlus/fer2013new.csv", "FERPlus-master/fer2013new.csv")
    if table is None:
        raise WrongLayout("no fer2013new.csv")
    pixels = pixel_table(root, file)
    if pixels is not None:
        places: Iterator[tuple[str, int | None]] = _in_csv(root, pixels, table)
    else:
        places = _in_folders(root, table, collector)
    for (split, name, votes), (path, offset) in zip(_rows(table), places, strict=True):
        if votes is None or split is None:
            collector.leave_out("unreadable row" if votes is None else "row of an unknown Usage")
        elif not name:
            collector.leave_out("removed by FERPlus (no image name)")
        else:
            winner = _winner(votes, vote)
            if winner is None:
                collector.leave_out("no majority" if vote == "majority" else "tie for most votes")
                continue
            label = collector.named_label(winner)
            if label is not None:
                collector.add(Record(id=name, path=path, label=label, split=split, offset=offset, cropped=True))
    return ("train",), ("private-test",)


def _winner(votes: Sequence[int], vote: str) -> str | None:
    """Return the name of the option that wins the vote, or None."""
    if vote == "majority":
        votes = [count if count > 1 else 0 for count in votes]
    most = max(votes)
    chosen = 2 * most > sum(votes) if vote == "majority" else most > 0 and votes.count(most) == 1
    return VOTES[votes.index(most)] if chosen else None


def _rows(table: Path) -> Iterator[tuple[str | None, str, list[int] | None]]:
    """Yield (split, image name, votes) of every row. The votes are None if the row cannot be read."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        rows = (row for row in csv.reader(opened) if any(field.strip() for field in row))
        columns = {name.strip().lower(): i for i, name in enumerate(next(rows, []))}
        missing = [name for name in ("Usage", "Image name", *VOTES) if name.lower() not in columns]
        if missing:
            raise WrongLayout(f"{table.name} lacks the column {', '.join(missing)}")
        usage, image = columns["usage"], columns["image name"]
        at = [columns[name.lower()] for name in VOTES]
        for row in rows:
            try:
                votes = [whole_number(row[i]) for i in at]
                if None in votes:
                    raise ValueError("a vote count that is not an integer")
                yield usage_split(row[usage]), row[image].strip(), votes
            except (IndexError, ValueError):
                yield None, "", None


def _in_csv(root: Path, pixels: Path, table: Path) -> Iterator[tuple[str, int]]:
    """Yield (path, offset) of every row's pixels.

    The two files are matched only by the order of their rows. A missing row or different splits would give wrong
    labels, so they raise WrongLayout before any label is used.
    """
    path, places = pixels.relative_to(root).as_posix(), []
    for number, (label_row, pixel_row) in enumerate(zip_longest(_rows(table), pixel_rows(pixels, ("Usage",))), 1):
        if label_row is None or pixel_row is None:
            shorter = table if label_row is None else pixels
            raise WrongLayout(f"{shorter.name} ends at row {number}, the other does not: their rows do not match")
        if label_row[0] != pixel_row[1] and label_row[2] is not None and pixel_row[2]:
            raise WrongLayout(
                f"row {number} of {table.name} and of {pixels.name} differ in Usage: their rows do not match"
            )
        places.append((path, pixel_row[0]))
    return iter(places)


def _in_folders(root: Path, table: Path, collector: Collector) -> Iterator[tuple[str, None]]:
    bases = ("", "data/", "images/", "Images/", "FERPlus/data/", "FERPlus-master/data/")
    base = next((base for base in bases if (root / base / "FER2013Train").is_dir()), None)
    if base is None:
        raise WrongLayout("no fer2013.csv and no FER2013Train/ next to fer2013new.csv")
    listed = {(split, name) for split, name, _ in _rows(table)}
    for split, folder in _FOLDERS.items():
        if (root / base / folder).is_dir():
            count_unlisted(root / base / folder, {name for part, name in listed if part == split}, collector)
    return ((f"{base}{_FOLDERS.get(split, '')}/{name}", None) for split, name, _ in _rows(table))


READER = Reader(
    layout="fer2013new.csv next to FER2013's fer2013.csv (or icml_face_data.csv), or next to FER2013Train/, "
    "FER2013Valid/ and FER2013Test/ (or images/FER2013Train/, ...) with fer0000000.png ...",
    parse=parse,
    tree="""\
fer2013new.csv                               columns: Usage, Image name, votes
fer2013.csv                                  or icml_face_data.csv, rows in the same order

or as made by FERPlus's script, next to fer2013new.csv (or below data/ or images/):
FER2013Train/fer0000000.png ...
FER2013Valid/ FER2013Test/""",
    option_help={
        "vote": "majority (more than half of the votes, the paper's rule) or plurality (the most votes)",
        "file": FILE_HELP,
        "score": SCORE_HELP,
    },
    card=DatasetCard(
        title="FER+: FER2013 with new labels, ten people per image",
        about="FER2013 images, ten votes each",
        apply="https://github.com/microsoft/FERPlus",
        licence="labels MIT; images as FER2013",
        split="official",
        split_note="as FER2013: scored on private-test, or on public-test with the option score",
        paper="Barsoum, Zhang, Canton Ferrer and Zhang: Training deep networks for facial expression recognition with "
        "crowd-sourced label distribution. ICMI 2016",
        # field: the majority rule of the paper's code. One source; others confirm its sums (25,060 and 3,153 with 119
        # and 16 of contempt, left out here). Nothing was found for public-test.
        releases=(
            Official(
                {
                    "train": (3149, 532, 119, 7287, 3014, 2100, 8740),
                    "private-test": (396, 83, 18, 893, 384, 273, 1090),
                },
                "majority vote",
            ),
        ),
    ),
)
