"""A dataset's reader: the registry entry, the records that it lists, and the counts of what it leaves out."""

from __future__ import annotations

import csv
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercli.datasets.card import DatasetCard
from fercli.datasets.parsing import whole_number
from fercli.datasets.protocol import Protocol, UnknownSplits, settle
from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS, UNLABELLED, is_outside, label_of

#: A folder with this file contains procedural faces written by fercli, not the real dataset.
SYNTHETIC_MARKER = "PROCEDURAL-FACES.txt"

#: Options of every reader, with help texts. A reader whose `parse` has an option of the same name uses its own.
PROTOCOL_OPTIONS = {
    "adapt": "splits that are trained on or adapted to: one, a list, or all (default: the dataset's protocol)",
    "score": "splits that are scored: one, a list, or all; a split that is also adapted to must be named here",
}

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Record:
    """One face as its dataset lists it. The image has not been read yet.

    Attributes:
        id: unique in its dataset and stable from run to run (``train_00001.jpg``, ``name.jpg#2`` for face 2).
        path: the image (or the csv that contains it), relative to the dataset's root.
        label: 0..6 in the order of `fercli.expressions.EXPRESSIONS`, or -1 if it is not known.
        split: the dataset's own split (``train``, ``val``, ``test``, ``public-test``, ``all``, ...).
        subject: the person, if the dataset names them.
        box: face box (left, top, right, bottom) in pixels of the image, if the dataset gives one.
        landmarks: five points (x, y) in pixels of the image: image-left eye, image-right eye, nose tip, image-left and
            image-right mouth corner, if the dataset gives them.
        offset: byte offset of the image's row if `path` is a csv of pixels (FER2013), else None.
        cropped: whether the image is a face that the dataset has cropped. If ``prepare.align`` is ``box``, the face box
            is then the whole image, as in the released code of AGLRLS. Face detection still runs.
    """

    id: str
    path: str
    label: int = UNLABELLED
    split: str = "all"
    subject: str | None = None
    box: Box | None = None
    landmarks: Points | None = None
    offset: int | None = None
    # Not in the representation, by which stores with other alignments identify their records.
    cropped: bool = field(default=False, repr=False)


@dataclass
class Listing:
    """All records of one dataset, and the counts of what its reader left out.

    Attributes:
        name: the user's name for the dataset.
        root: its folder.
        records: in the order of the dataset's own list.
        adapt_splits: the splits that are trained on (as a source) or adapted to (as a target).
        score_splits: the splits on which accuracy is reported.
        left_out: how many entries were left out, by reason (``contempt``, ``row without file``, ...).
        synthetic: true for procedural faces that fercli wrote in this layout.
    """

    name: str
    root: Path
    records: list[Record]
    adapt_splits: tuple[str, ...]
    score_splits: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    synthetic: bool = False

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Reader:
    """All that fercli knows about one dataset, as stored in the registry.

    Attributes:
        layout: what its folder should contain, in one line.
        parse: reads a tree: (root, collector, **options) -> (adapt_splits, score_splits), or raises UnknownSplits.
        codes: {number that stands for an expression: label 0..6 in the order of `fercli.expressions.EXPRESSIONS`}. The
            label is None for those outside the seven.
        tree: the expected files and folders as an indented tree, with notes on their contents (default: `layout`).
        option_help: help text for each option of `parse`, one line each.
        card: sizes, terms, where to request it; None for a layout for the user's own files.
    """

    layout: str
    parse: Callable[..., Protocol]
    codes: Mapping[int, int | None] = field(default_factory=dict)
    tree: str = ""
    option_help: Mapping[str, str] = field(default_factory=dict)
    card: DatasetCard | None = None

    @property
    def _own(self) -> dict[str, object]:
        """The options of `parse`, by name, with their defaults."""
        taken = list(inspect.signature(self.parse).parameters.values())[2:]
        return {option.name: option.default for option in taken}

    @property
    def options(self) -> dict[str, object]:
        """The options that `read` takes, by name, with their defaults (`inspect.Parameter.empty`: required)."""
        return {**self._own, **{name: None for name in PROTOCOL_OPTIONS if name not in self._own}}

    @property
    def tree_lines(self) -> list[str]:
        """The lines of the expected tree."""
        return (self.tree or self.layout).splitlines()

    def describe_options(self) -> list[dict[str, Any]]:
        """Return ``name``, ``default`` (None if there is none) and ``values`` (in words) of each option."""
        texts, described = {**PROTOCOL_OPTIONS, **self.option_help}, []
        for option, default in self.options.items():
            needed = default is inspect.Parameter.empty
            values = texts.get(option, "required" if needed else "")
            described.append({"name": option, "default": None if needed else default, "values": values})
        return described

    def document(self) -> dict[str, Any]:
        """Return all that is known about the dataset and its layout, ready for JSON."""
        layout = {"layout": self.layout, "tree": self.tree_lines, "options": self.describe_options()}
        return {**(self.card.document() if self.card else {}), **layout}

    def read(self, root: str | os.PathLike[str], name: str = "dataset", **options: object) -> Listing:
        """List the dataset at `root`.

        The options ``adapt`` and ``score`` say which splits are adapted to (or trained on) and which are scored. Their
        default is the dataset's protocol (`fercli.datasets.protocol.settle`).

        Raises FercliError if the folder does not have this layout or the splits are not understood.
        """
        root = Path(root)
        own, known = self._own, self.options
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise FercliError(f"{name}: this reader has no option '{unknown[0]}' (it has: {', '.join(known)})")
        needed = [key for key, default in own.items() if default is inspect.Parameter.empty and key not in options]
        if needed:
            raise FercliError(
                f"{name}: this reader needs the option {needed[0]}; give --option {needed[0]}=..., or in a run spec "
                f"data.datasets.{name}.options: {{{needed[0]}: ...}}"
            )
        if not root.is_dir():
            what = f"{root} is a file, not a folder" if root.exists() else f"no such folder: {root}"
            raise FercliError(f"{name}: {what}; expected: {self.layout}")
        collector = Collector()
        protocol: Protocol | UnknownSplits
        try:
            protocol = self.parse(root, collector, **{key: value for key, value in options.items() if key in own})
        except UnknownSplits as names:
            protocol = names
        except WrongOption as wrong:
            raise FercliError(f"{name}: {wrong}{wrong.hint_for(name)}") from None
        except WrongLayout as wrong:
            where = f"{wrong} in {root}; expected: {self.layout}"
            raise FercliError(f"{name}: {where}{wrong.hint_for(name)}") from None
        except csv.Error as failure:
            raise FercliError(f"{name}: a csv in {root} cannot be read: {failure}") from None
        except OSError as failure:
            raise FercliError(f"{name}: {failure.filename or root} cannot be read: {failure.strerror}") from None
        if not collector.records:
            counts = ", ".join(f"{count} {reason}" for reason, count in collector.left_out.items())
            left = f" (left out: {counts})" if counts else ""
            raise FercliError(f"{name}: nothing usable in {root}{left}; expected: {self.layout}")
        present = list(dict.fromkeys(record.split for record in collector.records))
        stated = {key: options.get(key) for key in PROTOCOL_OPTIONS if key not in own}
        adapt_splits, score_splits = settle(name, root, present, protocol, **stated)
        return Listing(
            name=name,
            root=root,
            records=collector.records,
            adapt_splits=adapt_splits,
            score_splits=score_splits,
            left_out=dict(collector.left_out),
            synthetic=(root / SYNTHETIC_MARKER).is_file(),
        )


#: Every reader by its name in the run spec. `fercli.datasets` fills it. It is defined here for modules that use what
#: other readers know (`fercli.datasets.codes`).
READERS: dict[str, Reader] = {}


class _Hinted(Exception):
    """An error with an optional `hint` on what to do. ``{name}`` in the hint stands for the dataset's name."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint

    def hint_for(self, name: str) -> str:
        """Return the hint, to be appended to the message."""
        return f"; {self.hint.format(name=name)}" if self.hint else ""


class WrongLayout(_Hinted):
    """The folder exists but does not have the expected layout. The message says what is wrong."""


class WrongOption(_Hinted):
    """An option's value is not valid. The message names the option, the value and what is allowed."""

    def __init__(
        self,
        message: str,
        hint: str = "give options with --option NAME=VALUE, or in a run spec under data.datasets.{name}.options",
    ):
        super().__init__(message, hint)


@dataclass
class Collector:
    """Collects records, and counts by reason what is left out."""

    records: list[Record] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _ids: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Keep the record, unless its id was listed before. The first one counts."""
        if record.label not in range(UNLABELLED, NUM_EXPRESSIONS):
            allowed = f"{UNLABELLED} to {NUM_EXPRESSIONS - 1}"
            raise FercliError(f"{record.id}: the reader gave the label {record.label!r}; it must be {allowed}")
        first = self._ids.setdefault(record.id, record.label)
        if len(self._ids) > len(self.records):
            self.records.append(record)
        else:
            self.leave_out("listed twice" if first == record.label else "listed twice with different labels")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count entries that do not become a record."""
        if count:
            self.left_out[reason] += count

    def label(self, codes: Mapping[int, int | None], text: str) -> int | None:
        """Return the label that a code stands for; None, with the reason counted, if it is none of the seven."""
        code = whole_number(text)
        label = None if code is None else codes.get(code)
        if label is None:
            self.leave_out(
                f"label '{code}' outside the seven" if code in codes else f"unknown code {_shortened(text)!r}"
            )
        return label

    def need_rows(self, file: Path, row: str) -> None:
        """Raise WrongLayout if no row of a file could be read. It names the file and the expected form of a row."""
        if not self.records and set(self.left_out) == {"unreadable row"}:
            raise WrongLayout(f"{file.name} lacks a column: none of its rows has the form '{row}'")

    def leave_out_class(self, name: str, count: int = 1, kind: str = "class") -> None:
        """Count images of a class folder, or of a label, that is not named after one of the seven expressions."""
        known = is_outside(name)
        reason = f"{name.strip().lower()} (outside the seven)" if known else f"unknown {kind} {_shortened(name)!r}"
        self.leave_out(reason, count)

    def named_label(self, name: str) -> int | None:
        """Return the label that a class name stands for; None, with the reason counted, as in `label`."""
        label = label_of(name)
        if label is None:
            self.leave_out_class(name, kind="label")
        return label


def _shortened(text: str) -> str:
    """Return a text shortened for use in a message."""
    return text if len(text) <= 40 else f"{text[:37]}..."
