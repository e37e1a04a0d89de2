"""The report: one HTML file that holds everything, made from the results document that ``evaluate`` writes.

It loads nothing (styles and plots are inside it), so it can be mailed, archived and opened without a network. All text
is escaped by jinja2. What a reader must not miss is computed here and marked in every table: data sets of procedural
faces (synthetic), rows that were selected with target labels (oracle), images that were not scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fercli.report.page import page, save_page
from fercli.report.pictures import Picture
from fercli.report.run_view import view

#: Faces to show: {(stage folder, dataset, position in the store): picture}.
Pictures = Mapping[tuple[str, str, int], Picture]


def write_report(results: Mapping[str, Any], folder: Path, pictures: Pictures) -> Path:
    """Write ``folder/report.html`` from the results document and return its path.

    The folder is made if it is not there; an older report is replaced in one move, so that no half-written file is
    ever found under that name.

    Args:
        results: the document of `results.json`, schema 3 (`fercli.scoring.results_files`).
        folder: where to write.
        pictures: of the faces of failure cases; those that are not there are shown as numbers alone.
    """
    return save_page(render(results, pictures), folder)


def render(results: Mapping[str, Any], pictures: Pictures) -> str:
    """Return the report of a results document as one HTML page."""
    return page("report.html.j2", view(results, pictures), results)
