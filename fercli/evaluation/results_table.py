"""The tables of a results document: their rows and columns, and a score with its statistics over seeds in each cell.

A row is a method with one combination of grid keys; its entries over seeds and datasets form a group. A column is a
target; the last column is the mean over targets. Every row is compared with the reference row (source-only), seed by
seed. A run counts as a sweep of one seed. Scores are fractions in [0, 1]; None means not defined.

Each column has one kind of test. Where any row has several seeds in the column, it is Student's paired t-test over
seeds. Otherwise, for accuracy alone, it is the test on the faces of the one seed (`fercli.evaluation.significance`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fercli.evaluation.intervals import interval_words
from fercli.evaluation.metrics import accuracy_interval
from fercli.evaluation.significance import significance_words
from fercli.evaluation.statistics import holm, paired_differences, paired_t_test, summary, within_error

Entry = Mapping[str, Any]
Value = Callable[[Entry], float | None]

#: The scores of a decision that the headline shows.
_SCORES = ("accuracy", "macro_f1")


class Group(NamedTuple):
    """The entries of one row.

    Attributes:
        method: the method's label.
        keys: values of the grid's spec keys; empty without a grid.
        reference: whether other rows are compared with it.
        oracle: whether the method reads target labels. An oracle cannot be the best row.
        entries: (dataset, seed) -> entry.
    """

    method: str
    keys: Mapping[str, Any]
    reference: bool
    oracle: bool
    entries: Mapping[tuple[str, Any], Entry]

    @property
    def about(self) -> dict[str, Any]:
        """What tables show about the row: {"label" (the method and its keys), "reference", "oracle"}."""
        return {"label": row_label(self.method, self.keys), "reference": self.reference, "oracle": self.oracle}


class Column(NamedTuple):
    """One dataset, or the mean over several `targets`. The mean counts only seeds that have all of them."""

    name: str
    targets: tuple[str, ...]
    mean: bool


def groups(document: Mapping[str, Any], role: str = "target") -> list[Group]:
    """Rows of the tables: entries scored on targets or (role "source") on test images of the models' own sources.

    The reference comes first, then the methods in the document's order, then the oracles. A row in which every cell is
    missing is included. Of two entries for the same seed and dataset, the later one counts.
    """
    entries, reference = [entry for entry in document["entries"] if entry["role"] == role], document["reference"]
    oracles = {entry["method"] for entry in entries if entry["oracle_method"]}
    found: dict[tuple[str, str], tuple[Entry, dict[tuple[str, Any], Entry]]] = {}
    for entry in entries:
        found.setdefault(_row_name(entry), (entry, {}))[1][entry["dataset"], entry["seed"]] = entry
    for cell in document["missing"] if role == "target" else ():
        found.setdefault(_row_name(cell), (cell, {}))
    order = {method: i for i, method in enumerate(document["methods"])}
    rows = [
        Group(one["method"], one["keys"], one["method"] == reference, one["method"] in oracles, own)
        for one, own in found.values()
    ]
    return sorted(rows, key=lambda row: (not row.reference, row.oracle, order.get(row.method, len(order))))


def table_columns(document: Mapping[str, Any], role: str = "target") -> list[Column]:
    """The targets. Where there are several, the mean over those with labels comes last (a target not run yet counts).
    For role "source": the sources that were scored, without a mean."""
    if role == "source":
        names = dict.fromkeys(entry["dataset"] for entry in document["entries"] if entry["role"] == role)
        return [Column(name, (name,), mean=False) for name in names]
    targets, blank = list(document["targets"]), unlabelled(document)
    labelled = tuple(name for name in targets if name not in blank)
    columns = [Column(name, (name,), mean=False) for name in targets]
    return [*columns, Column("mean", labelled, mean=True)] if len(targets) > 1 and labelled else columns


def by_dataset(document: Mapping[str, Any]) -> Iterator[tuple[str, Group, list[Entry]]]:
    """(dataset, row, its entries over seeds) for everything that was scored: targets first, rows as in `groups`."""
    for role in ("target", "source"):
        rows = groups(document, role)
        for column in table_columns(document, role):
            for row in rows if not column.mean else ():
                own = [entry for (dataset, _), entry in row.entries.items() if dataset == column.name]
                if own:
                    yield column.name, row, own


def metrics(entry: Entry) -> Mapping[str, Any]:
    """The metrics of an entry's own decision; empty where its dataset has no labels."""
    return entry["heads"].get(entry["decision"]) or {}


def score(name: str, head: str | None = None) -> Value:
    """Return a function that reads one metric of an entry, for a head or rule; by default for the entry's decision."""
    return lambda entry: (metrics(entry) if head is None else entry["heads"].get(head) or {}).get(name)


def oracle_score(name: str) -> Value:
    """Return a function that reads a metric of the epoch that target labels would have chosen."""
    return lambda entry: (entry["oracle"] or {}).get(name)


def figures(entry: Entry, oracle: bool = False) -> dict[str, Any]:
    """The scores of an entry's decision, at its own epoch or at the oracle's.

    Returns:
        {"accuracy", "macro_f1", "correct" (images), "intervals": {"accuracy", "macro_f1": (low, high) or None}, "by"
        (method and units of the accuracy's interval, in words), "epoch", "selection", "oracle" (whether target labels
        chose the epoch or trained the method)}. Where an interval has no width (all units have the same score) or was
        not computed, the accuracy's interval is Wilson's.
    """
    own = (entry["oracle"] or {}) if oracle else metrics(entry)
    drawn = (own.get("intervals") if oracle else entry["intervals"]) or {}
    wide = {name: drawn[name] if name in drawn and drawn[name][0] < drawn[name][1] else None for name in _SCORES}
    accuracy, by = own.get("accuracy"), "Wilson’s, images taken as independent"
    correct = None if accuracy is None else round(accuracy * entry["scored"])
    if wide["accuracy"]:
        by = interval_words(drawn)
    elif correct is not None:
        wide["accuracy"] = accuracy_interval(correct, entry["scored"])
    epoch, selection = (own.get("epoch"), "oracle") if oracle else (entry["epoch"], entry["selection"])
    about = {"epoch": epoch, "selection": selection, "oracle": oracle or entry["oracle_method"]}
    return {**{name: own.get(name) for name in _SCORES}, "correct": correct, "intervals": wide, "by": by, **about}


def series(group: Group, column: Column, value: Value) -> dict[Any, float]:
    """Values of a row in a column, seed -> value. For a mean: over its targets, for seeds that have them all."""
    found = {}
    for seed in dict.fromkeys(seed for _, seed in group.entries):
        entries = [group.entries.get((target, seed)) for target in column.targets]
        own = [None if entry is None else value(entry) for entry in entries]
        if own and None not in own:
            found[seed] = sum(own) / len(own)
    return found


def table(rows: Sequence[Group], columns: Sequence[Column], name: str) -> list[dict[str, Any]]:
    """One score for every row in every column, and the same at the oracle's epoch.

    Args:
        name: "accuracy" or "macro_f1".

    Returns:
        The rows' `about` with "cells" and "bound" (the oracle's), one dict per column: {"mean", "sd", "n" (seeds),
        "difference" (mean over seeds of row minus reference; for a bound, minus the row's own cell), "pairs" (seeds
        that both have), "p" (that chance alone makes that difference, Holm over the column's rows; None for a bound),
        "test" (the test that gave p, in words, or None), "best", "tied" (within the error of the best), "one"
        (`figures` of the entry, with "scored", where the cell has a single entry)}. The best is the highest mean among
        the rows that are not oracles and have the most seeds; rows with the same mean are all best. Without a rival no
        row is best.
    """
    lines = [{**row.about, "cells": [], "bound": []} for row in rows]
    for column in columns:
        values = [series(row, column, score(name)) for row in rows]
        references = [_reference(row, rows) for row in rows]
        cells = [_cell(own, None if its is None else values[its]) for own, its in zip(values, references, strict=True)]
        if name == "accuracy" and not column.mean and not any(cell["n"] > 1 for cell in cells):
            for row, cell, own, its in zip(rows, cells, values, references, strict=True):
                if its is not None and cell["pairs"]:
                    cell |= _test_of_faces(row, rows[its], (column.name, *own))
        for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
            cell["p"] = p
        _mark_best(rows, values, cells)
        for row, line, cell, own in zip(rows, lines, cells, values, strict=True):
            bound = series(row, column, oracle_score(name))
            line["cells"].append({**cell, "one": _one(row, column, own, oracle=False)})
            of_bound = {**_cell(bound, own), "p": None, "test": None}
            line["bound"].append({**of_bound, "one": _one(row, column, bound, oracle=True)})
    return lines


def tests(columns: Sequence[Column], lines: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The tests that give the p values in the lines of `table`: the test in words -> the columns that use it."""
    found: dict[str, list[str]] = {}
    for i, column in enumerate(columns):
        for words in dict.fromkeys(line["cells"][i]["test"] for line in lines):
            if words is not None:
                found.setdefault(words, []).append(column.name)
    return found


def serves(reference: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether a reference row fits a row with these grid keys: the row has all of the reference's keys and values.

    A key that only adaptation reads (adapt.batch) needs no separate reference, so a reference without keys fits all
    rows.
    """
    return all(key in keys and keys[key] == value for key, value in reference.items())


def heads_table(rows: Sequence[Group], column: Column) -> tuple[list[str], list[dict[str, Any]]]:
    """Accuracy of every head and every decision rule in one column.

    Returns:
        The names, and lines as in `table` with one cell per name and "own" (whether it makes the row's predictions).
        Rows without any score are left out.
    """
    entries = [entry for row in rows for entry in row.entries.values()]
    names = list(dict.fromkeys(name for entry in entries for name, one in entry["heads"].items() if one))
    lines = []
    for row in rows:
        decisions = {entry["decision"] for entry in row.entries.values()}
        found = [(name, _cell(series(row, column, score("accuracy", name)), None)) for name in names]
        if any(cell["n"] for _, cell in found):
            cells = [{**cell, "one": None, "own": name in decisions} for name, cell in found]
            lines.append({**row.about, "cells": cells})
    return names, lines


def row_label(method: str, keys: Mapping[str, Any]) -> str:
    """A row's name: ``aglrls, adapt.batch 16``."""
    return ", ".join([method, *(f"{key} {key_text(value)}" for key, value in keys.items())])


def key_text(value: Any) -> str:
    """A grid key's value as written in a spec."""
    return value if isinstance(value, str) else json.dumps(value)


def unlabelled(document: Mapping[str, Any]) -> set[str]:
    """Return the datasets that were run but have no score anywhere; the mean over targets leaves them out."""
    run = {entry["dataset"] for entry in document["entries"]}
    return run - {entry["dataset"] for entry in document["entries"] if metrics(entry)}


def _row_name(cell: Entry) -> tuple[str, str]:
    return cell["method"], json.dumps(cell["keys"], sort_keys=True)


def _cell(own: Mapping[Any, float], reference: Mapping[Any, float] | None) -> dict[str, Any]:
    differences = list(paired_differences(own, reference or {}).values())
    p, pairs = paired_t_test(differences), len(differences)
    test = None if p is None else f"paired t-test over {pairs} seeds"
    against = {"difference": summary(differences).mean, "pairs": pairs, "p": p, "test": test}
    return {**summary(own.values())._asdict(), **against, "best": False, "tied": False, "own": False}


def _one(row: Group, column: Column, values: Mapping[Any, float], oracle: bool) -> dict[str, Any] | None:
    if not len(values) == len(column.targets) == 1:
        return None
    entry = row.entries[column.targets[0], next(iter(values))]
    return {**figures(entry, oracle), "scored": entry["scored"]}


def _reference(row: Group, rows: Sequence[Group]) -> int | None:
    """Index of a row's reference: of the reference rows that fit (`serves`), the one with the most keys."""
    if row.reference:
        return None
    fitting = [(len(it.keys), i) for i, it in enumerate(rows) if it.reference and serves(it.keys, row.keys)]
    return max(fitting)[1] if fitting else None


def _test_of_faces(row: Group, reference: Group, place: tuple[str, Any]) -> dict[str, Any]:
    """The test of a row's entry for one (dataset, seed) against the reference's: {"p", "test"}."""
    against, other = row.entries[place]["against_reference"], reference.entries[place]
    if against is None or against["folder"] != other["folder"]:
        return {"p": None, "test": None}
    return {"p": against["test"]["p"], "test": significance_words(against["test"])}


def _mark_best(rows: Sequence[Group], values: Sequence[dict[Any, float]], cells: Sequence[dict[str, Any]]) -> None:
    rivals = [i for i, row in enumerate(rows) if not row.oracle and cells[i]["n"]]
    if len(rivals) < 2:
        return
    most = max(cells[i]["n"] for i in rivals)
    top = max(cells[i]["mean"] for i in rivals if cells[i]["n"] == most)
    best = [i for i in rivals if cells[i]["n"] == most and math.isclose(cells[i]["mean"], top)]
    for i in rivals:
        cells[i]["best"] = i in best
        cells[i]["tied"] = i not in best and within_error(values[i], values[best[0]]) is True
