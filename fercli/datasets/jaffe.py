"""JAFFE (Lyons, Kamachi and Gyoba 1998): 213 files whose names give subject and expression; a single split."""

from __future__ import annotations

import re
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout
from fercli.datasets.tree_files import images_under

_NAME = re.compile(r"(?P<subject>[A-Za-z]{2})\.(?P<expression>[A-Za-z]{2})(?P<take>\d+)\.(?P<serial>\d+)\.\w+")
_OTHER = "image not named like KM.NE1.1.tiff"


def parse(root: Path, collector: Collector) -> Protocol:
    """Read the file names. They take precedence over the lists in circulation (one calls KR.SA3.79 happy)."""
    for path in images_under(root, root, collector):
        name = path.rsplit("/", 1)[-1]
        match = _NAME.fullmatch(name)
        if match is None:
            collector.leave_out(_OTHER)
            continue
        label = collector.named_label(match["expression"])
        if label is not None:
            collector.add(Record(id=name, path=path, label=label, split="all", subject=match["subject"].upper()))
    if not collector.records and collector.left_out[_OTHER]:
        raise WrongLayout("no image named like KM.NE1.1.tiff")
    return ("all",), ("all",)


READER = Reader(
    layout="213 files named like KM.NE1.1.tiff",
    parse=parse,
    tree="""\
KA.AN1.39.tiff                               subject . expression and take . number
KM.NE1.1.tiff ...                            in the folder or below it""",
    card=DatasetCard(
        title="Japanese Female Facial Expression",
        about="posed portraits, 10 people",
        apply="https://zenodo.org/record/3451524",
        licence="non-commercial research; on request",
        split="none",
        split_note="all 213 are adapted to and scored",
        paper="Lyons, Akamatsu, Kamachi and Gyoba: Coding facial expressions with Gabor wavelets. FG 1998",
        # list: the 213 file names themselves
        releases=(Official.of_whole((30, 32, 29, 31, 31, 30, 30)),),
        subjects=10,
    ),
)
