"""Results in files: ``results.json``, the same figures as one long table ``results.csv``, and each face's answer.

``results.json`` (schema 5, of a run, a single model and a sweep alike; shares are fractions in 0..1, None is not
defined) holds

- ``schema``, ``kind`` ("run", "model" or "sweep"), ``title``, ``created`` (ISO 8601), ``synthetic``, ``expressions``,
  ``spec``, ``environment``, ``departures`` of a run as released from what was released (None of any other run);
- ``datasets``: name -> {"synthetic", "role": "source" or "target"}; ``targets``, ``methods`` (labels, the reference
  first) and ``seeds``, in order; ``reference``, the label that others are compared with;
- ``entries``, one a model and dataset (`fercli.scoring.results.Results.entry`): whose (``method``, ``registered``,
  ``seed``, ``keys`` of a sweep's grid, ``folder``, ``checkpoint``, ``stage``, ``epoch``, ``selection`` and what that
  ``reads``, ``oracle_method``), on what (``dataset``, ``role``, ``source``, ``splits``, ``expected``, ``found``,
  ``scored``), the scores of each of ``heads`` (the seven, and the rules over several of them), which of them is the
  model's ``decision``, the ``stages`` of GLPC, ``intervals`` of the decision, ``calibration`` of the fused head, the
  ``oracle`` epoch, what each of the selection ``rules`` would have chosen, ``seconds`` of training, ``predictions``
  (the CSV's path from the report's folder), ``against_reference``, whether chance alone makes it differ so much from
  source-only on the same faces (`fercli.scoring.results.with_reference`), and ``drift``, what adapting has changed of
  the start's answers to these faces (`fercli.evaluation.drift.drift`), with the faces ``found``, the images
  ``listed``, the ``duplicates`` among the faces, and the ``verdict`` on it all: no label is read for it, and it is None
  where the start's outputs are not known; earlier versions of fercli wrote none. Scores, intervals and calibration are
  None where no face has a label;
- ``missing``: ``dataset``, ``method``, ``seed``, ``keys`` and ``why`` of each cell of a sweep that was not trained;
- ``published`` rows beside them (`fercli.evaluation.published`);
- of a run or model: ``history``, stage folder -> mean losses and selection scores of every epoch; ``gaps``, of each
  ``target``, how far it lies from the ``source`` (its faces of ``source_splits``), under each of ``models``
  (`fercli.scoring.trained_evaluator.TrainedEvaluator.gap`);
  ``pseudo_labels``, stage folder -> how many each threshold would have admitted (`fercli.evaluation.pseudo_labels`);
  ``failure_cases``, faces worth a look (`fercli.scoring.failure_cases`).
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
#: What each means: `result_rows`.
RESULT_COLUMNS = (
    *("run", "dataset", "role", "split", "source", "method", "seed", "setting", "folder"),
    *("epoch", "selection", "oracle", "head", "decides", "expression", "metric", "value", "low", "high", "count"),
)


def document(
    kind: str, spec: Spec, stores: Mapping[str, Store], entries: Sequence[dict[str, Any]], /, **more: Any
) -> dict[str, Any]:
    """The results document of entries, and of what else is told by name; numbers are finite or None.

    Args:
        kind: "run", "model" or "sweep".
        stores: all that were scored, or trained on.
        more: what replaces the document's own, by its key.
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
        # A sweep's figures come from files alone, on whatever machine.
        "environment": describe_device("cpu" if kind == "sweep" else resolve_device(spec.engine.device)),
    }
    if kind != "sweep":
        found["environment"]["time_s"] = {e["folder"]: e["seconds"] for e in entries if e["seconds"] is not None}
    return console.finite({**found, **more})  # JSON has no NaN


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
    return f"{PREDICTIONS}/{scored.record.name}--{scored.store.name}.csv"


def write_results(results: Mapping[str, Any], scored: Sequence[Results], folder: Path) -> dict[str, Path]:
    """Write ``results.json``, ``results.csv`` and ``predictions/FOLDER--DATASET.csv``; returns the paths by kind.

    Predictions that the results do not speak of (of models that are gone) are removed, so that what lies in the folder
    belongs together.

    Args:
        results: from `document`.
        scored: whose predictions are written: those that its entries were made from; none of a sweep.
        folder: from `open_report`; a sweep's own.
    """
    folder.mkdir(parents=True, exist_ok=True)  # that of a sweep which has not begun is not there
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
    """A row a face, in the store's order: `PREDICTION_COLUMNS`, probabilities those of the decision."""
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
    """The long table of a results document, tidy: one number a row, `RESULT_COLUMNS`.

    - ``run`` (the title), ``dataset``, ``role``, ``split`` (joined by +), ``source``, ``method``, ``seed``, ``setting``
      (the values of a sweep's grid, such as ``adapt.batch=8``), ``folder``: whose number, on which faces;
    - ``epoch``, ``selection``: of the model, and the rule that chose it; ``oracle``: whether target labels chose it, or
      trained the method: a bound, no result;
    - ``head``: one of the seven, or the decision rule over several; ``decides``: whether it gives the model's answers;
    - ``expression``: the true one, where the number is of one;
    - ``metric``: accuracy, macro_f1 and mean_recall; precision, recall, f1 and answered:EXPRESSION (a confusion
      matrix's cell: faces) of each expression; stage:NAME (share of right answers) of GLPC; temperature, ece and nll,
      and with :scaled the same after it; energy_distance, and :no_gap what it reads without a gap; expected, found and
      scored faces; seconds of training; and p:sign-flip or p:mcnemar, that chance alone makes the right answers differ
      so much from those of source-only on the same faces, before any correction for several tests;
    - ``value``, ``low`` and ``high`` (95 % interval), ``count`` (faces that the value is of).

    Each selection rule that did not choose has the accuracy and macro F1 of the epoch that it would have chosen.
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
    """From the column ``head`` on."""
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
    """From the column ``head`` on, of another epoch than the model's."""
    for name in ("accuracy", "macro_f1"):
        yield [decision, "true", "", name, at[name], *_ends(at.get("intervals"), name), scored]


def _ends(intervals: Mapping[str, Any] | None, name: str) -> list[float | None]:
    return [None, None] if intervals is None or name not in intervals else list(intervals[name])


def _flag(value: bool) -> str:
    return "true" if value else "false"
