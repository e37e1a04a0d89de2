"""A finished run, or one trained model, to numbers: every head and the decision rule, on the source's test faces and on
every target.

This is the final score: target labels are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fercli import console
from fercli.engine.data import open_store, warn_of_overlap
from fercli.engine.evaluator import read_outputs
from fercli.engine.fabric import resolve_device
from fercli.engine.folder import digest, prepared_again
from fercli.engine.log import read_environment, read_metrics
from fercli.engine.trained import Trained, adapted_models, source_model, unfinished
from fercli.errors import FercliError
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.evaluation.published import published_rows
from fercli.expressions import EXPRESSIONS
from fercli.files import only_one
from fercli.machine import describe_device
from fercli.report.pictures import Picture
from fercli.scoring.failure_cases import failure_cases
from fercli.scoring.results import Results
from fercli.scoring.results_files import open_report, predictions_name, unwritable, write_results
from fercli.scoring.trained_evaluator import TrainedEvaluator
from fercli.spec import Spec
from fercli.starter import NAME
from fercli.store import Store, subsample


class _Work(NamedTuple):
    """A model, the datasets that it is scored on, and those of them whose faces worth a look are sought under it."""

    model: Trained
    datasets: list[str]
    with_cases: list[str]


class _Evaluated(NamedTuple):
    """What came of all faces, in the order of the work."""

    scored: list[Results]
    gaps: dict[str, list[dict[str, Any]]]
    failure_cases: list[dict[str, Any]]
    pictures: dict[tuple[str, str, int], Picture]


def evaluate(spec: Spec, targets: list[str], report: bool) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score a run.

    Args:
        targets: datasets to score on beside the source.
        report: whether to write ``report.html`` too; its pictures and maps take longer than the numbers.

    Returns:
        The results document (its layout: `fercli.scoring.results_files`) and what was written, by kind.

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
    _check_origins(source, adapted, stores)
    # Faces worth a look are sought under the models adapted to a target; where there is none, under the source model.
    adapted_to = {model.target for model in adapted}
    work = [_Work(source, list(stores), [name for name in targets if name not in adapted_to])]
    work += [_Work(model, [model.target], [model.target]) for model in adapted]
    return _score(spec, work, stores, [stores[name] for name in spec.data.source], report)


def _check_origins(source: Trained, adapted: Sequence[Trained], stores: Mapping[str, Store]) -> None:
    """Refuse to put figures side by side that do not belong together.

    Raises:
        FercliError: a model was trained on other faces than the stores hold now, or adapted from another source model.
    """
    own = digest(source.state["network"])
    for model in (source, *adapted):
        again = f"run: fercli train-source -c {model.folder / 'spec.yaml'} --restart"
        if model is not source:
            again = f"run: fercli adapt -c {model.folder / 'spec.yaml'} --target {model.target} --restart"
        if model is not source and model.state.get("source_model", own) != own:
            raise FercliError(f"{model.folder} was adapted from another source model than {source.path} is now", again)
        for store in prepared_again(model.state, list(stores.values())):
            raise FercliError(
                f"{store.path} was prepared again, with other faces or labels than {model.folder} was trained on", again
            )


def evaluate_model(
    spec: Spec, model: Trained, datasets: Sequence[str], report: bool = False
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score one trained model on prepared datasets, whatever run it comes from.

    The network, the sizes and what was held out are those of the model's own spec. The model's source datasets are
    looked up too. Without their stores no temperature is fitted, and the distance between the domains is not measured;
    a remark says so. A source among `datasets` is scored as `fercli evaluate` scores a run's source.

    Args:
        spec: where the stores lie (``paths.prepared``), what the engine runs on, and where the numbers go:
            ``paths.runs/model-NAME/report``.
        datasets: to score on.
        report: as for `evaluate`.

    Returns, raises:
        As `evaluate`.
    """
    own = model.spec.model_copy(
        update={
            **{key: getattr(spec, key) for key in ("paths", "engine", "evaluate")},
            "name": _name_of(model),
            "data": model.spec.data.model_copy(update={"datasets": spec.data.datasets}),
        }
    )
    stores = {name: open_store(own, name) for name in datasets}
    for name, store in stores.items():
        _warn_of_other_faces(own, model, store)
        if name == model.target:
            warn_of_overlap(store)
    sources = _sources(own, model, stores)
    work = [_Work(model, list(datasets), [name for name in datasets if name not in own.data.source])]
    return _score(own, work, stores, sources, report)


def _name_of(model: Trained) -> str:
    """What a model's own folder of results is called: no run of that name is touched."""
    if model.is_starter:
        return f"model-{NAME}"
    parts = [model.path.stem] if model.one_file else [model.spec.name, model.folder.name]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(["model", *parts]))


def _sources(spec: Spec, model: Trained, stores: Mapping[str, Store]) -> list[Store]:
    """The stores of all source datasets, as long as they hold the faces that the model was trained on; else none.

    None is told: of other faces nobody knows which were held out.
    """
    without = "no temperature is fitted, and the distance between the domains is not measured"
    try:
        found = [stores.get(name) or open_store(spec, name) for name in spec.data.source]
    except FercliError:
        console.say(f"no prepared store of {'+'.join(spec.data.source)}, which the model was trained on: {without}")
        return []
    for store in prepared_again(model.state, found):
        console.say(f"{store.path} holds other faces or labels than those that the model was trained on: {without}")
        return []
    return found


def _warn_of_other_faces(spec: Spec, model: Trained, store: Store) -> None:
    """Say where a store's faces are cut otherwise than those that the model was trained on."""
    due = spec.prepare.parameters()
    names = ["align", "crop_size", "crop_zoom"] if spec.model.reads_crops else ["align"]
    found = store.meta["parameters"]
    other = [f"{name} {found[name]}, not {due[name]}" for name in names if found.get(name, due[name]) != due[name]]
    if other:
        console.warn(
            f"{store.path} holds faces cut otherwise than those {model.path} was trained on: {', '.join(other)}"
        )


def _score(
    spec: Spec, work: Sequence[_Work], stores: Mapping[str, Store], sources: Sequence[Store], report: bool
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Do the work and write what came of it."""
    folder = open_report(spec.run_folder / "report")
    with only_one(folder, "evaluate"):
        evaluated = _evaluate_all(spec, work, stores, sources, report)
        results = console.finite(_document(spec, [one.model for one in work], stores, evaluated))  # JSON has no NaN
        try:
            files = write_results(results, evaluated.scored, folder)
            if report:
                from fercli.report.run import write_report

                files["report"] = write_report(results, folder, evaluated.pictures)
        except OSError as problem:
            raise unwritable(folder, problem) from None
        return results, files


def adapted_targets(spec: Spec) -> list[str]:
    """Targets that the run has been adapted to, in the spec's order; where there is none, the prepared ones."""
    names = {model.target for model in adapted_models(spec)}
    if not names:
        names = {name for name in spec.data.targets if (spec.store_path(name) / "meta.json").exists()}
    return [n for n in spec.data.targets if n in names] + sorted(names - set(spec.data.targets))


def _evaluate_all(
    spec: Spec, work: Sequence[_Work], stores: Mapping[str, Store], sources: Sequence[Store], report: bool
) -> _Evaluated:
    """Have every model answer each dataset that it is scored on, once."""
    evaluator = TrainedEvaluator(spec, sources)
    targets = [name for name in stores if name not in spec.data.source]
    evaluated = _Evaluated([], {name: [] for name in targets if sources}, [], {})
    with console.progress("evaluate", sum(1 + len(one.datasets) for one in work)) as bar:
        for model, names, with_cases in work:
            evaluator.take(model)
            bar.advance(note=f"{model.method} on source faces")
            for name in names:
                scored, features = evaluator.score(stores[name])
                evaluated.scored.append(scored)
                if name in evaluated.gaps:
                    evaluated.gaps[name].append(evaluator.gap(scored, features, mapped=report))
                if name in with_cases:
                    found = failure_cases(scored)
                    evaluated.failure_cases.extend(found)
                    if report:
                        positions = {face["position"] for case in found for face in case["faces"]}
                        evaluated.pictures.update(evaluator.pictures(scored, positions))
                bar.advance(note=f"{model.method} on {name}")
    return evaluated


def _document(
    spec: Spec, models: Sequence[Trained], stores: Mapping[str, Store], evaluated: _Evaluated
) -> dict[str, Any]:
    entries, table = [], []
    for scored in evaluated.scored:
        entries.append({**scored.entry(), "predictions": predictions_name(scored)})
        table += scored.rows(entries[-1]) if not scored.is_source else []
    sources = "+".join(spec.data.source)
    targets = [name for name in stores if name not in spec.data.source]
    synthetic = any(store.synthetic for store in stores.values())
    return {
        "schema": 3,
        "title": spec.evaluate.title or spec.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "synthetic": synthetic,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            name: {"synthetic": store.synthetic, "role": "source" if name in spec.data.source else "target"}
            for name, store in stores.items()
        },
        "table": sorted(table, key=lambda row: targets.index(row["target"])),
        "entries": entries,
        "history": {model.folder.name: _history(model) for model in models},
        "gaps": [{"target": name, "source": sources, "models": found} for name, found in evaluated.gaps.items()],
        "pseudo_labels": _pseudo_labels(models, stores),
        "failure_cases": evaluated.failure_cases,
        "published": published_rows(spec, targets, synthetic),
        "spec": json.loads(spec.model_dump_json()),
        "environment": {**describe_device(resolve_device(spec.engine.device)), "time_s": _times(models)},
    }


def _pseudo_labels(models: Sequence[Trained], stores: Mapping[str, Store]) -> dict[str, Any]:
    """Stage folder -> pseudo-label quantities on the model's own target, where its store is at hand; runs of an older
    fercli left no outputs and are left out.
    """
    found = {}
    for model in (model for model in models if model.target in stores):
        try:
            outputs = read_outputs(model.folder)
        except FercliError as problem:
            console.warn(f"{problem}: no pseudo-label quantities of {model.folder.name}")
            continue
        if not outputs:
            continue
        faces, store = len(next(iter(outputs.values()))), stores[model.target]
        watched = store.indices(store.adapt_splits)
        watched = watched[subsample(len(watched), model.state["spec"]["adapt"]["select_images"])]
        same = len(watched) == faces and not prepared_again(model.state, [store])
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
    try:
        lines = read_metrics(model.folder)
    except FercliError as problem:
        console.warn(f"{problem}; {model.folder.name} is shown without its curves")
        return []
    for line in lines:
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
        try:
            found = read_environment(model.folder)
        except FercliError as problem:
            console.warn(f"{problem}; {model.folder.name} is shown without its time")
            continue
        if found is not None:
            times[model.folder.name] = found.outcome.seconds
    return times
