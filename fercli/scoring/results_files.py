"""Results files: ``results.json``, the same figures as one long table ``results.csv``, and each face's prediction.

``results.json`` (schema 5) has the same layout for a run, a single model and a sweep. Shares are fractions in 0..1;
None means not defined. It contains

- ``schema``, ``kind`` ("run", "model" or "sweep"), ``title``, ``created`` (ISO 8601), ``synthetic``, ``expressions``,
  ``spec``, ``environment``, and ``departures``: how a reproduction of released settings departs from them (None for any
  other run);
- ``datasets``: name -> {"synthetic", "role": "source" or "target"}; ``targets``, ``methods`` (labels, the reference
  first) and ``seeds``, in order; ``reference``, the label that others are compared with;
- ``entries``, one per model and dataset (`fercli.scoring.results.Results.entry`). The model: ``method``,
  ``registered``, ``seed``, ``keys`` of a sweep's grid, ``folder``, ``checkpoint``, ``stage``, ``epoch``, ``selection``
  and what that ``reads``, ``oracle_method``, ``seconds`` of training. The faces: ``dataset``, ``role``, ``source``,
  ``splits``, ``expected``, ``found``, ``scored``. The scores: those of each of ``heads`` (the seven, and the rules over
  several of them), the one that is the model's ``decision``, the ``stages`` of GLPC, ``intervals`` of the decision,
  ``calibration`` of the fused head, the ``oracle`` epoch, and what each of the selection ``rules`` would have chosen.
  ``predictions`` is the CSV's path relative to the report folder. ``against_reference`` states whether chance alone
  explains the difference from source-only on the same faces (`fercli.scoring.results.with_reference`). ``drift`` tells
  how adaptation changed the starting model's predictions on these faces (`fercli.evaluation.drift.drift`), with the
  faces ``found``, the images ``listed``, the ``duplicates`` among the faces, and the ``verdict`` on all of this. It
  reads no label. It is None where the starting model's outputs are not known, and absent from files of earlier versions
  of fercli. Scores, intervals and calibration are None where no face has a label;
- ``missing``: ``dataset``, ``method``, ``seed``, ``keys`` and ``why`` for each cell of a sweep that was not trained;
- ``published`` rows for comparison (`fercli.evaluation.published`);
- for a run or model: ``history``, stage folder -> mean losses and selection scores of every epoch; ``gaps``, for each
  ``target``, its distance from the ``source`` (the faces of ``source_splits``) under each of ``models``
  (`fercli.scoring.trained_evaluator.TrainedEvaluator.gap`);
  ``pseudo_labels``, stage folder -> how many each threshold would have admitted (`fercli.evaluation.pseudo_labels`);
  ``failure_cases``, mistakes and uncertain faces (`fercli.scoring.failure_cases`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fercli import console
from fercli.engine.fabric import resolve_device
from fercli.errors import FercliError
from fercli.evaluation.drift import VERDICTS
from fercli.evaluation.published import published_rows
from fercli.expressions import EXPRESSIONS
from fercli.files import write_atomically
from fercli.machine import describe_device
from fercli.methods import departures_of
from fercli.models import HEADS
from fercli.scoring.results import Results, with_own_labels
from fercli.spec import Spec
from fercli.spec.registry import REFERENCE
from fercli.spreadsheet import write_csv
from fercli.store import Store

SCHEMA = 5
PREDICTIONS = "predictions"
PREDICTION_COLUMNS = (
    *("position", "id", "subject", "split", "label", "answer", "stage"),
    *(f"p_{name}" for name in EXPRESSIONS),
    *(f"head_{name}" for name in HEADS),
)
#: `result_rows` explains each column.
RESULT_COLUMNS = (
    *("run", "dataset", "role", "split", "source", "method", "seed", "setting", "folder"),
    *("epoch", "selection", "oracle", "head", "decides", "expression", "metric", "value", "low", "high", "count"),
)


def document(
    kind: str, spec: Spec, stores: Mapping[str, Store], entries: Sequence[dict[str, Any]], /, **more: Any
) -> dict[str, Any]:
    """The results document for entries and further parts, given by key; numbers are finite or None.

    Args:
        kind: "run", "model" or "sweep".
        stores: all stores that were scored or trained on.
        more: values that replace the document's defaults, by key.
    """
    entries = with_own_labels(entries)
    targets = [name for name in stores if name not in spec.data.source]
    synthetic = any(store.synthetic for store in stores.values())
    found = {
        "schema": SCHEMA,
        "kind": kind,
        "title": spec.evaluate.title or spec.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "synthetic": synthetic,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            name: {"synthetic": store.synthetic, "role": "target" if name in targets else "source"}
            for name, store in stores.items()
        },
        "targets": targets,
        "methods": list(dict.fromkeys([REFERENCE, *(entry["method"] for entry in entries)])),
        "seeds": list(dict.fromkeys(entry["seed"] for entry in entries)),
        "reference": REFERENCE,
        "entries": sorted(entries, key=lambda e: targets.index(e["dataset"]) if e["role"] == "target" else -1),
        "missing": [],
        "published": published_rows(spec, targets, synthetic),
        "history": {},
        "gaps": [],
        "pseudo_labels": {},
        "failure_cases": [],
        "spec": json.loads(spec.model_dump_json()),
        "departures": departures_of(spec),
        # A sweep's figures come from files alone, on any machine.
        "environment": describe_device("cpu" if kind == "sweep" else resolve_device(spec.engine.device)),
    }
    if kind != "sweep":
        found["environment"]["time_s"] = {e["folder"]: e["seconds"] for e in entries if e["seconds"] is not None}
    return console.finite({**found, **more})  # JSON has no NaN


def open_report(folder: Path) -> Path:
    """Create the report folder, before any work starts.

    Raises:
        FercliError: it cannot be created.
    """
    try:
        (folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise unwritable(folder, problem) from None
    return folder


def unwritable(folder: Path, problem: OSError) -> FercliError:
    """The error for a report folder that cannot be written."""
    return FercliError(
        f"cannot write the report to {folder}: {problem.strerror or problem}"
        f"{f' ({problem.filename})' if problem.filename else ''}",
        "make it writable, or set paths.runs to another folder",
    )


def predictions_name(scored: Results) -> str:
    """Path of the predictions of one model on one dataset, relative to the report folder."""
    return f"{PREDICTIONS}/{scored.record.name}--{scored.store.name}.csv"


def write_results(results: Mapping[str, Any], scored: Sequence[Results], folder: Path) -> dict[str, Path]:
    """Write ``results.json``, ``results.csv`` and ``predictions/FOLDER--DATASET.csv``; returns the paths by kind.

    Predictions files that the results do not mention (models that no longer exist) are removed, so that the folder's
    files belong together.

    Args:
        results: from `document`.
        scored: the results that its entries were made from, whose predictions are written; empty for a sweep.
        folder: from `open_report`; for a sweep its own folder.
    """
    folder.mkdir(parents=True, exist_ok=True)  # the folder of a sweep that has not begun does not exist yet
    files = {"results": folder / "results.json", "csv": folder / "results.csv"}
    if scored:
        files[PREDICTIONS] = folder / PREDICTIONS
    for one in scored:
        write_csv(folder / predictions_name(one), PREDICTION_COLUMNS, prediction_rows(one))
    named = {entry.get("predictions") for entry in results["entries"]}
    for path in (folder / PREDICTIONS).glob("*--*.csv"):
        if f"{PREDICTIONS}/{path.name}" not in named:
            path.unlink()
    write_csv(files["csv"], RESULT_COLUMNS, result_rows(results))
    write_atomically(files["results"], json.dumps(results, indent=1, allow_nan=False).encode())
    return files


def prediction_rows(scored: Results) -> Iterator[list[Any]]:
    """One row per face, in the store's order, with `PREDICTION_COLUMNS`. Probabilities are those of the decision."""
    store, heads = scored.store, scored.probabilities.argmax(-1).tolist()
    said = scored.decision.probabilities.tolist()
    for row, position in enumerate(scored.part.indices.tolist()):
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
            *(
                EXPRESSIONS[answer] if head in scored.record.heads else ""
                for head, answer in zip(HEADS, heads[row], strict=True)
            ),
        ]


def result_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The long table of a results document, tidy: one number per row, with `RESULT_COLUMNS`.

    - ``run`` (the title), ``dataset``, ``role``, ``split`` (joined by +), ``source``, ``method``, ``seed``, ``setting``
      (the values of a sweep's grid, such as ``adapt.batch=8``), ``folder``: identify the model and the faces;
    - ``epoch``, ``selection``: the model's epoch, and the rule that chose it; ``oracle``: whether target labels chose
      it or trained the method, which makes the value a bound, not a result;
    - ``head``: one of the seven, or the decision rule over several; ``decides``: whether it makes the model's
      predictions;
    - ``expression``: the true expression, where the number is for one;
    - ``metric``: accuracy, macro_f1 and mean_recall; precision, recall, f1 and answered:EXPRESSION (a cell of the
      confusion matrix: faces) for each expression; stage:NAME (share of correct predictions) for GLPC; temperature, ece
      and nll, and with :scaled the same after scaling; energy_distance, and with :no_gap its value without a gap;
      expected, found and scored faces; seconds of training; and p:sign-flip or p:mcnemar, the p that chance alone makes
      the correct predictions differ this much from those of source-only on the same faces, before any correction for
      several tests;
    - ``value``, ``low`` and ``high`` (95 % interval), ``count`` (the number of faces that the value is computed from).

    Each selection rule that was not used has the accuracy and macro F1 of the epoch that it would have chosen.
    """
    for entry in results["entries"]:
        setting = ";".join(f"{key}={json.dumps(value)}" for key, value in entry["keys"].items())
        about = [
            *(results["title"], entry["dataset"], entry["role"], "+".join(entry["splits"]), entry["source"]),
            *(entry["method"], entry["seed"], setting, entry["folder"]),
        ]
        own = [entry["epoch"], entry["selection"], _flag(entry["oracle_method"])]
        for values in _entry_rows(entry):
            yield [*about, *own, *values]
        decision = entry["decision"]
        for rule, at in entry["rules"].items():
            if rule != entry["selection"]:
                yield from ([*about, at["epoch"], rule, own[2], *v] for v in _epoch_rows(decision, at, entry["scored"]))
        if entry["oracle"]:
            at = entry["oracle"]
            yield from ([*about, at["epoch"], "oracle", "true", *v] for v in _epoch_rows(decision, at, entry["scored"]))
        for model in (m for gap in results["gaps"] if gap["target"] == entry["dataset"] for m in gap["models"]):
            if model["folder"] == entry["folder"]:
                for name, key in (("energy_distance", "energy_distance"), ("energy_distance:no_gap", "no_gap")):
                    distance = ["", name, model[key], None, None, sum(model["faces"])]
                    yield [*about, *own, "fused", _flag(decision == "fused"), *distance]


def _entry_rows(entry: Mapping[str, Any]) -> Iterator[list[Any]]:
    """An entry's values from the column ``head`` onwards."""
    scored = entry["scored"]
    for name in ("expected", "found", "scored"):
        yield ["", "", "", name, entry[name], None, None, None]
    if entry["seconds"] is not None:
        yield ["", "", "", "seconds", entry["seconds"], None, None, None]
    for head, metrics in entry["heads"].items():
        if metrics is None:
            continue
        decides = head == entry["decision"]
        about = [head, _flag(decides)]
        for name in ("accuracy", "macro_f1", "mean_recall"):
            ends = _ends(entry["intervals"] if decides else None, name)
            yield [*about, "", name, metrics[name], *ends, scored]
        for figures, answered in zip(metrics["per_expression"], metrics["confusion"], strict=True):
            for name in ("precision", "recall", "f1"):
                yield [*about, figures["expression"], name, figures[name], None, None, figures["support"]]
            for expression, count in zip(EXPRESSIONS, answered, strict=True):
                yield [*about, figures["expression"], f"answered:{expression}", count, None, None, figures["support"]]
    if entry["against_reference"] is not None:
        test = entry["against_reference"]["test"]
        yield [entry["decision"], "true", "", f"p:{test['name']}", test["p"], None, None, scored]
    if entry["drift"] is not None:
        moved, about = entry["drift"], ["fused", _flag(entry["decision"] == "fused"), ""]
        trust = 1 - VERDICTS.index(moved["verdict"]["trust"]) / (len(VERDICTS) - 1)
        for name, value in (*((key, moved[key]) for key in ("agreement", "total_variation")), ("trust", trust)):
            yield [*about, f"drift:{name}", value, None, None, moved["faces"]]
    for name, stage in (entry["stages"] or {}).items():
        right = stage["correct"] / stage["count"] if stage["count"] and stage["correct"] is not None else None
        yield [entry["decision"], "true", "", f"stage:{name}", right, None, None, stage["count"]]
    if entry["calibration"] is not None:
        found, about = entry["calibration"], ["fused", _flag(entry["decision"] == "fused"), ""]
        yield [*about, "temperature", found["temperature"], None, None, found["fitted_on"]]
        for suffix, when in (("", "before"), (":scaled", "after")):
            for name in ("ece", "nll"):
                yield [*about, name + suffix, found[when][name], None, None, scored]


def _epoch_rows(decision: str, at: Mapping[str, Any], scored: int) -> Iterator[list[Any]]:
    """Values from the column ``head`` onwards, for an epoch other than the model's."""
    for name in ("accuracy", "macro_f1"):
        yield [decision, "true", "", name, at[name], *_ends(at.get("intervals"), name), scored]


def _ends(intervals: Mapping[str, Any] | None, name: str) -> list[float | None]:
    return [None, None] if intervals is None or name not in intervals else list(intervals[name])


def _flag(value: bool) -> str:
    return "true" if value else "false"
