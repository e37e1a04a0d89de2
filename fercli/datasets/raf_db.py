"""RAF-DB, basic emotions (Li, Deng and Du, CVPR 2017): labels, splits, face boxes and five landmarks as released."""

from __future__ import annotations

import os
from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    WrongOption,
    count_unlisted,
    first_existing,
    numbers_in,
    text_lines,
)
from fercli.datasets.records import Box, Points, Record
from fercli.expressions import CODES


def parse(root: Path, collector: Collector, images: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the label list; `images` is ``original`` or ``aligned`` (default: the originals where they are there).

    The released boxes and landmarks are in pixels of the originals and go with these only.
    """
    listed = first_existing(root, "EmoLabel/list_patition_label.txt", "EmoLabel/list_partition_label.txt")
    if listed is None:
        raise WrongLayout("no EmoLabel/list_patition_label.txt")
    if images not in (None, "original", "aligned"):
        raise WrongOption(f"option images is '{images}', not 'original' or 'aligned'")
    kind = images or ("original" if (root / "Image/original").is_dir() else "aligned")
    if not (root / "Image" / kind).is_dir():
        raise WrongLayout(f"no Image/{images}" if images else "no Image/original and no Image/aligned")
    landmarks = root / "Annotation/manual" if kind == "original" else None
    boxes = root / "Annotation/boundingbox" if kind == "original" else None
    names: set[str] = set()
    for _, line in text_lines(listed):
        fields = line.rsplit(None, 1)
        split = fields[0].split("_", 1)[0].lower()
        if len(fields) != 2 or split not in ("train", "test"):
            collector.leave_out("unreadable row")
            continue
        name = fields[0].strip()
        stem, ending = os.path.splitext(name)
        file = name if kind == "original" else f"{stem}_aligned{ending}"
        names.add(file)
        label = collector.label(CODES["raf-db"], fields[1])
        if label is None:
            continue
        collector.add(
            Record(
                id=name,
                path=f"Image/{kind}/{file}",
                label=label,
                split=split,
                box=_box(boxes, stem),
                landmarks=_points(landmarks, stem),
            )
        )
    collector.need_rows(listed, "train_00001.jpg 5")
    count_unlisted(root / "Image" / kind, names, collector)
    return ("train",), ("test",)


def _points(folder: Path | None, stem: str) -> Points | None:
    # Five lines of x y, then gender, race and age, one number a line.
    numbers = numbers_in(folder / f"{stem}_manu_attri.txt")[:10] if folder else []
    return tuple(zip(numbers[0::2], numbers[1::2], strict=True)) if len(numbers) == 10 else None


def _box(folder: Path | None, stem: str) -> Box | None:
    numbers = numbers_in(folder / f"{stem}_boundingbox.txt") if folder else []
    return tuple(numbers) if len(numbers) == 4 and numbers[2] > numbers[0] and numbers[3] > numbers[1] else None


READER = Reader(
    layout="EmoLabel/list_patition_label.txt, Image/original/train_00001.jpg ... (or Image/aligned/*_aligned.jpg), "
    "and Annotation/{manual,boundingbox}/ where you have them",
    parse=parse,
)
