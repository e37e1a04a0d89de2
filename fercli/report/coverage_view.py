"""What a page's figures stand on: images, time, cells that are missing, and in words what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.results_table import Column, groups, metrics, row_label, unlabelled
from fercli.evaluation.statistics import summary
from fercli.report.headline_view import COUNTS


def images(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much of each dataset was scored: {"name", "role", "counts": distinct counts, "run", "missing" (cells)}."""
    found = []
    for name, about in document["datasets"].items():
        entries = [entry for entry in document["entries"] if entry["dataset"] == name]
        gone = sum(cell["dataset"] == name for cell in document["missing"])
        counts = list(dict.fromkeys(tuple(entry[what] for what in COUNTS) for entry in entries))
        if entries or name in document["targets"]:
            found.append({"name": name, "role": about["role"], "counts": counts, "run": len(entries), "missing": gone})
    return sorted(found, key=lambda one: one["role"] != "target")


def times(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What training a row's models took, in seconds: its `about`, "total", "mean", "sd", "n" (models)."""
    lines = []
    for row in groups(document):
        # A source model is one, on however many targets it was scored.
        spent = {entry["folder"]: entry["seconds"] for entry in row.entries.values() if entry["seconds"] is not None}
        if spent:
            lines.append({**row.about, "total": sum(spent.values()), **summary(spent.values())._asdict()})
    return lines


def missing(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Missing cells that differ in their seed only, together: {"label", "dataset", "why", "seeds", "count"}."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for cell in document["missing"]:
        label = row_label(cell["method"], cell["keys"])
        found.setdefault((label, cell["dataset"], cell["why"]), []).append(cell["seed"])
    names = ("label", "dataset", "why", "seeds", "count")
    return [dict(zip(names, (*name, seeds, len(seeds)), strict=True)) for name, seeds in found.items()]


def left_out(document: Mapping[str, Any], columns: Sequence[Column], refused: int) -> list[str]:
    """Say in words what has no score in the headline's columns, which images have none, which sections are missing, and
    how many images were refused for want of room."""
    mean, blank = bool(columns) and columns[-1].mean, unlabelled(document)
    notes = []
    for one in images(document):
        name, of_mean = one["name"], mean and one["role"] == "target"
        if not one["run"]:
            notes.append(f"{name}: no cell was run yet{'; the mean over targets waits for it' if of_mean else ''}.")
        elif name in blank:
            without = ", and the mean over targets goes without it" if of_mean else ""
            notes.append(f"{name}: its images have no labels, so it has no scores and no confusion matrices{without}.")
        if len(one["counts"]) > 1:
            notes.append(f"{name}: models differ in how many images they were scored on; compare with care.")
    notes += dict.fromkeys(filter(None, map(_unscored, document["entries"])))
    if len(document["seeds"]) < 2:
        notes.append("One seed: no deviation, no test over seeds and no tie can be computed.")
    if refused:
        notes.append(f"Failure cases: {refused} images, so that the page stays small; their numbers are there.")
    if document["kind"] == "sweep":
        return notes
    if not any(entry["calibration"] for entry in document["entries"]):
        notes.append("Calibration: it takes labels to score, and no evaluated dataset has any.")
    for key, why in _WHY.items():
        if not document[key]:
            notes.append(why)
    return notes


#: Why a run may lack what a key of its document holds.
_WHY = {
    "gaps": "Domain gap: no target was evaluated beside prepared faces of the source, so there is no gap to measure.",
    "pseudo_labels": "Pseudo labels: no adaptation has left its outputs of every epoch.",
    "failure_cases": "Failure cases: no target was evaluated, so there are no faces to show.",
}


def _unscored(entry: Mapping[str, Any]) -> str | None:
    """How many of an entry's images have no score, and why; None where all have one, or none could have any."""
    expected, found, scored = (entry[what] for what in COUNTS)
    if scored == expected or not metrics(entry):
        return None
    reasons = [f"{expected - found} without a usable face"] if found < expected else []
    reasons += [f"{found - scored} with a face but no label among the seven"] if scored < found else []
    where = f"{entry['dataset']} ({', '.join(entry['splits'])})"
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"{where}: {expected - scored} of {expected} listed images not scored{why}."
