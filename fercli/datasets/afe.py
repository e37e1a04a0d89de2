"""AFE, Asian facial expressions from films (Chen et al., TPAMI 2022): a box and a label per face; official splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fercli.datasets.card import DatasetCard
from fercli.datasets.parsing import number_in, text_lines
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout
from fercli.datasets.tree_files import first_existing, folder_holding

#: 0 angry 1 disgust 2 fear 3 happy 4 neutral 5 sad 6 surprise.
CODES: dict[int, int | None] = {0: 5, 1: 2, 2: 1, 3: 3, 4: 6, 5: 4, 6: 0}

# The scored split comes first: an image on both lists stays in it and is removed from training.
_LISTS = {"test": "Test.csv", "train": "Train.csv"}


def parse(root: Path, collector: Collector, images: str | None = None) -> Protocol:
    """Read both lists. A row is ``path left top right bottom emotion``, separated by spaces.

    An image may show several faces. A face's id is its image and its box as written, so it does not depend on the
    other rows. `images` is the folder that the paths are relative to (default: ``src/image``, ``images``, ``image`` or
    the root, whichever has the images).
    """
    annos = first_existing(root, "annos/TrainTest", "TrainTest")
    lists = {split: annos / name for split, name in _LISTS.items() if annos and (annos / name).is_file()}
    if not lists:
        raise WrongLayout("no annos/TrainTest/Train.csv")
    if images is None:
        names = (path for table in lists.values() for path, _, _ in _rows(table, Collector()))
        images = folder_holding(root, ("src/image", "images", "image", ""), names)
    folder = "images/" if images is None else f"{images}/" if images else ""
    tested: set[str] = set()
    for split, table in lists.items():
        for path, box, code in _rows(table, collector):
            if split == "test":
                tested.add(path)
            elif path in tested:
                collector.leave_out("training row of a test image")
                continue
            label = collector.label(CODES, code)
            if label is not None:
                corners = tuple(float(v) for v in box)
                face = f"{path}#{','.join(box)}"
                collector.add(Record(id=face, path=folder + path, label=label, split=split, box=corners))
        collector.need_rows(table, "path left top right bottom emotion")
    return ("train",), ("test",)


def _rows(table: Path, collector: Collector) -> Iterator[tuple[str, list[str], str]]:
    for number, line in text_lines(table):
        fields = line.rsplit(None, 5)
        if number == 1 and fields[-1].strip('"').lower() in ("emotion", "label", "expression"):
            continue
        if len(fields) == 6 and None not in map(number_in, fields[1:5]):
            yield fields[0].strip(), fields[1:5], fields[5]
        else:
            collector.leave_out("unreadable row")


READER = Reader(
    layout="annos/TrainTest/{Train,Test}.csv (path left top right bottom emotion) and src/image/ (or images/) with the "
    "listed images",
    parse=parse,
    codes=CODES,
    tree="""\
annos/TrainTest/
  Train.csv                                  rows: path left top right bottom emotion
  Test.csv
src/image/                                   or images/, image/, or next to annos/
  PATH ...                                   as named in the rows""",
    option_help={"images": "base folder of the listed paths (default: src/image, images, image or the root)"},
    card=DatasetCard(
        title="Asian Facial Expression",
        about="stills from Asian films, with face boxes",
        apply="https://github.com/HCPLab-SYSU/CD-FER-Benchmark",
        licence="research; agreement signed by a faculty member",
        split="official",
        paper="Chen et al.: Cross-domain facial expression recognition: a unified evaluation benchmark and adversarial "
        "graph learning. TPAMI 2022",
    ),
)
