"""Datasets: one module each, with all that is known of one: how to read it, its label codes, tree, options and card.

Readers from outside are named ``module:READER`` where the spec takes a reader.

- `reader`: `Reader`, the registry's entry; `Record` and `Listing`, what it gives; what it leaves out, counted;
- `protocol`: splits: their names, who trains and who is scored, splits by hash;
- `card`: sizes, licence, where to apply, the paper;
- `check`: compares a copy of a dataset with its card;
- `codes`, `parsing`, `tree_files`, `class_folders`, `sequences`: what readers share;
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

#: A reader's name in the run spec, and the module here whose READER it is. A new dataset: one module, one line.
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


def find_reader(name: str, what: str = "no dataset") -> str:
    """Return the name of a reader as the registry has it, case aside; one from outside as it is.

    Raises FercliError, which begins with `what` and names the nearest, for one that does not exist.
    """
    if is_place(name):
        return name
    found = next((known for known in READERS if known == name.strip().lower()), None)
    if found is None:
        near = difflib.get_close_matches(name.lower(), READERS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise FercliError(f"{what} '{name}' (there are: {', '.join(READERS)}){hint}")
    return found


def read_dataset(name: str, reader: str, root: str | os.PathLike[str], **options: object) -> Listing:
    """List the dataset called `name`, which lies at `root` in the layout of `reader`, without reading any image.

    Raises FercliError, one line, for an unknown reader or option and for a folder that is missing or of another layout.
    """
    return get_reader(reader, f"{name}: unknown reader").read(root, name=name, **options)


def get_reader(name: str, what: str = "no dataset") -> Reader:
    """Return a reader by its name; raises as `find_reader`, and for a name from outside that leads to no reader."""
    name = find_reader(name, what)
    if name in READERS:
        return READERS[name]
    found = import_from(name, "reader")
    if not isinstance(found, Reader):
        raise SpecError(f"reader: {name} is no reader: make it a fercli.datasets.reader.Reader")
    return found
