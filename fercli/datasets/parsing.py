"""Lines and numbers of label files, as strictly as they must be read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file, CRLF or LF, with or without byte order mark, blank lines skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\n")


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


def numbers_in(path: Path) -> list[float]:
    """Return the numbers of a small annotation file, split by blanks; none where it is missing or malformed."""
    try:
        numbers = [number_in(word) for word in path.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError):
        return []
    given = [number for number in numbers if number is not None]
    return given if len(given) == len(numbers) else []


def five_of_68(values: Sequence[float | str]) -> tuple[tuple[float, float], ...] | None:
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
