"""How the console shows a results document: of a run, of one model, of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fercli import console
from fercli.cli.options import show_files
from fercli.evaluation.results_table import by_dataset, figures, groups, metrics, table, table_columns
from fercli.evaluation.rule_ranking import rank_rules

Document = Mapping[str, Any]
#: Title, columns, rows, caption, and how many columns are words: the arguments of `fercli.console.table`.
Table = tuple[str, list[str], list[list[Any]], str, int]


def show(document: Document, files: dict[str, Path]) -> None:
    """Print the tables of a results document, and where it was written."""
    console.table(*headline(document))
    if document["kind"] == "model":
        console.table(*expressions(document))
    elif sum(bool(entry["rules"] and entry["oracle"]) for entry in document["entries"]) > 1:
        console.table(*rule_ranks(document))
    show_files(document, files)


def headline(document: Document) -> Table:
    """Every row's scores: of a run or model one a line, of a sweep methods against targets with their deviations.

    What stands out (a leading ``*``): adapted models, or of a sweep the best row of the last column.
    """
    title, columns, rows, notes, words = (_wide if document["kind"] == "sweep" else _long)(document)
    if any("ORACLE" in str(cell) for row in rows for cell in (*columns, *row)):
        notes.append("ORACLE: target labels chose the epoch or trained the method: an upper bound, not a result.")
    if document["synthetic"]:
        notes.append("Datasets marked † are synthetic: procedural faces drawn by fercli, not photographs.")
    return document["title"] + title, columns, rows, "\n".join(notes), words


def _long(document: Document) -> tuple[str, list[str], list[list[Any]], list[str], int]:
    rows = []
    for dataset, row, own in sorted(by_dataset(document), key=lambda one: one[2][0]["role"] == "target"):
        for entry, oracle in [(one, oracle) for one in own for oracle in (False, True)[: 1 + bool(one["oracle"])]]:
            found, home = figures(entry, oracle), entry["role"] == "source"
            star = "" if home or row.reference or found["oracle"] else "*"
            name = f"{star}{_marked(document, dataset)}{' (source)' if home else ''}"
            scores = [_percent(found["accuracy"], 2), _percent(found["macro_f1"], 2)]
            epoch = "–" if found["epoch"] is None else found["epoch"]
            chosen = f"{epoch}, {'ORACLE' if found['oracle'] else found['selection']}"
            images = f"{entry['scored']}/{entry['expected']}"
            rows.append([name, row.about["label"], entry["decision"], *scores, images, chosen])
    columns = ["tested on", "method", "decision", "acc %", "F1 %", "images", "epoch, chosen by"]
    title = ": source-only beside adapted" if document["kind"] == "run" else ""
    return title, columns, rows, ["Images: scored / listed by the dataset."], 3


def _wide(document: Document) -> tuple[str, list[str], list[list[Any]], list[str], int]:
    seeds, columns, rows = len(document["seeds"]), table_columns(document), []
    for line in table(groups(document), columns, "accuracy"):
        last, cells = line["cells"][-1], []
        for cell in line["cells"]:
            deviation = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
            few = f" ({cell['n']})" if 0 < cell["n"] < seeds else ""
            cells.append(f"{_percent(cell['mean'])}{deviation}{few}{' =' if cell['tied'] else ''}")
        name = ("*" if last["best"] else "") + line["label"] + (" ORACLE" if line["oracle"] else "")
        p = "–" if last["p"] is None else "<0.001" if last["p"] < 0.001 else f"{last['p']:.3f}"
        rows.append([name, *cells, _points(last["difference"]), p, _percent(line["bound"][-1]["mean"])])
    notes = [
        f"{'Mean ± standard deviation over seeds' if seeds > 1 else 'One seed'}; bold: the best of the last column; "
        "=: within the error of the best of its column.",
        f"Points and p (paired t-test over seeds, Holm) are against {document['reference']}, "
        f"{'of the mean over targets' if columns[-1].mean else f'on {columns[-1].name}'}.",
    ]
    gone = len(document["missing"])
    if gone:
        planned = gone + len(document["entries"])
        notes.append(f"{gone} of {planned} cells are missing; (n) is how many seeds a figure has.")
    names = [_marked(document, column.name) for column in columns]
    return ": accuracy %", ["method", *names, "points", "p", "ORACLE epoch"], rows, notes, 1


def expressions(document: Document) -> Table:
    """Recall, precision and F1 of the decision for each expression, of every dataset with labels."""
    rows, notes = [], []
    for entry in document["entries"]:
        for one in metrics(entry).get("per_expression", []):
            scores = [_percent(one[name], 2) for name in ("recall", "precision", "f1")]
            rows.append([_marked(document, entry["dataset"]), one["expression"], *scores, str(one["support"])])
        drawn = entry["intervals"]
        if drawn:
            (a, b), (c, d) = ((_percent(end, 2) for end in drawn[name]) for name in ("accuracy", "macro_f1"))
            by = f"bootstrap over {drawn['units']} {drawn['by']}"
            notes.append(f"{entry['dataset']}: 95 % intervals, {by}: acc {a} to {b}, F1 {c} to {d}")
    columns = ["tested on", "expression", "recall %", "precision %", "F1 %", "faces"]
    return "By expression", columns, rows, "\n".join(notes), 2


def rule_ranks(document: Document) -> Table:
    """The rank of the selection rules; the row of a rule that chose epochs stands out."""
    ranked, rows = rank_rules(document), []
    for row in ranked["rows"]:
        scores = [_percent(row["mean"], 2), _percent(row["worst"]), _percent(row["hits"], 0), _points(row["gain"])]
        scores += [_percent(value, 2) for value in row["targets"]]
        rows.append([("*" if row["used"] else "") + row["rule"], *scores, str(row["cells"])])
    names = [_marked(document, name) for name in ranked["targets"]]
    caption = (
        "Points of accuracy below the ORACLE's epoch over all cells of adapted methods; 0 is best.\n"
        "In bold: rules that chose epochs here."
    )
    columns = ["rule", "mean below", "worst", "oracle's epoch %", "over last", *names, "cells"]
    return "Choosing the epoch without target labels: points below the oracle", columns, rows, caption, 1


def _marked(document: Document, name: str) -> str:
    return f"{name} †" if document["datasets"].get(name, {}).get("synthetic") else name  # not of a mean


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    text = "–" if value is None else f"{100 * value:+.1f}"
    return "0.0" if text[1:] == "0.0" else text
