"""Finding the images and lists of a dataset's tree."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice
from pathlib import Path

from fercli import media
from fercli.datasets.reader import SYNTHETIC_MARKER, Collector, WrongLayout, WrongOption


def is_image_name(name: str) -> bool:
    """Tell whether a file name ends as an image's does (`fercli.media`); hidden files never count."""
    return not name.startswith(".") and media.is_picture_name(name)


def images_under(folder: Path, root: Path, collector: Collector) -> Iterator[str]:
    """Yield what is named like an image below `folder`, as sorted paths relative to `root` with `/`.

    Folders and dangling links named like images are yielded too, to be rejected with their reason when they are read;
    other files are counted as left out by their ending, hidden ones and litter ignored. Each real folder is read once.
    Raises OSError for a folder that cannot be read: a dataset must not lose images unnoticed.
    """
    for path in media.walk(folder, closed=is_image_name):
        name = os.path.basename(path)
        if is_image_name(name):
            yield Path(path).relative_to(root).as_posix()
        elif name != SYNTHETIC_MARKER:
            collector.leave_out(media.describe_skipped(name))


def folder_holding(root: Path, folders: Sequence[str], names: Iterable[str]) -> str | None:
    """Return the first of the folders (below root; "" is the root) that holds one of the files, or None.

    The names are tried in turn, for the first ones listed may be missing; but no more than a thousand of them.
    """
    there = [folder for folder in folders if (root / folder).is_dir()]
    tries = ((folder, name) for name in islice(names, 1000) for folder in there)
    return next((folder for folder, name in tries if os.path.exists(os.path.join(root, folder, name))), None)


def count_unlisted(folder: Path, listed: Set[str], collector: Collector, prefix: str = "") -> None:
    """Count the images directly in `folder` that no row of the label file names: `prefix` + name is not in `listed`."""
    with os.scandir(folder) as entries:
        names = (prefix + entry.name for entry in entries if is_image_name(entry.name))
        collector.leave_out("file without row", sum(name not in listed for name in names))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones, litter, and links to a folder that holds it."""
    return list(map(Path, media.subfolders(folder)))


def first_existing(root: Path, *candidates: str) -> Path | None:
    """Return the first of the paths below root that exists, or None."""
    return next((root / name for name in candidates if (root / name).exists()), None)


def table_rows(table: Path, needed: Sequence[str]) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Yield (columns by their names in lower case, row) of every row of a csv below its header, empty ones skipped.

    Raises WrongLayout where a column in `needed` is missing.
    """
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        rows = csv.reader(opened)
        columns = {name.strip().lower(): i for i, name in enumerate(next(rows, []))}
        missing = [name for name in needed if name.lower() not in columns]
        if missing:
            raise WrongLayout(f"{table.name} lacks the column {' and '.join(missing)}")
        yield from ((columns, row) for row in rows if row)


def chosen_file(root: Path, file: str) -> Path:
    """Return the file below root that the option file names; raises WrongOption where it is not there."""
    if not (root / file).is_file():
        raise WrongOption(f"option file is '{file}', which is not in {root}")
    return root / file
