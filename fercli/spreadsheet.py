"""CSV files that people open in spreadsheets: UTF-8, lines end in LF, and no cell is run as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fercli.console import by_number
from fercli.files import write_atomically


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in one move, as `csv_bytes`."""
    write_atomically(Path(path), csv_bytes((columns, *rows)))


def csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return the lines of a table; None is an empty cell, and all text is made `harmless`.

    File names that are no UTF-8 keep their bytes, as in a store's manifest.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([harmless(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


#: Signs that are no text: controls of C0 and C1, marks that turn the direction of writing, parts of no character.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")


def harmless(value: Any) -> Any:
    """Keep text on one line, a spreadsheet from running it as a formula and a terminal from obeying it.

    Tabs and ends of lines become a blank, other control characters their number (``\\x1b``); numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(r"[\t\r\n]+", " ", value)
    value = _CONTROLS.sub(lambda sign: by_number(sign[0]), value)
    return f"'{value}" if value.lstrip()[:1] in tuple("=+-@＝＋－＠") else value
