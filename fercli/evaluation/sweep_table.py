"""The tables of a sweep: which rows and columns it has, and one score in each of them with what the seeds allow to say.

A row is a method with one combination of grid keys, its cells over seeds a group; a column is a target, and last the
mean over targets. Everything is compared seed by seed with the reference row (source-only).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fercli.evaluation.statistics import holm, paired_differences, paired_t_test, summary, within_error

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """The cells of one row.

    Attributes:
        method: its label.
        keys: values of the grid's spec keys; empty without a grid.
        reference: whether others are compared with it.
        oracle: whether the method reads target labels, so that it is no contender.
        cells: (target, seed) -> cell.
    """

    method: str
    keys: Mapping[str, Any]
    reference: bool
    oracle: bool
    cells: Mapping[tuple[str, Any], Cell]

    @property
    def label(self) -> str:
        """The method and its keys, as tables show them."""
        return row_label(self.method, self.keys)


@dataclass(frozen=True)
class Column:
    """One target, or the mean over `targets`, which then counts only seeds that have them all."""

    name: str
    targets: tuple[str, ...]
    mean: bool


def groups(document: Mapping[str, Any]) -> list[Group]:
    """Rows of the tables: the reference first, then the methods in the sweep's order, then those that are oracles.

    A row of which every cell is missing is there too, without cells. Of two cells for the same seed and target the
    later counts.
    """
    cells, reference = document["cells"], document["reference"]
    oracles = {cell["method"] for cell in cells if cell["oracle_method"]}
    found: dict[tuple[str, str], tuple[Cell, dict[tuple[str, Any], Cell]]] = {}
    for cell in cells:
        found.setdefault(_row_name(cell), (cell, {}))[1][cell["target"], cell["seed"]] = cell
    for cell in document["missing"]:
        found.setdefault(_row_name(cell), (cell, {}))
    order = {method: i for i, method in enumerate(document["methods"])}
    rows = [
        Group(one["method"], one["keys"], one["method"] == reference, one["method"] in oracles, own)
        for one, own in found.values()
    ]
    return sorted(rows, key=lambda row: (not row.reference, row.oracle, order.get(row.method, len(order))))


def table_columns(document: Mapping[str, Any]) -> list[Column]:
    """The targets; where there are several, last the mean over those with labels (a target not run yet counts)."""
    targets, blank = list(document["targets"]), unlabelled(document)
    labelled = tuple(name for name in targets if name not in blank)
    columns = [Column(name, (name,), mean=False) for name in targets]
    return [*columns, Column("mean", labelled, mean=True)] if len(targets) > 1 and labelled else columns


def score(name: str) -> Callable[[Cell], float | None]:
    """Return a function that reads one score (a fraction or None) of a cell."""
    return lambda cell: cell.get(name)


def oracle_score(cell: Cell) -> float | None:
    """Accuracy of a cell at the epoch that target labels would have chosen, None where it is not known."""
    return (cell.get("oracle") or {}).get("accuracy")


def series(group: Group, column: Column, value: Callable[[Cell], float | None]) -> dict[Any, float]:
    """Values of a row in a column, seed -> value: for a mean, the mean over its targets of seeds that have them all."""
    found = {}
    for seed in dict.fromkeys(seed for _, seed in group.cells):
        own = [value(group.cells.get((target, seed), {})) for target in column.targets]
        if own and None not in own:
            found[seed] = sum(own) / len(own)
    return found


def table(
    rows: Sequence[Group], columns: Sequence[Column], value: Callable[[Cell], float | None]
) -> list[dict[str, Any]]:
    """One score of every row in every column.

    Returns:
        A list of {"label", "reference", "oracle", "cells"}, a cell a column: {"mean", "sd", "n" (seeds), "difference"
        (mean over seeds of row minus reference), "pairs" (seeds of both), "p" (paired t-test, Holm over the column's
        rows), "best", "tied" (within the error of the best)}. Means and differences are fractions; None is not defined.
        The best is the highest mean among rows that are no oracle and have as many seeds as any of them; without a
        rival nothing is best.
    """
    lines = [{"label": row.label, "reference": row.reference, "oracle": row.oracle, "cells": []} for row in rows]
    for column in columns:
        values = [series(row, column, value) for row in rows]
        cells = [_cell(own, _reference(row, rows, values)) for row, own in zip(rows, values, strict=True)]
        for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
            cell["p"] = p
        _mark_best(rows, values, cells)
        for line, cell in zip(lines, cells, strict=True):
            line["cells"].append(cell)
    return lines


def oracle_table(rows: Sequence[Group], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The same rows at the oracle's epoch: {"label", "oracle", "cells": [{"mean", "sd", "n", "gap"}]}.

    The gap is the mean over seeds of the oracle minus the epoch that was chosen without labels, a fraction. Rows
    without any oracle (nothing was adapted) are left out.
    """
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            own = series(row, column, oracle_score)
            gap = summary(paired_differences(own, series(row, column, score("accuracy"))).values()).mean
            cells.append({**summary(own.values())._asdict(), "gap": gap})
        if any(cell["n"] for cell in cells):
            lines.append({"label": row.label, "oracle": row.oracle, "cells": cells})
    return lines


def row_label(method: str, keys: Mapping[str, Any]) -> str:
    """What a row is called: ``aglrls, adapt.batch 16``."""
    return ", ".join([method, *(f"{key} {key_text(value)}" for key, value in keys.items())])


def key_text(value: Any) -> str:
    """A grid key's value as a spec writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def unlabelled(document: Mapping[str, Any]) -> set[str]:
    """Return the targets that were run and have no score anywhere: the mean over targets goes without them."""
    run = {cell["target"] for cell in document["cells"]}
    return run - {cell["target"] for cell in document["cells"] if cell["accuracy"] is not None}


def _row_name(cell: Cell) -> tuple[str, str]:
    return cell["method"], json.dumps(cell["keys"], sort_keys=True)


def _cell(own: Mapping[Any, float], reference: Mapping[Any, float] | None) -> dict[str, Any]:
    differences = list(paired_differences(own, reference or {}).values())
    return {
        **summary(own.values())._asdict(),
        "difference": summary(differences).mean,
        "pairs": len(differences),
        "p": paired_t_test(differences),
        "best": False,
        "tied": False,
    }


def _reference(row: Group, rows: Sequence[Group], values: Sequence[dict[Any, float]]) -> dict[Any, float] | None:
    """The reference's series for a row: with the same keys, else the one whose keys agree with the most of the row's.

    A key that adapting alone reads (adapt.batch) needs no reference of its own, so one without keys serves all rows.
    """
    if row.reference:
        return None
    fitting = [
        (len(other.keys), i)
        for i, other in enumerate(rows)
        if other.reference and all(key in row.keys and row.keys[key] == one for key, one in other.keys.items())
    ]
    return values[max(fitting)[1]] if fitting else None


def _mark_best(rows: Sequence[Group], values: Sequence[dict[Any, float]], cells: Sequence[dict[str, Any]]) -> None:
    rivals = [i for i, row in enumerate(rows) if not row.oracle and cells[i]["n"]]
    if len(rivals) < 2:
        return
    most = max(cells[i]["n"] for i in rivals)
    best = max((i for i in rivals if cells[i]["n"] == most), key=lambda i: cells[i]["mean"])
    cells[best]["best"] = True
    for i in rivals:
        cells[i]["tied"] = i != best and within_error(values[i], values[best]) is True
