"""The pseudo labels of a run's report: how many each threshold admits, over the epochs and by expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.report.charts import ceiling, lines
from fercli.report.plots import stage_folder

#: Threshold whose numbers are shown by expression: the one AGLRLS trains with.
CLASS_AWARE = "class-aware"

#: Where it is not among the numbers.
FIXED = "0.95"


def pseudo_labels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is shown of each adaptation.

    Returns:
        A list of {"folder", "target", "faces", "labelled", "kept" (epoch), "marked" (epoch to mark, or None), "last",
        "thresholds" [{"name", "kind" (class of its line), "total", "share", "accuracy", "cells" [(count, accuracy)]}]
        at the kept epoch, "quantity", "accuracy" (charts, the latter None without labels), "chosen" (name of the
        threshold of the panels), "panels" [{"expression", "svg", "top", "first", "last", "count", "correct"}]}.
    """
    names = list(results["expressions"])
    found = []
    for folder, one in (results.get("pseudo_labels") or {}).items():
        epochs = [epoch for epoch in (one or {}).get("epochs") or [] if epoch.get("counts")]
        if epochs:
            found.append(_adaptation(folder, one, epochs, _kept(results, folder), names))
    return found


def _adaptation(
    folder: str, one: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], kept: int | None, names: list[str]
) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for epoch in epochs for key in epoch["counts"]))
    at = next((epoch for epoch in epochs if epoch["epoch"] == kept), epochs[-1])
    faces = one.get("faces") or 0
    fixed = [key for key in keys if key != CLASS_AWARE]
    kinds = {key: f"t{min(4, round(4 * i / max(1, len(fixed) - 1)))}" for i, key in enumerate(fixed)}
    kinds[CLASS_AWARE] = "aware"
    has_labels = any(epoch.get("correct") for epoch in epochs)
    marked = kept if any(epoch["epoch"] == kept for epoch in epochs) else None
    chosen = next((key for key in (CLASS_AWARE, FIXED) if key in keys), keys[-1])
    most = ceiling(max(max(epoch["counts"].get(chosen) or [0]) for epoch in epochs))
    whose = f"{folder}, epochs {epochs[0]['epoch']} to {epochs[-1]['epoch']}"

    def over(key: str, value: Any) -> list[tuple[int, float | None]]:
        return [(int(epoch["epoch"]), value(epoch, key)) for epoch in epochs]

    def share(epoch: Mapping[str, Any], key: str) -> float | None:
        counted = epoch["counts"].get(key)
        return sum(counted) / faces if counted and faces else None

    def accuracy(epoch: Mapping[str, Any], key: str) -> float | None:
        known, correct = _known(epoch, key), (epoch.get("correct") or {}).get(key)
        return sum(correct) / sum(known) if correct and known and sum(known) else None

    quantity = [(kinds[key], over(key, share)) for key in keys]
    right = [(kinds[key], over(key, accuracy)) for key in keys]
    least = min((value for _, points in right for _, value in points if value is not None), default=0.0)
    bottom = max(end for end in (0.0, 0.5, 0.8, 0.9) if end <= least)
    return {
        "folder": folder,
        "target": one.get("target") or "",
        "faces": faces,
        "labelled": one.get("labelled") or 0,
        "kept": at["epoch"],
        "marked": marked,
        "last": epochs[-1]["epoch"],
        "thresholds": [_threshold(key, kinds[key], at, faces, accuracy(at, key)) for key in keys],
        "quantity": lines(quantity, 1.0, f"share of faces above each threshold, {whose}", marked),
        "accuracy": lines(right, 1.0, f"how many of them are right, {whose}", marked, bottom) if has_labels else None,
        "chosen": chosen,
        "panels": [
            _panel(c, name, epochs, chosen, most, marked, at, f"{name}, {chosen}, {whose}")
            for c, name in enumerate(names)
        ],
    }


def _threshold(key: str, kind: str, at: Mapping[str, Any], faces: int, accuracy: float | None) -> dict[str, Any]:
    counted = at["counts"].get(key) or []
    known, correct = _known(at, key) or [], (at.get("correct") or {}).get(key) or []
    rates = [right / of if of else None for right, of in zip(correct, known, strict=False)]
    rates += [None] * (len(counted) - len(rates))
    return {
        "name": key,
        "kind": kind,
        "total": sum(counted),
        "share": sum(counted) / faces if faces else None,
        "accuracy": accuracy,
        "cells": list(zip(counted, rates, strict=True)),
    }


def _panel(
    c: int,
    name: str,
    epochs: Sequence[Mapping[str, Any]],
    key: str,
    most: float,
    marked: int | None,
    at: Mapping[str, Any],
    title: str,
) -> dict[str, Any]:
    def of(epoch: Mapping[str, Any], what: str) -> int | None:
        values = (epoch.get(what) or {}).get(key)
        return values[c] if values and c < len(values) else None

    series = [("count", [(int(e["epoch"]), of(e, "counts")) for e in epochs])]
    series.append(("correct", [(int(e["epoch"]), of(e, "correct")) for e in epochs]))
    numbers = {"expression": name, "count": of(at, "counts"), "correct": of(at, "correct")}
    return {**lines(series, most, title, marked), **numbers}


def _known(epoch: Mapping[str, Any], key: str) -> Sequence[int] | None:
    """Faces with a label among those above a threshold; all of them where the numbers do not say."""
    return (epoch.get("known") or epoch["counts"]).get(key)


def _kept(results: Mapping[str, Any], folder: str) -> int | None:
    """Return the epoch that was kept of an adaptation: marked in the history, else that of its checkpoint."""
    rows = (results.get("history") or {}).get(folder) or []
    marked = [row["epoch"] for row in rows if row.get("chosen")]
    entries = [entry for entry in results.get("entries") or [] if stage_folder(entry) == folder]
    return marked[-1] if marked else next((entry.get("epoch") for entry in entries), None)
