"""What a run's report does not show, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.report.frame import plain
from fercli.report.headline_view import COUNTS

#: Parts of the results document that older ones lack, by the names of their sections.
_NEW = {"gaps": "domain gap", "pseudo_labels": "pseudo labels", "failure_cases": "failure cases"}


def left_out(results: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Say in words what has no score, which images have none, and which sections are missing.

    Args:
        shown: what the page shows (`fercli.report.run_view.view`): its empty ``calibration``, ``gaps``,
            ``pseudo_labels`` and ``failure_cases`` are explained, and pictures refused for want of room.
    """
    notes = [*_datasets(results), *_images(results)]
    entries = results.get("entries") or []
    old = [what for key, what in _NEW.items() if key not in results]
    if entries and not any("calibration" in entry for entry in entries):
        old.insert(0, "calibration")
    if old:
        names = ", ".join(old)
        notes.append(
            f"{names.capitalize()}: these numbers do not hold them; make them again: fercli evaluate --report."
        )
    if not shown["calibration"] and any("calibration" in entry for entry in entries):
        notes.append("Calibration: it takes labels to score, and no evaluated dataset has any.")
    if not shown["gaps"] and "gaps" in results:
        notes.append(
            "Domain gap: no target was evaluated beside prepared faces of the source, so there is no gap to measure."
        )
    if not shown["pseudo_labels"] and "pseudo_labels" in results:
        notes.append("Pseudo labels: no adaptation has left its outputs of every epoch.")
    if not shown["failure_cases"] and "failure_cases" in results:
        notes.append("Failure cases: no target was evaluated, so there are no faces to show.")
    if shown["refused"]:
        notes.append(
            f"Failure cases: {shown['refused']} pictures, so that the page stays small; their numbers are there."
        )
    return notes


def labelled(entry: Mapping[str, Any]) -> bool:
    """Tell whether any head, or the decision, has a score."""
    return any((entry.get("heads") or {}).values()) or bool((entry.get("decision") or {}).get("metrics"))


def _datasets(results: Mapping[str, Any]) -> list[str]:
    notes = []
    entries = results.get("entries") or []
    for name in results.get("datasets") or {}:
        own = [entry for entry in entries if entry["dataset"] == name]
        if not own:
            notes.append(f"{name}: not evaluated, no scores are shown for it.")
        elif not any(map(labelled, own)):
            notes.append(f"{name}: its images have no labels, so accuracy, F1 and confusion matrices are left out.")
    return notes


def _images(results: Mapping[str, Any]) -> list[str]:
    notes: dict[tuple[Any, ...], str] = {}
    for entry in results.get("entries") or []:
        counts = entry.get("counts") or {}
        key = (entry["dataset"], plain(entry.get("splits")), *counts.values())
        expected, found, scored = (counts.get(what) for what in COUNTS)
        if key in notes or expected is None or scored is None or scored == expected or not labelled(entry):
            continue
        where = f"{entry['dataset']} ({key[1]})"
        reasons = []
        if found is not None and found < expected:
            reasons.append(f"{expected - found} without a usable face")
        if found is not None and scored < found:
            reasons.append(f"{found - scored} with a face but no label among the seven")
        why = f" ({', '.join(reasons)})" if reasons else ""
        notes[key] = f"{where}: {expected - scored} of {expected} listed images not scored{why}."
    return list(notes.values())
