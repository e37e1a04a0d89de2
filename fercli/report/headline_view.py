"""The headline of a page, and what uses the same rows: tables, charts, verdict, heads, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.results_table import (
    Column,
    Group,
    by_dataset,
    figures,
    groups,
    heads_table,
    score,
    series,
    table,
    table_columns,
    tests,
)
from fercli.evaluation.rule_ranking import rank_rules
from fercli.report.plots import axis, lane

#: Images in the list, images with a face, and images with a label.
COUNTS = ("expected", "found", "scored")


def headline(document: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the parts that every kind of document has, from its rows (methods) and columns (targets).

    Returns:
        "columns"; "accuracy", "macro_f1" (lines of `fercli.evaluation.results_table.table`); "tests" (the tests whose p
        the lines of "accuracy" show, in words -> columns); "verdict"; "charts" (last column first) [{"name", "ticks",
        "lines"}]; "heads" (likewise) [{"name", "names", "lines"}]; "home" (the sources' own test images) [(dataset,
        label, accuracy's cell, macro F1's cell)]; "every" (all rows); "any_bound" (whether any line has a figure at the
        oracle's epoch); "bound" ({"lines" that have one, "published"}, or None); "rules" (their ranking, or None).
    """
    rows, columns = groups(document), table_columns(document)
    accuracy, macro_f1 = (table(rows, columns, name) for name in ("accuracy", "macro_f1"))
    charts, heads = [], []
    for i, column in reversed(list(enumerate(columns))):
        cells = [line["cells"][i] for line in accuracy]
        names, lines = heads_table(rows, column)
        charts += [{"name": column.name, **_chart(rows, column, cells)}] if any(cell["n"] for cell in cells) else []
        heads += [{"name": column.name, "names": names, "lines": lines}] if lines else []
    ranked = rank_rules(document)
    bound = [
        {**line, "cells": line["bound"], "oracle": True} for line in accuracy if any(c["n"] for c in line["bound"])
    ]
    printed = [] if document["synthetic"] else published(document, columns)
    return {
        "columns": columns,
        "accuracy": accuracy,
        "macro_f1": macro_f1 if charts else [],
        "tests": tests(columns, accuracy),
        "any_bound": bool(bound),
        "verdict": verdict(accuracy),
        "charts": charts,
        "heads": heads,
        "home": _home(document),
        "every": _every_row(document),
        # With one target and no published figures, the headline already shows this.
        "bound": {"lines": bound, "published": printed} if printed or (bound and len(columns) > 1) else None,
        "rules": ranked if ranked["rows"] else None,
    }


def verdict(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Values for a summary of the last column: {"labels" (of the best rows, or of the only one), "reference" (whether
    it is one of them), "cell" (of the first), "tied" (labels), "alone"}. None if no row has a score there."""
    there = [line for line in lines if line["cells"] and line["cells"][-1]["n"]]
    best = there if len(there) == 1 else [line for line in there if line["cells"][-1]["best"]]
    if not best:
        return None
    return {
        "labels": [line["label"] for line in best],
        "reference": any(line["reference"] for line in best),
        "cell": best[0]["cells"][-1],
        "tied": [line["label"] for line in there if line["cells"][-1]["tied"]],
        "alone": len(there) == 1,
    }


def published(document: Mapping[str, Any], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Published rows in the table's columns, with accuracy in % as printed: {"method", "backbone", "citation",
    "selection", "cells": [% or None]}. There is no mean where a target is missing."""
    parts = ("method", "backbone", "citation", "selection")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in document["published"]:
        found.setdefault(tuple(row[part] for part in parts), {})[row["target"]] = row["accuracy"]
    lines = []
    for name, own in found.items():
        cells = [[own.get(target) for target in column.targets] for column in columns]
        means = [None if not cell or None in cell else sum(cell) / len(cell) for cell in cells]
        lines.append({**dict(zip(parts, name, strict=True)), "cells": means})
    return lines


def _chart(rows: Sequence[Group], column: Column, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every row's mean in a column, its deviation over seeds (or one entry's interval) and its seeds, on one axis."""
    drawn = []
    for row, cell in zip(rows, cells, strict=True):
        mean, sd, one = cell["mean"], cell["sd"], cell["one"]
        if mean is not None:
            seeds = list(series(row, column, score("accuracy")).values()) if sd is not None else []
            bar = (mean - sd, mean + sd) if sd is not None else one and one["intervals"]["accuracy"]
            drawn.append((row, cell, bar, seeds))
    ends = [value for _, cell, bar, own in drawn for value in (cell["mean"], *(bar or ()), *own)]
    ticks = axis([min(1.0, max(0.0, value)) for value in ends])
    base = next((cell["mean"] for row, cell, _, _ in drawn if row.reference), None)
    lines = []
    for row, cell, bar, own in drawn:
        error = "" if bar is None else f" ({100 * bar[0]:.1f} to {100 * bar[1]:.1f})"
        title = f"{row.about['label']} on {column.name}: {100 * cell['mean']:.1f}%{error}, seeds: {cell['n']}"
        plot = lane(cell["mean"], bar, own, ticks, base, title)
        lines.append({**row.about, "cell": cell, "plot": plot})
    return {"ticks": ticks, "lines": lines}


def _home(document: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows, columns = groups(document, "source"), table_columns(document, "source")
    scored = zip(*(table(rows, columns, name) for name in ("accuracy", "macro_f1")), strict=True)
    return [
        (column.name, line["label"], line["cells"][i], f1["cells"][i])
        for line, f1 in scored
        for i, column in enumerate(columns)
        if line["cells"][i]["n"]
    ]


def _every_row(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every entry, each followed by the epoch that an oracle would have chosen, as in `figures`."""
    kept = ("dataset", "source", "seed", "decision", "folder", "checkpoint", "reads", "splits", *COUNTS)
    rows = []
    for _, row, own in by_dataset(document):
        for entry in own:
            about = {"label": row.about["label"], **{key: entry[key] for key in kept}}
            rows.append({**about, **figures(entry)})
            if entry["oracle"]:
                rows.append({**about, **figures(entry, oracle=True), "reads": ["target labels"]})
    return rows
