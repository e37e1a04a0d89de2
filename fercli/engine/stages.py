"""The two stages of training: a run spec in, a filled stage folder out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fercli.batches import Batches, Faces, hold_out, labels_of
from fercli.engine import checkpoint
from fercli.engine.fabric import make_fabric
from fercli.engine.log import environment
from fercli.engine.loop import Job, Trainee, fit
from fercli.errors import FercliError
from fercli.evaluation import decision, selection
from fercli.evaluation.inference import predict
from fercli.files import write_atomically
from fercli.methods import method_class
from fercli.methods.base import Method
from fercli.models import FEATURE_SIZE, GlobalLocal, build_network
from fercli.spec import Model, Spec, to_yaml
from fercli.store import Store
from fercli.views import ViewSettings

#: Sections (and keys) that two commands of one run must agree on. Epochs may be raised; devices and logging may change.
_FIXED = {
    "source": (
        "data.source",
        "data.validation",
        "data.augment",
        "prepare.size",
        "model",
        "engine.seed",
        "train_source",
    ),
    "adapt": ("data.source", "data.validation", "data.augment", "prepare.size", "model", "engine.seed", "adapt"),
}
_FREE = frozenset({"epochs", "select_images"})


def view_settings(spec: Spec) -> ViewSettings:
    """How the spec wants faces varied."""
    return ViewSettings(size=spec.prepare.size, **spec.data.augment.model_dump())


def open_store(spec: Spec, name: str, labels: bool = True) -> Store:
    """The prepared store of a dataset; without labels, reading them is an error.

    Raises:
        FercliError: it is not prepared, or for faces of another size.
    """
    store = Store.open(spec.store_path(name), labels)
    size = store.meta["parameters"]["size"]
    if size != spec.prepare.size:
        raise FercliError(
            f"{store.path} holds faces of {size} pixels and prepare.size is {spec.prepare.size}; "
            f"run: fercli prepare --dataset {name}"
        )
    return store


def source_faces(spec: Spec, device: torch.device) -> tuple[Faces, np.ndarray, Faces, np.ndarray]:
    """Training and held-out faces of the source datasets with their labels."""
    stores = [open_store(spec, name) for name in spec.data.source]
    parts = []
    for store in stores:
        indices = store.indices(store.adapt_splits)
        parts.append(hold_out(store, indices[store.labels[indices] >= 0], spec.data.validation))
    crops = spec.model.reads_crops
    train, held = [p[0] for p in parts], [p[1] for p in parts]
    return (
        Faces(stores, train, device, crops),
        labels_of(stores, train),
        Faces(stores, held, device, crops),
        labels_of(stores, held),
    )


def train_source(spec: Spec, restart: bool = False) -> dict[str, Any]:
    """Stage 1: train on the labelled source into ``runs/NAME/source``; goes on where a stopped run left off.

    Returns:
        The outcome of `fercli.engine.loop.fit`.

    Raises:
        FercliError: a store is missing, or the folder holds a run with other settings.
    """
    folder = spec.run_folder / "source"
    record = _record(spec, "source")
    fabric = make_fabric(spec.engine)
    train, labels, held, held_labels = source_faces(spec, fabric.device)
    network = _network(spec.model)
    # Last of what can fail for the user's reasons, so that a mistake leaves nothing behind.
    _open_folder(folder, record, restart)
    method = method_class("source-only")(spec.train_source, Method.read_options({}), FEATURE_SIZE, target_size=0)
    settings = view_settings(spec)

    def validate(epoch: int) -> dict[str, float]:
        probabilities = predict(network, held, settings, spec.engine.evaluate_batch)
        return {**selection.last_score(epoch), **selection.source_score(probabilities, torch.from_numpy(held_labels))}

    plan = spec.train_source
    job = Job(
        title="train-source " + "+".join(spec.data.source),
        folder=folder,
        trainee=Trainee(network, method),
        groups=_groups(network, method, plan),
        batches=Batches(train, labels, None, frozenset(), plan.batch, spec.engine.seed, settings, fabric.device),
        steps_per_epoch=plan.steps_per_epoch or max(1, len(train) // plan.batch),
        validate=validate,
        rule=plan.select,
        optimisation=plan,
        engine=spec.engine,
        record=record,
    )
    return _run(job, fabric, spec)


def adapt(spec: Spec, target: str, restart: bool = False) -> dict[str, Any]:
    """Stage 2: adapt the source model to an unlabelled target into ``runs/NAME/adapt-TARGET``.

    Target labels are not read: the store is opened without them. Each epoch's answers on the target's scored part are
    kept (without labels) in ``decisions/``, from which `fercli.evaluation.oracle` reckons the oracle afterwards.

    Returns, raises:
        As `train_source`; also where there is no source checkpoint, or one of another architecture.
    """
    folder = spec.adapt_folder(target)
    kind = method_class(spec.adapt.method)
    options = kind.read_options(spec.adapt.options)
    store = open_store(spec, target, labels=False)
    unlabelled, to_score = store.indices(store.adapt_splits), store.indices(store.score_splits)
    start = checkpoint.load(_source_checkpoint(spec))
    record = {
        **_record(spec, "adapt"),
        "target": target,
        "method_name": spec.adapt.method,
        "source_model": _digest(start["network"]),
    }
    fabric = make_fabric(spec.engine)
    network = empty_network(spec)
    load_network(network, start, spec, _source_checkpoint(spec))
    train, labels, held, held_labels = source_faces(spec, fabric.device)
    crops = spec.model.reads_crops
    _open_folder(folder, record, restart)

    faces = Faces([store], [unlabelled], fabric.device, crops)
    to_watch = _thin(unlabelled, spec.adapt.select_images)
    watched, scored = (Faces([store], [chosen], fabric.device, crops) for chosen in (to_watch, to_score))
    # A target without a split of its own (JAFFE) watches and scores the same faces: one pass serves both.
    same_faces = np.array_equal(to_watch, to_score)
    method = kind(spec.adapt, options, FEATURE_SIZE, target_size=len(faces))
    settings = view_settings(spec)
    (folder / "decisions").mkdir(exist_ok=True)

    def validate(epoch: int) -> dict[str, float]:
        size = spec.engine.evaluate_batch
        seen = predict(network, scored, settings, size)
        answers = decision.decide(method.decision, seen, method.status()).answers
        write_atomically(folder / "decisions" / f"epoch-{epoch:04d}.txt", _digits(answers))
        return {
            **selection.last_score(epoch),
            **selection.source_score(predict(network, held, settings, size), torch.from_numpy(held_labels)),
            **selection.target_scores(seen if same_faces else predict(network, watched, settings, size)),
        }

    plan = spec.adapt
    job = Job(
        title=f"adapt {spec.adapt.method} -> {target}",
        folder=folder,
        trainee=Trainee(network, method),
        groups=_groups(network, method, plan),
        batches=Batches(train, labels, faces, method.wants, plan.batch, spec.engine.seed, settings, fabric.device),
        steps_per_epoch=plan.steps_per_epoch or max(1, max(len(train), len(faces)) // plan.batch),
        validate=validate,
        rule=plan.select,
        optimisation=plan,
        engine=spec.engine,
        record=record,
    )
    return _run(job, fabric, spec)


def empty_network(spec: Spec) -> GlobalLocal:
    """The network that the spec describes, to be filled from a checkpoint."""
    return _network(spec.model.model_copy(update={"weights": None}))


def load_network(network: torch.nn.Module, state: dict[str, Any], spec: Spec, path: Path) -> None:
    """Put a checkpoint's weights into the network that the spec describes.

    Raises:
        FercliError: the checkpoint is of another architecture; the differing keys are named.
    """
    problem = _differences(state["spec"], json.loads(spec.model_dump_json()), ("model",), frozenset({"weights"}))
    if problem:
        raise FercliError(f"{path} is of another architecture ({problem}); use the spec it was trained with")
    network.load_state_dict(state["network"])


def _network(model: Model) -> GlobalLocal:
    # Channels-last: a quarter to a third off a step of the small IR on CPUs, and the layout tensor cores want.
    return build_network(model).to(memory_format=torch.channels_last)


def _source_checkpoint(spec: Spec) -> Path:
    path = spec.run_folder / "source" / "best.ckpt"
    if not path.exists():
        raise FercliError(f"no source model at {path}; run: fercli train-source")
    return path


def _run(job: Job, fabric: Any, spec: Spec) -> dict[str, Any]:
    outcome = fit(job, fabric)
    facts = environment(fabric.device.type)
    write_atomically(job.folder / "environment.json", json.dumps({**facts, "outcome": outcome}, indent=2).encode())
    return {"folder": str(job.folder), "device": facts["device"], **outcome}


def _groups(network: torch.nn.Module, method: Method, plan: Any) -> list[dict[str, Any]]:
    """Backbone at the rate, new layers at ten times it, the method's own networks at theirs."""
    parts = network.parameter_groups()
    groups = [
        {"params": parts["backbone"], "rates": plan.rate, "scale": 1.0},
        {"params": parts["new"], "rates": plan.rate, "scale": plan.new_rate},
    ]
    extra = list(method.parameters())
    if extra:
        groups.append({"params": extra, "rates": plan.discriminator_rate, "scale": 1.0})
    return groups


def _thin(indices: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the indices, evenly spread."""
    return indices if len(indices) <= limit else indices[np.linspace(0, len(indices) - 1, limit).round().astype(int)]


def _digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights, so that an adaptation knows which source model it started from."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digits(answers: torch.Tensor) -> bytes:
    return "".join(map(str, answers.tolist())).encode() + b"\n"


def _record(spec: Spec, stage: str) -> dict[str, Any]:
    return {"kind": "fercli", "stage": stage, "spec": json.loads(spec.model_dump_json())}


def _open_folder(folder: Path, record: dict[str, Any], restart: bool) -> None:
    """Make the stage folder, or check that what lies there is this same run."""
    if restart and folder.exists():
        shutil.rmtree(folder)
    last = folder / "last.ckpt"
    if last.exists():
        old = checkpoint.load(last)
        problem = _differences(old["spec"], record["spec"], _FIXED[record["stage"]], _FREE)
        if not problem and old.get("source_model") != record.get("source_model"):
            problem = "from another source model"
        if problem:
            raise FercliError(
                f"{folder} was begun with other settings ({problem}); give the run another name, or --restart it"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(f"cannot make {folder}: {problem.strerror}; set paths.runs to a folder to write in") from None
    text = to_yaml(Spec.model_validate(record["spec"])).encode()
    write_atomically(folder / "spec.yaml", text)
    write_atomically(folder.parent / "spec.yaml", text)


def _differences(old: dict[str, Any], new: dict[str, Any], paths: tuple[str, ...], free: frozenset[str]) -> str:
    """What differs at the key paths, as "model.width 16 -> 24", or an empty string."""
    found = []

    def walk(path: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in [*a, *(k for k in b if k not in a)]:
                if key not in free:
                    walk(f"{path}.{key}", a.get(key), b.get(key))
        elif a != b:
            found.append(f"{path} {a} -> {b}")

    for path in paths:
        a, b = old, new
        for key in path.split("."):
            a, b = a.get(key, {}), b.get(key, {})
        walk(path, a, b)
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
