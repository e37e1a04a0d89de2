"""A trained model from elsewhere as the starting model of a run's adaptations (``adapt.start``).

It is stored in place of a run's source model, so that all later commands (adapting to more targets, evaluating,
comparing, exporting) find it there and do not need its original file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fercli import console
from fercli.engine import checkpoint
from fercli.engine.folder import digest, write_environment
from fercli.engine.trained import BEST, NoModel, Trained, find_trained
from fercli.errors import FercliError, SpecError
from fercli.files import write_atomically
from fercli.models import HEADS
from fercli.spec import Spec, to_yaml
from fercli.spec.registry import ORACLE
from fercli.starter import NAME

#: Keys of ``data`` that a starting model brings with it, and keys of ``prepare`` that it does not.
_OF_DATA, _NOT_OF_FACES = ("source", "validation"), ("workers", "backend", "cluster", "chunk", "missing")


def find_start(spec: Spec) -> Trained:
    """Find the model that ``adapt.start`` names.

    Raises:
        FercliError: as `fercli.engine.trained.find_trained`.
        SpecError: its predictions depend on parts outside the network, or it does not have all seven heads.
    """
    named = spec.adapt.start
    sources = spec.data.source if "source" in spec.data.model_fields_set else ()
    try:
        model = find_trained(named if named == NAME else Path(named), spec=spec, sources=sources)
    except NoModel as problem:
        raise FercliError(problem.what, "give starter, a run, a stage folder, a model file or a checkpoint") from None
    if model.kind.transforms_output or len(model.heads) < len(HEADS):
        raise SpecError(
            f"adapt.start: {model.path} predicts with networks of {model.registered}, which "
            "an adaptation cannot start from",
            "start from another model, such as the source model it was adapted from",
        )
    return model


def with_start(spec: Spec, model: Trained) -> Spec:
    """The spec with the starting model's settings: network, face alignment, and the data it was trained on."""
    own = model.spec
    of_data = {key: getattr(own.data, key) for key in _OF_DATA}
    of_data["targets"] = [name for name in spec.data.targets if name not in own.data.source]
    sections = {
        "model": own.model.model_copy(update={"weights": None}),
        "prepare": own.prepare.model_copy(update={key: getattr(spec.prepare, key) for key in _NOT_OF_FACES}),
        "data": spec.data.model_copy(update=of_data),
    }
    return spec.model_copy(update=sections)


def resolve_start(spec: Spec) -> Spec:
    """`with_start` of the model that ``adapt.start`` names; the spec unchanged if it names none.

    Raises:
        FercliError: as `find_start`.
    """
    return spec if spec.adapt.start is None else with_start(spec, find_start(spec))


def is_there(spec: Spec, model: Trained) -> bool:
    """Whether the run already has this starting model.

    Raises:
        FercliError: the run has another source model.
    """
    path = spec.run_folder / "source" / BEST
    if not path.exists() and not path.with_name("last.ckpt").exists():
        return False
    if not path.exists() or digest(checkpoint.load(path)["network"]) != model.digest:
        raise FercliError(
            f"{path.parent} contains a different model from {spec.adapt.start}",
            "give the run its own name: --set name=NAME",
        )
    return True


def begin_from_start(spec: Spec) -> Spec:
    """Store the model of ``adapt.start``, if the spec names one, in the run as its source model.

    Returns:
        As `resolve_start`.

    Raises:
        FercliError: as `find_start`; or the run already has another source model.
    """
    if spec.adapt.start is None:
        return spec
    model = find_start(spec)
    spec = with_start(spec, model)
    if is_there(spec, model):
        return spec
    folder = spec.run_folder / "source"
    path = folder / BEST
    _tell(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = to_yaml(spec).encode()
        for place in (folder, folder.parent):
            write_atomically(place / "spec.yaml", text)
    except OSError as problem:
        raise FercliError(
            f"cannot create {folder}: {problem.strerror}", "set paths.runs to a writable folder"
        ) from None
    state = _as_source(model, spec)
    checkpoint.save(path, state)
    write_environment(folder, state, {"start": state["start"], "outcome": _outcome(state)})
    return spec


def _as_source(model: Trained, spec: Spec) -> dict[str, Any]:
    """The starting model as a source checkpoint: its weights and decision rule, without its training state."""
    rule = model.rule
    return {
        "kind": "fercli",
        "stage": "source",
        "network": model.state["network"],
        "status": rule.status,
        "decision": rule.name,
        "decision_options": {"threshold": rule.threshold, "empty_sum": rule.empty_sum},
        "step": model.state.get("step", 0),
        "epoch": model.state["best"]["epoch"] or 0,
        "best": dict(model.state["best"]),
        "spec": json.loads(spec.model_dump_json()),
        "stores": model.state.get("stores", {}) if model.stage == "source" else {},
        "start": {
            "path": str(model.path),
            "title": model.method,
            "oracle": model.kind.oracle or model.state["best"]["rule"] == ORACLE,
        },
    }


def _outcome(state: dict[str, Any]) -> dict[str, Any]:
    """The outcome entry of a finished stage, with zero time and zero steps."""
    return {"decision": state["decision"], "seconds": 0.0, "trained_steps": 0, **state["best"], "epoch": state["epoch"]}


def _tell(model: Trained) -> None:
    sources = "+".join(model.spec.data.source)
    what = f"adapted to {model.target}, " if model.target else ""
    console.say(f"starting from {model.path}: {what}trained on {sources}; using its network and face alignment")
    if model.kind.oracle or model.state["best"]["rule"] == ORACLE:
        console.warn(
            f"{model.path} used target labels in training or to choose its epoch; a model adapted from it is an oracle"
        )
