"""What a page shows of single models: heads, matrices, GLPC, calibration, domain gap, failure cases, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.results_table import by_dataset
from fercli.evaluation.statistics import summary
from fercli.report.pictures import Faces
from fercli.report.plots import counts, curve, reliability, scatter


def datasets(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Heads and decisions of every model on every dataset with labels, of a run or model; nothing of a sweep.

    Returns:
        [{"name", "role", "models" (entries, with "label"), "heads", "decision", "rules" (decision rules in words)}], targets
        first; a head (or the decision) as `_across` gives it.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row, own in () if document["kind"] == "sweep" else by_dataset(document):
        models = [{**entry, "label": row.label} for entry in own if any(entry["heads"].values())]
        found.setdefault(name, []).extend(models)
    sections = []
    for name, models in found.items():
        if not models:
            continue
        heads = dict.fromkeys(head for model in models for head in model["heads"])
        sections.append(
            {
                "name": name,
                "role": document["datasets"][name]["role"],
                "models": models,
                "heads": [_across(models, head, [model["heads"].get(head) for model in models]) for head in heads],
                "decision": _across(models, "decision", [model["heads"][model["decision"]] for model in models]),
                "rules": ", ".join(dict.fromkeys(model["decision"] for model in models)),
            }
        )
    return sections


def _across(
    models: Sequence[Mapping[str, Any]], name: str, found: Sequence[Mapping[str, Any] | None]
) -> dict[str, Any]:
    """One head, rule or the decision over the models of a dataset.

    Returns:
        {"name", "cells" (a model's {"metrics", "right", "total"}, None where it lacks the rule), "models" (that have it),
        "expressions" (rows over those)}.
    """
    cells = [
        one and {"metrics": one, "right": sum(row[i] for i, row in enumerate(one["confusion"])),
                 "total": sum(map(sum, one["confusion"]))} for one in found
    ]  # fmt: skip
    having = [model for model, one in zip(models, found, strict=True) if one]
    return {"name": name, "cells": cells, "models": having, "expressions": _per_expression([m for m in found if m])}


def _per_expression(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{"expression", "support", "scores": [[(value, the counts behind it, or None) of each model]]}, in the order
    precision, recall, F1."""
    rows = []
    for i, first in enumerate(metrics[0]["per_expression"]):
        precision, recall, f1, support = [], [], [], []
        for one in metrics:
            row, matrix = one["per_expression"][i], one["confusion"]
            precision.append((row["precision"], f"{matrix[i][i]}/{sum(line[i] for line in matrix)}"))
            recall.append((row["recall"], f"{matrix[i][i]}/{row['support']}"))
            f1.append((row["f1"], None))
            support.append(str(row["support"]))
        about = {"expression": first["expression"], "support": " | ".join(dict.fromkeys(support))}
        rows.append({**about, "scores": [precision, recall, f1]})
    return rows


def glpc(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often each stage of GLPC decided, faces counted over seeds.

    Returns:
        [{"dataset", "models": [{"label", "oracle", "total", "steps": [{"name", "count", "correct" (None without labels),
        "share", "accuracy"}]}]}].
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for dataset, row, own in by_dataset(document):
        stages = [entry["stages"] for entry in own if entry["stages"]]
        total = sum(stage["count"] for one in stages for stage in one.values())
        steps = []
        for name in stages[0] if total else ():
            count, right = sum(one[name]["count"] for one in stages), [one[name]["correct"] for one in stages]
            correct = None if None in right else sum(right)
            accuracy = correct / count if count and correct is not None else None
            steps.append(
                {"name": name, "count": count, "correct": correct, "share": count / total, "accuracy": accuracy}
            )
        if steps:
            model = {"label": row.label, "oracle": row.oracle, "total": total, "steps": steps}
            found.setdefault(dataset, []).append(model)
    return [{"dataset": name, "models": models} for name, models in found.items()]


def calibration(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Calibration of each dataset's models, over seeds; its diagrams of a run or model.

    Returns:
        [{"name", "models": [{"label", "oracle", "temperature" (mean and deviation), "fitted_on" (faces), "figures" (ECE before,
        after; NLL before, after), "sides": [{"what", "ece", "nll", "svg", "strip"}]}]}].
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for dataset, row, own in by_dataset(document):
        whole = [entry["calibration"] for entry in own if entry["calibration"]]
        if not whole:
            continue
        sides = []
        for key in ("before", "after") if document["kind"] != "sweep" else ():
            one = whole[0][key]
            what = "before, T = 1" if key == "before" else f"after, T = {whole[0]['temperature']:.2f}"
            title = f"{dataset}, {row.label}, {what}: accuracy against confidence, ECE {100 * one['ece']:.1f}%"
            strip = counts(one["bins"], f"faces by confidence, {what}")
            sides.append({**one, "what": what, "svg": reliability(one["bins"], title), "strip": strip})
        model = {
            "label": row.label,
            "oracle": row.oracle,
            "temperature": summary(one["temperature"] for one in whole),
            "fitted_on": ", ".join(dict.fromkeys(str(one["fitted_on"] or "none, T = 1") for one in whole)),
            "figures": [
                summary(one[when][name] for one in whole) for name in ("ece", "nll") for when in ("before", "after")
            ],
            "sides": sides,
        }
        found.setdefault(dataset, []).append(model)
    return [{"name": name, "models": models} for name, models in found.items()]


def gaps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each target's gap as the document has it, and "unlabelled" (whether a face on its maps is).

    A model has besides what `fercli.scoring.trained_evaluator.TrainedEvaluator.gap` says of it "share" (of the greatest
    distance, 2), "change" to the first model, and "maps" [{"what", "svg"}], empty where there is no embedding.
    """
    found = []
    for gap in document["gaps"]:
        models, first = [], gap["models"][0]["a_distance"]
        for model in gap["models"]:
            distance, embedding = model["a_distance"], model["embedding"]
            models.append(
                {
                    **model,
                    "share": None if distance is None else distance / 2,
                    "change": None if None in (distance, first) or not models else distance - first,
                    "maps": _maps(embedding, f"{gap['target']}, {model['method']}, {model['folder']}"),
                }
            )
        unlabelled = any(-1 in (model["embedding"] or {"label": []})["label"] for model in models)
        found.append({**gap, "models": models, "unlabelled": unlabelled})
    return found


def _maps(embedding: Mapping[str, Any] | None, whose: str) -> list[dict[str, Any]]:
    if embedding is None:
        return []
    sides = zip(embedding["label"], embedding["domain"], strict=True)
    by_label = [f"{f'c{label}' if label >= 0 else 'unknown'} {'tgt' if domain else 'src'}" for label, domain in sides]
    by_domain = ["after tgt" if domain else "before src" for domain in embedding["domain"]]
    return [
        {"what": what, "svg": scatter(embedding["x"], embedding["y"], kinds, f"t-SNE of {whose}, by {what}")}
        for what, kinds in (("expression", by_label), ("domain", by_domain))
    ]


def failure_cases(document: Mapping[str, Any], pictures: Faces) -> list[dict[str, Any]]:
    """Return {"dataset", "folder", "method", "kinds"} of each model whose faces are shown.

    A kind has "kind", "faces" and "empty" (what to say where there are none); a face its own values, "shown" (its
    pictures, or None) and "wrong".
    """
    entries = {(entry["folder"], entry["dataset"]): entry for entry in document["entries"]}
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for one in document["failure_cases"]:
        groups.setdefault((one["folder"], one["dataset"]), {})[one["kind"]] = one["faces"]
    found = []
    for (folder, dataset), kinds in groups.items():
        entry = entries[folder, dataset]
        empty = {
            "mistakes": "No mistakes: every face with a label was answered rightly."
            if any(entry["heads"].values())
            else "Its faces have no labels, so no answer can be called a mistake.",
            "uncertain": "No faces to show.",
        }
        shown = []
        for kind, words in empty.items():
            faces = [
                {
                    **face,
                    "shown": pictures.show((folder, dataset, face["position"])),
                    "wrong": face["label"] not in (None, face["answer"]),
                }
                for face in kinds.get(kind, [])
            ]
            shown.append({"kind": kind, "empty": words, "faces": faces})
        found.append({"dataset": dataset, "folder": folder, "method": entry["method"], "kinds": shown})
    return found


def training_curves(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn the document's ``history`` into panels, a stage at a time.

    Returns:
        [{"stage", "epochs" (how many), "chosen" (epoch), "rule" (that chose it), "panels"}]; panels as
        `fercli.report.plots.curve` gives them, with "kind" ("loss", "score") and "decides" (whether it chose the epoch).
    """
    used = {entry["folder"]: entry for entry in document["entries"]}
    stages = []
    for stage, rows in document["history"].items():
        if not rows:
            continue
        rule, chosen = used[stage]["selection"], used[stage]["epoch"]
        panels = []
        for kind, key in (("loss", "losses"), ("score", "scores")):
            for name in dict.fromkeys(name for row in rows for name in row[key]):
                if (kind, name) == ("score", "last"):  # the number of the epoch
                    continue
                points = [(row["epoch"], row[key].get(name)) for row in rows]
                panel = curve(name, points, chosen, from_zero=kind == "loss")
                if panel is not None:
                    panels.append({**panel, "kind": kind, "decides": kind == "score" and name == rule})
        stages.append({"stage": stage, "epochs": len(rows), "chosen": chosen, "rule": rule, "panels": panels})
    return stages
