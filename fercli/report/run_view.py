"""What the report shows, worked out from the results document: plain values that the template only lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.metrics import accuracy_interval, number
from fercli.report.frame import frame, plain
from fercli.report.plots import lanes, stage_folder, training_curves

#: What each rung of the GLPC ladder asks, for readers who do not know the rule.
RUNGS = {
    "fused": "the fused head is above its threshold for the class it names",
    "global": "else the global head is",
    "sum": "else the sum over the seven heads of their confident probabilities",
}

#: How many images the list names, how many have a face, how many have a score.
COUNTS = ("expected", "found", "scored")


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """Work out everything the template shows; the template itself only lays it out."""
    table = results.get("table") or []
    rows = [_with_interval(row) for row in [*table, *_source_rows(results)]]
    common = frame(results)
    published = [] if common["stand_in"] else list(results.get("published") or [])
    return {
        **common,
        "expressions": list(results["expressions"]),
        "headline": sorted(headline(rows), key=lambda line: line["after"] is None),
        "rows": rows,
        "any_oracle": any(row.get("oracle") for row in rows),
        "datasets": _datasets(results),
        "rungs": _rungs(results),
        "stages": training_curves(results),
        "published": [
            row for row in published if number(row.get("accuracy")) and row["target"] in (results.get("datasets") or {})
        ],
        "left_out": _left_out(results),
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
        pairs.setdefault((row["target"], plain(row.get("source"))), []).append(row)
    lines = []
    for (target, source), group in pairs.items():
        reference = next((r for r in group if r["method"] == "source-only" and not r.get("oracle")), None)
        adapted = [row for row in group if row["method"] != "source-only"]
        for row in sorted(adapted, key=lambda r: bool(r.get("oracle"))) or [None]:
            if row is None and reference is None:
                continue
            before, after = (number(side["accuracy"]) if side else None for side in (reference, row))
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


def _source_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for the source's own test images, which `table` does not hold: what the source model is worth at home."""
    listed = {row["target"] for row in results.get("table") or []}
    rows = []
    for entry in results.get("entries") or []:
        metrics = (entry.get("decision") or {}).get("metrics")
        if entry.get("role") != "source" or entry["dataset"] in listed or not metrics:
            continue
        model = _model(entry)
        rows.append(
            {
                **{key: model[key] for key in ("source", "epoch", "oracle")},
                **{key: metrics[key] for key in ("accuracy", "macro_f1")},
                **model["counts"],
                "target": entry["dataset"],
                "method": model["model"],
                "decision": model["decision"]["rule"],
                "selection": model["rule"],
            }
        )
    return rows


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, scored = number(row.get("accuracy")), row.get("scored") or 0
    correct = None if accuracy is None else round(accuracy * scored)
    interval = None if correct is None else accuracy_interval(correct, scored)
    row = {**dict.fromkeys(("decision", "selection", "epoch", "macro_f1", *COUNTS)), **row}
    return {**row, "source": plain(row.get("source")), "correct": correct, "interval": interval}


def _datasets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = results.get("entries") or []
    names = dict.fromkeys([*(results.get("datasets") or {}), *(entry["dataset"] for entry in entries)])
    sections = []
    for name in names:
        models = [_model(entry) for entry in entries if entry["dataset"] == name]
        if not models:
            continue
        heads = list(dict.fromkeys(head for model in models for head in model["heads"]))
        for model in models:
            namesakes = [m for m in models if (m["model"], m["oracle"]) == (model["model"], model["oracle"])]
            parts = [model["folder"]] if len(namesakes) > 1 else []
            parts += [f"epoch {model['epoch']}"] if model["epoch"] is not None else []
            model["column"] = ", ".join(parts)
        about = (results.get("datasets") or {}).get(name) or {}
        sections.append(
            {
                "name": name,
                "role": about.get("role") or models[0]["role"],
                "models": models,
                "heads": [_across(models, head, [model["heads"].get(head) for model in models]) for head in heads],
                "decision": _across(models, "decision", [(model["decision"] or {}).get("metrics") for model in models]),
                "rules": ", ".join(dict.fromkeys(m["decision"]["rule"] for m in models if m["decision"])),
                "labelled": any(model["labelled"] for model in models),
            }
        )
    return sorted(sections, key=lambda section: section["role"] != "target")  # what the report is about comes first


def _model(entry: Mapping[str, Any]) -> dict[str, Any]:
    selection, decision = entry.get("selection") or {}, entry.get("decision")
    heads = {head: metrics for head, metrics in (entry.get("heads") or {}).items()}
    return {
        **{key: entry.get(key) for key in ("role", "model", "stage", "checkpoint", "epoch")},
        "folder": stage_folder(entry),
        "counts": {what: (entry.get("counts") or {}).get(what) for what in COUNTS},
        "source": plain(entry.get("source")),
        "splits": plain(entry.get("splits")),
        "rule": selection.get("rule"),
        "reads": plain(selection.get("reads")) or "nothing",
        "oracle": bool(entry.get("oracle")) or selection.get("rule") == "oracle",
        "decision": decision,
        "heads": heads,
        "labelled": any(heads.values()) or bool(decision and decision.get("metrics")),
    }


def _across(
    models: Sequence[Mapping[str, Any]], name: str, metrics: Sequence[Mapping[str, Any] | None]
) -> dict[str, Any]:
    """One head (or the decision) over the models of a data set: summary cells, per-expression rows and matrices."""
    cells = []
    for one in metrics:
        matrix = (one or {}).get("confusion")
        total = sum(map(sum, matrix)) if matrix else None
        right = sum(row[i] for i, row in enumerate(matrix)) if matrix else None
        cells.append({"metrics": one, "matrix": matrix, "total": total, "right": right})
    return {"name": name, "cells": cells, "expressions": _per_expression(cells), "models": models}


def _per_expression(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    known = next((cell["metrics"]["per_expression"] for cell in cells if cell["metrics"]), [])
    rows = []
    for i, expression in enumerate(row["expression"] for row in known):
        precision, recall, f1, support = [], [], [], []
        for cell in cells:
            if not cell["metrics"]:
                for column in (precision, recall, f1):
                    column.append((None, None))
                continue
            row, matrix = cell["metrics"]["per_expression"][i], cell["matrix"]
            right = matrix[i][i]
            precision.append((row["precision"], f"{right}/{sum(line[i] for line in matrix)}"))
            recall.append((row["recall"], f"{right}/{row['support']}"))
            f1.append((row["f1"], None))
            support.append(row["support"])
        rows.append(
            {
                "expression": expression,
                "support": " | ".join(str(n) for n in dict.fromkeys(support)),
                "scores": [("precision", precision), ("recall", recall), ("F1", f1)],
            }
        )
    return rows


def _rungs(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    ladders = []
    for entry in results.get("entries") or []:
        decision = entry.get("decision") or {}
        rungs = decision.get("rungs") or {}
        total = sum(rung["count"] for rung in rungs.values())
        if not total:
            continue
        steps = []
        for name, rung in rungs.items():
            count, correct = rung["count"], rung.get("correct")
            steps.append(
                {
                    "name": name,
                    "meaning": RUNGS.get(name, ""),
                    "count": count,
                    "correct": correct,
                    "share": count / total,
                    "right": None if correct is None else correct / total,
                    "accuracy": correct / count if count and correct is not None else None,
                }
            )
        ladders.append({**_model(entry), "dataset": entry["dataset"], "total": total, "steps": steps})
    return ladders


def _left_out(results: Mapping[str, Any]) -> list[str]:
    """Say in words what has no score, and which images have none."""
    notes = []
    entries = results.get("entries") or []
    for name in results.get("datasets") or {}:
        own = [entry for entry in entries if entry["dataset"] == name]
        if not own:
            notes.append(f"{name}: not evaluated, no scores are shown for it.")
        elif not any(_model(entry)["labelled"] for entry in own):
            notes.append(f"{name}: its images have no labels, so accuracy, F1 and confusion matrices are left out.")
    seen = set()
    for entry in entries:
        counts = entry.get("counts") or {}
        key = (entry["dataset"], plain(entry.get("splits")), *counts.values())
        expected, found, scored = (counts.get(what) for what in COUNTS)
        if key in seen or expected is None or scored is None or scored == expected or not _model(entry)["labelled"]:
            continue
        seen.add(key)
        where = f"{entry['dataset']} ({key[1]})"
        reasons = []
        if found is not None and found < expected:
            reasons.append(f"{expected - found} without a usable face")
        if found is not None and scored < found:
            reasons.append(f"{found - scored} with a face but no label among the seven")
        why = f" ({', '.join(reasons)})" if reasons else ""
        notes.append(f"{where}: {expected - scored} of {expected} listed images not scored{why}.")
    return notes


def _plain_pct(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.1f}%"
