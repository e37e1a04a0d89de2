"""The state of a training stage in its checkpoints: saved and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fercli.engine import checkpoint, distributed
from fercli.engine.training import Training
from fercli.errors import Advice, FercliError
from fercli.evaluation.outputs import read_outputs, start_file


def save(training: Training, path: Path, resumable: bool = False) -> None:
    """Write a checkpoint. One that is not `resumable` has no optimizer state, and is for prediction only.

    A source model still includes that state if adaptations are to continue with its momentum.

    All processes that train together must call it. Raises FercliError if the disk is full.
    """
    method, state = training.method, _for_use(training)
    if resumable or method.transforms_output:
        state["method"] = method.state_dict()
    if resumable or (training.section == "train_source" and training.record["spec"]["adapt"]["carry_momentum"]):
        state["optimizer"] = _optimizer_state(training)
    if resumable:
        # Float16 training adapts its gradient scale as it goes.
        state["scaling"] = training.fabric.strategy.precision.state_dict()
        if training.average is not None:
            state["average"] = training.average.state()
        state["meter"] = training.meter.state_dict()
        state["collapse"] = training.collapse
        # The CUDA state is that of this process's device: all processes draw the same random numbers.
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        state["rng"] = {"torch": torch.get_rng_state(), "cuda": cuda}
    distributed.on_rank_zero(checkpoint.save, path, state)


def _optimizer_state(training: Training) -> dict[str, Any]:
    """The optimizer's state in a form that any device can load: rates as Python numbers."""
    state = training.optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"]), "fused": None} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def save_start(training: Training, path: Path, best: dict[str, Any]) -> None:
    """Write the starting model of an adaptation as its chosen model, with the selection given in `best`.

    Raises:
        FercliError: the disk is full.
    """
    status = read_outputs(start_file(training.folder))[0].get("status")
    state = {**_for_use(training), "network": training.start, "status": status, "step": 0, "epoch": 0, "best": best}
    checkpoint.save(path, state)


def _for_use(training: Training) -> dict[str, Any]:
    status = training.method.status()
    return {
        "network": training.network.state_dict(),
        "status": None if status is None else status.clone(),
        "decision": training.method.decision,
        "step": training.step,
        "epoch": training.epoch,
        "best": dict(training.best),
        **training.record,
    }


def carry_momentum(training: Training, source: dict[str, Any], path: Path) -> None:
    """Start an adaptation's optimizer with the momentum that stage 1 ended with (as in AGLRLS's code).

    Args:
        source: the source model's checkpoint, of the same architecture.
        path: the file it was read from.

    Raises:
        FercliError: the source model was trained without keeping its momentum.
    """
    if "optimizer" not in source:
        raise FercliError(
            f"adapt.carry_momentum: {path} was trained without that key, so its momentum was not kept",
            Advice.run("train-source", "--set adapt.carry_momentum=true --restart"),
        )
    kept = source["optimizer"]
    optimizer = training.bare_optimizer
    # In both stages the first group is the backbone, and the second starts with the network's new layers.
    for ours, theirs in zip(optimizer.param_groups, kept["param_groups"], strict=False):
        for parameter, number in zip(ours["params"], theirs["params"], strict=False):
            buffer = kept["state"].get(number, {}).get("momentum_buffer")
            if buffer is not None:
                optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter, copy=True)


def restore(training: Training) -> None:
    """Resume from ``last.ckpt`` if the folder has one.

    Raises:
        FercliError: it cannot be read, or was written by another version of fercli.
    """
    path = training.folder / "last.ckpt"
    state = distributed.on_rank_zero(lambda: checkpoint.load(path) if path.exists() else None)
    if state is None:
        return
    try:
        training.network.load_state_dict(state["network"])
        training.method.load_state_dict(state["method"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.fuse()
        if state.get("scaling"):
            training.fabric.strategy.precision.load_state_dict(state["scaling"])
        if training.average is not None:
            training.average.load(state["average"])
        # Version 0.5 saved sums: if a run was stopped within an epoch, the next line of its log starts from here.
        training.meter.load_state_dict(state["meter"] if isinstance(state["meter"], list) else [], state["step"])
        torch.set_rng_state(state["rng"]["torch"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"][0])
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as problem:
        raise FercliError(
            f"cannot resume training from {path} ({type(problem).__name__}): it was edited, or written by another "
            "version of fercli",
            "train that stage again with --restart",
        ) from problem
    training.best.update(state["best"])
    training.step, training.collapse = state["step"], state.get("collapse")
