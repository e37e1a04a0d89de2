"""Strict parsing of the lines and numbers in label files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file. It may use CRLF or LF and a byte order mark; blank lines are skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\n")


def whole_number(text: str) -> int | None:
    """Return the integer written in a text (``3``, ``-1``, ``3.0``, ``3.000e+00``); None if it is not an integer.

    Only ASCII digits count, at most 15 of them: neither ``²`` nor ``1_0`` is a number.
    """
    if not _WHOLE_NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return int(value) if value.is_integer() else None


def number_in(text: str) -> float | None:
    """Return the finite number written in a text; None if it is not one.

    As with `whole_number`, only ASCII digits count. Python's float would accept ``1_0``, ``nan`` and the digits of all
    scripts.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_code(name: str) -> bool:
    """Return whether a folder's name is a number: only ASCII digits, at most 15."""
    return re.fullmatch("[0-9]{1,15}", name.strip()) is not None


def numbers_in(path: Path) -> list[float]:
    """Return the numbers of a small annotation file, separated by whitespace; [] if it is missing or malformed."""
    try:
        numbers = [number_in(word) for word in path.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError):
        return []
    given = [number for number in numbers if number is not None]
    return given if len(given) == len(numbers) else []


def five_of_68(values: Sequence[float | str]) -> tuple[tuple[float, float], ...] | None:
    """Return fercli's five landmarks from the 68 of the iBUG 300-W scheme, given as x0, y0, x1, y1, ...

    An eye's centre is the mean of its two corners (36 and 39, 42 and 45). The nose tip is 30, and the mouth corners are
    48 and 54. The result is None if the points cannot be a face.
    """
    if len(values) != 136:
        return None

    def mean(a: int, b: int) -> tuple[float, float]:
        xs, ys = (float(values[2 * a]), float(values[2 * b])), (float(values[2 * a + 1]), float(values[2 * b + 1]))
        return sum(xs) / 2, sum(ys) / 2

    points = (mean(36, 39), mean(42, 45), mean(30, 30), mean(48, 48), mean(54, 54))
    # For NaN and infinity, x - x is not 0. Both eyes in one place are not a face.
    finite = all(x - x == 0 and y - y == 0 for x, y in points)
    return points if finite and points[0] != points[1] else None
