"""Score a finished run, or one trained model: every head and the decision rule, on the source's test faces and on every
target.

This is the final score: target labels are read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fercli import console
from fercli.engine.data import open_store, warn_of_overlap
from fercli.engine.folder import prepared_again
from fercli.engine.log import read_environment, read_metrics, read_scores
from fercli.engine.released import UNKNOWN
from fercli.engine.trained import Trained, adapted_models, source_model, unfinished
from fercli.errors import FercliError, SpecError
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.files import only_one
from fercli.report.pictures import Picture
from fercli.scoring.failure_cases import failure_cases
from fercli.scoring.results import (
    Epochs,
    ModelRecord,
    Results,
    model_record,
    read_epochs,
    scored_part,
    with_reference,
)
from fercli.scoring.results_files import document, open_report, predictions_name, unwritable, write_results
from fercli.scoring.trained_evaluator import TrainedEvaluator
from fercli.spec import Spec
from fercli.spec.registry import ORACLE, SOURCE_TEST
from fercli.store import Store, subsample


class _Work(NamedTuple):
    """A model, the datasets to score it on, and the datasets for which its failure cases are collected."""

    model: Trained
    datasets: list[str]
    with_cases: list[str]


class Scoring(NamedTuple):
    """How to score models, where it differs from how they were trained.

    Attributes:
        decision: name of a decision rule (`fercli.evaluation.decision.DecisionRule.named`).
        select: the selection rule that chooses the epoch of adapted models.
        report: whether to also write ``report.html``. Its images and maps take longer than the scores.
    """

    decision: str | None = None
    select: str | None = None
    report: bool = False


AS_TRAINED = Scoring()


def evaluate(spec: Spec, targets: list[str], how: Scoring = AS_TRAINED) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score a run.

    A run that started from an external model (``start`` in its source checkpoint) may lack the faces that this model
    was trained on. Then the source is not scored, as in `evaluate_model`. A target that is not in the spec is read as
    defined in the spec of the model adapted to it.

    Args:
        targets: datasets to score on in addition to the source.

    Returns:
        The results document (its layout: `fercli.scoring.results_files`) and the written files, by kind.

    Raises:
        FercliError: there is no source model, a checkpoint cannot be used, a target is not prepared, or the report
            folder cannot be written.
    """
    source = source_model(spec)
    adapted = [model for model in adapted_models(spec) if model.target in targets]
    for path in unfinished(spec):
        console.warn(f"{path} has no model (best.ckpt) and is left out; to finish its training, run: fercli adapt")
    spec = _with_datasets(spec, adapted)
    if _brought_along(source):
        data = spec.data.model_copy(update={"source": source.spec.data.source})
        spec = spec.model_copy(update={"data": data})
        sources = _sources(spec, source, {})
    else:
        sources = [open_store(spec, name) for name in spec.data.source]
    stores = {store.name: store for store in sources} | {name: open_store(spec, name) for name in targets}
    for name in targets:
        warn_of_overlap(stores[name])
    _check_origins(source, adapted, stores)
    # Failure cases come from the models adapted to a target, or from the source model where there are none.
    adapted_to = {model.target for model in adapted}
    work = [_Work(source, list(stores), [name for name in targets if name not in adapted_to])]
    work += [_Work(model, [model.target], [model.target]) for model in adapted]
    return _score("run", spec, work, stores, sources, how)


def _brought_along(source: Trained) -> bool:
    """Whether the run started from a source model that was trained elsewhere."""
    return bool(source.state.get("start"))


def _with_datasets(spec: Spec, adapted: Sequence[Trained]) -> Spec:
    """The spec, extended with the adapted models' definitions of targets that it lacks."""
    known = dict(spec.data.datasets)
    for model in adapted:
        own = model.spec.data.datasets.get(model.target)
        if own is not None:
            known.setdefault(model.target, own)
    return spec.model_copy(update={"data": spec.data.model_copy(update={"datasets": known})})


def _check_origins(source: Trained, adapted: Sequence[Trained], stores: Mapping[str, Store]) -> None:
    """Refuse to compare scores that do not belong together.

    Raises:
        FercliError: a model was trained on faces that differ from those in the stores now, or was adapted from another
            source model.
    """
    own = source.digest
    for model in (source, *adapted):
        again = f"run: fercli train-source -c {model.folder / 'spec.yaml'} --restart"
        if model is not source:
            again = f"run: fercli adapt -c {model.folder / 'spec.yaml'} --target {model.target} --restart"
        if model is not source and model.state.get("source_model", own) != own:
            raise FercliError(f"{model.folder} was not adapted from the current source model, {source.path}", again)
        if _brought_along(model):  # `_sources` has checked its sources; the run's targets are not its own
            continue
        for store in prepared_again(model.state, list(stores.values())):
            raise FercliError(
                f"{store.path} was prepared again, and {model.folder} was trained on other faces or labels", again
            )


def evaluate_model(
    spec: Spec,
    model: Trained,
    datasets: Sequence[str],
    how: Scoring = AS_TRAINED,
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score one trained model on prepared datasets, from any run.

    The network, the sizes and the held-out faces follow the model's own spec. The model's source datasets are looked up
    as well. Without their stores no temperature is fitted and the distance between the domains is not measured; a
    message reports this. A source among `datasets` is scored as `fercli evaluate` scores a run's source. For a released
    checkpoint the held-out source faces are not known, so it gets neither.

    Args:
        spec: defines the folder of the stores (``paths.prepared``), the engine's device, and the output folder,
            ``paths.runs/model-NAME/report``.
        datasets: to score on.

    Returns, raises:
        As `evaluate`.
    """
    record_of(model).deciding_by(how.decision)  # reject a rule without matching heads before any work
    if model.released and how.select is not None:
        raise SpecError(f"{model.path} is a released checkpoint with only one epoch", "leave out --select")
    own = model.spec.model_copy(
        update={
            **{key: getattr(spec, key) for key in ("paths", "engine", "evaluate")},
            "name": f"model-{model.label}",
            "data": model.spec.data.model_copy(update={"datasets": spec.data.datasets}),
        }
    )
    stores = {name: open_store(own, name, as_aligned=False) for name in datasets}
    for name, store in stores.items():
        _warn_of_other_faces(own, model, store)
        if not (store.labels >= 0).any():
            console.say(f"{name} has no labels, so nothing is scored; each face's prediction is in predictions/")
        if name == model.target:
            warn_of_overlap(store)
    sources = _sources(own, model, stores)
    work = [_Work(model, list(datasets), [name for name in datasets if name not in own.data.source])]
    return _score("model", own, work, stores, sources, how)


def _sources(spec: Spec, model: Trained, stores: Mapping[str, Store]) -> list[Store]:
    """The stores of all source datasets, if they hold the faces that the model was trained on; otherwise none.

    For other faces it is not known which were held out. A message reports that there are no stores.
    """
    without = "no temperature is fitted, and the distance between the domains is not measured"
    if model.state["best"]["rule"] in (ORACLE, SOURCE_TEST):  # a released checkpoint's, or a run that started from one
        source, title = "+".join(spec.data.source), model.state.get("start", {}).get("title", model.method)
        told = f"source {source}" + (" (set it with --source NAME)" if source == UNKNOWN and model.released else "")
        console.say(f"{model.path}: {title}, {told}; the held-out faces are not known, so {without}")
        return []
    try:
        found = [stores.get(name) or open_store(spec, name, as_aligned=False) for name in spec.data.source]
    except FercliError:
        console.say(f"no prepared store of {'+'.join(spec.data.source)}, the model's training data, so {without}")
        return []
    for store in prepared_again(model.state, found):
        console.say(f"{store.path} does not contain the faces and labels that the model was trained on, so {without}")
        return []
    return found


def _warn_of_other_faces(spec: Spec, model: Trained, store: Store) -> None:
    """Warn if a store's faces were cropped differently from the model's training faces, as far as the store records."""
    due = spec.prepare.parameters()
    names = ["align", "crop_size", "crop_zoom"] if spec.model.reads_crops else ["align"]
    found = store.meta["parameters"]
    if model.released:
        console.say(f"{store.path} is used as it was prepared: align {found.get('align')}, size {found.get('size')}")
        return
    other = [f"{name} {found[name]}, not {due[name]}" for name in names if found.get(name, due[name]) != due[name]]
    if other:
        console.warn(
            f"{store.path} contains faces cropped differently from those {model.path} was trained on: "
            f"{', '.join(other)}"
        )


def _score(
    kind: str, spec: Spec, work: Sequence[_Work], stores: Mapping[str, Store], sources: Sequence[Store], how: Scoring
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Do the work and write the results."""
    folder = open_report(spec.run_folder / "report")
    with only_one(folder, "evaluate"):
        try:
            found, scored, pictures = _evaluate_all(kind, spec, work, stores, sources, how)
            entries = [{**one.entry(), "predictions": predictions_name(one)} for one in scored]
            entries = with_reference(entries, [one.right for one in scored])
            results = document(kind, spec, stores, entries, **found)
            files = write_results(results, scored, folder)
            if how.report:
                from fercli.report.page import write_report

                files["report"] = write_report(results, folder, pictures)
        except OSError as problem:
            raise unwritable(folder, problem) from None
        return results, files


def adapted_targets(spec: Spec) -> list[str]:
    """Targets that the run was adapted to, in the spec's order; where there are none, the prepared ones."""
    names = {model.target for model in adapted_models(spec)}
    if not names:
        names = {name for name in spec.data.targets if (spec.store_path(name) / "meta.json").exists()}
    return [n for n in spec.data.targets if n in names] + sorted(names - set(spec.data.targets))


def _evaluate_all(
    kind: str, spec: Spec, work: Sequence[_Work], stores: Mapping[str, Store], sources: Sequence[Store], how: Scoring
) -> tuple[dict[str, Any], list[Results], dict[tuple[str, str, int], Picture]]:
    """Score every model on its datasets. Returns parts of the results document, the results, and images of faces."""
    evaluator = TrainedEvaluator(spec, sources)
    gaps: dict[str, list[dict[str, Any]]] = {n: [] for n in stores if sources and n not in spec.data.source}
    scored, cases, pseudo, pictures = [], [], {}, {}
    starts: dict[str, Tensor] = {}
    with console.progress("evaluate", sum(len(one.datasets) for one in work)) as bar:
        for model, names, with_cases in work:
            record = record_of(model).deciding_by(how.decision)
            # Epochs may have been pruned since the best one was saved.
            record = replace(record, keep_outputs=record.keep_outputs or spec.engine.keep_outputs)
            for name in names:
                outputs = evaluator.outputs(model, stores[name], model.folder if kind == "run" else spec.run_folder)
                if kind == "run" and model.stage == "source":
                    starts[name] = outputs["scored"]
                results = _results(spec, record, model, stores[name], outputs, evaluator.held_labels, how.select)
                if model.target == name:
                    results = replace(results, start=starts.get(name))
                scored.append(results)
                as_trained = results.record.epoch == record.epoch  # features exist only for the chosen epoch
                if name in gaps and as_trained:
                    gaps[name].append(evaluator.gap(results, outputs, mapped=how.report))
                if name in with_cases:
                    found = failure_cases(results)
                    cases += found
                    if how.report and as_trained:
                        positions = {face["position"] for case in found for face in case["faces"]}
                        pictures.update(evaluator.pictures(model, results, positions))
                if results.epochs is not None and results.epochs.watched:
                    pseudo[record.name] = _pseudo_labels(model, results)
                bar.advance(note=f"{record.method} on {name}")
    found = {
        "history": {name: _history(record) for name, record in {one.record.name: one.record for one in scored}.items()},
        "gaps": [
            {
                **{"target": name, "source": "+".join(spec.data.source), "source_splits": evaluator.source_splits},
                "models": found,
            }
            for name, found in gaps.items()
            if found
        ],
        "pseudo_labels": pseudo,
        "failure_cases": cases,
    }
    return found, scored, pictures


def record_of(model: Trained) -> ModelRecord:
    """What tables show about a trained model."""
    spec, best = model.spec, model.state["best"]
    try:
        finished = None if model.one_file else read_environment(model.folder)
    except FercliError as problem:
        console.warn(f"{problem}; {model.folder.name} is shown without its training time")
        finished = None
    return model_record(
        spec,
        model.folder,
        model.rule,
        name=model.folder.name,
        checkpoint=model.path,
        stage=model.stage,
        method=model.method,
        registered=model.registered,
        epoch=best["epoch"],
        selection=best["rule"],
        oracle_method=model.kind.oracle or best["rule"] == ORACLE or model.state.get("start", {}).get("oracle", False),
        heads=model.heads,
        seconds=None if finished is None else finished.outcome.seconds,
    )


def _results(
    spec: Spec,
    record: ModelRecord,
    model: Trained,
    store: Store,
    outputs: Mapping[str, Tensor],
    held_labels: Tensor,
    select: str | None,
) -> Results:
    is_source = store.name in spec.data.source
    part, epochs = scored_part(spec, store, is_source), None
    if model.target == store.name and select is not None:
        epochs = Epochs(record, store, len(part.indices), read_scores(record.folder))
        record, outputs = epochs.selected_by(select)
    elif model.target == store.name and not model.one_file:
        epochs = read_epochs(record, store, len(part.indices))
    held = outputs["held"][: len(held_labels)]  # empty where the model's source is not available
    return Results(record, store, is_source, part, outputs["scored"], held, held_labels, epochs)


def _pseudo_labels(model: Trained, results: Results) -> dict[str, Any]:
    """Pseudo-label counts on the model's own target, with its labels where the faces are still the same."""
    store, epochs = results.store, results.epochs
    watched = store.indices(store.adapt_splits)
    watched = watched[subsample(len(watched), model.state["spec"]["adapt"]["select_images"])]
    faces = len(next(iter(epochs.watched.values())))
    same = len(watched) == faces and not prepared_again(model.state, [store])
    labels = store.labels[watched] if same else None
    return {
        "target": model.target,
        "faces": faces,
        "thresholds": list(THRESHOLDS),
        "labelled": 0 if labels is None else int((labels >= 0).sum()),
        "epochs": pseudo_label_counts(epochs.watched, labels, results.record.rule.threshold),
    }


def _history(record: ModelRecord) -> list[dict[str, Any]]:
    """Mean losses and selection scores of every epoch."""
    epochs: dict[int, dict[str, Any]] = {}
    try:
        lines = read_metrics(record.folder)
    except FercliError as problem:
        console.warn(f"{problem}; {record.name} is shown without its curves and selection rules")
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
        epoch["chosen"] = epoch["epoch"] == record.epoch
    return [epochs[number] for number in sorted(epochs)]
