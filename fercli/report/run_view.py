"""The values of the run's page, computed from the results document; the template only lays them out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fercli.report.analysis_view import calibration, failure_cases, gaps
from fercli.report.charts import FEW
from fercli.report.frame import frame
from fercli.report.headline_view import all_rows, benchmark, headline, intervals
from fercli.report.left_out import left_out
from fercli.report.pictures import Faces
from fercli.report.plots import training_curves
from fercli.report.pseudo_view import pseudo_labels

#: What each stage of GLPC asks, for readers who do not know the rule.
STAGES = {
    "fused": "the fused head is above its threshold for the class it names",
    "global": "else the global head is",
    "sum": "else the sum over the seven heads of their confident probabilities",
}


def view(results: Mapping[str, Any], pictures: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Work out everything the template shows; the template itself only lays it out."""
    common, rows, faces = frame(results), all_rows(results), Faces(pictures)
    cases = failure_cases(results, faces)
    return {
        **common,
        "expressions": results["expressions"],
        "headline": sorted(headline(rows), key=lambda line: line["after"] is None),
        "benchmark": benchmark(results, rows, [] if common["synthetic"] else results["published"]),
        "intervals": intervals(rows),
        "rows": rows,
        "any_oracle": any(row["oracle"] for row in rows),
        "datasets": _datasets(results),
        "glpc": _glpc(results),
        "calibration": calibration(results),
        "few_faces": FEW,
        "gaps": gaps(results),
        "pseudo_labels": pseudo_labels(results),
        "failure_cases": cases,
        "labelled_cases": any(face["label"] for one in results["failure_cases"] for face in one["faces"]),
        "stages": training_curves(results),
        "refused": faces.refused,
        "left_out": left_out(results, faces.refused),
    }


def _datasets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is shown of each dataset; those without labels have neither heads nor a decision to show."""
    sections = []
    for name, about in results["datasets"].items():
        models = [dict(entry) for entry in results["entries"] if entry["dataset"] == name]
        for model in models:
            namesakes = [m for m in models if (m["model"], m["oracle"]) == (model["model"], model["oracle"])]
            model["column"] = ", ".join([model["folder"]] * (len(namesakes) > 1) + [f"epoch {model['epoch']}"])
        labelled = [model for model in models if model["decision"]["metrics"]]
        heads = list(labelled[0]["heads"]) if labelled else []
        sections.append(
            {
                "name": name,
                "role": about["role"],
                "models": models,
                "heads": [_across(models, head, [model["heads"][head] for model in models]) for head in heads],
                "decision": labelled and _across(models, "decision", [m["decision"]["metrics"] for m in models]),
                "rules": ", ".join(dict.fromkeys(model["decision"]["rule"] for model in models)),
            }
        )
    return sorted(sections, key=lambda section: section["role"] != "target")  # what the report is about comes first


def _across(models: Sequence[Mapping[str, Any]], name: str, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One head (or the decision) over the models of a data set: summary cells, per-expression rows and matrices."""
    cells = []
    for one in metrics:
        matrix = one["confusion"]
        right = sum(row[i] for i, row in enumerate(matrix))
        cells.append({"metrics": one, "matrix": matrix, "total": sum(map(sum, matrix)), "right": right})
    return {"name": name, "cells": cells, "expressions": _per_expression(metrics), "models": models}


def _per_expression(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for i, first in enumerate(metrics[0]["per_expression"]):
        precision, recall, f1, support = [], [], [], []
        for one in metrics:
            row, matrix = one["per_expression"][i], one["confusion"]
            right = matrix[i][i]
            precision.append((row["precision"], f"{right}/{sum(line[i] for line in matrix)}"))
            recall.append((row["recall"], f"{right}/{row['support']}"))
            f1.append((row["f1"], None))
            support.append(row["support"])
        rows.append(
            {
                "expression": first["expression"],
                "support": " | ".join(str(n) for n in dict.fromkeys(support)),
                "scores": [("precision", precision), ("recall", recall), ("F1", f1)],
            }
        )
    return rows


def _glpc(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    ladders = []
    for entry in results["entries"]:
        stages = entry["decision"]["stages"] or {}
        total = sum(stage["count"] for stage in stages.values())
        if not total:
            continue
        steps = []
        for name, stage in stages.items():
            count, correct = stage["count"], stage["correct"]
            steps.append(
                {
                    **stage,
                    "name": name,
                    "meaning": STAGES.get(name, ""),
                    "share": count / total,
                    "accuracy": correct / count if count and correct is not None else None,
                }
            )
        ladders.append({**entry, "total": total, "steps": steps})
    return ladders
