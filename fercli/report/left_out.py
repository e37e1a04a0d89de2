"""What a run's report does not show, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.report.headline_view import COUNTS


def left_out(results: Mapping[str, Any], refused: int) -> list[str]:
    """Say in words what has no score, which images have none, and which sections are missing.

    Args:
        refused: pictures that are not shown for want of room.
    """
    notes = [*_unlabelled(results), *_images(results)]
    if not any(entry["calibration"] for entry in results["entries"]):
        notes.append("Calibration: it takes labels to score, and no evaluated dataset has any.")
    if not results["gaps"]:
        notes.append(
            "Domain gap: no target was evaluated beside prepared faces of the source, so there is no gap to measure."
        )
    if not results["pseudo_labels"]:
        notes.append("Pseudo labels: no adaptation has left its outputs of every epoch.")
    if not results["failure_cases"]:
        notes.append("Failure cases: no target was evaluated, so there are no faces to show.")
    if refused:
        notes.append(f"Failure cases: {refused} pictures, so that the page stays small; their numbers are there.")
    return notes


def _unlabelled(results: Mapping[str, Any]) -> list[str]:
    labelled = {entry["dataset"] for entry in results["entries"] if entry["decision"]["metrics"]}
    return [
        f"{name}: its images have no labels, so accuracy, F1 and confusion matrices are left out."
        for name in results["datasets"]
        if name not in labelled
    ]


def _images(results: Mapping[str, Any]) -> list[str]:
    notes: dict[str, None] = {}
    for entry in results["entries"]:
        expected, found, scored = (entry["counts"][what] for what in COUNTS)
        if scored == expected or not entry["decision"]["metrics"]:
            continue
        reasons = []
        if found < expected:
            reasons.append(f"{expected - found} without a usable face")
        if scored < found:
            reasons.append(f"{found - scored} with a face but no label among the seven")
        where = f"{entry['dataset']} ({', '.join(entry['splits'])})"
        why = f" ({', '.join(reasons)})" if reasons else ""
        notes[f"{where}: {expected - scored} of {expected} listed images not scored{why}."] = None
    return list(notes)
