"""The one training loop, for both train-source and adapt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any

import torch

from fercli import console
from fercli.engine import checkpoint, distributed
from fercli.engine.acceleration import with_way_back
from fercli.engine.capture import CapturedStep, CudaGraphs, captures, shapes
from fercli.engine.fabric import tell_device
from fercli.engine.guards import memory_hint
from fercli.engine.interrupt import Interrupted, StopRequest
from fercli.engine.log import Log
from fercli.engine.resume import restore, save
from fercli.engine.safeguards import collapse_in, settle
from fercli.engine.training import Training
from fercli.evaluation.selection import best_epoch
from fercli.loading.batches import Batch


def fit(training: Training) -> dict[str, Any]:
    """Train to the end of the last epoch, or until patience runs out. Resumes from ``last.ckpt`` if it exists.

    Returns:
        ``{"epoch", "score", "rule", "steps", "trained_steps", "seconds"}`` of the chosen epoch.

    Raises:
        FercliError: a loss is not finite, or memory or disk is full (the last good checkpoint is kept).
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    restore(training)
    if training.start is not None and training.step == 0:
        _keep_start(training)
    take_step = step_taker(training)
    started_at, done_before, poll = time.monotonic(), training.step, distributed.Poll(training.step)
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
            training.begin_step()
            take_step(batch)
            training.count_step()
            log_if_due(training, log)
            bar.advance(note=training.note)
            if training.between_epochs:
                end_epoch(training, log)
            checkpoint_if_due(training, stop, poll)
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


def step_taker(training: Training) -> Callable[[Batch], None]:
    """The function that does a step on a batch: all of the method's updates, recorded as one CUDA graph if possible."""
    plain = partial(take_step, training)
    if not captures(training.engine, training.fabric.device):
        return plain
    return CapturedStep(plain, training.optimizer, CudaGraphs())


def take_step(training: Training, batch: Batch, timed: Callable[[str], AbstractContextManager] = nullcontext) -> None:
    """Do the method's updates on a batch; `timed`: name of a part -> a context to run it in."""
    for number in range(training.method.updates):
        update(training, batch, number, timed)


def update(
    training: Training, batch: Batch, number: int, timed: Callable[[str], AbstractContextManager] = nullcontext
) -> None:
    """Do one of the method's updates on a batch: a forward pass, a backward pass and an optimizer step.

    Nothing here waits for the device, and nothing that changes from step to step is a Python number.

    Args:
        number: index of the update, from 0.
        timed: name of a part -> a context to run it in.
    """
    plan, fabric, optimizer = training.plan, training.fabric, training.optimizer

    def gradients() -> None:
        with timed("forward"):
            losses, logs = training.module(batch, training.progress._replace(update=number))
            loss = training.meter.add(number, losses, logs)
        with timed("backward"):
            optimizer.zero_grad(set_to_none=True)
            if losses:
                fabric.backward(loss)

    with_way_back(training.network, training.raw, (number, shapes(batch)), gradients)
    with timed("optimizer"):
        for parameter in training.method.frozen(training.network, number):
            parameter.grad = None  # so that the optimizer skips it, including decay and momentum
        if plan.clip_norm is not None:
            fabric.clip_gradients(training.module, optimizer, max_norm=plan.clip_norm, error_if_nonfinite=False)
        optimizer.step()


def begin_epoch(training: Training) -> None:
    """See `Training.begin_epoch`."""
    with memory_hint("engine.evaluate_batch", training.engine.evaluate_batch, training.folder):
        training.begin_epoch()


def log_if_due(training: Training, log: Log) -> None:
    """Every ``engine.log_every`` steps and after an epoch, write the means of losses and logs since the last line."""
    if not training.between_epochs and training.step % training.engine.log_every:
        return
    training.guard.check()
    losses, logs = training.meter.flush()
    log.write("train", training.step, training.epoch, losses=losses, logs=logs)
    told = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    training.note = f"epoch {training.epoch}/{training.plan.epochs}  {told}"


def end_epoch(training: Training, log: Log) -> None:
    """Score the epoch by all rules. Save it if it is the best so far, or if the choice is made at the end."""
    training.check()
    training.join_statistics()
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


def checkpoint_if_due(training: Training, stop: StopRequest, poll: distributed.Poll) -> None:
    """Save ``last.ckpt`` after an epoch, every ``engine.save_every_s`` seconds, and when a stop is requested.

    Only one of several processes may have received the request, and their clocks differ: `poll` asks them all.

    Raises:
        Interrupted: a stop is requested, and steps are left.
    """
    if not training.between_epochs and not poll.due(training.step):
        return
    time_is_up = time.monotonic() - training.saved_at > training.engine.save_every_s
    stopping, time_is_up = poll.any_of(training.step, stop.requested, time_is_up)
    if training.between_epochs or stopping or time_is_up:
        training.check()
        training.join_statistics()
        save(training, training.folder / "last.ckpt", resumable=True)
        training.saved_at = time.monotonic()
    if stopping and training.step < training.steps:
        distributed.on_rank_zero(_interrupt, training)


def _interrupt(training: Training) -> None:
    done = f"stopped at step {training.step} of {training.steps}, saved in {training.folder}"
    raise Interrupted(f"{done}; run the same command again to resume")


def _is_better(score: float, best: dict[str, Any]) -> bool:
    """A score that is not a number never wins; but one epoch has to be kept, so the first one is."""
    return best["epoch"] == 0 or score > best["score"] or (math.isnan(best["score"]) and not math.isnan(score))


def _candidate(epoch: int) -> str:
    return f"candidates/epoch-{epoch:04d}.ckpt"


def _choose_afterwards(training: Training, best: dict[str, Any]) -> dict[str, Any]:
    """Copy the epoch that compares best with all others to ``best.ckpt``; return the new value of `best`.

    The others stay in ``candidates``: if epochs are increased later, all are compared again.
    """
    scores = training.evaluator.afterwards()
    epoch = best_epoch(scores) or min(scores)
    best, kept = {**best, "epoch": epoch, "score": scores[epoch]}, checkpoint.load(training.folder / _candidate(epoch))
    checkpoint.save(training.folder / "best.ckpt", {**kept, "best": best})
    return best
