"""Folders that stand for a class: where they are in a tree, and the images in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fercli.datasets.parsing import is_code
from fercli.datasets.protocol import WHOLE, known_split, split_name
from fercli.datasets.reader import Collector
from fercli.datasets.tree_files import images_under, subfolders
from fercli.expressions import label_of


def find_classes(root: Path, collector: Collector) -> list[tuple[Path, str]]:
    """Return the folders that stand for a class, each with its split; none if the tree has another layout.

    Class folders are named after an expression or by a number. They are side by side in the root or in a folder per
    split. Other folders next to them are returned too (classes of other names), and images elsewhere are counted.
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
        folders: each class folder with its split, from `find_classes`. A class folder without a split may contain a
            folder per split.
        root: the folder that the paths are relative to.
        collector: counts the images of folders that stand for none of the seven.
        by_code: returns the label of a folder named by a number. It returns None, and counts the image, if the number
            is none of the seven.
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
