"""A sweep's run folders to one results document. No network is run: each epoch left its answers behind.

This is a final score: target labels are read here, after all training, and what they would have chosen is marked.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fercli.engine.data import open_store
from fercli.engine.evaluator import read_outputs
from fercli.engine.folder import FIXED, FREE, differences, prepared_again
from fercli.engine.log import read_environment, read_metrics
from fercli.errors import FercliError, SpecError
from fercli.evaluation.answers import read_answers
from fercli.evaluation.oracle import oracle_epoch
from fercli.evaluation.published import published_rows
from fercli.evaluation.selection import chosen_by_rule
from fercli.machine import describe_device
from fercli.methods import method_class
from fercli.scoring.results import headline_figures, scored_part
from fercli.spec import Spec, parse_recorded
from fercli.spec.yaml_data import read_yaml_file
from fercli.store import Store
from fercli.sweep.plan import REFERENCE, Cell, plan


def gather(spec: Spec) -> dict[str, Any]:
    """The results document of what a sweep has trained so far; its layout is told in `fercli.report.sweep`.

    Raises:
        SpecError: as `plan`.
        FercliError: a dataset is not prepared.
    """
    cells = plan(spec)
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = list(dict.fromkeys(name for cell in cells for name in cell.spec.data.source))
    stores = {name: open_store(cells[0].spec, name) for name in [*sources, *targets]}
    parts = {name: scored_part(spec, stores[name], is_source=False) for name in targets}
    labels = {name: stores[name].labels[indices] for name, (_, indices, _) in parts.items()}
    synthetic = any(store.synthetic for store in stores.values())
    rows, missing = [], []
    for cell in cells:
        about = {"seed": cell.seed, "keys": cell.keys, "target": cell.target, "method": cell.method}
        is_reference = cell.method == REFERENCE
        folder = cell.spec.run_folder / "source" if is_reference else cell.spec.adapt_folder(cell.target)
        read = _reference_row if is_reference else _adapted_row
        found, problem = None, ""
        try:
            problem = _other_settings(cell.spec, folder, "source" if is_reference else "adapt")
            problem = problem or _other_origins(cell, folder, stores)
            found = None if problem else read(cell, folder, stores[cell.target], labels[cell.target])
        except FercliError as failure:
            problem = str(failure)
        if found is None:
            missing.append({**about, "why": problem or f"not trained to the end, or on other faces of {cell.target}"})
            continue
        known = int((labels[cell.target] >= 0).sum())
        counts = {"expected": parts[cell.target][2], "found": len(labels[cell.target]), "scored": known}
        registered = cell.spec.adapt.method
        oracle_method = method_class(registered).oracle
        rows.append({**about, "registered": registered, "oracle_method": oracle_method, **counts, **found})
    return {
        "schema": 2,
        "kind": "sweep",
        "title": spec.evaluate.title or spec.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "synthetic": synthetic,
        "targets": targets,
        "methods": list(dict.fromkeys(cell.method for cell in cells)),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "reference": REFERENCE,
        "datasets": {
            name: {"synthetic": store.synthetic, "role": "source" if name in sources else "target"}
            for name, store in stores.items()
        },
        "cells": rows,
        "missing": missing,
        "published": published_rows(spec, targets, synthetic),
        "spec": json.loads(spec.model_dump_json()),
        "environment": describe_device("cpu"),
    }


def _other_settings(spec: Spec, folder: Path, stage: str) -> str:
    """How a folder's run differs from the spec, or an empty string: its figures would stand under the wrong name."""
    path = folder / "spec.yaml"
    if not path.exists():
        return ""
    try:
        trained = parse_recorded(read_yaml_file(path), str(path))
    except SpecError:
        raise FercliError(f"{path} is damaged", f"remove {folder}, and train that stage again") from None
    old, new = (json.loads(one.model_dump_json()) for one in (trained, spec))
    problem = differences(old, new, FIXED[stage], FREE)
    if stage == "adapt" and not problem:
        problem = differences(old, new, ("train_source",), frozenset())
    return f"trained with other settings ({problem})" if problem else ""


def _other_origins(cell: Cell, folder: Path, stores: dict[str, Store]) -> str:
    """How a folder's model was made of something else than what lies there now, or an empty string."""
    made = read_environment(folder)
    if made is None:
        return ""
    record = {"stores": made.made_of.stores, "spec": {"data": {"source": cell.spec.data.source}}}
    other = prepared_again(record, [stores[name] for name in (*cell.spec.data.source, cell.target)])
    if other:
        return f"{', '.join(store.name for store in other)} was prepared again after it was trained"
    start, source = made.made_of.source_model, read_environment(cell.spec.run_folder / "source")
    if start and source is not None and source.made_of.model not in ("", start):
        return "adapted from another source model than the run has now"
    return ""


def _reference_row(cell: Cell, folder: Path, store: Store, labels: np.ndarray) -> dict[str, Any] | None:
    finished, answers = read_environment(folder), read_answers(folder / "decisions" / f"{cell.target}.txt", store)
    if finished is None or answers is None:
        return None
    outcome = finished.outcome
    return {
        "decision": "fused",
        **headline_figures(labels, answers),
        "selection": outcome.rule,
        "epoch": outcome.epoch,
        "oracle": None,
        "rules": {},
        "seconds": outcome.seconds,
    }


def _adapted_row(cell: Cell, folder: Path, store: Store, labels: np.ndarray) -> dict[str, Any] | None:
    finished = read_environment(folder)
    if finished is None:
        return None
    outcome = finished.outcome

    def at(epoch: int) -> np.ndarray | None:
        return read_answers(folder / "decisions" / f"epoch-{epoch:04d}.txt", store)

    answers = at(outcome.epoch)
    if answers is None:
        return None
    history = {line["epoch"]: line["scores"] for line in read_metrics(folder) if line["kind"] == "validate"}
    best = oracle_epoch(folder, store)
    rules = {
        rule: {"epoch": epoch, "accuracy": headline_figures(labels, at(epoch))["accuracy"]}
        for rule, epoch in chosen_by_rule(history, read_outputs(folder)).items()
    }
    return {
        "decision": outcome.decision,
        **headline_figures(labels, answers),
        "selection": outcome.rule,
        "epoch": outcome.epoch,
        "oracle": None
        if best is None
        else {"epoch": best[0], "accuracy": headline_figures(labels, best[1])["accuracy"]},
        "rules": rules,
        "seconds": outcome.seconds,
    }
