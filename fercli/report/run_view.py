"""The values of the run's page, computed from the results document; the template only lays them out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fercli.evaluation.metrics import number
from fercli.report.analysis_view import calibration, failure_cases, gaps
from fercli.report.charts import FEW
from fercli.report.frame import frame, plain
from fercli.report.headline_view import COUNTS, all_rows, benchmark, headline, intervals, variant
from fercli.report.left_out import labelled, left_out
from fercli.report.pictures import Faces
from fercli.report.plots import stage_folder, training_curves
from fercli.report.pseudo_view import pseudo_labels

#: What each stage of GLPC asks, for readers who do not know the rule.
STAGES = {
    "fused": "the fused head is above its threshold for the class it names",
    "global": "else the global head is",
    "sum": "else the sum over the seven heads of their confident probabilities",
}


def view(results: Mapping[str, Any], pictures: Mapping[Hashable, Any] | None = None) -> dict[str, Any]:
    """Work out everything the template shows; the template itself only lays it out."""
    rows = all_rows(results)
    common = frame(results)
    known = results.get("datasets") or {}
    published = [] if common["synthetic"] else list(results.get("published") or [])
    published = [row for row in published if number(row.get("accuracy")) and row["target"] in known]
    faces = Faces(pictures)
    shown = {
        **common,
        "expressions": list(results["expressions"]),
        "headline": sorted(headline(rows), key=lambda line: line["after"] is None),
        "benchmark": benchmark(results, rows, published),
        "intervals": intervals(rows),
        "rows": rows,
        "any_oracle": any(row.get("oracle") for row in rows),
        "datasets": _datasets(results),
        "glpc": _glpc(results),
        "calibration": calibration(results),
        "few_faces": FEW,
        "gaps": gaps(results),
        "pseudo_labels": pseudo_labels(results),
        "failure_cases": failure_cases(results, faces),
        "labelled_cases": any(
            face.get("label") for one in results.get("failure_cases") or [] for face in one.get("faces") or []
        ),
        "stages": training_curves(results),
        "refused": faces.refused,
    }
    return {**shown, "left_out": left_out(results, shown)}


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
        "variant": variant(stage_folder(entry), str(entry["dataset"])),
        "counts": {what: (entry.get("counts") or {}).get(what) for what in COUNTS},
        "source": plain(entry.get("source")),
        "splits": plain(entry.get("splits")),
        "rule": selection.get("rule"),
        "reads": plain(selection.get("reads")) or "nothing",
        "oracle": bool(entry.get("oracle")) or selection.get("rule") == "oracle",
        "decision": decision,
        "heads": heads,
        "labelled": labelled(entry),
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


def _glpc(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    ladders = []
    for entry in results.get("entries") or []:
        decision = entry.get("decision") or {}
        stages = decision.get("stages") or {}
        total = sum(stage["count"] for stage in stages.values())
        if not total:
            continue
        steps = []
        for name, stage in stages.items():
            count, correct = stage["count"], stage.get("correct")
            steps.append(
                {
                    "name": name,
                    "meaning": STAGES.get(name, ""),
                    "count": count,
                    "correct": correct,
                    "share": count / total,
                    "right": None if correct is None else correct / total,
                    "accuracy": correct / count if count and correct is not None else None,
                }
            )
        ladders.append({**_model(entry), "dataset": entry["dataset"], "total": total, "steps": steps})
    return ladders
