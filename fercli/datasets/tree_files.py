"""Find the images and lists in a dataset's tree."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice
from pathlib import Path

from fercli import media
from fercli.datasets.reader import SYNTHETIC_MARKER, Collector, WrongLayout, WrongOption


def is_image_name(name: str) -> bool:
    """Return whether a file name ends like an image's (`fercli.media`). Hidden files never count."""
    return not name.startswith(".") and media.is_picture_name(name)


def images_under(folder: Path, root: Path, collector: Collector) -> Iterator[str]:
    """Yield everything named like an image below `folder`, as sorted paths relative to `root` with `/`.

    Folders and dangling links named like images are yielded too, so that they are rejected with a reason when they are
    read. Other files are counted as left out, by their ending; hidden files and litter are ignored. Each real folder is
    read once. Raises OSError for a folder that cannot be read: a dataset must not lose images unnoticed.
    """
    for path in media.walk(folder, closed=is_image_name):
        name = os.path.basename(path)
        if is_image_name(name):
            yield Path(path).relative_to(root).as_posix()
        elif name != SYNTHETIC_MARKER:
            collector.leave_out(media.describe_skipped(name))


def folder_holding(root: Path, folders: Sequence[str], names: Iterable[str]) -> str | None:
    """Return the first of the folders (below root; "" is the root) that contains one of the files, or None.

    At most a thousand names are tried in turn, because the first ones listed may be missing.
    """
    there = [folder for folder in folders if (root / folder).is_dir()]
    tries = ((folder, name) for name in islice(names, 1000) for folder in there)
    return next((folder for folder, name in tries if os.path.exists(os.path.join(root, folder, name))), None)


def count_unlisted(folder: Path, listed: Set[str], collector: Collector, prefix: str = "") -> None:
    """Count the images directly in `folder` without a row in the label file: `prefix` + name is not in `listed`."""
    with os.scandir(folder) as entries:
        names = (prefix + entry.name for entry in entries if is_image_name(entry.name))
        collector.leave_out("file without row", sum(name not in listed for name in names))


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted, without hidden ones, litter and links to a folder that contains it."""
    return list(map(Path, media.subfolders(folder)))


def first_existing(root: Path, *candidates: str) -> Path | None:
    """Return the first of the paths below root that exists, or None."""
    return next((root / name for name in candidates if (root / name).exists()), None)


def table_rows(table: Path, needed: Sequence[str]) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Yield (column indices by lower-case name, row) of every row of a csv below its header. Empty rows are skipped.

    Raises WrongLayout if a column in `needed` is missing.
    """
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        rows = csv.reader(opened)
        columns = {name.strip().lower(): i for i, name in enumerate(next(rows, []))}
        missing = [name for name in needed if name.lower() not in columns]
        if missing:
            raise WrongLayout(f"{table.name} lacks the column {' and '.join(missing)}")
        yield from ((columns, row) for row in rows if row)


def chosen_file(root: Path, file: str) -> Path:
    """Return the file below root that the option file names. Raises WrongOption if it does not exist."""
    if not (root / file).is_file():
        raise WrongOption(f"option file is '{file}', which is not in {root}")
    return root / file
