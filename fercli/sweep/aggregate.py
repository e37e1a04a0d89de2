"""Collecting a sweep's run folders into one results document. No network is run: each stage has saved its outputs.

This is final scoring: target labels are read here, after all training, and results chosen by them are marked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from fercli.engine.data import open_store
from fercli.engine.log import Environment, read_environment, read_scores
from fercli.errors import FercliError, SpecError
from fercli.evaluation.decision import DecisionRule
from fercli.evaluation.outputs import FOLDER, read_outputs
from fercli.loading.held_out import labels_of, training_and_validation
from fercli.methods import method_class
from fercli.scoring.results import Epochs, ModelRecord, Results, Right, model_record, scored_part, with_reference
from fercli.scoring.results_files import document
from fercli.spec import Spec
from fercli.spec.registry import REFERENCE
from fercli.store import Store, read_meta
from fercli.sweep.finished import other_origins, other_settings
from fercli.sweep.plan import Cell, plan


def gather(spec: Spec, decision: str | None = None, select: str | None = None) -> dict[str, Any]:
    """The results document of what a sweep has trained so far; `fercli.scoring.results_files` describes its layout.

    Args:
        decision, select: as in `fercli.scoring.evaluate.Scoring`.

    Raises:
        SpecError: as `plan`.
        FercliError: a dataset is not prepared.
    """
    cells = plan(spec)
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = list(dict.fromkeys(name for cell in cells for name in cell.spec.data.source))
    first = cells[0].spec
    # With a starting model the source's faces are not needed.
    there = [name for name in sources if first.adapt.start is None or read_meta(first.store_path(name)) is not None]
    stores = {name: open_store(first, name) for name in [*there, *targets]}
    held_labels = cache(partial(_held_labels, stores))  # most cells share their sources
    entries, right, missing = [], [], []
    for cell in cells:
        try:
            entry, own = _entry(cell, spec.run_folder, stores, held_labels, decision, select)
            entries.append(entry)
            right.append(own)
        except _Missing as why:
            about = {"dataset": cell.target, "method": cell.method, "seed": cell.seed, "keys": cell.keys}
            missing.append({**about, "why": str(why)})
    inner = spec.model_copy(update={"data": spec.data.model_copy(update={"source": sources})})
    planned = {
        "methods": list(dict.fromkeys(cell.method for cell in cells)),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "spec": json.loads(spec.model_dump_json()),
    }
    return document("sweep", inner, stores, with_reference(entries, right), missing=missing, **planned)


class _Missing(Exception):
    """A cell has no results; the message says why."""


def _entry(
    cell: Cell,
    run: Path,
    stores: dict[str, Store],
    held_labels: Callable[[tuple[str, ...], float | str], torch.Tensor],
    decision: str | None,
    select: str | None,
) -> tuple[dict[str, Any], Right]:
    is_reference = cell.method == REFERENCE
    folder = cell.folder
    store = stores[cell.target]
    part = scored_part(cell.spec, store, is_source=False)
    other = _Missing(f"not trained to the end, or trained on other faces of {cell.target}")
    origins = [name for name in (*cell.spec.data.source, cell.target) if name in stores]
    try:
        problem = other_settings(cell.spec, folder, "source" if is_reference else "adapt")
        finished = read_environment(folder)
        if finished is not None:
            problem = problem or other_origins(cell.spec, finished, [stores[name] for name in origins])
        if problem or finished is None:
            raise _Missing(problem) if problem else other
        name = f"dataset-{cell.target}" if is_reference else f"epoch-{finished.outcome.epoch:04d}"
        path = folder / FOLDER / f"{name}.safetensors"
        if is_reference and not path.exists():  # `fercli sweep` makes it
            raise other
        found, about = read_outputs(path)
        if is_reference and about.get("model") != finished.made_of.model:
            raise other
        if about.get("faces") != store.faces_digest or len(found["scored"]) != len(part.indices):
            raise other
        record = _record(cell, folder, run, finished, found.get("status")).deciding_by(decision)
        epochs = None if is_reference else Epochs(record, store, len(part.indices), read_scores(folder))
        if select is not None and epochs is not None:
            record, found = epochs.selected_by(select)
        held, labels = found["held"], torch.zeros(0).long()
        if len(held):  # a method without a source has no held-out faces
            labels = held_labels(tuple(cell.spec.data.source), cell.spec.data.validation)
        start = None if is_reference else _start(cell, finished, store, len(part.indices))
        results = Results(record, store, False, part, found["scored"], held, labels, epochs, start)
        return {**results.entry(), "predictions": None}, results.right
    except SpecError:
        raise
    except FercliError as failure:
        raise _Missing(str(failure)) from None


def _start(cell: Cell, finished: Environment, store: Store, size: int) -> torch.Tensor | None:
    """Outputs of the source model that a cell was adapted from, on the target's faces; None if none are saved."""
    try:
        found, about = read_outputs(cell.spec.run_folder / "source" / FOLDER / f"dataset-{cell.target}.safetensors")
    except FercliError:
        return None
    same = about.get("faces") == store.faces_digest and about.get("model") == finished.made_of.source_model
    return found["scored"] if same and len(found["scored"]) == size else None


def _record(cell: Cell, folder: Path, run: Path, finished: Environment, status: torch.Tensor | None) -> ModelRecord:
    outcome, kind = finished.outcome, method_class(cell.spec.adapt.method)
    rule = DecisionRule(
        outcome.decision,
        status,
        **kind.decision_options(kind.options_of(cell.spec)),
    )
    return model_record(
        cell.spec,
        folder,
        rule,
        name=str(folder.relative_to(run)),
        checkpoint=folder / "best.ckpt",
        stage="source" if cell.method == REFERENCE else "adapt",
        method=cell.method,
        registered=cell.spec.adapt.method,
        keys=cell.keys,
        epoch=outcome.epoch,
        selection=outcome.rule,
        oracle_method=kind.oracle,
        seconds=outcome.seconds,
    )


def _held_labels(stores: dict[str, Store], names: tuple[str, ...], validation: float | str) -> torch.Tensor:
    """Labels, int64 [K], of the held-out faces of these sources."""
    sources = [stores[name] for name in names]
    held = [training_and_validation(store, validation)[1] for store in sources]
    return torch.from_numpy(labels_of(sources, held))
