"""A sweep to files and text: the page, the console's tables and a CSV file.

All read one results document, plain values as JSON holds them (scores are fractions in [0, 1], None = not defined):

- ``schema`` 2, ``kind`` "sweep", ``title``, ``created`` (ISO 8601), ``synthetic`` (bool), ``spec``, ``environment``;
- ``targets``, ``methods`` (labels) and ``seeds``, in order; ``reference``, the label that others are compared with;
- ``datasets``: name -> {"synthetic", "role": "source" or "target"};
- ``cells``, a dict for each that was run: ``seed``, ``keys`` (values of the grid's spec keys), ``target``, ``method``
  (label), ``registered`` (its name in the registry), ``oracle_method`` (it trains with target labels), ``decision``,
  ``accuracy``, ``macro_f1``, ``expected``, ``found``, ``scored`` (images), ``selection`` (rule) and ``epoch`` that it
  chose, ``oracle`` ({"accuracy", "epoch"} of the best epoch by target labels, or None), ``rules`` (rule -> {"epoch",
  "accuracy"}), ``seconds``. A reference cell whose keys are part of a row's, or none, serves that row;
- ``missing``: ``seed``, ``keys``, ``target``, ``method`` and ``why`` of each cell that was not run to its end;
- ``published``: rows of `fercli.evaluation.published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fercli import spreadsheet
from fercli.evaluation.statistics import summary
from fercli.evaluation.sweep_rules import rank_rules
from fercli.evaluation.sweep_table import groups, key_text, oracle_score, score, series, table, table_columns
from fercli.report.page import page, save_page
from fercli.report.sweep_view import view

_NONE = "–"
_SYNTHETIC_NOTE = "† synthetic: procedural faces drawn by fercli, not photographs."
_COLUMNS = ("target", "method", "decision", "accuracy", "macro_f1", "expected", "found", "scored", "selection", "epoch")
Table = tuple[str, list[str], list[list[str]], str]


def write_sweep_report(document: Mapping[str, Any], folder: Path) -> Path:
    """Write ``folder/report.html`` from the results document of a sweep and return its path.

    One file that loads nothing. The folder is made if it is not there, and an older report replaced in one move.

    Args:
        document: the results of a sweep (schema 2, kind "sweep").
        folder: where to write.
    """
    return save_page(render_sweep(document), folder)


def render_sweep(document: Mapping[str, Any]) -> str:
    """Return the report of a sweep as one HTML page."""
    return page("sweep.html.j2", view(document), document)


def sweep_headline(document: Mapping[str, Any]) -> Table:
    """The accuracies as (title, columns, rows, caption) for `fercli.console.table`.

    Mean ± deviation over seeds in percent; points and p against the reference are those of the last column. The best
    row of that column stands out (a leading ``*``); ``=`` stands behind what is within the error of the best.
    """
    columns, rows = table_columns(document), groups(document)
    names = ["method", *(_marked(document, column.name) for column in columns), "points", "p", "ORACLE epoch"]
    lines = []
    for row, line in zip(rows, table(rows, columns, score("accuracy")), strict=True):
        last = line["cells"][-1]
        star = "*" if last["best"] else ""
        figures = [_figure(cell, document) + (" =" if cell["tied"] else "") for cell in line["cells"]]
        bound = summary(series(row, columns[-1], oracle_score).values()).mean
        name = star + line["label"] + (" ORACLE" if row.oracle else "")
        lines.append([name, *figures, *_against(last), _NONE if bound is None else f"{100 * bound:.1f}"])
    return f"{document['title']}: accuracy %", names, lines, "\n".join(_notes(document, columns, rows))


def sweep_rule_table(document: Mapping[str, Any]) -> Table:
    """The rank of the selection rules as (title, columns, rows, caption) for `fercli.console.table`.

    The row of the rule that chose the sweep's epochs stands out.
    """
    ranked = rank_rules(document)
    columns = ["rule", "mean below", "worst", "oracle's epoch %", "over last"]
    columns += [*(_marked(document, name) for name in ranked["targets"]), "cells"]
    rows = []
    for row in ranked["rows"]:
        figures = [_percent(row["mean"], 2), _percent(row["worst"]), _percent(row["hits"], 0), _points(row["gain"])]
        figures += [_percent(value, 2) for value in row["targets"]]
        rows.append([("*" if row["used"] else "") + row["rule"], *figures, str(row["cells"])])
    caption = (
        "Points of accuracy below the ORACLE's epoch over all cells of adapted methods; 0 is best.\n"
        "In bold: the rule that chose the epochs of this sweep."
    )
    if document["synthetic"]:
        caption += f"\n{_SYNTHETIC_NOTE}"
    return "Choosing the epoch without target labels: points below the oracle", columns, rows, caption


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """Write one row a cell, scores as fractions, nothing where a value is not defined (UTF-8, lines end in LF).

    Columns: seed, the grid's keys, target, method, decision, accuracy, macro_f1, expected, found, scored, selection,
    epoch, oracle_accuracy, oracle_epoch, rule:NAME:epoch and rule:NAME:accuracy of every rule, seconds. Text that a
    spreadsheet would take for a formula gets a leading apostrophe, line breaks become spaces.
    """
    cells = document["cells"]
    keys = list(dict.fromkeys(key for cell in cells for key in cell["keys"]))
    rules = list(dict.fromkeys(rule for cell in cells for rule in cell["rules"]))
    taken = {"seed", *_COLUMNS, "oracle_accuracy", "oracle_epoch", "seconds"}
    head = ["seed", *(f"key:{key}" if key in taken else key for key in keys), *_COLUMNS]
    head += ["oracle_accuracy", "oracle_epoch"]
    head += [f"rule:{rule}:{what}" for rule in rules for what in ("epoch", "accuracy")] + ["seconds"]
    rows = []
    for cell in cells:
        row = [cell["seed"], *(_flat(cell["keys"].get(key)) for key in keys), *(cell[name] for name in _COLUMNS)]
        oracle = cell["oracle"] or {}
        row += [oracle.get("accuracy"), oracle.get("epoch")]
        row += [cell["rules"].get(rule, {}).get(what) for rule in rules for what in ("epoch", "accuracy")]
        rows.append([*row, cell["seconds"]])
    spreadsheet.write_csv(path, head, rows)


def _notes(document: Mapping[str, Any], columns: Sequence[Any], rows: Sequence[Any]) -> list[str]:
    seeds, last = len(document["seeds"]), columns[-1]
    what = "Mean ± standard deviation over seeds" if seeds > 1 else "One seed"
    base = f"Points and p (paired t-test over seeds, Holm) are against {document['reference']}"
    base += ", of the mean over targets" if last.mean else f", on {last.name}" if len(columns) > 1 else ""
    best = "bold: the best of the last column; =: within the error of the best of its column"
    notes = [f"{what}; {best}.", f"{base}."]
    if any(series(row, columns[-1], oracle_score) for row in rows):
        notes.append("ORACLE reads target labels: an upper bound, not a result.")
    gone = len(document["missing"])
    if gone:
        notes.append(
            f"{gone} of {gone + len(document['cells'])} cells are missing; (n) is how many seeds a figure has."
        )
    if document["synthetic"]:
        notes.append(_SYNTHETIC_NOTE)
    return notes


def _marked(document: Mapping[str, Any], name: str) -> str:
    return f"{name} †" if document["datasets"].get(name, {}).get("synthetic") else name  # not of a mean


def _figure(cell: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return _NONE
    text = f"{100 * cell['mean']:.1f}" + ("" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}")
    return text if cell["n"] == len(document["seeds"]) else f"{text} ({cell['n']})"


def _against(cell: Mapping[str, Any]) -> list[str]:
    p = cell["p"]
    return [_points(cell["difference"]), _NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"]


def _percent(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    text = _NONE if value is None else f"{100 * value:+.1f}"
    return "0.0" if text[1:] == "0.0" else text


def _flat(value: Any) -> Any:
    """A grid key's value in one cell: numbers and text as they are, anything else as JSON."""
    return value if value is None or type(value) in (int, float) else key_text(value)
