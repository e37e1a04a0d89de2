"""A folder per class, with or without a folder per split above: ``ROOT/happy/*.jpg`` or ``ROOT/train/happy/*.jpg``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from fercli.datasets.base import (
    Collector,
    Reader,
    WrongLayout,
    WrongOption,
    ask_for_codes,
    code_meanings,
    images_under,
    is_code,
    subfolders,
)
from fercli.datasets.protocol import WHOLE, Protocol, default_protocol, known_split, split_name
from fercli.datasets.records import Record
from fercli.expressions import label_of

#: How many folders down class folders are looked for, to say where they are.
_DEPTH = 4


def parse(root: Path, collector: Collector, codes: str | Mapping[int, str] | None = None) -> Protocol:
    """Read the class folders; a folder whose name is no expression's is counted and left out, never guessed.

    Args:
        root: holds the class folders, or folders of them; a single folder around all of it does not matter.
        collector: takes the records.
        codes: what class folders mean that are numbers: a dataset's name (``raf-db``) or {code: expression}.

    Raises WrongOption where all class folders beside each other are numbers and `codes` is not given.
    """
    meanings = code_meanings(codes)
    folders = find_classes(root, collector)
    for parent in dict.fromkeys(folder.parent for folder, _ in folders):
        names = [folder.name for folder, _ in folders if folder.parent == parent]
        numbers = sorted({int(name) for name in names if is_code(name)})
        if numbers and not meanings and not any(label_of(name) is not None for name in names):
            shown = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
            raise WrongOption(
                f"the class folders in {parent} are numbers ({shown}): {ask_for_codes(numbers)}",
                "give it with --option codes=NAME, in a run spec data.datasets.{name}.options: {{codes: NAME}}",
            )
    if not folders:
        raise _no_classes(root)
    by_code = partial(collector.label, meanings) if meanings else None
    for path, label, split in labelled_pictures(folders, root, collector, by_code):
        collector.add(Record(id=path, path=path, label=label, split=split))
    return default_protocol(record.split for record in collector.records)


def find_classes(root: Path, collector: Collector) -> list[tuple[Path, str]]:
    """Return the folders that stand for a class, each with its split; none where the tree has another layout.

    They are named after an expression or are numbers, and lie beside others in the root or in a folder per split. What
    else lies beside them is returned too (a class of another name), and images in other folders are counted.
    """
    top = root
    while not _holds_classes(top) and not any(map(_holds_classes, subfolders(top))):
        inner = subfolders(top)
        if len(inner) != 1:
            return []
        top = inner[0]
    beside = subfolders(top)
    parts = [folder for folder in beside if label_of(folder.name) is None and _holds_classes(folder)]
    named = any(label_of(folder.name) is not None for folder in beside)
    around = not named and len(parts) == 1 and known_split(parts[0].name) is None
    found = []
    for folder in beside:
        if folder in parts:
            split = WHOLE if around else split_name(folder.name)
            found += [(inner, split) for inner in subfolders(folder)]
        elif named or not parts:
            found.append((folder, WHOLE))
        else:
            collector.leave_out(f"image in {folder.name}/", sum(1 for _ in images_under(folder, root, Collector())))
    return found


def labelled_pictures(
    folders: Iterable[tuple[Path, str]],
    root: Path,
    collector: Collector,
    by_code: Callable[[str], int | None] | None,
) -> Iterator[tuple[str, int, str]]:
    """Yield (path, label, split) of the images in class folders.

    Args:
        folders: each class folder with its split, as of `find_classes`. In one without, a folder per split may lie
            below it instead of above.
        root: the paths are relative to it.
        collector: counts the images of folders that stand for none of the seven.
        by_code: label of a folder that is a number; None, and counted, where it is none of the seven.
    """
    for folder, split in folders:
        named = label_of(folder.name)
        for path in images_under(folder, root, collector):
            label = named
            if named is None and by_code is not None and is_code(folder.name):
                label = by_code(folder.name.strip())
            elif named is None:
                collector.leave_out_class(folder.name)
            if label is not None:
                below = (root / path).relative_to(folder).parts
                inner = known_split(below[0]) if split == WHOLE and len(below) > 1 else None
                yield path, label, inner or split


def _holds_classes(folder: Path) -> bool:
    inner = [below.name for below in subfolders(folder)]
    return any(label_of(name) is not None for name in inner) or (
        any(map(is_code, inner)) and not any(_holds_classes(folder / name) for name in inner)
    )


def _no_classes(root: Path) -> WrongLayout:
    """Say so, and where there are some further below."""
    for above, names, _ in os.walk(root):
        depth = len(Path(above).relative_to(root).parts)
        if depth and any(label_of(name) is not None for name in names):
            found = Path(above).relative_to(root)
            return WrongLayout(
                f"no folder named after an expression, nor one folder below (but in {found.as_posix()}/: give the "
                f"folder {found.parent.as_posix()}/ instead)"
            )
        if depth >= _DEPTH:
            names.clear()
    return WrongLayout("no folder named after an expression")


READER = Reader(
    layout="a folder per expression (surprise, fear, disgust, happiness, sadness, anger, neutral or their usual names; "
    "numbers with the option codes), possibly below train/, val/ and test/",
    parse=parse,
)
