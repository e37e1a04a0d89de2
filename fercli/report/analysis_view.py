"""Calibration, domain gap and failure cases of a run's report, worked out for their templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.evaluation.metrics import number
from fercli.report.charts import counts, reliability, scatter
from fercli.report.frame import plain
from fercli.report.left_out import labelled
from fercli.report.pictures import Faces
from fercli.report.plots import stage_folder


def calibration(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {"name", "models"} of each dataset with calibrations, targets first.

    A model has "model", "folder", "temperature", "fitted_on" and "sides" [{"what", "ece", "nll", "svg", "strip"}],
    before and after the temperature.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    entries = results.get("entries") or []
    for entry in sorted(entries, key=lambda entry: entry.get("role") == "source"):
        whole = entry.get("calibration")
        if not whole:
            continue
        temperature = number(whole.get("temperature"))
        scaled = "after" if temperature is None else f"after, T = {temperature:.2f}"
        sides = []
        for key, what in (("before", "before, T = 1"), ("after", scaled)):
            one = whole.get(key) or {}
            bins = one.get("bins") or []
            ece, nll = number(one.get("ece")), number(one.get("nll"))
            title = f"{entry['dataset']}, {entry.get('model')}, {what}: accuracy against confidence, " + (
                "no faces" if ece is None else f"ECE {100 * ece:.1f}%"
            )
            strip = counts(bins, f"faces by confidence, {what}")
            sides.append({"what": what, "ece": ece, "nll": nll, "svg": reliability(bins, title), "strip": strip})
        found.setdefault(entry["dataset"], []).append(
            {
                "model": entry.get("model"),
                "folder": stage_folder(entry),
                "temperature": temperature,
                "fitted_on": whole.get("fitted_on"),
                "sides": sides,
            }
        )
    return [{"name": name, "models": models} for name, models in found.items()]


def gaps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {"target", "source", "models", "unlabelled"} of each target.

    A model has "model", "folder", "distance" and "error" (or None), "share" (of the greatest distance, 2), "change" to
    the first model, "faces" [source, target] and "maps" [{"what", "svg"}], empty where there is no embedding.
    """
    names = list(results["expressions"])
    found = []
    for gap in results.get("gaps") or []:
        models, unlabelled, first = [], False, None
        for model in gap.get("models") or []:
            distance = number(model.get("a_distance"))
            first = distance if not models else first
            maps, embedding = [], model.get("embedding")
            if embedding:
                labels = [label if 0 <= label < len(names) else -1 for label in embedding.get("label") or []]
                labels += [-1] * (len(embedding["x"]) - len(labels))
                unlabelled |= -1 in labels
                maps = _maps(embedding, labels, f"{gap['target']}, {model.get('model')}, {model.get('folder')}")
            models.append(
                {
                    "model": model.get("model"),
                    "folder": model.get("folder"),
                    "distance": distance,
                    "error": number(model.get("error")),
                    "share": None if distance is None else min(1.0, max(0.0, distance / 2)),
                    "change": None if distance is None or first is None or not models else distance - first,
                    "faces": model.get("faces") or [None, None],
                    "maps": maps,
                }
            )
        if models:
            source = plain(gap.get("source"))
            found.append({"target": gap["target"], "source": source, "models": models, "unlabelled": unlabelled})
    return found


def _maps(embedding: Mapping[str, Any], labels: list[int], whose: str) -> list[dict[str, Any]]:
    domain = [int(one) for one in embedding["domain"]]
    where = ["tgt" if one else "src" for one in domain]
    by_label = [
        f"c{label} {side}" if label >= 0 else f"unknown {side}" for label, side in zip(labels, where, strict=True)
    ]
    by_domain = ["after tgt" if one else "before src" for one in domain]
    return [
        {"what": what, "svg": scatter(embedding["x"], embedding["y"], kinds, f"t-SNE of {whose}, by {what}")}
        for what, kinds in (("expression", by_label), ("domain", by_domain))
    ]


def failure_cases(results: Mapping[str, Any], pictures: Faces) -> list[dict[str, Any]]:
    """Return {"dataset", "folder", "model", "kinds"} of each model whose faces are shown.

    A kind has "kind", "faces" and "empty" (what to say where there are none); of a face see `_face`.
    """
    names = list(results["expressions"])
    entries = {(stage_folder(entry), entry["dataset"]): entry for entry in results.get("entries") or []}
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for one in results.get("failure_cases") or []:
        groups.setdefault((one["folder"], one["dataset"]), {})[one["kind"]] = one.get("faces") or []
    found = []
    for (folder, dataset), kinds in groups.items():
        entry = entries.get((folder, dataset)) or {}
        empty = {
            "mistakes": "No mistakes: every face with a label was answered rightly."
            if labelled(entry)
            else "Its faces have no labels, so no answer can be called a mistake.",
            "uncertain": "No faces to show.",
        }
        found.append(
            {
                "dataset": dataset,
                "folder": folder,
                "model": entry.get("model") or folder,
                "kinds": [
                    {
                        "kind": kind,
                        "empty": empty[kind],
                        "faces": [
                            _face(face, names, pictures.show((folder, dataset, face["position"])))
                            for face in kinds.get(kind) or []
                        ],
                    }
                    for kind in empty
                ],
            }
        )
    return found


def _face(face: Mapping[str, Any], names: list[str], shown: Mapping[str, Any] | None) -> dict[str, Any]:
    """A face's own values, "shown" (its pictures, or None), "bars" of the decision, and "votes": right, or the same."""
    label, answer = face.get("label"), face.get("answer")
    said = [number(value) for value in face.get("probabilities") or []]
    bars = [
        {"expression": name, "probability": value, "is_label": name == label, "is_answer": name == answer}
        for name, value in zip(names, said, strict=False)
    ]
    votes = [
        {
            **vote,
            "probability": number(vote.get("probability")),
            "right": label is not None and vote.get("expression") == label,
            "same": vote.get("expression") == answer,
        }
        for vote in face.get("votes") or []
    ]
    return {
        **{key: face.get(key) for key in ("id", "label", "answer", "stage")},
        "confidence": number(face.get("confidence")),
        "entropy": number(face.get("entropy")),
        "bars": bars,
        "votes": votes,
        "shown": shown,
        "wrong": label is not None and label != answer,
    }
