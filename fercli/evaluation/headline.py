"""The results of a run as a table for the console."""

from __future__ import annotations

from typing import Any


def headline(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]], str]:
    """The results as (title, columns, rows, caption) for `fercli.console.table`."""
    columns = ["tested on", "method", "decision", "acc %", "F1 %", "scored/listed", "epoch", "chosen by"]
    rows = []
    for entry in results["entries"]:
        if entry["role"] == "source":
            name, model, rule = entry["dataset"], entry["model"], entry["decision"]["rule"]
            figures = _figures(entry["decision"]["metrics"], entry["counts"])
            rows.append([f"{_marked(results, name)} (source)", model, rule, *figures, entry["epoch"]])
            rows[-1].append(entry["selection"]["rule"])
    for row in results["table"]:
        star = "*" if not row["oracle"] and row["method"] != "source-only" else ""
        chosen = "ORACLE" if row["oracle"] else row["selection"]
        name = star + _marked(results, row["target"])
        rows.append([name, row["method"], row["decision"], *_figures(row, row), row["epoch"], chosen])
    notes = []
    if results["stand_in"]:
        notes.append("Datasets marked † are procedural faces drawn by fercli: a stand-in, not photographs.")
    if any(row["oracle"] for row in results["table"]):
        notes.append("ORACLE rows used target labels, to choose the epoch or to train: an upper bound, not a result.")
    return f"{results['title']}: source-only beside adapted", columns, rows, "\n".join(notes)


def _marked(results: dict[str, Any], dataset: str) -> str:
    return dataset + (" †" if results["datasets"][dataset]["stand_in"] else "")


def _figures(metrics: dict[str, Any] | None, counts: dict[str, Any]) -> list[str]:
    def percent(name: str) -> str:
        value = metrics and metrics[name]
        return "–" if value is None else f"{100 * value:.2f}"

    return [percent("accuracy"), percent("macro_f1"), f"{counts['scored']}/{counts['expected']}"]
