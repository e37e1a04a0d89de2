"""The state of a stage of training in its checkpoints: written, and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fercli.engine import checkpoint, distributed
from fercli.engine.training import Training
from fercli.errors import Advice, FercliError
from fercli.evaluation.outputs import read_outputs, start_file


def save(training: Training, path: Path, resumable: bool = False) -> None:
    """Write a checkpoint. One that is not `resumable`, without the optimizer's state, is for use.

    The source model keeps that state all the same where adaptations are to go on with its momentum.

    Of processes that train together all must call it. Raises FercliError where the disk is full.
    """
    method, state = training.method, _for_use(training)
    if resumable or method.transforms_output:
        state["method"] = method.state_dict()
    if resumable or (training.section == "train_source" and training.record["spec"]["adapt"]["carry_momentum"]):
        state["optimizer"] = _optimizer_state(training)
    if resumable:
        # Float16 scales its gradients by what it has learned so far.
        state["scaling"] = training.fabric.strategy.precision.state_dict()
        if training.average is not None:
            state["average"] = training.average.state()
        state["meter"] = training.meter.state_dict()
        state["collapse"] = training.collapse
        # CUDA's is of this process's device: several processes draw alike.
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        state["rng"] = {"torch": torch.get_rng_state(), "cuda": cuda}
    distributed.on_rank_zero(checkpoint.save, path, state)


def _optimizer_state(training: Training) -> dict[str, Any]:
    """That of the optimizer, as any device can take it up: rates as numbers."""
    state = training.optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"]), "fused": None} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def save_start(training: Training, path: Path, best: dict[str, Any]) -> None:
    """Write what the adaptation began with as its model, chosen as `best` says.

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
    """Let an adaptation's optimizer begin with the momentum that the source model's ended with (AGLRLS's code).

    Args:
        source: the source model's checkpoint, of the same architecture; path: where it was read.

    Raises:
        FercliError: it was trained without keeping its momentum.
    """
    if "optimizer" not in source:
        raise FercliError(
            f"adapt.carry_momentum: {path} was trained without that key and has not kept its momentum",
            Advice.run("train-source", "--set adapt.carry_momentum=true --restart"),
        )
    kept = source["optimizer"]
    optimizer = training.bare_optimizer
    # In both stages the first group is the backbone, and the second begins with the network's new layers.
    for ours, theirs in zip(optimizer.param_groups, kept["param_groups"], strict=False):
        for parameter, number in zip(ours["params"], theirs["params"], strict=False):
            buffer = kept["state"].get(number, {}).get("momentum_buffer")
            if buffer is not None:
                optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter, copy=True)


def restore(training: Training) -> None:
    """Take up ``last.ckpt`` where the folder has one.

    Raises:
        FercliError: it cannot be read, or is of another version of fercli.
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
        # Version 0.5 kept sums: of a run that was stopped within an epoch the next line of the log begins here.
        training.meter.load_state_dict(state["meter"] if isinstance(state["meter"], list) else [], state["step"])
        torch.set_rng_state(state["rng"]["torch"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"][0])
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as problem:
        raise FercliError(
            f"training cannot go on from {path} ({type(problem).__name__}): it was edited, or written by another "
            "version of fercli",
            "begin the stage again: --restart",
        ) from problem
    training.best.update(state["best"])
    training.step, training.collapse = state["step"], state.get("collapse")
