"""The output of `fercli compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fercli import console
from fercli.errors import FercliError
from fercli.evaluation.compare import CHANGES, spec_differences
from fercli.evaluation.runs import Run
from fercli.evaluation.significance import significance_words
from fercli.spreadsheet import write_csv

#: Spec keys that no model depends on, and keys that a source model does not depend on.
_IDLE, _LATER = ("name", "evaluate", "sweep"), ("adapt", "data.targets")
_COLUMNS = (
    *("tested on", "model", "acc %", "points", "F1 %", "points", "faces"),
    *("fixed", "broken", "other", "p", "p Holm"),
)


def differences_of(document: dict[str, Any], runs: dict[str, Run]) -> dict[str, list[Any]]:
    """Return the keys in which the specs of a comparison's two models differ, if the models depend on them."""
    sides = document["reference"], document["other"]
    specs = [runs[side["run"]].spec_of(side["folder"]) for side in sides]
    idle = (*_IDLE, *(_LATER if any(side["folder"] == "source" for side in sides) else ()))
    found = spec_differences(*specs)
    return {key: list(pair) for key, pair in found.items() if not any(f"{key}.".startswith(f"{i}.") for i in idle)}


def show(documents: Sequence[dict[str, Any]], runs: Sequence[Run], faces: int) -> None:
    """Print the tables."""
    shown = len(_COLUMNS) - (len(documents) == 1)  # with one comparison, Holm's p is the same
    rows = [row[:shown] for row in _rows(documents, runs)]
    console.table("Compared face by face", _COLUMNS[:shown], rows, _caption(documents), left=2)
    _show_specs(documents, len(runs) > 1)
    for document in documents:
        if faces:
            _show_faces(document, faces)
    if not faces and any(document["changed"] for document in documents):
        console.say("to list the faces that changed: --faces 10, or --csv FILE for all of them")


def _rows(documents: Sequence[dict[str, Any]], runs: Sequence[Run]) -> Iterator[list[str]]:
    """Yield a row for every reference and, below it, one for each model compared with it."""
    marked = {name for run in runs for name, about in run.results["datasets"].items() if about["synthetic"]}
    above = None
    for document in documents:
        dataset, reference, test = document["dataset"], document["reference"], document["test"]
        if above != (dataset, reference, document["faces"]):
            above = dataset, reference, document["faces"]
            name = f"*{dataset}{' †' if dataset in marked else ''}"
            yield [name, *_named(reference), *_figures(document, "reference"), *[""] * (len(CHANGES) + 2)]
        changes = [str(document[kind]) for kind in CHANGES]
        yield [
            "",
            *_named(document["other"]),
            *_figures(document, "other"),
            *changes,
            *map(_p, (test["p"], test["p_holm"])),
        ]


def _named(side: dict[str, Any]) -> list[str]:
    return [f"{side['run']}/{side['folder']}{' ORACLE' if side['oracle'] else ''}"]


def _figures(document: dict[str, Any], side: str) -> list[str]:
    cells = []
    for name in ("accuracy", "macro_f1"):
        value, points = document[side][name], document["points"][name]
        cells.append("–" if value is None else f"{100 * value:.2f}")
        cells.append("" if side == "reference" else "–" if points is None else f"{points:+.2f}")
    return [*cells, str(document["faces"]["labelled"])]


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _caption(documents: Sequence[dict[str, Any]]) -> str:
    lines = [
        "On the faces that both models scored. fixed: wrong in the reference, now correct; broken: the reverse; other: "
        "a different prediction, but neither of these.",
        "p: the probability that chance alone makes the number of correct predictions differ at least this "
        "much. It generalises to other faces, not to other seeds.",
    ]
    tested = [document for document in documents if document["test"]["p"] is not None]
    tests = dict.fromkeys((document["dataset"], significance_words(document["test"])) for document in tested)
    lines += [f"p on {dataset}: {words}." for dataset, words in tests]
    if len(tested) > 1:
        lines.append(f"p Holm: corrected for {len(tested)} simultaneous comparisons.")
    counted = {"only_reference": "scored only in the first", "only_other": "scored only in the second"}
    counted["relabelled"] = "with a different label in the second"
    for document in documents:
        odd = [f"{document['faces'][key]} {words}" for key, words in counted.items() if document["faces"][key]]
        if odd:
            both = "" if document["faces"]["both"] else "; no face was scored in both"
            lines.append(f"Faces left out of {_title(document)}: {', '.join(odd)}{both}.")
    if any(document[side]["oracle"] for document in documents for side in ("reference", "other")):
        lines.append("ORACLE models used target labels: an upper bound, not a result.")
    return "\n".join(lines)


def _title(document: dict[str, Any]) -> str:
    sides = (document["reference"], document["other"])
    return f"{document['dataset']}, " + " -> ".join(f"{side['run']}/{side['folder']}" for side in sides)


def _show_specs(documents: Sequence[dict[str, Any]], several: bool) -> None:
    """Print one table for every set of differences; comparisons with the same differences share a table."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        tables.setdefault(repr(document["spec"]), []).append(document)
    for alike in tables.values():
        differences = alike[0]["spec"]
        titles = list(dict.fromkeys(_title(document).split(", ", 1)[1] for document in alike))
        title = titles[0] + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")
        if differences:
            rows = [[key, *map(_value, values)] for key, values in differences.items()]
            console.table(f"Specs: {title}", ("key", "first", "second"), rows, left=3)
        elif several:
            console.say(f"specs: no key differs ({title})")


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _show_faces(document: dict[str, Any], most: int) -> None:
    rows = []
    for kind in CHANGES:
        faces = [face for face in document["changed"] if face["change"] == kind]
        rows += [
            [kind, *(face[key] for key in ("id", "split", "label", "reference", "other"))] for face in faces[:most]
        ]
        if len(faces) > most:
            rows.append([kind, f"... {len(faces) - most} more", "", "", "", ""])
    if rows:
        columns = ("change", "id", "split", "label", "first prediction", "second prediction")
        console.table(_title(document), columns, rows, left=len(columns))


def write_changed(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a row for every face whose prediction differs. Raises FercliError if the file cannot be written."""
    keys = ("id", "split", "subject", "label", "reference", "other", "change")
    columns = ("dataset", "reference_run", "reference_model", "other_run", "other_model", *keys)
    rows = []
    for document in documents:
        sides = [document[side][key] for side in ("reference", "other") for key in ("run", "folder")]
        rows += [[document["dataset"], *sides, *(face[key] for key in keys)] for face in document["changed"]]
    try:
        write_csv(path, columns, rows)
    except OSError as failure:
        raise FercliError(f"cannot write {path}: {failure.strerror}", "give another --csv FILE") from None
