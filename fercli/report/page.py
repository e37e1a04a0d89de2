"""Render a results document of a run, one model or a sweep as one self-contained HTML file.

The file loads nothing (styles and plots are embedded), so it can be mailed, archived and opened offline. jinja2 escapes
all text. Two important facts are marked in every table: datasets of procedural faces (synthetic), and everything that
used target labels for selection or training (oracle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from fercli.durations import digits, duration
from fercli.files import write_atomically
from fercli.report.analysis_view import calibration, datasets, failure_cases, gaps, glpc, training_curves
from fercli.report.coverage_view import images, left_out, missing, times
from fercli.report.drift_view import drifts
from fercli.report.headline_view import headline
from fercli.report.pictures import Faces, Picture
from fercli.report.plots import FEW
from fercli.report.pseudo_view import pseudo_labels

#: Faces to show: {(stage folder, dataset, position in the store): `Picture`}.
Pictures = Mapping[tuple[str, str, int], Picture]

#: Section titles in order, by the key of `view` that a section needs.
_SECTIONS = {
    "headline": "Accuracy",
    "macro_f1": "Macro F1",
    "bound": "At the oracle’s epoch",
    "drift": "Can the adaptation be trusted?",
    "heads": "Heads and decision rules",
    "rules": "Choosing the epoch without target labels",
    "images": "Images and time",
    "missing": "Missing cells",
    "dataset": "",
    "glpc": "How GLPC decided",
    "calibration": "Calibration",
    "gaps": "Domain gap",
    "pseudo_labels": "Pseudo labels",
    "failure_cases": "Failure cases",
    "curves": "Training curves",
    "spec": "Run spec",
    "environment": "Environment",
    "reading": "How to read this report",
}

_NOT_DEFINED = Markup('<span class="none" title="not defined">–</span>')


def write_report(document: Mapping[str, Any], folder: Path, pictures: Pictures | None = None) -> Path:
    """Write ``folder/report.html`` from a results document and return its path.

    The folder is created if it does not exist. An older report is replaced atomically, so no half-written file ever has
    that name.

    Args:
        document: of schema 5, kind "run", "model" or "sweep".
        folder: where to write.
        pictures: images of the failure cases' faces. Faces without an image are shown as numbers only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    # File names may contain bytes that are not text: they become question marks here instead of an error.
    write_atomically(path, render(document, pictures).encode("utf-8", "replace"))
    return path


def render(document: Mapping[str, Any], pictures: Pictures | None = None) -> str:
    """Return the report of a results document as one HTML page."""
    return _environment().get_template("report.html.j2").render(view(document, pictures))


@cache
def _environment() -> Environment:
    loader = PackageLoader("fercli.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(
        pct=lambda value, digits=1: _number(value, f".{digits}f", 100),  # a fraction; the column's heading has the %
        points=lambda value: _number(value, "+.1f", 100),  # a difference of fractions
        signed=lambda value, digits=2: _number(value, f"+.{digits}f"),
        decimals=lambda value, digits: _number(value, f".{digits}f"),
        figure=lambda value: _number(value, "#.3g"),  # a loss or a selection score
        **{"pvalue": _pvalue, "shade": _shade, "duration": duration, "digits": digits},
    )
    made.tests["synthetic"] = _synthetic
    return made


@pass_context
def _synthetic(page: Context, name: str) -> bool:
    """Whether a dataset is of procedural faces. A joint name of several sources has the document's value."""
    return page["datasets"].get(name, page)["synthetic"]


def view(document: Mapping[str, Any], pictures: Pictures | None = None) -> dict[str, Any]:
    """Compute everything that the page shows, as plain values that the template only lays out."""
    shown, created, faces = headline(document), datetime.fromisoformat(document["created"]), Faces(pictures)
    whole = document["environment"]
    environment = [(key, str(value)) for key, value in whole.items() if key != "time_s"]
    environment += [(f"time: {stage}", duration(seconds)) for stage, seconds in whole.get("time_s", {}).items()]
    values = {
        **document,
        **shown,
        "headline": True,
        "created": f"{created.day} {created:%B %Y, %H:%M} {created.tzname()}",
        "spec": yaml.safe_dump(document["spec"], sort_keys=False, allow_unicode=True, width=100),
        "environment": environment,
        "drawn": [name for name, about in document["datasets"].items() if about["synthetic"]] or ["This run"],
        "missing": missing(document),
        "images": images(document),
        "times": times(document),
        "drift": drifts(document),
        "glpc": glpc(document),
        "calibration": calibration(document),
        "few_faces": FEW,
        "gaps": gaps(document),
        "pseudo_labels": pseudo_labels(document),
        "failure_cases": failure_cases(document, faces),
        "curves": training_curves(document),
        "left_out": left_out(document, shown["columns"], faces.refused),
        "reading": True,
    }
    sections = []
    for key, title in _SECTIONS.items():
        sections += datasets(document) if key == "dataset" else []
        sections += [{"id": key, "part": key, "title": title, "role": None}] if values.get(key) else []
    return {**values, "sections": sections}


def _number(value: float | None, form: str, times: float = 1) -> str:
    """A number as text, with a true minus sign, and without a sign where it rounds to zero; None is a dash."""
    if value is None:
        return _NOT_DEFINED
    text = f"{times * value:{form}}".rstrip(".").replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[0] in "+\N{MINUS SIGN}" and not text[1:].strip("0.") else text


def _pvalue(value: float) -> str:
    """A p value in [0, 1] as text, such as ``p 0.034``."""
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _shade(count: int, row: Sequence[int]) -> int:
    """Shade of a confusion matrix's cell: 0 (none) to 10 (the whole row)."""
    total = sum(row)
    return max(1, round(10 * count / total)) if count and total else 0
