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
    if results["synthetic"]:
        notes.append("Datasets marked † are synthetic: procedural faces drawn by fercli, not photographs.")
    if any(row["oracle"] for row in results["table"]):
        notes.append("ORACLE rows used target labels, to choose the epoch or to train: an upper bound, not a result.")
    return f"{results['title']}: source-only beside adapted", columns, rows, "\n".join(notes)


def expressions(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]], str | None]:
    """Recall, precision and F1 of the decision for each expression, as `headline`, of every dataset with labels."""
    columns = ["tested on", "expression", "recall %", "precision %", "F1 %", "faces"]
    rows = []
    for entry in results["entries"]:
        for one in (entry["decision"]["metrics"] or {}).get("per_expression", []):
            figures = [_percent(one[name]) for name in ("recall", "precision", "f1")]
            rows.append([_marked(results, entry["dataset"]), one["expression"], *figures, str(one["support"])])
    notes = [
        f"{entry['dataset']}: {_intervals(entry['intervals'])}" for entry in results["entries"] if entry["intervals"]
    ]
    return "By expression", columns, rows, "\n".join(notes) or None


def _intervals(found: dict[str, Any]) -> str:
    said = [f"{name} {_percent(found[key][0])} to {_percent(found[key][1])}" for key, name in _NAMES if found.get(key)]
    return f"95 % intervals, bootstrap over {found['units']} {found['by']}: {', '.join(said)}"


_NAMES = (("accuracy", "acc"), ("macro_f1", "F1"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _marked(results: dict[str, Any], dataset: str) -> str:
    return dataset + (" †" if results["datasets"][dataset]["synthetic"] else "")


def _figures(metrics: dict[str, Any] | None, counts: dict[str, Any]) -> list[str]:
    shown = [_percent(metrics and metrics[name]) for name in ("accuracy", "macro_f1")]
    return [*shown, f"{counts['scored']}/{counts['expected']}"]
