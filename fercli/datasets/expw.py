"""ExpW (Zhang et al., IJCV 2018): photographs from the web, several faces in one, each with its box and expression."""

from __future__ import annotations

from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    count_unlisted,
    first_existing,
    number_in,
    text_lines,
    whole_number,
)
from fercli.datasets.protocol import Protocol, hashed_part
from fercli.datasets.records import Record
from fercli.expressions import CODES

#: One image in so many is for testing.
ONE_IN = 5


def split_of(image_name: str) -> str:
    """Return ``train`` or ``test`` for an image: OUR split, frozen, since ExpW has none and the benchmark's is lost.

    A fifth of the images is for testing, by `hashed_part` of the name. By image, so that faces of one photograph are
    never on both sides.
    """
    return hashed_part(image_name, ONE_IN)


def parse(root: Path, collector: Collector) -> Protocol:
    """Read label.lst: image_name face_id top left right bottom confidence label."""
    listed = first_existing(root, "label/label.lst", "label.lst", "data/label/label.lst")
    if listed is None:
        raise WrongLayout("no label/label.lst")
    images = first_existing(root, "data/image/origin", "image/origin", "origin")
    if images is None:
        raise WrongLayout("no data/image/origin")
    folder = images.relative_to(root).as_posix()
    names: set[str] = set()
    for _, line in text_lines(listed):
        fields = line.rsplit(None, 7)
        face = whole_number(fields[1]) if len(fields) == 8 else None
        numbers = [number_in(word) for word in fields[2:6]]
        if face is None or None in numbers:
            collector.leave_out("unreadable row")
            continue
        name, code = fields[0].strip(), fields[7]
        top, left, right, bottom = numbers
        names.add(name)
        label = collector.label(CODES["expw"], code)
        if label is None:
            continue
        box = (left, top, right, bottom)
        collector.add(Record(id=f"{name}#{face}", path=f"{folder}/{name}", label=label, split=split_of(name), box=box))
    collector.need_rows(listed, "image_name face_id top left right bottom confidence label")
    count_unlisted(images, names, collector)
    return ("train",), ("test",)


READER = Reader(layout="label/label.lst and data/image/origin/*.jpg (or image/origin/)", parse=parse)
