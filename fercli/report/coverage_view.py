"""What a page's figures are based on: images, time, missing cells, and notes on what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.results_table import Column, groups, metrics, row_label, unlabelled
from fercli.evaluation.statistics import summary
from fercli.report.headline_view import COUNTS


def images(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much of each dataset was scored: {"name", "role", "counts" (distinct ones), "run", "missing" (cells)}."""
    found = []
    for name, about in document["datasets"].items():
        entries = [entry for entry in document["entries"] if entry["dataset"] == name]
        gone = sum(cell["dataset"] == name for cell in document["missing"])
        counts = list(dict.fromkeys(tuple(entry[what] for what in COUNTS) for entry in entries))
        if entries or name in document["targets"]:
            found.append({"name": name, "role": about["role"], "counts": counts, "run": len(entries), "missing": gone})
    return sorted(found, key=lambda one: one["role"] != "target")


def times(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training time of each row's models, in seconds: the row's `about`, "total", "mean", "sd", "n" (models)."""
    lines = []
    for row in groups(document):
        # A source model counts once, however many targets it was scored on.
        spent = {entry["folder"]: entry["seconds"] for entry in row.entries.values() if entry["seconds"] is not None}
        if spent:
            lines.append({**row.about, "total": sum(spent.values()), **summary(spent.values())._asdict()})
    return lines


def missing(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Missing cells, with those that differ only in seed grouped: {"label", "dataset", "why", "seeds", "count"}."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for cell in document["missing"]:
        label = row_label(cell["method"], cell["keys"])
        found.setdefault((label, cell["dataset"], cell["why"]), []).append(cell["seed"])
    names = ("label", "dataset", "why", "seeds", "count")
    return [dict(zip(names, (*name, seeds, len(seeds)), strict=True)) for name, seeds in found.items()]


def left_out(document: Mapping[str, Any], columns: Sequence[Column], refused: int) -> list[str]:
    """Notes on what has no score in the headline's columns, which images have none, which sections are missing, and how
    many images did not fit on the page."""
    mean, blank = bool(columns) and columns[-1].mean, unlabelled(document)
    notes = []
    for one in images(document):
        name, of_mean = one["name"], mean and one["role"] == "target"
        if not one["run"]:
            notes.append(f"{name}: no cell has been run yet{', so there is no mean over targets' if of_mean else ''}.")
        elif name in blank:
            without = ", and the mean over targets leaves it out" if of_mean else ""
            notes.append(f"{name}: its images have no labels, so it has no scores and no confusion matrices{without}.")
        if len(one["counts"]) > 1:
            notes.append(f"{name}: models were scored on different numbers of images; compare with care.")
    notes += dict.fromkeys(filter(None, map(_unscored, document["entries"])))
    if len(document["seeds"]) < 2:
        notes.append("One seed: no deviation, no test over seeds and no ties can be computed.")
    if refused:
        notes.append(f"Failure cases: the images of {refused} faces, to keep the page small; their figures are shown.")
    if document["kind"] == "sweep":
        return notes
    if not any(entry["calibration"] for entry in document["entries"]):
        notes.append("Calibration: it needs labels, and no evaluated dataset has any.")
    for key, why in _WHY.items():
        if not document[key]:
            notes.append(why)
    return notes


#: Why a key of a run's document may be empty.
_WHY = {
    "gaps": "Domain gap: no target was evaluated together with prepared source faces, so there is no gap to measure.",
    "pseudo_labels": "Pseudo labels: no adaptation has stored outputs of its epochs.",
    "failure_cases": "Failure cases: no target was evaluated, so there are no faces to show.",
}


def _unscored(entry: Mapping[str, Any]) -> str | None:
    """How many of an entry's images have no score, and why; None where all have one, or no image has a label."""
    expected, found, scored = (entry[what] for what in COUNTS)
    if scored == expected or not metrics(entry):
        return None
    reasons = [f"{expected - found} without a usable face"] if found < expected else []
    reasons += [f"{found - scored} with a face but none of the seven labels"] if scored < found else []
    where = f"{entry['dataset']} ({', '.join(entry['splits'])})"
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"{where}: {expected - scored} of {expected} listed images not scored{why}."
