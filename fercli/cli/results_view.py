"""The console output for a results document: of a run, a model or a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fercli import console
from fercli.cli.hints import with_options
from fercli.cli.options import show_files
from fercli.errors import Advice
from fercli.evaluation.domain_gap import why_unmeasured
from fercli.evaluation.intervals import interval_words
from fercli.evaluation.results_table import Column, by_dataset, figures, groups, metrics, table, table_columns, tests
from fercli.evaluation.rule_ranking import rank_rules

Document = Mapping[str, Any]
#: Title, columns, rows, caption, and the number of text columns: the arguments of `fercli.console.table`.
Table = tuple[str, list[str], list[list[Any]], str, int]


def show(document: Document, files: dict[str, Path]) -> None:
    """Print the tables of a results document, and the files it was written to."""
    console.table(*headline(document))
    if document["kind"] == "model":
        console.table(*expressions(document))
    elif sum(bool(entry["rules"] and entry["oracle"]) for entry in document["entries"]) > 1:
        console.table(*rule_ranks(document))
    moved = drift(document)
    if moved[2]:
        console.table(*moved)
    for line in doubts(document):
        console.warn(with_options(line))
    show_files(document, files)


def headline(document: Document) -> Table:
    """Return the table of scores: one per line for a run or model; for a sweep, methods by targets with deviations.

    Highlighted rows (a leading ``*``) are adapted models, or for a sweep the best row of the last column.
    """
    title, columns, rows, notes, words = (_wide if document["kind"] == "sweep" else _long)(document)
    if any("ORACLE" in str(cell) for row in rows for cell in (*columns, *row)):
        notes.append("ORACLE: the epoch or the method used target labels; this is an upper bound, not a result.")
    notes += map(_gap, document["gaps"])
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
    title = ": source-only and adapted" if document["kind"] == "run" else ""
    targets = table_columns(document)
    chances = _chances(document, targets, table(groups(document), targets, "accuracy"))
    return title, columns, rows, ["Images: scored / listed by the dataset.", *chances], 3


def _chances(document: Document, columns: Sequence[Column], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for every target: p of the difference between each accuracy and the reference's.

    Args:
        columns, lines: the table of the accuracy (`fercli.evaluation.results_table.table`).
    """
    notes = []
    for words, names in tests(columns, lines).items():
        for i, column in enumerate(columns):
            told = [(line["label"], line["cells"][i]) for line in lines if line["cells"][i]["test"] == words]
            if column.name in names:
                about = f"p of the accuracy on {column.name} compared with {document['reference']}"
                shown = ", ".join(f"{label} {_p(cell['p'])}" for label, cell in told)
                notes.append(f"{about}: {shown} ({words}; Holm).")
    if notes and len(document["seeds"]) == 1:
        notes.append("p generalises to other faces, not to other seeds.")
    return notes


def _wide(document: Document) -> tuple[str, list[str], list[list[Any]], list[str], int]:
    seeds, columns, rows = len(document["seeds"]), table_columns(document), []
    lines = table(groups(document), columns, "accuracy")
    for line in lines:
        last, cells = line["cells"][-1], []
        for cell in line["cells"]:
            deviation = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
            few = f" ({cell['n']})" if 0 < cell["n"] < seeds else ""
            cells.append(f"{_percent(cell['mean'])}{deviation}{few}{' =' if cell['tied'] else ''}")
        name = ("*" if last["best"] else "") + line["label"] + (" ORACLE" if line["oracle"] else "")
        about = [_points(last["difference"]), _p(last["p"]), _percent(line["bound"][-1]["mean"])]
        rows.append([name, *cells, *about])
    notes = [
        f"{'Mean ± standard deviation over seeds' if seeds > 1 else 'One seed'}; bold: the best of the last column; "
        "=: within the error of the best in its column.",
        f"Points and p are relative to {document['reference']}, "
        f"{'for the mean over targets' if columns[-1].mean else f'on {columns[-1].name}'}.",
    ]
    found = [words for words, names in tests(columns, lines).items() if columns[-1].name in names]
    if found:
        over, same = ("seeds", "faces") if any(line["cells"][-1]["n"] > 1 for line in lines) else ("faces", "seeds")
        words = f"p: {', '.join(found)}, Holm over the rows."
        notes.append(f"{words} It generalises to other {over}, not to other {same}.")
    elif seeds == 1 and columns[-1].mean:
        notes += ["With one seed, the mean over targets has no p.", *_chances(document, columns, lines)]
    gone = len(document["missing"])
    if gone:
        planned = gone + len(document["entries"])
        notes.append(f"{gone} of {planned} cells are missing; (n) is the number of seeds behind a figure.")
    names = [_marked(document, column.name) for column in columns]
    return ": accuracy %", ["method", *names, "points", "p", "ORACLE epoch"], rows, notes, 1


def expressions(document: Document) -> Table:
    """Return recall, precision and F1 of the decision for each expression, on every dataset with labels."""
    rows, notes = [], []
    for entry in document["entries"]:
        for one in metrics(entry).get("per_expression", []):
            scores = [_percent(one[name], 2) for name in ("recall", "precision", "f1")]
            rows.append([_marked(document, entry["dataset"]), one["expression"], *scores, str(one["support"])])
        drawn = entry["intervals"]
        if drawn:
            (a, b), (c, d) = ((_percent(end, 2) for end in drawn[name]) for name in ("accuracy", "macro_f1"))
            about = f"{entry['dataset']}: 95% intervals, {interval_words(drawn)}"
            notes.append(f"{about}: acc {a} to {b}, F1 {c} to {d}")
    columns = ["tested on", "expression", "recall %", "precision %", "F1 %", "faces"]
    return "By expression", columns, rows, "\n".join(notes), 2


def drift(document: Document) -> Table:
    """Return what adapting to unlabelled targets changed, for entries with a drift; other entries get no row."""
    rows = []
    for entry in document["entries"] if document["kind"] != "sweep" else ():
        moved = entry.get("drift")
        if moved is not None and not entry["scored"]:
            pairs = [" to ".join(digits(moved[name][when]) for when in ("before", "after")) for name, digits in _MOVED]
            about = [_marked(document, entry["dataset"]), entry["method"], moved["verdict"]["trust"]]
            rows.append([*about, str(moved["faces"]), _percent(moved["agreement"]), *pairs])
    caption = "From the starting to the adapted model, on the same faces, without labels. This is not accuracy."
    columns = ["target", "method", "trust", "faces", "same predictions %", "entropy", "heads agree %"]
    return "Drift", columns, rows, caption, 3


def doubts(document: Document) -> list[str]:
    """Return a line for each adaptation that is doubtful or not trusted; for a sweep, one line for all of them."""
    told = [(entry, entry["drift"]["verdict"]) for entry in document["entries"] if entry.get("drift")]
    if document["kind"] == "sweep":
        bad = sum(verdict["trust"] == "not trusted" for _, verdict in told)
        which = Advice(
            f"{bad} of {len(told)} adaptations are not trusted; to see which, ", Advice.run("evaluate", "--report")
        )
        return [which] if bad else []
    return [
        f"{entry['dataset']}, {entry['method']}: {verdict['trust']}. {' '.join(verdict['reasons'])}"
        for entry, verdict in told
        if verdict["trust"] != "trusted"
    ]


def rule_ranks(document: Document) -> Table:
    """Return the ranking of the selection rules; rows of rules that chose epochs are highlighted."""
    ranked, rows = rank_rules(document), []
    for row in ranked["rows"]:
        scores = [_percent(row["mean"], 2), _percent(row["worst"]), _percent(row["hits"], 0), _points(row["gain"])]
        scores += [_percent(value, 2) for value in row["targets"]]
        rows.append([("*" if row["used"] else "") + row["rule"], *scores, str(row["cells"])])
    names = [_marked(document, name) for name in ranked["targets"]]
    caption = (
        "Points of accuracy below the ORACLE's epoch, over all cells of adapted methods; 0 is best.\n"
        "Bold: rules that chose epochs here."
    )
    columns = ["rule", "mean below", "worst", "oracle's epoch %", "over last", *names, "cells"]
    return "Choosing the epoch without target labels: points below the oracle", columns, rows, caption, 1


def _gap(gap: Mapping[str, Any]) -> str:
    """Return a target's distance from the source under each model, with its value for no gap."""
    about, why = f"Domain gap to {gap['target']}", why_unmeasured(*gap["models"][0]["faces"])
    if why:
        return f"{about} is not measured: {why}."
    without = max(model["no_gap"] for model in gap["models"])
    each = ", ".join(f"{model['method']} {model['energy_distance']:.3f}" for model in gap["models"])
    return f"{about} (energy distance, 0 to 1; below {without:.3f} without a gap): {each}."


def _marked(document: Document, name: str) -> str:
    return f"{name} †" if document["datasets"].get(name, {}).get("synthetic") else name  # not of a mean


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _points(value: float | None) -> str:
    text = "–" if value is None else f"{100 * value:+.1f}"
    return "0.0" if text[1:] == "0.0" else text


#: The drift values that the console shows before and after adaptation, and their formats.
_MOVED = (("entropy", _nats), ("heads_agreement", _percent))
