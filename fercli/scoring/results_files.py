"""The results of a run in files: ``results.json``, the same scores as ``results.csv``, and each face's answer.

``results.json`` (schema 3; shares are fractions in 0..1, None is not defined) holds

- ``schema``, ``title``, ``created`` (ISO 8601), ``synthetic``, ``expressions``, ``spec``, ``environment``;
- ``datasets``: name -> {"synthetic", "role": "source" or "target"};
- ``entries``, one a model and dataset: which model (``model``, ``stage``, ``folder``, ``checkpoint``, ``epoch``,
  ``selection``, ``oracle``), on what (``dataset``, ``role``, ``source``, ``splits``, ``counts``), the scores of each of
  ``heads`` and of the ``decision`` (with its ``rule`` and ``stages``), ``intervals`` of the decision, ``calibration``
  of the fused head, ``predictions`` (the CSV's path from the report's folder). Scores, intervals and calibration are
  None where no face has a label;
- ``table``: the headline rows of targets, with those of the oracle; ``published`` rows beside them;
- ``history``: stage folder -> mean losses and selection scores of every epoch;
- ``gaps``: of each target, how far it lies from the source under each model
  (`fercli.scoring.trained_evaluator.TrainedEvaluator.gap`);
- ``pseudo_labels``: stage folder -> how many each threshold would have admitted (`fercli.evaluation.pseudo_labels`);
- ``failure_cases``: faces worth a look (`fercli.scoring.failure_cases`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.files import write_atomically
from fercli.models import HEADS
from fercli.scoring.results import Results
from fercli.spreadsheet import write_csv

PREDICTIONS = "predictions"
PREDICTION_COLUMNS = (
    *("position", "id", "subject", "split", "label", "answer", "stage"),
    *(f"p_{name}" for name in EXPRESSIONS),
    *(f"head_{name}" for name in HEADS),
)
RESULT_COLUMNS = (
    *("dataset", "role", "model", "folder", "oracle", "head", "expression"),
    *("metric", "value", "low", "high", "count"),
)


def open_report(folder: Path) -> Path:
    """Make the report's folder, before any work is done for it.

    Raises:
        FercliError: it cannot be made.
    """
    try:
        (folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise unwritable(folder, problem) from None
    return folder


def unwritable(folder: Path, problem: OSError) -> FercliError:
    """What to tell of a report's folder that cannot be written."""
    return FercliError(
        f"cannot write the report into {folder}: {problem.strerror or problem}"
        f"{f' ({problem.filename})' if problem.filename else ''}",
        "make it writable, or set paths.runs to another folder",
    )


def predictions_name(scored: Results) -> str:
    """Where the answers of one model on one dataset lie, from the report's folder."""
    return f"{PREDICTIONS}/{scored.model.folder.name}--{scored.store.name}.csv"


def write_results(results: Mapping[str, Any], scored: list[Results], folder: Path) -> dict[str, Path]:
    """Write ``results.json``, ``results.csv`` and ``predictions/FOLDER--DATASET.csv``; returns the paths by kind.

    Predictions that the results do not speak of (of models that are gone) are removed, so that what lies in the folder
    belongs together.

    Args:
        results: the document, numbers finite or None.
        scored: what its entries were made from.
        folder: from `open_report`.
    """
    files = {"results": folder / "results.json", "csv": folder / "results.csv", PREDICTIONS: folder / PREDICTIONS}
    for one in scored:
        write_csv(folder / predictions_name(one), PREDICTION_COLUMNS, prediction_rows(one))
    for path in files[PREDICTIONS].glob("*--*.csv"):
        if f"{PREDICTIONS}/{path.name}" not in {entry["predictions"] for entry in results["entries"]}:
            path.unlink()
    write_csv(files["csv"], RESULT_COLUMNS, result_rows(results))
    write_atomically(files["results"], json.dumps(results, indent=1, allow_nan=False).encode())
    return files


def prediction_rows(scored: Results) -> Iterator[list[Any]]:
    """A row a face, in the store's order: `PREDICTION_COLUMNS`, probabilities those of the decision."""
    store, heads = scored.store, scored.probabilities.argmax(-1).tolist()
    said = scored.decision.probabilities.tolist()
    for row, position in enumerate(scored.indices.tolist()):
        label = scored.labels[row]
        yield [
            position,
            str(store.ids[position]),
            str(store.subjects[position]),
            str(store.splits[position]),
            EXPRESSIONS[label] if label >= 0 else "",
            EXPRESSIONS[scored.answers[row]],
            scored.stage(row),
            *(f"{probability:.6f}" for probability in said[row]),
            *(EXPRESSIONS[answer] for answer in heads[row]),
        ]


def result_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The scores of a results document, one number a row: `RESULT_COLUMNS`.

    ``head`` is one of the seven or "decision", ``count`` how many faces the value is of. Metrics: accuracy, macro_f1
    and mean_recall (with ``low`` and ``high`` where an interval is known); for each true expression precision, recall,
    f1 and answered:EXPRESSION (a confusion matrix's cell: faces); stage:NAME (share of right answers); temperature, and
    ece and nll with :scaled ones after it; a_distance; expected, found and scored faces.
    """
    for entry in results["entries"]:
        about = [entry["dataset"], entry["role"], entry["model"], entry["folder"], _flag(entry["oracle"])]
        for values in _entry_rows(entry):
            yield [*about, *values]
    for row in results["table"]:
        if row["selection"] == "oracle":
            about = [row["target"], "target", row["method"], row["folder"], _flag(True)]
            for name in ("accuracy", "macro_f1"):
                ends = _ends(row["intervals"], name)
                yield [*about, "decision", "", name, row[name], *ends, row["scored"]]
    for gap in results["gaps"]:
        for model in gap["models"]:
            about = [gap["target"], "target", model["model"], model["folder"], _flag(False)]
            yield [*about, "fused", "", "a_distance", model["a_distance"], None, None, sum(model["faces"])]


def _entry_rows(entry: Mapping[str, Any]) -> Iterator[list[Any]]:
    scored, decision = entry["counts"]["scored"], entry["decision"]
    for name, count in entry["counts"].items():
        yield ["", "", name, count, None, None, None]
    for head, metrics in [*entry["heads"].items(), ("decision", decision["metrics"])]:
        if metrics is None:
            continue
        for name in ("accuracy", "macro_f1", "mean_recall"):
            ends = _ends(entry["intervals"] if head == "decision" else None, name)
            yield [head, "", name, metrics[name], *ends, scored]
        for figures, answered in zip(metrics["per_expression"], metrics["confusion"], strict=True):
            about, support = (head, figures["expression"]), figures["support"]
            for name in ("precision", "recall", "f1"):
                yield [*about, name, figures[name], None, None, support]
            for expression, count in zip(EXPRESSIONS, answered, strict=True):
                yield [*about, f"answered:{expression}", count, None, None, support]
    for name, stage in (decision["stages"] or {}).items():
        right = stage["correct"] / stage["count"] if stage["count"] and stage["correct"] is not None else None
        yield ["decision", "", f"stage:{name}", right, None, None, stage["count"]]
    if entry["calibration"] is not None:
        found = entry["calibration"]
        yield ["fused", "", "temperature", found["temperature"], None, None, found["fitted_on"]]
        for suffix, when in (("", "before"), (":scaled", "after")):
            for name in ("ece", "nll"):
                yield ["fused", "", name + suffix, found[when][name], None, None, scored]


def _ends(intervals: Mapping[str, Any] | None, name: str) -> list[float | None]:
    return [None, None] if intervals is None or name not in intervals else list(intervals[name])


def _flag(value: bool) -> str:
    return "true" if value else "false"
