"""What a sweep's page shows, worked out from its results document: plain values that the template only lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.statistics import summary
from fercli.evaluation.sweep_rules import rank_rules
from fercli.evaluation.sweep_table import (
    Column,
    Group,
    groups,
    oracle_table,
    row_label,
    score,
    series,
    table,
    table_columns,
    unlabelled,
)
from fercli.report.frame import frame
from fercli.report.headline_view import COUNTS
from fercli.report.plots import axis, spread


def view(document: Mapping[str, Any]) -> dict[str, Any]:
    """Work out everything the page shows; the template itself only lays it out."""
    common, rows, columns = frame(document), groups(document), table_columns(document)
    accuracy, bound = table(rows, columns, score("accuracy")), oracle_table(rows, columns)
    targets = [_target(name, document) for name in document["targets"]]
    return {
        **common,
        **{key: document[key] for key in ("seeds", "methods", "reference")},
        "columns": columns,
        "accuracy": accuracy,
        "macro_f1": table(rows, columns, score("macro_f1")),
        "oracle_rows": bound,
        "bound": {line["label"]: line["cells"][-1] for line in bound},
        "any_oracle": any(row.oracle for row in rows),
        "verdict": verdict(accuracy),
        "chart": _chart(rows, columns, accuracy),
        "rules": rank_rules(document),
        "published": [] if common["synthetic"] else published(document, columns),
        "targets": targets,
        "seconds": _seconds(rows),
        "missing": missing(document),
        "planned": len(document["cells"]) + len(document["missing"]),
        "notes": _notes(document, targets, columns),
    }


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last column in words: {"label", "reference" (whether it is the reference itself), "cell", "tied": labels}."""
    for row in rows:
        if row["cells"] and row["cells"][-1]["best"]:
            tied = [other["label"] for other in rows if other["cells"][-1]["tied"]]
            return {"label": row["label"], "reference": row["reference"], "cell": row["cells"][-1], "tied": tied}
    return None


def published(document: Mapping[str, Any], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Published rows in the table's columns, accuracy in percent as printed: {"method", "backbone", "citation",
    "selection", "cells": [percent or None]}."""
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


def missing(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Missing cells that differ in their seed only, together: {"label", "target", "why", "seeds", "count"}."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for cell in document["missing"]:
        label = row_label(cell["method"], cell["keys"])
        found.setdefault((label, cell["target"], cell["why"]), []).append(cell["seed"])
    names = ("label", "target", "why", "seeds", "count")
    return [dict(zip(names, (*name, seeds, len(seeds)), strict=True)) for name, seeds in found.items()]


def _chart(
    rows: Sequence[Group], columns: Sequence[Column], accuracy: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Seeds, mean and deviation of every row in the last column, on one axis: {"ticks", "lines"}."""
    lasts = [(row, line["cells"][-1]) for row, line in zip(rows, accuracy, strict=True)]
    drawn = [
        (row, cell, list(series(row, columns[-1], score("accuracy")).values())) for row, cell in lasts if cell["n"]
    ]
    if not drawn:
        return None
    ends = [cell["mean"] + sign * (cell["sd"] or 0) for _, cell, _ in drawn for sign in (-1, 1)]
    ticks = axis([min(1.0, max(0.0, value)) for value in [*ends, *(one for _, _, own in drawn for one in own)]])
    base = next((cell["mean"] for row, cell, _ in drawn if row.reference), None)
    lines = []
    for row, cell, own in drawn:
        error = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
        title = f"{row.label}: {100 * cell['mean']:.1f}%{error}, {cell['n']} seeds"
        plot = spread(own, cell["mean"], cell["sd"], ticks, base, title)
        lines.append({"label": row.label, "oracle": row.oracle, "reference": row.reference, "cell": cell, "plot": plot})
    return {"ticks": ticks, "lines": lines}


def _target(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """How much of a target was scored: {"name", "counts": distinct counts, "cells", "missing", "labelled"}."""
    cells = [cell for cell in document["cells"] if cell["target"] == name]
    counts = dict.fromkeys(tuple(cell[what] for what in COUNTS) for cell in cells)
    return {
        "name": name,
        "counts": [dict(zip(COUNTS, one, strict=True)) for one in counts],
        "cells": len(cells),
        "missing": sum(cell["target"] == name for cell in document["missing"]),
        "labelled": name not in unlabelled(document),
    }


def _seconds(rows: Sequence[Group]) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        times = [cell["seconds"] for cell in row.cells.values()]
        if times:
            lines.append({"label": row.label, "oracle": row.oracle, "total": sum(times), **summary(times)._asdict()})
    return lines


def _notes(document: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    """Say in words what the tables leave out."""
    notes = []
    for target in targets:
        if not target["cells"]:
            waits = "; the mean over targets waits for it" if columns[-1].mean else ""
            notes.append(f"{target['name']}: no cell was run yet{waits}.")
        elif not target["labelled"]:
            left = ", and the mean over targets goes without it" if columns[-1].mean else ""
            notes.append(f"{target['name']}: its images have no labels, so it has no scores{left}.")
        if len(target["counts"]) > 1:
            notes.append(f"{target['name']}: cells differ in how many images they scored; compare with care.")
    if len(document["seeds"]) < 2:
        notes.append("One seed: no deviation, no test and no tie can be computed.")
    return notes
