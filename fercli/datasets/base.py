"""What every reader shares: the registry's entry, counting what is left out, and finding files."""

from __future__ import annotations

import csv
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fercli import media
from fercli.datasets.protocol import Protocol, UnknownSplits, settle
from fercli.datasets.records import Listing, Points, Record
from fercli.errors import FercliError
from fercli.expressions import CODES, EXPRESSIONS, NUM_EXPRESSIONS, UNLABELLED, is_outside, label_of

#: A folder that holds this file holds procedural faces written by fercli, not the dataset.
STAND_IN_MARKER = "PROCEDURAL-FACES.txt"

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?")

#: The options of every reader whose `parse` has none of these names.
PROTOCOL_OPTIONS = ("adapt", "score")


@dataclass(frozen=True)
class Reader:
    """One dataset's reader, as the registry holds it.

    Attributes:
        layout: one line: what its folder should hold.
        parse: reads a tree: (root, collector, **options) -> (adapt_splits, score_splits), or raises UnknownSplits.
    """

    layout: str
    parse: Callable[..., Protocol]

    @property
    def _own(self) -> dict[str, object]:
        """The options of `parse`, by name, with their defaults."""
        taken = list(inspect.signature(self.parse).parameters.values())[2:]
        return {option.name: option.default for option in taken}

    @property
    def options(self) -> dict[str, object]:
        """The options that `read` takes, by name, with their defaults (`inspect.Parameter.empty`: it must be given)."""
        return {**self._own, **{name: None for name in PROTOCOL_OPTIONS if name not in self._own}}

    def read(self, root: str | os.PathLike[str], name: str = "dataset", **options: object) -> Listing:
        """List the dataset at `root`.

        The options ``adapt`` and ``score`` say which splits are adapted to (or trained on) and which are scored; else
        the dataset's protocol says so (`fercli.datasets.protocol.settle`).

        Raises FercliError where the folder is not of this layout or the splits are not understood.
        """
        root = Path(root)
        own, known = self._own, self.options
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise FercliError(f"{name}: this reader has no option '{unknown[0]}' (it has: {', '.join(known)})")
        needed = [key for key, default in own.items() if default is inspect.Parameter.empty and key not in options]
        if needed:
            raise FercliError(
                f"{name}: this reader needs the option {needed[0]}: --option {needed[0]}=..., in a run spec "
                f"data.datasets.{name}.options: {{{needed[0]}: ...}}"
            )
        if not root.is_dir():
            what = f"{root} is a file, not a folder" if root.exists() else f"the folder {root} is missing"
            raise FercliError(f"{name}: {what}; expected there: {self.layout}")
        collector = Collector()
        protocol: Protocol | UnknownSplits
        try:
            protocol = self.parse(root, collector, **{key: value for key, value in options.items() if key in own})
        except UnknownSplits as names:
            protocol = names
        except WrongOption as wrong:
            raise FercliError(f"{name}: {wrong}{wrong.hint_for(name)}") from None
        except WrongLayout as wrong:
            where = f"{wrong} in {root}; expected there: {self.layout}"
            raise FercliError(f"{name}: {where}{wrong.hint_for(name)}") from None
        except csv.Error as failure:
            raise FercliError(f"{name}: a csv in {root} cannot be read: {failure}") from None
        except OSError as failure:
            raise FercliError(f"{name}: cannot read {failure.filename or root}: {failure.strerror}") from None
        if not collector.records:
            counts = ", ".join(f"{count} {reason}" for reason, count in collector.left_out.items())
            left = f" (left out: {counts})" if counts else ""
            raise FercliError(f"{name}: nothing usable in {root}{left}; expected there: {self.layout}")
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
            stand_in=(root / STAND_IN_MARKER).is_file(),
        )


class _Hinted(Exception):
    """`hint`, where there is one, says what else can be done; ``{name}`` in it stands for the dataset's name."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint

    def hint_for(self, name: str) -> str:
        """Return the hint, to be put behind the message."""
        return f"; {self.hint.format(name=name)}" if self.hint else ""


class WrongLayout(_Hinted):
    """The folder is there but not what was expected; the message says what is amiss."""


class WrongOption(_Hinted):
    """An option's value is none that the reader knows; the message names option, value and what is allowed."""

    def __init__(
        self,
        message: str,
        hint: str = "give options with --option NAME=VALUE, in a run spec under data.datasets.{name}.options",
    ):
        super().__init__(message, hint)


@dataclass
class Collector:
    """Gathers records, and counts whatever is left out under its reason."""

    records: list[Record] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _ids: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Keep the record, unless its id was listed before: the first one counts."""
        if record.label not in range(UNLABELLED, NUM_EXPRESSIONS):
            allowed = f"{UNLABELLED} to {NUM_EXPRESSIONS - 1}"
            raise FercliError(f"{record.id}: a reader gave it the label {record.label!r}; it must be {allowed}")
        first = self._ids.setdefault(record.id, record.label)
        if len(self._ids) > len(self.records):
            self.records.append(record)
        else:
            self.leave_out("listed twice" if first == record.label else "listed twice with different labels")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count entries that become no record."""
        if count:
            self.left_out[reason] += count

    def label(self, codes: dict[int, int | None], text: str) -> int | None:
        """Return the label that a dataset's code stands for; None, its reason counted, where it is none of ours."""
        code = whole_number(text)
        label = None if code is None else codes.get(code)
        if label is None:
            self.leave_out(
                f"label '{code}' outside the seven" if code in codes else f"unknown code {_shortened(text)!r}"
            )
        return label

    def need_rows(self, file: Path, row: str) -> None:
        """Raise WrongLayout, naming the file and what a row of it should be, where none of its rows could be read."""
        if not self.records and set(self.left_out) == {"unreadable row"}:
            raise WrongLayout(f"{file.name} lacks a column: no row of it reads '{row}'")

    def leave_out_class(self, name: str, count: int = 1) -> None:
        """Count images of a class folder whose name is none of the seven expressions'."""
        self._leave_out_name(name, "class", count)

    def named_label(self, name: str) -> int | None:
        """As `label`, for a class name."""
        label = label_of(name)
        if label is None:
            self._leave_out_name(name, "label")
        return label

    def _leave_out_name(self, name: str, kind: str, count: int = 1) -> None:
        known = is_outside(name)
        reason = f"{name.strip().lower()} (outside the seven)" if known else f"unknown {kind} {_shortened(name)!r}"
        self.leave_out(reason, count)


def whole_number(text: str) -> int | None:
    """Return the whole number that a text holds: ``3``, ``-1``, ``3.0``, ``3.000e+00``; None where it holds another.

    Only ASCII digits count, at most 15 of them: neither ``²`` nor ``1_0`` is a number.
    """
    if not _WHOLE_NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return int(value) if value.is_integer() else None


def number_in(text: str) -> float | None:
    """Return the finite number that a text holds; None where it holds something else.

    As with `whole_number` only ASCII digits count. Python would take ``1_0``, ``nan`` and the digits of all scripts.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_code(name: str) -> bool:
    """Tell whether a folder's name is a number: ASCII digits alone, no more than 15."""
    return re.fullmatch("[0-9]{1,15}", name.strip()) is not None


def _shortened(text: str) -> str:
    """Return a text of a length that a message can quote."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_image_name(name: str) -> bool:
    """Tell whether a file name ends as an image's does (`fercli.media`); hidden files never count."""
    return not name.startswith(".") and media.is_picture_name(name)


def images_under(folder: Path, root: Path, collector: Collector) -> Iterator[str]:
    """Yield what is named like an image below `folder`, as sorted paths relative to `root` with `/`.

    Folders and dangling links named like images are yielded too, to be rejected with their reason when they are read;
    other files are counted as left out by their ending, hidden ones and litter ignored. Each real folder is read once.
    Raises OSError for a folder that cannot be read: a dataset must not lose pictures unnoticed.
    """
    for path in media.walk(folder, closed=is_image_name):
        name = os.path.basename(path)
        if is_image_name(name):
            yield Path(path).relative_to(root).as_posix()
        elif name != STAND_IN_MARKER:
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


def five_of_68(values: Sequence[float | str]) -> Points | None:
    """Return our five points of the 68 of the iBUG 300-W scheme, given as x0, y0, x1, y1, ...; None if no face.

    An eye's centre is the mean of its two corners (36 and 39, 42 and 45); the nose tip is 30, the mouth corners are 48
    and 54.
    """
    if len(values) != 136:
        return None

    def mean(a: int, b: int) -> tuple[float, float]:
        xs, ys = (float(values[2 * a]), float(values[2 * b])), (float(values[2 * a + 1]), float(values[2 * b + 1]))
        return sum(xs) / 2, sum(ys) / 2

    points = (mean(36, 39), mean(42, 45), mean(30, 30), mean(48, 48), mean(54, 54))
    # NaN and infinity differ from themselves or their like; both eyes in one place are no face.
    finite = all(x - x == 0 and y - y == 0 for x, y in points)
    return points if finite and points[0] != points[1] else None


def numbers_in(path: Path) -> list[float]:
    """Return the numbers of a small annotation file, split by blanks; none where it is missing or malformed."""
    try:
        numbers = [number_in(word) for word in path.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError):
        return []
    given = [number for number in numbers if number is not None]
    return given if len(given) == len(numbers) else []


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones, litter, and links to a folder that holds it."""
    return list(map(Path, media.subfolders(folder)))


def first_existing(root: Path, *candidates: str) -> Path | None:
    """Return the first of the paths below root that exists, or None."""
    return next((root / name for name in candidates if (root / name).exists()), None)


def chosen_file(root: Path, file: str) -> Path:
    """Return the file below root that the option file names; raises WrongOption where it is not there."""
    if not (root / file).is_file():
        raise WrongOption(f"option file is '{file}', which is not in {root}")
    return root / file


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file, CRLF or LF, with or without byte order mark, blank lines skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\n")


def code_meanings(codes: str | Mapping[int, str] | None) -> dict[int, int | None]:
    """Return what the option codes says of each number: its label, None where that is none of the seven.

    Raises WrongOption, one line, where it is neither a dataset's name nor {number: expression}.
    """
    if codes is None:
        return {}
    if isinstance(codes, str):
        if codes not in CODES:
            raise WrongOption(f"option codes is '{codes}', none of {', '.join(CODES)}")
        return CODES[codes]
    if not isinstance(codes, Mapping):
        raise WrongOption(f"option codes is '{codes}', neither a dataset's name nor {{0: anger, 1: ...}}")
    labels: dict[int, int | None] = {}
    for code, name in codes.items():
        number = None if isinstance(code, bool) else whole_number(str(code))
        if number is None:
            raise WrongOption(f"option codes: '{code}' is no whole number (it maps numbers to names: {{3: happy}})")
        if label_of(str(name)) is None and not is_outside(str(name)):
            raise WrongOption(
                f"option codes: '{name}' (of {code}) is no expression ({', '.join(EXPRESSIONS)}) and none known "
                "outside the seven (contempt, other, ...)"
            )
        labels[number] = label_of(str(name))
    return labels


def ask_for_codes(numbers: Iterable[int]) -> str:
    """Return what to do about labels or class folders that are numbers, with what known datasets mean by these."""
    return (
        f"say what they mean with the option codes, by a dataset's name ({_code_tables(numbers)}) or as "
        "{1: happy, 2: sad}"
    )


def _code_tables(codes: Iterable[int]) -> str:
    """Return in one line what the known datasets mean by their codes: of those that have all of `codes`, or of all."""
    wanted = set(codes)
    texts: dict[str, list[str]] = {}
    for name, table in CODES.items():
        if wanted <= set(table) or not any(wanted <= set(other) for other in CODES.values()):
            said = ", ".join(f"{code} {EXPRESSIONS[label]}" for code, label in table.items() if label is not None)
            texts.setdefault(said, []).append(name)
    return "; ".join(f"{' and '.join(names)}: {said}" for said, names in texts.items())
