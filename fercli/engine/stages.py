"""The two stages of training: each reads a run spec and writes a stage folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fercli import console
from fercli.engine import checkpoint, distributed
from fercli.engine.acceleration import accelerate
from fercli.engine.capture import captures
from fercli.engine.data import open_store, source_faces, target_faces, warn_of_overlap
from fercli.engine.fabric import make_fabric
from fercli.engine.folder import digest, prepared_again, record_of, stage_folder, write_environment
from fercli.engine.log import ENVIRONMENT
from fercli.engine.loop import fit
from fercli.engine.network import channels_last, empty_network, load_network
from fercli.engine.resume import carry_momentum
from fercli.engine.safeguards import compared
from fercli.engine.start import begin_from_start, resolve_start
from fercli.engine.training import Training, check_sharpness
from fercli.errors import Advice, FercliError, SpecError
from fercli.evaluation.drift import verdict
from fercli.evaluation.oracle import oracle_labels
from fercli.machine import describe_device
from fercli.methods import departures_of, method_class
from fercli.spec import Spec
from fercli.spec.registry import RULES
from fercli.store import Store, read_meta


def train_source(spec: Spec, restart: bool = False) -> dict[str, Any]:
    """Stage 1: train on the labelled source into ``runs/NAME/source``; resumes a stopped run.

    Returns:
        The outcome of `fercli.engine.loop.fit`.

    Raises:
        FercliError: a store is missing, or the folder holds a run with different settings.
    """
    kind = method_class("source-only")
    fabric = make_fabric(spec.engine, kind.reaches_all and not spec.model.reads_crops)
    source = source_faces(spec, fabric.device)
    record = record_of(spec, "source", source.stores)
    network = channels_last(spec.model)
    # Comes after everything that can fail because of user errors, so that a mistake leaves no files.
    _tell_departures(spec)
    with stage_folder(spec.run_folder / "source", record, source.stores, restart) as folder:
        return _run(Training(spec, fabric, network, source, None, folder, record))


def adapt(spec: Spec, target: str, restart: bool = False) -> dict[str, Any]:
    """Stage 2: adapt the source model to an unlabelled target into ``runs/NAME/adapt-TARGET``.

    Target labels are not read: the store is opened without them. (A method with oracle in its name gets them from
    `fercli.evaluation.oracle`.) `fercli.engine.evaluator` describes what each epoch writes for selection and for the
    oracle. For a method that needs no source, no source file is opened.

    Returns, raises:
        As `train_source`. It also raises an error if there is no source checkpoint, if that has another architecture,
        or if the selection rule reads a source that the method does not use. The outcome of a source-free method has
        ``drift``, from the starting model to the chosen epoch (`fercli.evaluation.drift.drift`), and its ``verdict``.
    """
    check_adapt(spec)
    kind = method_class(spec.adapt.method)
    spec = begin_from_start(spec)
    store = open_store(spec, target, labels=False)
    unlabelled = store.indices(store.adapt_splits)
    warn_of_overlap(store)
    check_begun(spec)
    path = spec.run_folder / "source" / "best.ckpt"
    start = checkpoint.load(path)
    # With patches of the image the backbone's local map is unused.
    fabric = make_fabric(spec.engine, kind.reaches_all and not spec.model.reads_crops)
    network = empty_network(spec)
    load_network(network, start, spec, path)
    source = source_faces(spec, fabric.device) if kind.needs_source else None
    faces = target_faces(spec, store, fabric.device)
    sources = [] if source is None else source.stores
    _check_faces(path, start, sources, store)
    stores = [*sources, store]
    record = {
        **record_of(spec, "adapt", stores),
        "target": target,
        "method_name": spec.adapt.method,
        "source_model": digest(start["network"]),
        **({"start": start["start"]} if "start" in start else {}),
    }
    if len(unlabelled) < spec.adapt.batch:
        console.warn(
            f"{target} has {len(unlabelled)} face(s), fewer than a batch of {spec.adapt.batch}: faces repeat in a batch"
        )
    labels = oracle_labels(open_store(spec, target), unlabelled) if kind.oracle else None
    _tell_departures(spec)
    with stage_folder(spec.adapt_folder(target), record, stores, restart) as folder:
        training = Training(spec, fabric, network, source, faces, folder, record)
        if kind.oracle:
            training.method.give_labels(labels)
        if spec.adapt.carry_momentum:
            carry_momentum(training, start, path)
        outcome = _run(training)
        return outcome if training.start is None else {**outcome, **_against_start(training, store)}


def check_adapt(spec: Spec) -> None:
    """Refuse an impossible adaptation before any face is read or located.

    Raises:
        SpecError: the method has no such options, or a rule or `sharpness` needs a source that it does not use.
        FercliError: the method trains on the source of a starting model, and there is no store of that source.
    """
    kind = method_class(spec.adapt.method)
    kind.options_of(spec)
    check_sharpness(spec.adapt.sharpness, kind)
    if not kind.needs_source:
        _check_rules(spec)
    elif spec.adapt.start is not None:
        _need_source(resolve_start(spec))


def check_begun(spec: Spec) -> None:
    """Refuse to adapt in a run that has no starting model. Raises FercliError."""
    path = spec.run_folder / "source" / "best.ckpt"
    if spec.adapt.start is None and not path.exists():
        raise FercliError(
            f"no source model at {path}",
            Advice(Advice.run("train-source"), ", or start from another model, such as --from starter"),
        )


def _check_rules(spec: Spec) -> None:
    """Refuse rules that read the source, for a method that does not use one."""
    without = [name for name, rule in RULES.items() if not rule.needs_source]
    keys = {"adapt.select": [spec.adapt.select], "adapt.also_score": spec.adapt.also_score}
    for key, names in keys.items():
        for name in names:
            if RULES[name].needs_source:
                raise SpecError(
                    f"{key}: {name} reads {' and '.join(RULES[name].reads)}, but {spec.adapt.method} uses no source",
                    f"choose one of {', '.join(without)}" if key == "adapt.select" else "leave it out",
                )


def _need_source(spec: Spec) -> None:
    """Raise an error with alternatives if the faces that a starting model was trained on are not prepared."""
    missing = [name for name in spec.data.source if read_meta(spec.store_path(name)) is None]
    if missing:
        raise FercliError(
            f"{spec.adapt.method} trains on the source too, but {'+'.join(missing)} is not prepared in "
            f"{spec.paths.prepared}",
            Advice(
                Advice.run("prepare", f"--dataset {missing[0]}"),
                ", or adapt with a method that needs no source, such as --method aglrls-sf",
            ),
        )


def _check_faces(path: Path, start: dict[str, Any], sources: list[Store], target: Store) -> None:
    """Refuse source faces that the source model was not trained on, and a target that is the source by another name."""
    for store in prepared_again(start, sources):
        raise FercliError(
            f"{store.path} was prepared again, with different faces or labels from those that {path} was trained on",
            Advice.run("train-source", "--restart"),
        )
    for store in sources:
        if store.content_digest() == target.content_digest():
            raise FercliError(
                f"{target.path} and {store.path} contain the same faces",
                "the target must not be the source dataset",
            )


def _tell_departures(spec: Spec) -> None:
    """Print how a run with published settings departs from the released code, so that it is not mistaken for it."""
    other = departures_of(spec)
    if other is not None:
        told = ", except for ".join(["as released (faithful: published)", *([", ".join(other)] if other else [])])
        distributed.on_rank_zero(console.say, told)


def _run(training: Training) -> dict[str, Any]:
    engine, folder, device = training.engine, training.folder, training.fabric.device
    chosen = accelerate(training.network, engine, device, training.faces_a_step)
    outcome = {**fit(training), "decision": training.method.decision}
    # compilation may have failed during training
    chosen |= {"compile": training.network.compiled is not None, "cuda_graph": captures(engine, device)}
    facts = describe_device(device.type)
    if outcome["trained_steps"] or not (folder / ENVIRONMENT).exists():  # a finished run keeps its file
        several = {"batch_norm": engine.batch_norm} if distributed.world_size() > 1 else {}
        plan = training.plan
        until = {"epoch": training.epoch, "epochs": plan.epochs, "patience": plan.patience}
        how = {**chosen, "processes": distributed.world_size(), **several}
        told = {**facts, **how, "trained_to": until, "outcome": outcome}
        distributed.on_rank_zero(write_environment, folder, training.record, console.finite(told))
    return {"folder": str(folder), "device": facts["device"], **outcome}


def _against_start(training: Training, target: Store) -> dict[str, Any]:
    """What an adaptation without a source has changed, and whether the result can be trusted."""
    changed = distributed.on_rank_zero(compared, training)
    faces = target.indices(target.adapt_splits)
    listed, copies = target.expected(target.adapt_splits), target.copies(faces)
    return {"drift": changed, "verdict": verdict(changed, len(faces), listed, copies, "kept" in training.best)}
