"""A finished run to numbers: every head and the decision rule, on the source's test faces and on every target.

This is the final score, the one place beside `oracle` where target labels are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fercli import console
from fercli.batches import thin
from fercli.engine.fabric import resolve_device
from fercli.engine.log import read_metrics
from fercli.engine.stages import open_store, warn_of_overlap
from fercli.engine.watch import read_outputs
from fercli.evaluation.exhibits import exhibits
from fercli.evaluation.explain import Picture
from fercli.evaluation.looker import Looker
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.evaluation.published import published_rows
from fercli.evaluation.results_files import open_report, predictions_name, unwritable, write_results
from fercli.evaluation.scored import Scored
from fercli.expressions import EXPRESSIONS
from fercli.machine import describe_device
from fercli.spec import Spec
from fercli.store import Store
from fercli.trained import Trained, adapted_models, source_model, unfinished


class _Looked(NamedTuple):
    """What came of looking at all faces, in the order of the work."""

    scored: list[Scored]
    gaps: dict[str, list[dict[str, Any]]]
    exhibits: list[dict[str, Any]]
    pictures: dict[tuple[str, str, int], Picture]


def evaluate(spec: Spec, targets: list[str], report: bool) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score a run.

    Args:
        targets: datasets to score on beside the source.
        report: whether to write ``report.html`` too; its pictures and maps take longer than the numbers.

    Returns:
        The results document (its layout: `fercli.evaluation.results_files`) and what was written, by kind.

    Raises:
        FercliError: no source model, a checkpoint that cannot be used, a target that is not prepared, or a report
            folder that cannot be written.
    """
    source = source_model(spec)
    adapted = [model for model in adapted_models(spec) if model.target in targets]
    for path in unfinished(spec):
        console.warn(f"{path} has no model (best.ckpt) and is left out; train it to its end: fercli adapt")
    stores = {name: open_store(spec, name) for name in [*spec.data.source, *targets]}
    for name in targets:
        warn_of_overlap(stores[name])
    folder = open_report(spec.run_folder / "report")
    looked = _look(spec, source, adapted, stores, report)
    results = console.finite(_document(spec, [source, *adapted], stores, looked))  # JSON has no NaN
    try:
        files = write_results(results, looked.scored, folder)
        if report:
            from fercli.report.run import write_report

            files["report"] = write_report(results, folder, looked.pictures)
    except OSError as problem:
        raise unwritable(folder, problem) from None
    return results, files


def adapted_targets(spec: Spec) -> list[str]:
    """Targets that the run has been adapted to, in the spec's order; where there is none, the prepared ones."""
    names = {model.target for model in adapted_models(spec)}
    if not names:
        names = {name for name in spec.data.targets if (spec.store_path(name) / "meta.json").exists()}
    return [n for n in spec.data.targets if n in names] + sorted(names - set(spec.data.targets))


def _look(
    spec: Spec, source: Trained, adapted: Sequence[Trained], stores: Mapping[str, Store], report: bool
) -> _Looked:
    """Let every model look once at each dataset that it is scored on: the source's at all, the others' at their target.

    Faces worth a look are sought under the models adapted to a target; where there is none, under the source model.
    """
    looker = Looker(spec, [stores[name] for name in spec.data.source])
    targets = [name for name in stores if name not in spec.data.source]
    adapted_to = {model.target for model in adapted}
    looked = _Looked([], {name: [] for name in targets}, [], {})
    work = [(source, list(stores)), *((model, [model.target]) for model in adapted)]
    with console.progress("evaluate", sum(1 + len(names) for _, names in work)) as bar:
        for model, names in work:
            looker.take(model)
            bar.advance(note=f"{model.method} on source faces")
            for name in names:
                scored, features = looker.score(stores[name])
                looked.scored.append(scored)
                if name in targets:
                    looked.gaps[name].append(looker.gap(scored, features, mapped=report))
                if name in targets and (model is not source or name not in adapted_to):
                    found = exhibits(scored)
                    looked.exhibits.extend(found)
                    if report:
                        positions = {face["position"] for exhibit in found for face in exhibit["faces"]}
                        looked.pictures.update(looker.pictures(scored, positions))
                bar.advance(note=f"{model.method} on {name}")
    return looked


def _document(spec: Spec, models: Sequence[Trained], stores: Mapping[str, Store], looked: _Looked) -> dict[str, Any]:
    entries, table = [], []
    for scored in looked.scored:
        entries.append({**scored.entry(), "predictions": predictions_name(scored)})
        table += scored.rows(entries[-1]) if not scored.is_source else []
    targets, sources = list(looked.gaps), "+".join(spec.data.source)
    stand_in = any(store.stand_in for store in stores.values())
    published = spec.evaluate.published and not stand_in
    return {
        "schema": 2,
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
        "history": {model.folder.name: _history(model) for model in models},
        "gaps": [{"target": name, "source": sources, "models": found} for name, found in looked.gaps.items()],
        "pseudo_labels": _pseudo_labels(models, stores),
        "exhibits": looked.exhibits,
        "published": published_rows(spec.data.source, targets, spec.model.backbone) if published else [],
        "spec": json.loads(spec.model_dump_json()),
        "environment": {**describe_device(resolve_device(spec.engine.device)), "time_s": _times(models)},
    }


def _pseudo_labels(models: Sequence[Trained], stores: Mapping[str, Store]) -> dict[str, Any]:
    """Stage folder -> pseudo-label quantities; runs of an older fercli left no outputs and are left out."""
    found = {}
    for model in (model for model in models if model.stage == "adapt"):
        try:
            outputs = read_outputs(model.folder)
        except (OSError, ValueError, EOFError) as problem:
            console.warn(f"{model.folder / 'outputs'} cannot be read ({problem}): no pseudo-label quantities of it")
            continue
        if not outputs:
            continue
        faces, store = len(next(iter(outputs.values()))), stores[model.target]
        watched = store.indices(store.adapt_splits)
        watched = watched[thin(len(watched), model.state["spec"]["adapt"]["select_images"])]
        same = len(watched) == faces and store.faces_digest == model.state.get("target_faces", store.faces_digest)
        if not same:
            console.warn(
                f"{store.path} was prepared again after {model.folder}, with other faces: what its epochs left cannot "
                "be scored (no oracle, no accuracy of pseudo labels); to have these, run: "
                f"fercli adapt --target {store.name} --restart"
            )
        labels = store.labels[watched] if same else None
        found[model.folder.name] = {
            "target": model.target,
            "faces": faces,
            "thresholds": list(THRESHOLDS),
            "labelled": 0 if labels is None else int((labels >= 0).sum()),
            "epochs": pseudo_label_counts(outputs, labels, model.rule.threshold),
        }
    return found


def _history(model: Trained) -> list[dict[str, Any]]:
    """Mean losses and selection scores of every epoch."""
    epochs: dict[int, dict[str, Any]] = {}
    for line in read_metrics(model.folder):
        epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"], "losses": {}, "scores": {}, "chosen": False})
        if line["kind"] == "train":
            for name, value in line["losses"].items():
                epoch["losses"].setdefault(name, []).append(value)
        else:
            epoch["scores"] = line["scores"]
    for epoch in epochs.values():
        epoch["losses"] = {name: float(np.mean(values)) for name, values in epoch["losses"].items()}
        epoch["chosen"] = epoch["epoch"] == model.state["best"]["epoch"]
    return [epochs[number] for number in sorted(epochs)]


def _times(models: Sequence[Trained]) -> dict[str, float]:
    times = {}
    for model in models:
        path = model.folder / "environment.json"
        if path.exists():
            times[model.folder.name] = json.loads(path.read_text(encoding="utf-8"))["outcome"]["seconds"]
    return times
