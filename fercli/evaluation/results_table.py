"""The tables of a results document: which rows and columns it has, and a score in each cell with what the seeds tell.

A row is a method with one combination of grid keys, its entries over seeds and datasets a group; a column is a target,
and last the mean over targets. Everything is compared seed by seed with the reference row (source-only). A run is a
sweep of one seed. Scores are fractions in [0, 1]; None is not defined.

One kind of test is made in a column. Where any row has several seeds there, it is Student's paired t-test over seeds;
else, for accuracy alone, that on the faces of the one seed (`fercli.evaluation.significance`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fercli.evaluation.intervals import interval_words
from fercli.evaluation.metrics import accuracy_interval
from fercli.evaluation.significance import significance_words
from fercli.evaluation.statistics import holm, paired_differences, paired_t_test, summary, within_error

Entry = Mapping[str, Any]
Value = Callable[[Entry], float | None]

#: What the headline shows of a decision.
_SCORES = ("accuracy", "macro_f1")


class Group(NamedTuple):
    """The entries of one row.

    Attributes:
        method: its label.
        keys: values of the grid's spec keys; empty without a grid.
        reference: whether others are compared with it.
        oracle: whether the method reads target labels, so that it is no contender.
        entries: (dataset, seed) -> entry.
    """

    method: str
    keys: Mapping[str, Any]
    reference: bool
    oracle: bool
    entries: Mapping[tuple[str, Any], Entry]

    @property
    def about(self) -> dict[str, Any]:
        """What tables show of it: {"label" (the method and its keys), "reference", "oracle"}."""
        return {"label": row_label(self.method, self.keys), "reference": self.reference, "oracle": self.oracle}


class Column(NamedTuple):
    """One dataset, or the mean over several `targets`, which then counts only seeds that have them all."""

    name: str
    targets: tuple[str, ...]
    mean: bool


def groups(document: Mapping[str, Any], role: str = "target") -> list[Group]:
    """Rows of the tables, of what was scored on targets or (role "source") on test images of the models' own sources.

    The reference comes first, then the methods in the document's order, then those that are oracles. A row of which
    every cell is missing is there too. Of two entries for the same seed and dataset the later counts.
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
    """The targets; where there are several, last the mean over those with labels (a target not run yet counts). Of
    role "source" the sources that were scored, without a mean."""
    if role == "source":
        names = dict.fromkeys(entry["dataset"] for entry in document["entries"] if entry["role"] == role)
        return [Column(name, (name,), mean=False) for name in names]
    targets, blank = list(document["targets"]), unlabelled(document)
    labelled = tuple(name for name in targets if name not in blank)
    columns = [Column(name, (name,), mean=False) for name in targets]
    return [*columns, Column("mean", labelled, mean=True)] if len(targets) > 1 and labelled else columns


def by_dataset(document: Mapping[str, Any]) -> Iterator[tuple[str, Group, list[Entry]]]:
    """(dataset, row, its entries over seeds) of everything that was scored: targets first, rows as in `groups`."""
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
    """Return a function that reads one metric of an entry: of a head or rule, by default of its decision."""
    return lambda entry: (metrics(entry) if head is None else entry["heads"].get(head) or {}).get(name)


def oracle_score(name: str) -> Value:
    """Return a function that reads a metric of the epoch that target labels would have chosen."""
    return lambda entry: (entry["oracle"] or {}).get(name)


def figures(entry: Entry, oracle: bool = False) -> dict[str, Any]:
    """What an entry's decision scored, or what it would have at the oracle's epoch.

    Returns:
        {"accuracy", "macro_f1", "correct" (images), "intervals": {"accuracy", "macro_f1": (low, high) or None}, "by"
        (what the interval of the accuracy is of, in words), "epoch", "selection", "oracle" (whether target labels chose
        the epoch or trained the method)}. Where an interval has no width (all units score alike) or was not computed,
        that of the accuracy is Wilson's.
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
    """Values of a row in a column, seed -> value: for a mean, the mean over its targets of seeds that have them all."""
    found = {}
    for seed in dict.fromkeys(seed for _, seed in group.entries):
        entries = [group.entries.get((target, seed)) for target in column.targets]
        own = [None if entry is None else value(entry) for entry in entries]
        if own and None not in own:
            found[seed] = sum(own) / len(own)
    return found


def table(rows: Sequence[Group], columns: Sequence[Column], name: str) -> list[dict[str, Any]]:
    """One score of every row in every column, and the same at the oracle's epoch.

    Args:
        name: "accuracy" or "macro_f1".

    Returns:
        The rows' `about` with "cells" and "bound", one a column: {"mean", "sd", "n" (seeds), "difference" (mean over
        seeds of row minus reference; of a bound minus the row's own cell), "pairs" (seeds of both), "p" (that chance
        alone makes that difference, Holm over the column's rows; None of a bound), "test" (whose p it is, in words, or
        None), "best", "tied" (within the error of the best), "one" (`figures` of the entry, with "scored", where it is
        of one alone)}. The best is the highest mean among rows that are no oracle and have as many seeds as any of
        them; without a rival nothing is.
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
    """Whose p the lines of `table` show: the test in words -> the columns that have it."""
    found: dict[str, list[str]] = {}
    for i, column in enumerate(columns):
        for words in dict.fromkeys(line["cells"][i]["test"] for line in lines):
            if words is not None:
                found.setdefault(words, []).append(column.name)
    return found


def serves(reference: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether a reference with these grid keys is one for a row with those: each of its keys is there, and agrees.

    A key that adapting alone reads (adapt.batch) needs no reference of its own, so one without keys serves all rows.
    """
    return all(key in keys and keys[key] == value for key, value in reference.items())


def heads_table(rows: Sequence[Group], column: Column) -> tuple[list[str], list[dict[str, Any]]]:
    """Accuracy of every head and every decision rule in one column.

    Returns:
        The names, and lines as `table` has them, a cell a name, with "own" (whether it gives the row's answers). Rows
        without any score are left out.
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
    """What a row is called: ``aglrls, adapt.batch 16``."""
    return ", ".join([method, *(f"{key} {key_text(value)}" for key, value in keys.items())])


def key_text(value: Any) -> str:
    """A grid key's value as a spec writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def unlabelled(document: Mapping[str, Any]) -> set[str]:
    """Return the datasets that were run and have no score anywhere: the mean over targets goes without them."""
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
    """Which of the rows is a row's reference: of those that serve it, the one with the most keys."""
    if row.reference:
        return None
    fitting = [(len(it.keys), i) for i, it in enumerate(rows) if it.reference and serves(it.keys, row.keys)]
    return max(fitting)[1] if fitting else None


def _test_of_faces(row: Group, reference: Group, place: tuple[str, Any]) -> dict[str, Any]:
    """Of a row's entry for one (dataset, seed) against the reference's: {"p", "test"}."""
    against, other = row.entries[place]["against_reference"], reference.entries[place]
    if against is None or against["folder"] != other["folder"]:
        return {"p": None, "test": None}
    return {"p": against["test"]["p"], "test": significance_words(against["test"])}


def _mark_best(rows: Sequence[Group], values: Sequence[dict[Any, float]], cells: Sequence[dict[str, Any]]) -> None:
    rivals = [i for i, row in enumerate(rows) if not row.oracle and cells[i]["n"]]
    if len(rivals) < 2:
        return
    most = max(cells[i]["n"] for i in rivals)
    best = max((i for i in rivals if cells[i]["n"] == most), key=lambda i: cells[i]["mean"])
    cells[best]["best"] = True
    for i in rivals:
        cells[i]["tied"] = i != best and within_error(values[i], values[best]) is True
