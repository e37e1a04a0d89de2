"""The two stages of training: a run spec in, a filled stage folder out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fercli import console
from fercli.batches import Batches, Faces, SourceRecipe, labels_of, training_and_validation
from fercli.datasets.protocol import overlap
from fercli.engine import checkpoint, ranks
from fercli.engine.acceleration import accelerate
from fercli.engine.fabric import make_fabric
from fercli.engine.folder import differences, digest, prepared_again, record_of, resolved, stage_folder
from fercli.engine.log import ENVIRONMENT
from fercli.engine.loop import Job, Trainee, fit
from fercli.engine.watch import TargetWatch, Watch
from fercli.errors import Advice, FercliError
from fercli.evaluation.oracle import oracle_labels
from fercli.expressions import EXPRESSIONS
from fercli.files import write_atomically
from fercli.machine import describe_device
from fercli.methods import method_class
from fercli.methods.base import Method
from fercli.models import FEATURE_SIZE, GlobalLocal, build_network
from fercli.models.reading import is_finite, some
from fercli.spec import Model, Optimisation, Spec
from fercli.spec.registry import RULES
from fercli.store import Store
from fercli.views import ViewSettings


def view_settings(spec: Spec) -> ViewSettings:
    """How the spec wants faces varied."""
    return ViewSettings(size=spec.prepare.size, **spec.data.augment.model_dump())


def open_store(spec: Spec, name: str, labels: bool = True) -> Store:
    """The prepared store of a dataset; without labels, reading them is an error.

    Raises:
        FercliError: it is not prepared, or for faces of another size.
    """
    store = Store.open(spec.store_path(name), labels, name=name)
    size = store.meta["parameters"]["size"]
    if size != spec.prepare.size:
        raise FercliError(
            f"{store.path} holds faces of {size} pixels and prepare.size is {spec.prepare.size}",
            Advice.run("prepare", f"--dataset {name}"),
        )
    return store


def warn_of_overlap(store: Store) -> None:
    """Say that a target is scored on splits that it is adapted to, as the user's options or an older fercli have it."""
    both = overlap(store.adapt_splits, store.score_splits)
    if both:
        console.warn(f"{store.name} is scored on faces that it is adapted to (split {', '.join(both)})")


class Source(NamedTuple):
    """The labelled faces of the source datasets: to train on, and held out for choosing."""

    train: Faces
    labels: np.ndarray
    held: Faces
    held_labels: np.ndarray
    stores: list[Store]


def source_faces(spec: Spec, device: torch.device) -> Source:
    """Training and held-out faces of the source datasets with their labels. Warns of an expression without any."""
    stores = [open_store(spec, name) for name in spec.data.source]
    parts = []
    for store in stores:
        parts.append(training_and_validation(store, spec.data.validation))
    train, held = [p[0] for p in parts], [p[1] for p in parts]
    labels = labels_of(stores, train)
    absent = [name for number, name in enumerate(EXPRESSIONS) if not (labels == number).any()]
    if absent:
        names = "+".join(spec.data.source)
        console.warn(f"{names} has no training face of {', '.join(absent)}: the model cannot learn to answer so")
    how = (device, spec.model.reads_crops, spec.engine.data)
    return Source(Faces(stores, train, *how), labels, Faces(stores, held, *how), labels_of(stores, held), stores)


def train_source(spec: Spec, restart: bool = False) -> dict[str, Any]:
    """Stage 1: train on the labelled source into ``runs/NAME/source``; goes on where a stopped run left off.

    Returns:
        The outcome of `fercli.engine.loop.fit`.

    Raises:
        FercliError: a store is missing, or the folder holds a run with other settings.
    """
    folder = spec.run_folder / "source"
    kind = method_class("source-only")
    fabric = make_fabric(spec.engine, kind.reaches_all and not spec.model.reads_crops)
    source = source_faces(spec, fabric.device)
    record = record_of(spec, "source", source.stores)
    network = _network(spec.model)
    # Last of what can fail for the user's reasons, so that a mistake leaves nothing behind.
    with stage_folder(folder, record, source.stores, restart):
        plan, settings = spec.train_source, view_settings(spec)
        method = kind(plan, Method.read_options({}), FEATURE_SIZE, target_size=0)
        watch = Watch(network, method, settings, spec.engine.evaluate_batch, source)
        batches = Batches(
            source.train,
            source.labels,
            None,
            frozenset(),
            plan.batch,
            spec.engine.seed,
            settings,
            fabric.device,
            spec.data.balance,
            recipe=SourceRecipe.of(plan),
        )
        steps = plan.steps_per_epoch or max(1, len(source.train) // plan.batch)
        title = "train-source " + "+".join(spec.data.source)
        return _run(title, spec, plan, folder, record, fabric, Trainee(network, method), batches, steps, watch)


def adapt(spec: Spec, target: str, restart: bool = False) -> dict[str, Any]:
    """Stage 2: adapt the source model to an unlabelled target into ``runs/NAME/adapt-TARGET``.

    Target labels are not read: the store is opened without them (a method of whose name oracle is part gets them from
    `fercli.evaluation.oracle`). What each epoch leaves for choosing and for the oracle: `fercli.engine.watch`.

    Returns, raises:
        As `train_source`; also where there is no source checkpoint, or one of another architecture.
    """
    folder = spec.adapt_folder(target)
    kind = method_class(spec.adapt.method)
    options = kind.read_options(spec.adapt.options)
    store = open_store(spec, target, labels=False)
    unlabelled, to_score = store.indices(store.adapt_splits), store.indices(store.score_splits)
    warn_of_overlap(store)
    start = checkpoint.load(_source_checkpoint(spec))
    # Patches of the photograph leave a backbone's local map unused.
    fabric = make_fabric(spec.engine, kind.reaches_all and not spec.model.reads_crops)
    network = empty_network(spec)
    load_network(network, start, spec, _source_checkpoint(spec))
    source = source_faces(spec, fabric.device)
    _check_faces(spec, start, source.stores, store)
    record = {
        **record_of(spec, "adapt", [*source.stores, store]),
        "target": target,
        "method_name": spec.adapt.method,
        "source_model": digest(start["network"]),
    }
    plan, settings = spec.adapt, view_settings(spec)
    if len(unlabelled) < plan.batch:
        console.warn(f"{target} has {len(unlabelled)} face(s), fewer than a batch of {plan.batch}: faces repeat in it")
    method = kind(plan, options, FEATURE_SIZE, target_size=len(unlabelled))
    if kind.oracle:
        method.give_labels(oracle_labels(open_store(spec, target), unlabelled))

    def faces(indices: np.ndarray) -> Faces:
        return Faces([store], [indices], fabric.device, spec.model.reads_crops, spec.engine.data)

    with stage_folder(folder, record, [*source.stores, store], restart):
        train = faces(unlabelled)
        watch = TargetWatch(
            network, method, settings, spec.engine.evaluate_batch, source, train, faces(to_score), plan, folder, store
        )
        batches = Batches(
            source.train,
            source.labels,
            train,
            method.wants,
            plan.batch,
            spec.engine.seed,
            settings,
            fabric.device,
            spec.data.balance,
        )
        steps = plan.steps_per_epoch or max(1, max(len(source.train), len(train)) // plan.batch)
        title = f"adapt {spec.adapt.method} -> {target}"
        return _run(title, spec, plan, folder, record, fabric, Trainee(network, method), batches, steps, watch)


def _check_faces(spec: Spec, start: dict[str, Any], sources: list[Store], target: Store) -> None:
    """Refuse to adapt with other source faces than the source model's, or to the source itself under another name."""
    for store in prepared_again(start, sources):
        raise FercliError(
            f"{store.path} was prepared again, with other faces or labels than {_source_checkpoint(spec)} was trained "
            "on",
            Advice.run("train-source", "--restart"),
        )
    for store in sources:
        if store.content_digest() == target.content_digest():
            raise FercliError(
                f"{target.path} and {store.path} hold the same faces",
                "a target must be another dataset than the source",
            )


def empty_network(spec: Spec) -> GlobalLocal:
    """The network that the spec describes, to be filled from a checkpoint."""
    return _network(spec.model.model_copy(update={"weights": None}))


def load_network(network: torch.nn.Module, state: dict[str, Any], spec: Spec, path: Path) -> None:
    """Put a checkpoint's weights into the network that the spec describes.

    Raises:
        FercliError: the checkpoint is of another architecture (the differing keys are named), or its weights are not
            those of the architecture that it names, or not finite.
    """
    free = frozenset({"weights", "test_flip"})  # neither of them changes a weight's shape or meaning
    problem = differences(resolved(state["spec"]), json.loads(spec.model_dump_json()), ("model",), free)
    if problem:
        raise FercliError(f"{path} is of another architecture ({problem})", "use the spec it was trained with")
    try:
        due = network.state_dict()
        if any(value.is_floating_point() != due[name].is_floating_point() for name, value in state["network"].items()):
            raise TypeError("integers for floats")  # which torch would convert
        network.load_state_dict(state["network"])
    except (KeyError, RuntimeError, TypeError, AttributeError):
        raise FercliError(
            f"the weights in {path} are of another network than its spec describes (made by another version, or put "
            "together by hand)",
            "train again, --restart",
        ) from None
    broken = [name for name, value in state["network"].items() if value.is_floating_point() and not is_finite(value)]
    if broken:
        raise FercliError(
            f"the weights in {path} are NaN or infinite at {some(broken)}: no answer of theirs would mean anything",
            "train again, --restart, or fetch the file again",
        )


def _network(model: Model) -> GlobalLocal:
    # Channels-last: a quarter to a third off a step of the small IR on CPUs, and the layout tensor cores want.
    return build_network(model).to(memory_format=torch.channels_last)


def _source_checkpoint(spec: Spec) -> Path:
    path = spec.run_folder / "source" / "best.ckpt"
    if not path.exists():
        raise FercliError(f"no source model at {path}", Advice.run("train-source"))
    return path


def _run(
    title: str,
    spec: Spec,
    plan: Optimisation,
    folder: Path,
    record: dict[str, Any],
    fabric: Any,
    trainee: Trainee,
    batches: Batches,
    steps_per_epoch: int,
    watch: Watch,
) -> dict[str, Any]:
    faces = plan.batch * (2 if trainee.method.wants else 1)
    chosen = accelerate(trainee.network, spec.engine, fabric.device, faces)
    job = Job(
        title=title,
        folder=folder,
        trainee=trainee,
        groups=optimizer_groups(trainee.network, trainee.method, plan),
        batches=batches,
        steps_per_epoch=steps_per_epoch,
        survey=watch,
        validate=watch.validate,
        rule=plan.select,
        afterwards=watch.afterwards if RULES[plan.select].post_hoc else None,
        optimisation=plan,
        engine=spec.engine,
        record=record,
    )
    outcome = {**fit(job, fabric), "decision": trainee.method.decision}
    facts = describe_device(fabric.device.type)
    if outcome["trained_steps"] or not (folder / ENVIRONMENT).exists():  # a finished run stays as it was
        told = {**facts, **chosen, "processes": ranks.count(), "outcome": outcome}
        ranks.on_first(_write_environment, folder, record, console.finite(told))
    return {"folder": str(folder), "device": facts["device"], **outcome}


def _write_environment(folder: Path, record: dict[str, Any], told: dict[str, Any]) -> None:
    model = digest(checkpoint.load(folder / "best.ckpt")["network"])
    made_of = {key: record[key] for key in ("stores", "source_model") if key in record}
    document = {**told, "made_of": {**made_of, "model": model}}
    write_atomically(folder / ENVIRONMENT, json.dumps(document, indent=2).encode())


def optimizer_groups(network: torch.nn.Module, method: Method, plan: Any) -> list[dict[str, Any]]:
    """Backbone at the rate, new layers at ten times it, the method's discriminators at theirs."""
    parts, more = network.parameter_groups(), method.network_parameters()
    groups = [
        {"params": parts["backbone"], "rates": plan.lr, "scale": 1.0},
        {"params": [*parts["new"], *more], "rates": plan.lr, "scale": plan.head_lr_multiplier},
    ]
    ids = set(map(id, more))
    extra = [parameter for parameter in method.parameters() if id(parameter) not in ids]
    if extra:
        groups.append({"params": extra, "rates": plan.discriminator_lr, "scale": 1.0})
    return groups
