"""A folder per class, with or without a folder per split above: ``ROOT/happy/*.jpg`` or ``ROOT/train/happy/*.jpg``."""

from __future__ import annotations

from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    default_protocol,
    images_under,
    split_name,
    subfolders,
)
from fercli.datasets.records import Record
from fercli.expressions import label_of


def parse(root: Path, collector: Collector) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the class folders; a folder whose name is no expression's is counted and left out, never guessed."""
    if any(label_of(folder.name) is not None for folder in subfolders(root)):
        _read_classes(root, root, "all", collector)
    else:
        for part in subfolders(root):
            if any(label_of(folder.name) is not None for folder in subfolders(part)):
                _read_classes(part, root, split_name(part.name), collector)
            else:
                collector.leave_out(f"image in {part.name}/", sum(1 for _ in images_under(part, root, Collector())))
    if not collector.records and not collector.left_out:
        raise WrongLayout("no folder named after an expression")
    return default_protocol(record.split for record in collector.records)


def _read_classes(part: Path, root: Path, split: str, collector: Collector) -> None:
    for folder in subfolders(part):
        label = label_of(folder.name)
        for path in images_under(folder, root, collector):
            if label is not None:
                collector.add(Record(id=path, path=path, label=label, split=split))
            else:
                collector.leave_out_class(folder.name)


READER = Reader(
    layout="a folder per expression (surprise, fear, disgust, happiness, sadness, anger, neutral or their usual "
    "names), possibly below train/ and test/",
    parse=parse,
)
