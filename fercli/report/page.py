"""What makes a page of a template: one HTML file that loads nothing, all its text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fercli.durations import digits, duration
from fercli.files import write_atomically

_NOT_DEFINED = Markup('<span class="none" title="not defined">–</span>')


def save_page(html: str, folder: Path) -> Path:
    """Write ``folder/report.html`` in one move, the folder being made if it is not there; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    # Names of files may hold bytes that are no text: they become question marks here, not an error.
    write_atomically(path, html.encode("utf-8", "replace"))
    return path


def page(template: str, values: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Fill a template of this folder with plain values, all text escaped.

    Args:
        template: its file name.
        values: what it shows.
        document: whose `datasets` and `synthetic` say which names the test ``synthetic`` (of `_macros.html.j2`) marks.
    """
    environment = Environment(
        loader=PackageLoader("fercli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=_pct, points=_points, figure=_figure, shade=_shade, short=_short)
    environment.filters.update(pvalue=_pvalue, duration=duration, digits=digits, decimals=_decimals, signed=_signed)
    # Several sources together have a name of their own.
    environment.tests["synthetic"] = lambda name: document["datasets"].get(name, document)["synthetic"]
    return environment.get_template(template).render(values)


def _pct(value: Any, digits: int = 1) -> str:
    """A fraction as percent, without the sign (the column's head has it)."""
    return _NOT_DEFINED if value is None else f"{100 * value:.{digits}f}"


def _points(value: Any) -> str:
    """A difference of fractions as signed points, with a true minus sign."""
    if value is None:
        return _NOT_DEFINED
    text = f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text[1:] == "0.0" else text


def _pvalue(value: Any) -> str:
    """A chance in [0, 1], with what it is."""
    return _NOT_DEFINED if value is None else "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _figure(value: Any) -> str:
    """A loss or a selection score: three significant digits."""
    return _NOT_DEFINED if value is None else f"{value:#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def _decimals(value: Any, digits: int) -> str:
    """A number with a fixed count of decimals."""
    return _NOT_DEFINED if value is None else f"{value:.{digits}f}"


def _signed(value: Any) -> str:
    """A difference with its sign and two decimals, with a true minus sign."""
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return "0.00" if text[1:] == "0.00" else text


def _shade(count: int, row: Sequence[int]) -> int:
    """Level 0 (none) to 10 (the whole row) of a cell of a confusion matrix."""
    total = sum(row)
    return max(1, round(10 * count / total)) if count and total else 0


def _short(name: str) -> str:
    return name[:3]


def write_report(document, folder, pictures=None):  # temporary: the page's own comes with another branch
    return save_page("<html></html>", folder)
