"""CSV files for spreadsheets: UTF-8, LF line endings, and no cell that a spreadsheet would run as a formula."""

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
    """Write a table atomically, in the form of `csv_bytes`."""
    write_atomically(Path(path), csv_bytes((columns, *rows)))


def csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return a table as CSV; None becomes an empty cell, and all text is made `harmless`.

    File names that are not valid UTF-8 keep their bytes, as in a store's manifest.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([harmless(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


#: Characters that are not text: C0 and C1 controls, marks that change the writing direction, lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")


def harmless(value: Any) -> Any:
    """Return text on one line that a spreadsheet does not run as a formula and a terminal does not interpret.

    Tabs and line breaks become a blank, and other control characters their escape sequence (``\\x1b``). Values that
    are not text are returned unchanged.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(r"[\t\r\n]+", " ", value)
    value = _CONTROLS.sub(lambda sign: by_number(sign[0]), value)
    return f"'{value}" if value.lstrip()[:1] in tuple("=+-@＝＋－＠") else value
