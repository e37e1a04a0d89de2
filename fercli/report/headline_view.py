"""The headline of a run's report: every row with its interval, before beside after, methods against targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.metrics import accuracy_interval
from fercli.report.plots import lanes

#: How many images the list names, how many have a face, how many have a score.
COUNTS = ("expected", "found", "scored")


def all_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `table`, and after them those of the source's own test images (what the source model is worth
    at home), which it does not hold.

    Each has ``correct``, ``interval`` (low, high or None), ``by`` (what the interval is of) and ``variant`` (the tag of
    the stage folder, such as ``no-glpc``) besides.
    """
    at_home = [entry for entry in results["entries"] if entry["role"] == "source" and entry["decision"]["metrics"]]
    return [_with_interval(row) for row in (*results["table"], *map(headline_row, at_home))]


def headline_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a model on a dataset, from its entry of the results document."""
    metrics = entry["decision"]["metrics"] or {}
    return {
        "target": entry["dataset"],
        "source": entry["source"],
        "method": entry["model"],
        "folder": entry["folder"],
        "decision": entry["decision"]["rule"],
        "accuracy": metrics.get("accuracy"),
        "macro_f1": metrics.get("macro_f1"),
        "intervals": entry["intervals"],
        **entry["counts"],
        "selection": entry["selection"]["rule"],
        "epoch": entry["epoch"],
        "oracle": entry["oracle"],
    }


def headline(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put every adapted row beside its source-only row: same target and source, chosen without target labels.

    Oracle rows are compared with that same row, so that all differences of a target have one reference, and come after
    the others. A target that was not adapted, or has no source-only row, has None on that side.

    Returns:
        A list of {"target", "source", "before": row or None, "after": row or None, "difference": fraction or None,
        "plot": SVG}.
    """
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["target"], row["source"]), []).append(row)
    lines = []
    for (target, source), group in pairs.items():
        reference = next((r for r in group if _is_reference(r)), None)
        adapted = [row for row in group if row["method"] != "source-only"]
        for row in sorted(adapted, key=lambda r: r["oracle"]) or [None]:
            if row is None and reference is None:
                continue
            before, after = (side["accuracy"] if side else None for side in (reference, row))
            lines.append(
                {
                    "target": target,
                    "source": source,
                    "before": reference,
                    "after": row,
                    "difference": None if before is None or after is None else after - before,
                    "plot": lanes(reference, row, f"source-only {_plain_pct(before)}, adapted {_plain_pct(after)}"),
                }
            )
    return lines


def intervals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say what the intervals are of: (what, which rows), such as ("bootstrap over 10 subjects", "jaffe")."""
    found: dict[str, dict[str, None]] = {}
    for row in sorted((row for row in rows if row["interval"]), key=lambda row: row["oracle"]):
        names = found.setdefault(row["by"], {})
        if row["target"] not in names:
            names["oracle rows" if row["oracle"] else row["target"]] = None
    return [(by, ", ".join(names)) for by, names in found.items()]


def benchmark(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]):
    """Lay methods against targets, with their mean, and published figures beneath.

    Args:
        rows: from `all_rows`.
        published: rows as printed by their authors, of these targets, accuracy in percent.

    Returns:
        {"targets", "mean" (whether there is such a column), "lines", "published"}, lines with "cells" (fractions, or
        percent for the published, None where there is no figure); None where the headline says as much: one target,
        one adapted model, nothing published.
    """
    own = [row for row in rows if results["datasets"][row["target"]]["role"] != "source"]
    targets = list(dict.fromkeys(row["target"] for row in own))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in own:
        about = {key: row[key] for key in ("method", "variant", "source", "decision", "oracle")}
        line = lines.setdefault(tuple(about.values()), {**about, "selection": row["selection"], "own": {}})
        line["own"].setdefault(row["target"], row["accuracy"])
    printed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in published:
        about = {key: row[key] for key in ("method", "backbone", "citation", "selection")}
        line = printed.setdefault(tuple(about.values()), {**about, "own": {}})
        line["own"][row["target"]] = row["accuracy"]
    adapted = [line for line in lines.values() if line["method"] != "source-only" and not line["oracle"]]
    if not targets or (len(targets) < 2 and len(adapted) < 2 and not printed):
        return None
    for line in (*lines.values(), *printed.values()):
        line["cells"] = [line["own"].get(name) for name in targets]
        if len(targets) > 1:
            whole = None not in line["cells"]
            line["cells"].append(sum(line["cells"]) / len(targets) if whole else None)
    order = sorted(lines.values(), key=lambda line: (line["oracle"], line["method"] != "source-only"))
    return {"targets": targets, "mean": len(targets) > 1, "lines": order, "published": list(printed.values())}


def variant(folder: str, target: str) -> str:
    """Return the tag of a stage folder: ``no-glpc`` of ``adapt-jaffe-no-glpc``; '' where it has none."""
    own = f"adapt-{target}"
    return folder[len(own) :].lstrip("-") if folder.startswith(own) else ""


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["method"] == "source-only" and not row["oracle"]


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, scored, drawn = row["accuracy"], row["scored"], row["intervals"]
    correct = None if accuracy is None else round(accuracy * scored)
    interval, by = None, "Wilson’s"
    if drawn and _has_width(drawn["accuracy"]):
        interval, by = drawn["accuracy"], f"bootstrap over {drawn['units']} {drawn['by']}"
    elif correct is not None:
        interval = accuracy_interval(correct, scored)
    return {
        **row,
        "variant": variant(row["folder"], row["target"]),
        "correct": correct,
        "interval": interval,
        "by": by,
        "f1_interval": drawn["macro_f1"] if drawn and _has_width(drawn["macro_f1"]) else None,
    }


def _has_width(interval: Sequence[float]) -> bool:
    """Whether the ends (low, high) differ; where they are one, resampling has seen nothing."""
    low, high = interval
    return high > low


def _plain_pct(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.1f}%"
