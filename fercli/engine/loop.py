"""The one training loop, for train-source and adapt alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import torch

from fercli import console
from fercli.engine import checkpoint, distributed
from fercli.engine.fabric import tell_device
from fercli.engine.guards import memory_hint
from fercli.engine.interrupt import Interrupted, StopRequest
from fercli.engine.log import Log
from fercli.engine.resume import restore, save
from fercli.engine.safeguards import collapse_in, settle
from fercli.engine.schedule import set_rates
from fercli.engine.training import Training
from fercli.evaluation.selection import best_epoch
from fercli.loading.batches import Batch
from fercli.methods.base import Progress


def fit(training: Training) -> dict[str, Any]:
    """Train to the end of the last epoch, or until patience ends, taking up ``last.ckpt`` where there is one.

    Returns:
        ``{"epoch", "score", "rule", "steps", "trained_steps", "seconds"}`` of the chosen epoch.

    Raises:
        FercliError: a loss is not finite, or memory or disk is full (the last good checkpoint is kept).
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    restore(training)
    if training.start is not None and training.step == 0:
        _keep_start(training)
    started_at, done_before = time.monotonic(), training.step
    with (
        memory_hint(f"{training.section}.batch", training.plan.batch, training.folder),
        closing(Log(training.folder, training.step, training.engine.tensorboard)) as log,
        StopRequest() as stop,
        console.progress(training.title, training.steps, done=training.step) as bar,
    ):
        tell_device(training.fabric.device.type)
        while training.step < training.steps and not training.patience_is_out and training.collapse is None:
            if training.between_epochs:
                begin_epoch(training)
            batch = training.batch()
            for number in range(training.method.updates):
                update(training, batch, number)
            training.count_step()
            log_if_due(training, log)
            bar.advance(note=training.note)
            if training.between_epochs:
                end_epoch(training, log)
            checkpoint_if_due(training, stop)
    if training.post_hoc:
        training.best.update(distributed.on_rank_zero(_choose_afterwards, training, training.best))
    if training.start is not None:
        settle(training)
    seconds = round(time.monotonic() - started_at, 3)
    return {**training.best, "steps": training.step, "trained_steps": training.step - done_before, "seconds": seconds}


def _keep_start(training: Training) -> None:
    with memory_hint("engine.evaluate_batch", training.engine.evaluate_batch, training.folder), torch.no_grad():
        training.raw.eval()
        training.evaluator.keep_start()
        training.raw.train()


def update(
    training: Training, batch: Batch, number: int, timed: Callable[[str], AbstractContextManager] = nullcontext
) -> None:
    """Do one of the method's updates on a batch: a forward, a backward and an optimizer step.

    Args:
        number: which of them it is, from 0.
        timed: name of a part -> a context to do it in.
    """
    plan, fabric, optimizer = training.plan, training.fabric, training.optimizer
    set_rates(plan, optimizer.param_groups, training.step, training.steps_per_epoch)
    with timed("forward"):
        progress = Progress(training.step, training.step // training.steps_per_epoch + 1, number)
        losses, logs = training.module(batch, progress)
        loss = training.guard.watch(losses, training.step, number)
    with timed("backward"):
        optimizer.zero_grad(set_to_none=True)
        if losses:
            fabric.backward(loss)
    with timed("optimizer"):
        for parameter in training.method.frozen(training.network, number):
            parameter.grad = None  # so that the optimizer passes it by, decay and momentum included
        if plan.clip_norm is not None:
            fabric.clip_gradients(training.module, optimizer, max_norm=plan.clip_norm, error_if_nonfinite=False)
        optimizer.step()
    training.meter.add({f"loss/{name}": value for name, value in losses.items()})
    training.meter.add({f"log/{name}": value for name, value in logs.items()})


def begin_epoch(training: Training) -> None:
    """Let the method look at all training faces. What it makes of them is then the same in all processes."""
    with memory_hint("engine.evaluate_batch", training.engine.evaluate_batch, training.folder):
        training.method.begin_epoch(training.evaluator)
    distributed.broadcast(list(training.method.state_dict().values()))


def log_if_due(training: Training, log: Log) -> None:
    """Every ``engine.log_every`` steps and after an epoch, write the means of losses and logs since the last time."""
    if not training.between_epochs and training.step % training.engine.log_every:
        return
    training.guard.check()
    means = training.meter.flush()
    losses, logs = (
        {name.removeprefix(kind): value for name, value in means.items() if name.startswith(kind)}
        for kind in ("loss/", "log/")
    )
    log.write("train", training.step, training.epoch, losses=losses, logs=logs)
    told = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    training.note = f"epoch {training.epoch}/{training.plan.epochs}  {told}"


def end_epoch(training: Training, log: Log) -> None:
    """Score the epoch by all rules, and keep it where it is the best so far, or where the choice is made at the end."""
    training.check()
    with training.averaged():
        with memory_hint("engine.evaluate_batch", training.engine.evaluate_batch, training.folder), torch.no_grad():
            training.raw.eval()
            scores = training.evaluator.validate(training.epoch)
            training.raw.train()
        scores = distributed.on_rank_zero(lambda: scores)
        log.write("validate", training.step, training.epoch, scores=scores)
        if training.start is not None:
            training.collapse = collapse_in(training, training.epoch)
        if training.post_hoc:
            save(training, training.folder / _candidate(training.epoch))
        elif training.collapse is None and _is_better(scores[training.plan.select], training.best):
            training.best.update(epoch=training.epoch, score=scores[training.plan.select])
            save(training, training.folder / "best.ckpt")
    if not training.post_hoc:
        training.evaluator.prune(training.engine.keep_outputs, training.best["epoch"])


def checkpoint_if_due(training: Training, stop: StopRequest) -> None:
    """Save ``last.ckpt`` after an epoch, every ``engine.save_every_s`` seconds, and when a stop is asked for.

    Raises:
        Interrupted: a stop is asked for, and steps are left.
    """
    time_is_up = time.monotonic() - training.saved_at > training.engine.save_every_s
    stopping, time_is_up = distributed.any_of(stop.requested, time_is_up)
    if training.between_epochs or stopping or time_is_up:
        training.check()
        save(training, training.folder / "last.ckpt", resumable=True)
        training.saved_at = time.monotonic()
    if stopping and training.step < training.steps:
        distributed.on_rank_zero(_interrupt, training)


def _interrupt(training: Training) -> None:
    done = f"stopped at step {training.step} of {training.steps}, saved in {training.folder}"
    raise Interrupted(f"{done}; the same command goes on")


def _is_better(score: float, best: dict[str, Any]) -> bool:
    """A score that is not a number never wins; but some epoch has to be kept, so the first one is."""
    return best["epoch"] == 0 or score > best["score"] or (math.isnan(best["score"]) and not math.isnan(score))


def _candidate(epoch: int) -> str:
    return f"candidates/epoch-{epoch:04d}.ckpt"


def _choose_afterwards(training: Training, best: dict[str, Any]) -> dict[str, Any]:
    """Make the epoch that compares best with all the others ``best.ckpt``; returns what `best` becomes.

    The others stay in ``candidates``: where epochs are raised, all are compared again.
    """
    scores = training.evaluator.afterwards()
    epoch = best_epoch(scores) or min(scores)
    best, kept = {**best, "epoch": epoch, "score": scores[epoch]}, checkpoint.load(training.folder / _candidate(epoch))
    checkpoint.save(training.folder / "best.ckpt", {**kept, "best": best})
    return best
