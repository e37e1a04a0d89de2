"""Calibration, domain gap and failure cases of a run's report, worked out for their templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.report.charts import counts, reliability, scatter
from fercli.report.pictures import Faces


def calibration(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {"name", "models"} of each dataset with calibrations, targets first.

    A model has "model", "folder", what `fercli.evaluation.calibration.calibration` says of it, and "sides" [{"what",
    "ece", "nll", "svg", "strip"}], before and after the temperature.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(results["entries"], key=lambda entry: entry["role"] == "source"):
        whole = entry["calibration"]
        if whole is None:
            continue
        sides = []
        for key, what in (("before", "before, T = 1"), ("after", f"after, T = {whole['temperature']:.2f}")):
            one = whole[key]
            title = f"{entry['dataset']}, {entry['model']}, {what}: accuracy against confidence, "
            svg = reliability(one["bins"], f"{title}ECE {100 * one['ece']:.1f}%")
            strip = counts(one["bins"], f"faces by confidence, {what}")
            sides.append({**one, "what": what, "svg": svg, "strip": strip})
        model = {**whole, "model": entry["model"], "folder": entry["folder"], "sides": sides}
        found.setdefault(entry["dataset"], []).append(model)
    return [{"name": name, "models": models} for name, models in found.items()]


def gaps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each target's gap as the document has it, and "unlabelled" (whether a face on its maps is).

    A model has besides what `fercli.scoring.trained_evaluator.TrainedEvaluator.gap` says of it "share" (of the greatest
    distance, 2), "change" to the first model, and "maps" [{"what", "svg"}], empty where there is no embedding.
    """
    found = []
    for gap in results["gaps"]:
        models, first = [], gap["models"][0]["a_distance"]
        for model in gap["models"]:
            distance, embedding = model["a_distance"], model["embedding"]
            models.append(
                {
                    **model,
                    "share": None if distance is None else distance / 2,
                    "change": None if None in (distance, first) or not models else distance - first,
                    "maps": _maps(embedding, f"{gap['target']}, {model['model']}, {model['folder']}"),
                }
            )
        unlabelled = any(-1 in (model["embedding"] or {"label": []})["label"] for model in models)
        found.append({**gap, "models": models, "unlabelled": unlabelled})
    return found


def _maps(embedding: Mapping[str, Any] | None, whose: str) -> list[dict[str, Any]]:
    if embedding is None:
        return []
    sides = zip(embedding["label"], embedding["domain"], strict=True)
    by_label = [
        f"c{label} {'tgt' if domain else 'src'}" if label >= 0 else f"unknown {'tgt' if domain else 'src'}"
        for label, domain in sides
    ]
    by_domain = ["after tgt" if domain else "before src" for domain in embedding["domain"]]
    return [
        {"what": what, "svg": scatter(embedding["x"], embedding["y"], kinds, f"t-SNE of {whose}, by {what}")}
        for what, kinds in (("expression", by_label), ("domain", by_domain))
    ]


def failure_cases(results: Mapping[str, Any], pictures: Faces) -> list[dict[str, Any]]:
    """Return {"dataset", "folder", "model", "kinds"} of each model whose faces are shown.

    A kind has "kind", "faces" and "empty" (what to say where there are none); a face its own values, "shown" (its
    pictures, or None) and "wrong".
    """
    entries = {(entry["folder"], entry["dataset"]): entry for entry in results["entries"]}
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for one in results["failure_cases"]:
        groups.setdefault((one["folder"], one["dataset"]), {})[one["kind"]] = one["faces"]
    found = []
    for (folder, dataset), kinds in groups.items():
        entry = entries[folder, dataset]
        empty = {
            "mistakes": "No mistakes: every face with a label was answered rightly."
            if entry["decision"]["metrics"]
            else "Its faces have no labels, so no answer can be called a mistake.",
            "uncertain": "No faces to show.",
        }
        shown = [
            {
                "kind": kind,
                "empty": words,
                "faces": [
                    {
                        **face,
                        "shown": pictures.show((folder, dataset, face["position"])),
                        "wrong": face["label"] not in (None, face["answer"]),
                    }
                    for face in kinds.get(kind, [])
                ],
            }
            for kind, words in empty.items()
        ]
        found.append({"dataset": dataset, "folder": folder, "model": entry["model"], "kinds": shown})
    return found
