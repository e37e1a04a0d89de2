"""ExpW (Zhang et al., IJCV 2018): web images, some with several faces, each with a box and an expression."""

from __future__ import annotations

from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.parsing import number_in, text_lines, whole_number
from fercli.datasets.protocol import Protocol, hashed_part
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout
from fercli.datasets.tree_files import count_unlisted, first_existing

#: The codes of FER2013: 0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral.
CODES: dict[int, int | None] = {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6}

#: One image in ONE_IN is for testing.
ONE_IN = 5


def split_of(image_name: str) -> str:
    """Return ``train`` or ``test`` for an image. The split is OURS and frozen.

    ExpW has no split and the benchmark's is lost. A fifth of the images is for testing, by `hashed_part` of the name.
    The split is by image, so that faces of one image are never in both splits.
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
        label = collector.label(CODES, code)
        if label is None:
            continue
        box = (left, top, right, bottom)
        collector.add(Record(id=f"{name}#{face}", path=f"{folder}/{name}", label=label, split=split_of(name), box=box))
    collector.need_rows(listed, "image_name face_id top left right bottom confidence label")
    count_unlisted(images, names, collector)
    return ("train",), ("test",)


READER = Reader(
    layout="label/label.lst and data/image/origin/*.jpg (or image/origin/)",
    parse=parse,
    codes=CODES,
    tree="""\
label/
  label.lst                                  name face top left right bottom confidence label
data/image/origin/                           or image/origin/
  afraid_African_214.jpg ...""",
    card=DatasetCard(
        title="Expression in-the-Wild",
        about="web images, with face boxes",
        apply="http://mmlab.ie.cuhk.edu.hk/projects/socialrelation/index.html",
        licence="non-commercial research",
        split="fercli's, by image",
        split_note="a fifth for testing, by a hash of the name: ExpW has no split, and the benchmark's is lost",
        paper="Zhang, Luo, Loy and Tang: From facial expression recognition to interpersonal relation prediction. "
        "IJCV 2018",
        # list
        releases=(Official.of_whole((7060, 1088, 3995, 30537, 10559, 3671, 34883)),),
    ),
)
