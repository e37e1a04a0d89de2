"""Datasets, one module each: how to read the dataset, its label codes, folder tree, options and card.

Where the spec takes a reader, a reader from outside fercli is named ``module:READER``.

- `reader`: `Reader`, the registry's entry; `Record` and `Listing`, its output; the counts of what it leaves out;
- `protocol`: splits: their names, which train and which are scored, splits by hash;
- `card`: sizes, licence, where to request the data, the paper;
- `check`: compares a copy of a dataset with its card;
- `codes`, `parsing`, `tree_files`, `class_folders`, `sequences`: code that readers share;
- `csv_list`, `csv_boxes`, `csv_paths`: a user's own csv list, its boxes, the paths of its images;
- `folders`: a folder per class;
- `raf_db`, `ck_plus`, `jaffe`, `sfew`, `fer2013`, `expw`, `afe`, `affectnet`, `ferplus`, `oulu_casia`, `mmi`: one
  dataset each.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module

from fercli.datasets.reader import READERS, SYNTHETIC_MARKER, Listing, Reader, Record
from fercli.errors import FercliError, SpecError
from fercli.spec.plugins import import_from, is_place

#: A reader's name in the run spec, and the module in this package that defines it as READER. A new dataset needs one
#: module and one line here.
_MODULES = {
    "raf-db": "raf_db",
    "ck+": "ck_plus",
    "jaffe": "jaffe",
    "sfew": "sfew",
    "fer2013": "fer2013",
    "expw": "expw",
    "afe": "afe",
    "affectnet": "affectnet",
    "ferplus": "ferplus",
    "oulu-casia": "oulu_casia",
    "mmi": "mmi",
    "folders": "folders",
    "csv": "csv_list",
}
READERS.update((name, import_module(f"{__name__}.{module}").READER) for name, module in _MODULES.items())

__all__ = ["READERS", "SYNTHETIC_MARKER", "Listing", "Reader", "Record", "find_reader", "get_reader", "read_dataset"]


def find_reader(name: str, what: str = "no such dataset:") -> str:
    """Return a reader's name as the registry spells it, ignoring case. A name from outside fercli is returned as it is.

    Raises FercliError for an unknown reader. Its message begins with `what` and suggests the nearest name.
    """
    if is_place(name):
        return name
    found = next((known for known in READERS if known == name.strip().lower()), None)
    if found is None:
        near = difflib.get_close_matches(name.lower(), READERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FercliError(f"{what} '{name}' (available: {', '.join(READERS)}){hint}")
    return found


def read_dataset(name: str, reader: str, root: str | os.PathLike[str], **options: object) -> Listing:
    """List the dataset called `name`, stored at `root` in the layout of `reader`, without reading any image.

    Raises FercliError, one line, for an unknown reader or option and for a folder that is missing or has another
    layout.
    """
    return get_reader(reader, f"{name}: unknown reader").read(root, name=name, **options)


def get_reader(name: str, what: str = "no such dataset:") -> Reader:
    """Return a reader by name. Raises as `find_reader`, and for a name from outside fercli that is not a reader."""
    name = find_reader(name, what)
    if name in READERS:
        return READERS[name]
    found = import_from(name, "reader")
    if not isinstance(found, Reader):
        raise SpecError(f"reader: {name} is not a reader; make it an instance of fercli.datasets.reader.Reader")
    return found
