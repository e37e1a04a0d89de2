"""RAF-DB, basic emotions (Li, Deng and Du, CVPR 2017): the release, or the class folders 1 to 7 as on Kaggle."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.class_folders import find_classes, labelled_pictures
from fercli.datasets.parsing import is_code, numbers_in, text_lines
from fercli.datasets.protocol import WHOLE, Protocol, default_protocol, known_split
from fercli.datasets.reader import Box, Collector, Points, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.tree_files import count_unlisted, first_existing, table_rows
from fercli.expressions import EXPRESSIONS

#: list_patition_label.txt: 1 surprise 2 fear 3 disgust 4 happiness 5 sadness 6 anger 7 neutral.
CODES: dict[int, int | None] = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6}

#: A row of the list: the image, whose name may contain spaces, its code, and further fields that some lists have.
_ROW = re.compile(r"\s*(?P<name>\S.*?\.\w{3,4})\s+(?P<code>\S+)(?P<more>(?:\s+\S+)*)\s*")

#: An image's name, as released.
_OFFICIAL = re.compile(r"(?P<name>(?P<split>train|test)_\d+)(?:_aligned)?")


def parse(root: Path, collector: Collector, images: str | None = None) -> Protocol:
    """Read the label list, or the class folders if there is none.

    `images` is ``original`` or ``aligned`` (default: the originals if they exist). The released boxes and landmarks are
    in pixels of the originals and are used only with these.
    """
    if images not in (None, "original", "aligned"):
        raise WrongOption(f"option images is '{images}', not 'original' or 'aligned'")
    listed = first_existing(root, "EmoLabel/list_patition_label.txt", "EmoLabel/list_partition_label.txt")
    if listed is None and images != "original":
        return _parse_folders(root, collector)
    if listed is None:
        raise WrongLayout("no EmoLabel/list_patition_label.txt")
    kind = images or ("original" if (root / "Image/original").is_dir() else "aligned")
    if not (root / "Image" / kind).is_dir():
        raise WrongLayout(f"no Image/{images}" if images else "no Image/original and no Image/aligned")
    landmarks = root / "Annotation/manual" if kind == "original" else None
    boxes = root / "Annotation/boundingbox" if kind == "original" else None
    names: set[str] = set()
    for _, line in text_lines(listed):
        row = _ROW.fullmatch(line)
        split = row["name"].split("_", 1)[0].lower() if row else ""
        if split not in ("train", "test"):
            collector.leave_out("unreadable row")
            continue
        name = row["name"]
        stem, ending = os.path.splitext(name)
        file = name if kind == "original" else f"{stem}_aligned{ending}"
        names.add(file)
        more = row["more"].split()
        if more and [known_split(word) for word in more] != [split]:
            # It is not known which number is the label: lists of noisy labels have two.
            collector.leave_out(f"row with {2 + len(more)} fields (expected: an image and its code)")
            continue
        label = collector.label(CODES, row["code"])
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


def _parse_folders(root: Path, collector: Collector) -> Protocol:
    """Read train/1/train_00001_aligned.jpg ..., and compare with train_labels.csv and test_labels.csv if they exist.

    Raises WrongLayout if a folder is not a code of RAF-DB (the others may then be another dataset's codes too), or if
    a csv and an image's folder disagree.
    """
    folders = find_classes(root, collector)
    if not folders:
        raise WrongLayout("no EmoLabel/list_patition_label.txt and no class folders train/1/ ... train/7/")
    other = [folder for folder, _ in folders if is_code(folder.name) and int(folder.name) not in CODES]
    if other:
        raise WrongLayout(
            f"the class folder {other[0].relative_to(root).as_posix()}/ is not a code of RAF-DB (1 to 7)",
            "if the numbers mean something else, use the reader folders with the option codes",
        )
    tables = {parent: _labels_beside(parent, root, collector) for parent in {folder.parent for folder, _ in folders}}
    seen: set[str] = set()
    official: dict[str, str] = {}
    for path, label, split in labelled_pictures(folders, root, collector, lambda code: CODES[int(code)]):
        name = path.rsplit("/", 1)[-1]
        seen.add(name)
        for parent, said in tables.items():
            if (root / path).is_relative_to(parent) and said.get(name, label) != label:
                raise WrongLayout(
                    f"{parent.name}_labels.csv gives {EXPRESSIONS[said[name]]} for {path}, but its folder gives "
                    f"{EXPRESSIONS[label]}"
                )
        stem, ending = os.path.splitext(name)
        named = _OFFICIAL.fullmatch(stem)
        if named is None:  # other names may occur in several folders
            collector.add(Record(id=path, path=path, label=label, split=split))
            continue
        split = named["split"] if split == WHOLE else split
        if {split, named["split"]} == {"train", "test"}:
            raise WrongLayout(f"{path} is named as a {named['split']} image but is in a folder of {split} images")
        first = official.setdefault(named["name"], path)
        if first != path:
            raise WrongLayout(f"{first} and {path} are the same image of RAF-DB by their names; remove one of them")
        collector.add(Record(id=f"{named['name']}{ending}", path=path, label=label, split=split))
    collector.leave_out("row without file", sum(name not in seen for said in tables.values() for name in said))
    return default_protocol(record.split for record in collector.records)


def _labels_beside(part: Path, root: Path, collector: Collector) -> dict[str, int]:
    """Return {image: label} from train_labels.csv (columns image, label) next to train/ or above it; {} if missing."""
    beside = (above / f"{part.name}_labels.csv" for above in part.parents if above.is_relative_to(root))
    table = next((path for path in beside if path.is_file()), None)
    if table is None:
        return {}
    found = {}
    for columns, row in table_rows(table, ("image", "label")):
        image, code = columns["image"], columns["label"]
        if len(row) <= max(image, code):
            collector.leave_out("unreadable row")
        elif (label := collector.label(CODES, row[code])) is not None:
            found[row[image].strip()] = label
    return found


def _points(folder: Path | None, stem: str) -> Points | None:
    # Five lines of x y, then gender, race and age, one number per line.
    numbers = numbers_in(folder / f"{stem}_manu_attri.txt")[:10] if folder else []
    return tuple(zip(numbers[0::2], numbers[1::2], strict=True)) if len(numbers) == 10 else None


def _box(folder: Path | None, stem: str) -> Box | None:
    numbers = numbers_in(folder / f"{stem}_boundingbox.txt") if folder else []
    return tuple(numbers) if len(numbers) == 4 and numbers[2] > numbers[0] and numbers[3] > numbers[1] else None


READER = Reader(
    layout="EmoLabel/list_patition_label.txt, Image/original/train_00001.jpg ... (or Image/aligned/*_aligned.jpg), "
    "and Annotation/{manual,boundingbox}/ if you have them; or train/1/train_00001_aligned.jpg ... as on Kaggle",
    parse=parse,
    codes=CODES,
    tree="""\
EmoLabel/
  list_patition_label.txt                    rows: train_00001.jpg 5
Image/
  original/train_00001.jpg ...               or aligned/train_00001_aligned.jpg ...
Annotation/                                  if you have it
  manual/train_00001_manu_attri.txt          five landmarks, then gender, race, age
  boundingbox/train_00001_boundingbox.txt    left top right bottom

or as on Kaggle, possibly below DATASET/:
train/
  1/train_00001_aligned.jpg ...              and 2/ ... 7/, the codes in the list
test/
  1/test_0002_aligned.jpg ...
train_labels.csv, test_labels.csv            if you have them: image,label""",
    option_help={"images": "original or aligned (default: the originals if they exist)"},
    card=DatasetCard(
        title="Real-world Affective Faces Database, basic expressions",
        about="web images",
        apply="http://www.whdeng.cn/raf/model1.html",
        licence="non-commercial research; on request",
        split="official",
        paper="Li, Deng and Du: Reliable crowdsourcing and deep locality-preserving learning for expression "
        "recognition in the wild. CVPR 2017",
        # train: paper; test: field
        releases=(
            Official.of_splits(train=(1290, 281, 717, 4772, 1982, 705, 2524), test=(329, 74, 160, 1185, 478, 162, 680)),
        ),
    ),
)
