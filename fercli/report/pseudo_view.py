"""Pseudo labels: the number that each threshold admits, over the epochs and by expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.evaluation.pseudo_labels import CLASS_AWARE
from fercli.report.plots import ceiling, lines


def pseudo_labels(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each adaptation as in the document, with {"folder", "kept" (epoch), "marked" (epoch to mark, or None),
    "quantity", "accuracy" (charts, the latter None without labels)}; "thresholds", at the kept epoch [{"name", "kind"
    (class of its line), "total", "share", "accuracy", "cells" [(count, accuracy)]}]; and "panels", at the class-aware
    threshold [{"expression", "svg", "top", "first", "last", "count", "correct"}]."""
    kept = {entry["folder"]: entry["epoch"] for entry in document["entries"]}
    return [
        _adaptation(folder, one, kept[folder], document["expressions"])
        for folder, one in document["pseudo_labels"].items()
    ]


def _adaptation(folder: str, one: Mapping[str, Any], kept: int, names: list[str]) -> dict[str, Any]:
    epochs = one["epochs"]
    keys = list(epochs[0]["counts"])
    at = next((epoch for epoch in epochs if epoch["epoch"] == kept), epochs[-1])
    fixed = [key for key in keys if key != CLASS_AWARE]
    kinds = {key: f"t{min(4, round(4 * i / max(1, len(fixed) - 1)))}" for i, key in enumerate(fixed)}
    kinds[CLASS_AWARE] = "aware"
    marked = kept if at["epoch"] == kept else None
    whose = f"{folder}, epochs {epochs[0]['epoch']} to {epochs[-1]['epoch']}"

    def over(value: Any) -> list[tuple[str, list[tuple[int, float | None]]]]:
        return [(kinds[key], [(epoch["epoch"], value(epoch, key)) for epoch in epochs]) for key in keys]

    quantity = over(lambda epoch, key: sum(epoch["counts"][key]) / one["faces"])
    accuracy = None
    if at["correct"] is not None:
        right = over(_accuracy)
        least = min((value for _, points in right for _, value in points if value is not None), default=0.0)
        bottom = max(end for end in (0.0, 0.5, 0.8, 0.9) if end <= least)
        accuracy = lines(right, 1.0, f"accuracy of the faces above each threshold, {whose}", marked, bottom)
    thresholds = []
    for key in keys:
        counted, total, rates = at["counts"][key], sum(at["counts"][key]), [None] * len(names)
        if at["correct"] is not None:
            rates = [right / of if of else None for right, of in zip(at["correct"][key], at["known"][key], strict=True)]
        about = {"name": key, "kind": kinds[key], "total": total, "share": total / one["faces"]}
        thresholds.append({**about, "accuracy": _accuracy(at, key), "cells": list(zip(counted, rates, strict=True))})
    most = ceiling(max(max(epoch["counts"][CLASS_AWARE]) for epoch in epochs))
    panels = []
    for c, name in enumerate(names):
        series = [
            (kind, [(epoch["epoch"], epoch[what] and epoch[what][CLASS_AWARE][c]) for epoch in epochs])
            for kind, what in (("count", "counts"), ("correct", "correct"))
        ]
        numbers = {kind: dict(points)[at["epoch"]] for kind, points in series}
        panels.append({**lines(series, most, f"{name}, {CLASS_AWARE}, {whose}", marked), "expression": name, **numbers})
    return {
        **one,
        "folder": folder,
        "kept": at["epoch"],
        "marked": marked,
        "thresholds": thresholds,
        "quantity": lines(quantity, 1.0, f"share of faces above each threshold, {whose}", marked),
        "accuracy": accuracy,
        "panels": panels,
    }


def _accuracy(epoch: Mapping[str, Any], key: str) -> float | None:
    """Share of correct predictions among the labelled faces above a threshold; None where there are none."""
    known = epoch["known"] and sum(epoch["known"][key])
    return sum(epoch["correct"][key]) / known if known else None
