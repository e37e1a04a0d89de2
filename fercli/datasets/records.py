"""What a dataset reader hands on: one record a labelled (or unlabelled) face in a source image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fercli.expressions import UNLABELLED

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Record:
    """One face as its dataset lists it; nothing has been read from the image yet.

    Attributes:
        id: unique in its dataset and stable from run to run (``train_00001.jpg``, ``name.jpg#2`` for face 2).
        path: the image (or the csv that holds it), relative to the dataset's root.
        label: 0..6 in the order of `fercli.expressions.EXPRESSIONS`, or -1 where it is not known.
        split: the dataset's own part (``train``, ``val``, ``test``, ``public-test``, ``all``, ...).
        subject: the person, where the dataset names them.
        box: face box (left, top, right, bottom) in pixels of the image, where the dataset gives one.
        landmarks: five points (x, y) in pixels of the image: image-left eye, image-right eye, nose tip, image-left and
            image-right mouth corner, where the dataset gives them.
        offset: byte offset of the image's row where `path` is a csv of pixels (FER2013), else None.
    """

    id: str
    path: str
    label: int = UNLABELLED
    split: str = "all"
    subject: str | None = None
    box: Box | None = None
    landmarks: Points | None = None
    offset: int | None = None


@dataclass
class Listing:
    """All records of one dataset, and what its reader left out.

    Attributes:
        name: the dataset as the user calls it.
        root: its folder.
        records: in the order of the dataset's own list.
        adapt_splits: the parts whose images train (a source) or are adapted to (a target).
        score_splits: the parts on which accuracy is reported.
        left_out: how many entries each reason left out (``contempt``, ``row without file``, ...).
        stand_in: true for procedural faces written in this layout by fercli itself.
    """

    name: str
    root: Path
    records: list[Record]
    adapt_splits: tuple[str, ...]
    score_splits: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    stand_in: bool = False

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)
