"""Whether an adaptation can be trusted: how its predictions differ from the starting model's. No label is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fercli.evaluation.drift import VERDICTS
from fercli.evaluation.results_table import by_dataset
from fercli.evaluation.statistics import summary
from fercli.report.plots import axis, bars


def drifts(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The drift of each adapted model: one by one for a run or model, by table row for a sweep; None without any.

    Returns:
        "models" [{"dataset", "label", "folder", "drift" (as in the document), "expressions" [{"name", "before", "after"
        (shares), "plot"}], "ticks" (of their common axis)}]; and for a sweep "rows" [(dataset, [a row's `about` with
        "trusts" (verdict -> cells), and the means of "agreement" and "total_variation"])].
    """
    models, rows = [], {}
    for dataset, row, entries in by_dataset(document):
        own = [entry for entry in entries if entry.get("drift")]  # documents of earlier versions have none
        if own and document["kind"] == "sweep":
            rows.setdefault(dataset, []).append({**row.about, **_together([entry["drift"] for entry in own])})
        elif own:
            models += [_model(entry, row.about["label"], document["expressions"]) for entry in own]
    return {"models": models, "rows": list(rows.items())} if models or rows else None


def _model(entry: Mapping[str, Any], label: str, names: list[str]) -> dict[str, Any]:
    drift = entry["drift"]
    before, after = drift["histogram"]["before"], drift["histogram"]["after"]
    found, ticks = [], []
    if before and after:
        ticks = axis([0.0, *before, *after])
        for name, old, new in zip(names, before, after, strict=True):
            title = f"{name}: {100 * old:.1f}% of the predictions before, {100 * new:.1f}% after"
            found.append({"name": name, "before": old, "after": new, "plot": bars((old, new), ticks[-1], title)})
    about = {"dataset": entry["dataset"], "label": label, "folder": entry["folder"], "drift": drift}
    return {**about, "expressions": found, "ticks": ticks}


def _together(drifts: list[Mapping[str, Any]]) -> dict[str, Any]:
    counted = Counter(one["verdict"]["trust"] for one in drifts)
    means = {name: summary(one[name] for one in drifts).mean for name in ("agreement", "total_variation")}
    return {"trusts": {trust: counted[trust] for trust in VERDICTS}, **means}
