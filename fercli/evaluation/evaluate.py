"""A finished run to numbers: every head and the decision rule, on the source's test faces and on every target.

This is the final score, the one place beside `oracle` where target labels are read.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fercli import console
from fercli.batches import Faces, hold_out
from fercli.engine.fabric import make_fabric
from fercli.engine.log import read_metrics
from fercli.engine.stages import empty_network, load_network, open_store, view_settings
from fercli.errors import FercliError
from fercli.evaluation.decision import RUNGS, decide
from fercli.evaluation.inference import look
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.oracle import oracle_epoch
from fercli.evaluation.published import published_rows
from fercli.evaluation.rules import RULES
from fercli.expressions import EXPRESSIONS
from fercli.files import write_atomically
from fercli.machine import describe_device
from fercli.methods import method_class
from fercli.models import HEADS
from fercli.spec import Spec
from fercli.store import Store
from fercli.trained import Trained, adapted_models, read_trained


def evaluate(spec: Spec, targets: list[str], report: bool) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score a run.

    Args:
        targets: datasets to score on beside the source.
        report: whether to write ``report.html`` too.

    Returns:
        The results document (also written to ``report/results.json``; layout in `fercli.report.run`) and the
        files written, by kind.

    Raises:
        FercliError: no source model, or a target that is not prepared.
    """
    source = read_trained(spec.run_folder / "source")
    if source is None:
        raise FercliError(f"no source model in {spec.run_folder}; run: fercli train-source")
    adapted = [model for model in adapted_models(spec) if model.target in targets]
    stores = {name: open_store(spec, name) for name in [*spec.data.source, *targets]}
    fabric = make_fabric(spec.engine)
    network = fabric.setup_module(empty_network(spec))

    work = [(source, name) for name in stores] + [(model, model.target) for model in adapted]
    entries, table = [], []
    with console.progress("evaluate", len(work)) as bar:
        for model, name in work:
            load_network(network.module, model.state, spec, model.folder / "best.ckpt")
            entry, rows = _score(spec, network, fabric.device, model, stores[name])
            entries.append(entry)
            table += rows if name in targets else []
            bar.advance(note=f"{model.method} on {name}")

    folder = spec.run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    stand_in = any(store.stand_in for store in stores.values())
    published = spec.evaluate.published and not stand_in
    results = {
        "schema": 1,
        "title": spec.evaluate.title or spec.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stand_in": stand_in,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            name: {"stand_in": store.stand_in, "role": "source" if name in spec.data.source else "target"}
            for name, store in stores.items()
        },
        "table": sorted(table, key=lambda row: targets.index(row["target"])),
        "entries": entries,
        "history": {model.folder.name: _history(model) for model in (source, *adapted)},
        "published": published_rows(spec.data.source, targets, spec.model.backbone) if published else [],
        "spec": json.loads(spec.model_dump_json()),
        "environment": {**describe_device(fabric.device.type), "time_s": _times((source, *adapted))},
    }
    files = {"results": folder / "results.json"}
    write_atomically(files["results"], json.dumps(results, indent=1).encode())
    if report:
        from fercli.report.run import write_report

        files["report"] = write_report(results, folder)
    return results, files


def adapted_targets(spec: Spec) -> list[str]:
    """Targets that the run has been adapted to, in the spec's order; where there is none, the prepared ones."""
    names = {model.target for model in adapted_models(spec)}
    if not names:
        names = {name for name in spec.data.targets if (spec.store_path(name) / "meta.json").exists()}
    return [n for n in spec.data.targets if n in names] + sorted(names - set(spec.data.targets))


def headline(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]], str]:
    """The results as (title, columns, rows, caption) for `fercli.console.table`."""
    columns = ["tested on", "method", "decision", "acc %", "F1 %", "scored/listed", "epoch", "chosen by"]
    rows = []
    for entry in results["entries"]:
        if entry["role"] == "source":
            name, model, rule = entry["dataset"], entry["model"], entry["decision"]["rule"]
            figures = _figures(entry["decision"]["metrics"], entry["counts"])
            rows.append([f"{_marked(results, name)} (source)", model, rule, *figures, entry["epoch"]])
            rows[-1].append(entry["selection"]["rule"])
    for row in results["table"]:
        star = "*" if not row["oracle"] and row["method"] != "source-only" else ""
        chosen = "ORACLE" if row["oracle"] else row["selection"]
        name = star + _marked(results, row["target"])
        rows.append([name, row["method"], row["decision"], *_figures(row, row), row["epoch"], chosen])
    notes = []
    if results["stand_in"]:
        notes.append("Datasets marked † are procedural faces drawn by fercli: a stand-in, not photographs.")
    if any(row["oracle"] for row in results["table"]):
        notes.append("ORACLE rows used target labels, to choose the epoch or to train: an upper bound, not a result.")
    return f"{results['title']}: source-only beside adapted", columns, rows, "\n".join(notes)


def _marked(results: dict[str, Any], dataset: str) -> str:
    return dataset + (" †" if results["datasets"][dataset]["stand_in"] else "")


def _figures(metrics: dict[str, Any] | None, counts: dict[str, Any]) -> list[str]:
    def percent(name: str) -> str:
        value = metrics and metrics[name]
        return "–" if value is None else f"{100 * value:.2f}"

    return [percent("accuracy"), percent("macro_f1"), f"{counts['scored']}/{counts['expected']}"]


def _score(
    spec: Spec, network: torch.nn.Module, device: torch.device, model: Trained, store: Store
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entry of one model on one dataset, and its rows of the headline table."""
    is_source = store.name in spec.data.source
    splits, indices, expected = scored_part(spec, store, is_source)
    faces = Faces([store], [indices], device, spec.model.reads_crops)
    seen = look(network, faces, view_settings(spec), spec.engine.evaluate_batch, model.refine(device))
    probabilities = seen.probabilities
    status = model.state["status"]
    rule = model.state["decision"]
    decision = decide(rule, probabilities, status)
    answers, rungs = decision.answers.numpy(), decision.rungs.numpy()
    labels = store.labels[indices]
    known = labels >= 0
    counts = {"expected": expected, "found": len(indices), "scored": int(known.sum())}
    best = model.state["best"]
    entry = {
        "dataset": store.name,
        "role": "source" if is_source else "target",
        "source": "+".join(spec.data.source),
        "model": model.method,
        "stage": model.stage,
        "checkpoint": str(model.folder / "best.ckpt"),
        "epoch": best["epoch"],
        "selection": {"rule": best["rule"], "reads": list(RULES[best["rule"]].reads)},
        "oracle": method_class(model.registered).oracle,
        "splits": splits,
        "counts": counts,
        "heads": {
            name: metrics_of(labels[known], probabilities[:, h].argmax(-1).numpy()[known])
            for h, name in enumerate(HEADS)
        },
        "decision": {
            "rule": rule,
            "metrics": metrics_of(labels[known], answers[known]),
            "rungs": _rungs(labels[known], answers[known], rungs[known]) if rule == "glpc" else None,
        },
    }
    row = {
        "target": store.name,
        "source": entry["source"],
        "method": model.method,
        "decision": rule,
        **_headline_figures(entry["decision"]["metrics"]),
        **counts,
        "selection": best["rule"],
        "epoch": best["epoch"],
        # A method that trains on target labels is an upper bound, whatever chose its epoch.
        "oracle": method_class(model.registered).oracle,
    }
    rows = [row]
    chosen = None if is_source else oracle_epoch(model.folder, labels)
    if chosen is not None:
        figures = _headline_figures(metrics_of(labels[known], chosen[1][known]))
        rows.append({**row, **figures, "selection": "oracle", "epoch": chosen[0], "oracle": True})
    return entry, rows


def scored_part(spec: Spec, store: Store, is_source: bool) -> tuple[list[str], np.ndarray, int]:
    """Which faces score: (what to call them, positions, how many the dataset lists).

    A source without a test part of its own is scored on the faces held out of training, which also chose the epoch.
    """
    if is_source and set(store.score_splits) & set(store.adapt_splits):
        indices = store.indices(store.adapt_splits)
        _, held = hold_out(store, indices[store.labels[indices] >= 0], spec.data.validation)
        return ["held out of training"], held, len(held)
    return list(store.score_splits), store.indices(store.score_splits), store.expected(store.score_splits)


def metrics_of(labels: np.ndarray, answers: np.ndarray) -> dict[str, Any] | None:
    """All figures of one set of answers, or None where no face has a label."""
    if not len(labels):
        return None
    counted = confusion(labels, answers)
    return {**scores(counted), "confusion": counted.tolist()}


def _headline_figures(metrics: dict[str, Any] | None) -> dict[str, float | None]:
    return {name: None if metrics is None else metrics[name] for name in ("accuracy", "macro_f1")}


def _rungs(labels: np.ndarray, answers: np.ndarray, rungs: np.ndarray) -> dict[str, dict[str, int]]:
    return {
        name: {"count": int((rungs == r).sum()), "correct": int((answers == labels)[rungs == r].sum())}
        for r, name in enumerate(RUNGS)
    }


def _history(model: Trained) -> list[dict[str, Any]]:
    """Mean losses and selection scores of every epoch."""
    epochs: dict[int, dict[str, Any]] = {}
    for line in read_metrics(model.folder):
        epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"], "losses": {}, "scores": {}, "chosen": False})
        if line["kind"] == "train":
            for name, value in line["losses"].items():
                epoch["losses"].setdefault(name, []).append(value)
        else:
            # JSON has no NaN: a rule that is not defined.
            epoch["scores"] = console.finite(line["scores"])
    for epoch in epochs.values():
        epoch["losses"] = {name: float(np.mean(values)) for name, values in epoch["losses"].items()}
        epoch["chosen"] = epoch["epoch"] == model.state["best"]["epoch"]
    return [epochs[number] for number in sorted(epochs)]


def _times(models: tuple[Trained, ...]) -> dict[str, float]:
    times = {}
    for model in models:
        path = model.folder / "environment.json"
        if path.exists():
            times[model.folder.name] = json.loads(path.read_text())["outcome"]["seconds"]
    return times
