"""A folder per class, possibly inside a folder per split: ``ROOT/happy/*.jpg`` or ``ROOT/train/happy/*.jpg``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fercli.datasets.class_folders import find_classes, labelled_pictures
from fercli.datasets.codes import ask_for_codes, code_meanings
from fercli.datasets.parsing import is_code
from fercli.datasets.protocol import WHOLE, Protocol, default_protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.tree_files import images_under
from fercli.errors import FercliError
from fercli.expressions import UNLABELLED, label_of

#: How deep class folders are searched for, to say in a message where they are.
_DEPTH = 4


def parse(
    root: Path, collector: Collector, codes: str | Mapping[int, str] | None = None, labelled: bool = True
) -> Protocol:
    """Read the class folders. A folder not named after an expression is counted and left out, never guessed.

    Args:
        root: contains the class folders, or a folder of them per split. A single folder around everything is accepted.
        collector: receives the records.
        codes: the meaning of numeric class folders: a dataset's name (``raf-db``) or {code: expression}.
        labelled: False takes every image below the root, whatever its folder is called, without a label or a split.

    Raises WrongOption if all class folders in a folder are numbers and `codes` is not given.
    """
    if not isinstance(labelled, bool):
        raise WrongOption(f"option labelled is {labelled!r}, not true or false")
    if not labelled:
        for path in images_under(root, root, collector):
            collector.add(Record(id=path, path=path, label=UNLABELLED, split=WHOLE))
        if not collector.records:
            raise FercliError(f"no image in {root}")
        return default_protocol([WHOLE])
    meanings = code_meanings(codes)
    folders = find_classes(root, collector)
    for parent in dict.fromkeys(folder.parent for folder, _ in folders):
        names = [folder.name for folder, _ in folders if folder.parent == parent]
        numbers = sorted({int(name) for name in names if is_code(name)})
        if numbers and not meanings and not any(label_of(name) is not None for name in names):
            shown = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
            raise WrongOption(
                f"the class folders in {parent} are numbers ({shown}); {ask_for_codes(numbers)}",
                "give it with --option codes=NAME, or in a run spec with data.datasets.{name}.options: {{codes: NAME}}",
            )
    if not folders:
        raise _no_classes(root)
    by_code = partial(collector.label, meanings) if meanings else None
    for path, label, split in labelled_pictures(folders, root, collector, by_code):
        collector.add(Record(id=path, path=path, label=label, split=split))
    return default_protocol(record.split for record in collector.records)


def _no_classes(root: Path) -> WrongLayout:
    """Return the error for missing class folders. It says where some are further below, if any."""
    for above, names, _ in os.walk(root):
        depth = len(Path(above).relative_to(root).parts)
        if depth and any(label_of(name) is not None for name in names):
            found = Path(above).relative_to(root)
            return WrongLayout(
                f"no folder named after an expression, here or one level below (found in {found.as_posix()}/; give "
                f"the folder {found.parent.as_posix()}/ instead)"
            )
        if depth >= _DEPTH:
            names.clear()
    return WrongLayout("no folder named after an expression")


READER = Reader(
    layout="a folder per expression (surprise, fear, disgust, happiness, sadness, anger, neutral or their usual names; "
    "numbers with the option codes), possibly below train/, val/ and test/; with labelled=false, images in any folder",
    parse=parse,
    tree="""\
happy/*.jpg ...                              a folder per expression, by its usual name
sad/*.jpg ...

or with splits, by their usual names:
train/happy/*.jpg ...                        and val/ test/ (Training, train_set, valid, ...)

or with numbers, explained by the option codes:
train/1/*.jpg ...""",
    option_help={
        "codes": "meaning of numeric class folders: a dataset's name (raf-db) or {1: surprise, ...}",
        "labelled": "false: all images below the folder, whatever their folders are called, as unlabelled",
    },
)
