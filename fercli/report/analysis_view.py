"""What a page shows of single models: heads, GLPC, calibration, domain gap, failure cases, training curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fercli.evaluation.domain_gap import why_unmeasured
from fercli.evaluation.results_table import by_dataset, metrics
from fercli.evaluation.statistics import summary
from fercli.report.pictures import Faces
from fercli.report.plots import curve, reliability, scatter


def datasets(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One section per dataset with labels, for a run or model; empty for a sweep.

    Returns:
        [{"id", "part" (its template), "title", "role", "models" (entries, with "label"), "blocks"}], targets first. A
        block is a head or rule: (name, [(model, its metrics, or None without the rule)]). The last one is the decision.
    """
    sections: list[dict[str, Any]] = []
    for name, rows in () if document["kind"] == "sweep" else _each(document, lambda entries: {"entries": entries}):
        models = [{**e, "label": row["label"]} for row in rows for e in row["entries"] if metrics(e)]
        heads = dict.fromkeys(head for model in models for head in model["heads"])
        blocks = [(head, [(model, model["heads"].get(head)) for model in models]) for head in heads]
        blocks.append(("decision", [(model, metrics(model)) for model in models]))
        about = {"id": f"dataset-{len(sections) + 1}", "part": "dataset", "title": name}
        about["role"] = document["datasets"][name]["role"]
        sections += [{**about, "models": models, "blocks": blocks}] if models else []
    return sections


def glpc(document: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """How often each stage of GLPC decided, with faces summed over seeds.

    Returns:
        [(dataset, rows with "total" and "steps" [{"name", "count", "correct" (None without labels)}])].
    """

    def of(entries: list[Mapping[str, Any]]) -> dict[str, Any] | None:
        stages, steps = [entry["stages"] for entry in entries if entry["stages"]], []
        for name in stages[0] if stages else ():
            count, correct = ([one[name][what] for one in stages] for what in ("count", "correct"))
            steps.append({"name": name, "count": sum(count), "correct": None if None in correct else sum(correct)})
        total = sum(step["count"] for step in steps)
        return {"total": total, "steps": steps} if total else None

    return _each(document, of)


def calibration(document: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Calibration of each dataset's models, over seeds; with diagrams for a run or model.

    Returns:
        [(dataset, rows with "temperature", "figures" (ECE before, ECE after, NLL before, NLL after; all `Summary`),
        "fitted_on" (number of faces, in words) and "sides" [{"what", "ece", "nll", "plots"}])].
    """

    def of(entries: list[Mapping[str, Any]]) -> dict[str, Any] | None:
        whole, sides = [entry["calibration"] for entry in entries if entry["calibration"]], []
        if not whole:
            return None
        for when in ("before", "after") if document["kind"] != "sweep" else ():
            one, temperature = whole[0][when], 1 if when == "before" else f"{whole[0]['temperature']:.2f}"
            what = f"{when}, T = {temperature}"
            title = f"{entries[0]['dataset']}, {entries[0]['method']}, {what}: ECE {100 * one['ece']:.1f}%"
            sides.append({**one, "what": what, "plots": reliability(one["bins"], title)})
        pairs = [(name, when) for name in ("ece", "nll") for when in ("before", "after")]
        return {
            "temperature": summary(one["temperature"] for one in whole),
            "fitted_on": ", ".join(dict.fromkeys(str(one["fitted_on"] or "none, T = 1") for one in whole)),
            "figures": [summary(one[when][name] for one in whole) for name, when in pairs],
            "sides": sides,
        }

    return _each(document, of)


def _each(
    document: Mapping[str, Any], of: Callable[[list[Mapping[str, Any]]], dict[str, Any] | None]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(dataset, rows) of everything that was scored. Rows add the result of `of`; those without one are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for dataset, row, entries in by_dataset(document):
        one = of(entries)
        if one is not None:
            found.setdefault(dataset, []).append({**row.about, **one})
    return list(found.items())


def gaps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target's gap from the document, with what the page adds.

    Returns:
        [gap with "unlabelled" (whether any face on a map has no label), "why" (why it has no distance, in words, or
        None), and for each of its models "share" (its distance as a share of the largest on the page) and "maps"
        ([{"what", "svg"}], empty where there is no embedding)].
    """
    measured = [model["energy_distance"] or 0 for gap in document["gaps"] for model in gap["models"]]
    longest = max([*measured, 1e-9])  # below 0 is drawn as 0
    found = []
    for gap in document["gaps"]:
        shares = [max(0, model["energy_distance"] or 0) / longest for model in gap["models"]]
        models = [
            {**model, "share": share, "maps": _maps(model, gap["target"])}
            for model, share in zip(gap["models"], shares, strict=True)
        ]
        unlabelled = any(-1 in (model["embedding"] or {"label": []})["label"] for model in models)
        why = why_unmeasured(*gap["models"][0]["faces"])
        found.append({**gap, "models": models, "unlabelled": unlabelled, "why": why})
    return found


def _maps(model: Mapping[str, Any], target: str) -> list[dict[str, Any]]:
    embedding = model["embedding"]
    if embedding is None:
        return []
    sides = zip(embedding["label"], embedding["domain"], strict=True)
    by_label = [f"{f'c{label}' if label >= 0 else 'unknown'} {'tgt' if domain else 'src'}" for label, domain in sides]
    by_domain = ["after tgt" if domain else "before src" for domain in embedding["domain"]]
    title = f"t-SNE of {target}, {model['method']}, {model['folder']}, by"
    return [
        {"what": what, "svg": scatter(embedding["x"], embedding["y"], kinds, f"{title} {what}")}
        for what, kinds in (("expression", by_label), ("domain", by_domain))
    ]


def failure_cases(document: Mapping[str, Any], pictures: Faces) -> list[dict[str, Any]]:
    """Return {"dataset", "folder", "method", "labelled", "kinds"} for each model whose faces are shown.

    "kinds" maps "mistakes" and "uncertain" to faces. A face has its own values, "shown" (its images, or None) and
    "wrong".
    """
    entries = {(entry["folder"], entry["dataset"]): entry for entry in document["entries"]}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in document["failure_cases"]:
        key = one["folder"], one["dataset"]
        about = {"folder": key[0], "dataset": key[1], "method": entries[key]["method"]}
        group = found.setdefault(key, {**about, "labelled": bool(metrics(entries[key])), "kinds": {}})
        group["kinds"][one["kind"]] = [
            {
                **face,
                "shown": pictures.show((*key, face["position"])),
                "wrong": face["label"] not in (None, face["answer"]),
            }
            for face in one["faces"]
        ]
    return list(found.values())


def training_curves(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn the document's ``history`` into panels, stage by stage.

    Returns:
        [{"stage", "epochs" (their number), "chosen" (epoch), "rule" (that chose it), "panels"}]. Panels are as returned
        by `curve`, with "kind" ("loss" or "score") and "decides" (whether this score chose the epoch).
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
                if (kind, name) == ("score", "last"):  # its score is just the epoch number
                    continue
                points = [(row["epoch"], row[key].get(name)) for row in rows]
                panel = curve(name, points, chosen, from_zero=kind == "loss")
                if panel is not None:
                    panels.append({**panel, "kind": kind, "decides": kind == "score" and name == rule})
        stages.append({"stage": stage, "epochs": len(rows), "chosen": chosen, "rule": rule, "panels": panels})
    return stages
