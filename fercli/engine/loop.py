"""The one training loop, for train-source and adapt alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fercli import console
from fercli.batches import Batches
from fercli.engine import checkpoint, ranks
from fercli.engine.averaging import WeightAverage
from fercli.engine.interrupt import Interrupted, StopRequest
from fercli.engine.log import Log, Meter
from fercli.engine.schedule import rate_at
from fercli.engine.shares import Shared, check_batch, share_norms
from fercli.engine.trouble import Finite, check_weights, memory
from fercli.errors import FercliError
from fercli.evaluation.selection import best_epoch
from fercli.methods.base import Batch, Clock, Method, Survey
from fercli.spec import Engine, Optimisation


class Trainee(nn.Module):
    """The network and its method as one module, so that one wrapped forward computes the losses."""

    def __init__(self, network: nn.Module, method: Method):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, batch: Batch, clock: Clock):
        network = self.network
        if ranks.count() > 1:
            uneven = batch.pool_indices is not None and len(batch.pool_indices) % ranks.count() != 0
            network = Shared(network, uneven)
        return self.method(network, batch, clock)


@dataclass
class Job:
    """One stage of training, ready to run.

    Attributes:
        title: what the progress bar says.
        folder: where checkpoints and metrics go.
        trainee: network and method.
        groups: optimizer groups, each with a ``rates`` entry (rate by epoch) and a ``scale`` beside its ``params``.
        batches: called with a step and the method's pool, gives the batch.
        steps_per_epoch: steps that make an epoch.
        survey: the look at all training faces that a method may take before an epoch.
        validate: epoch -> scores by selection rule, higher is better; called in eval mode at each epoch's end.
        rule: the selection rule that chooses the best epoch.
        afterwards: of a rule that compares all epochs with each other: () -> score by epoch. None for the others.
        record: plain data saved in each checkpoint beside the state: the spec, the model, what it was trained on.
    """

    title: str
    folder: Path
    trainee: Trainee
    groups: list[dict[str, Any]]
    batches: Batches
    steps_per_epoch: int
    survey: Survey
    validate: Callable[[int], dict[str, float]]
    rule: str
    afterwards: Callable[[], dict[int, float]] | None
    optimisation: Optimisation
    engine: Engine
    record: dict[str, Any]


def fit(job: Job, fabric: Any) -> dict[str, Any]:
    """Train to the end of the last epoch, or until patience ends, taking up ``last.ckpt`` where there is one.

    Returns:
        ``{"epoch", "score", "rule", "steps", "trained_steps", "seconds"}`` of the chosen epoch.

    Raises:
        FercliError: a loss is not finite, memory or disk is full (the last good checkpoint is kept), or the
            processes cannot share the batch evenly.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    plan, raw = job.optimisation, job.trainee
    batch_key = f"{'train_source' if job.record['stage'] == 'source' else 'adapt'}.batch"
    ranks.on_first(check_batch, plan.batch, batch_key)
    if ranks.count() > 1:
        share_norms(raw.network, fabric.device)
    optimizer = torch.optim.SGD(
        job.groups, lr=0.0, momentum=plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.nesterov
    )
    trainee, optimizer = fabric.setup(raw, optimizer)
    meter, best, finite = Meter(), {"epoch": 0, "score": -math.inf, "rule": job.rule}, Finite(job)
    total = plan.epochs * job.steps_per_epoch
    average = None
    if plan.ema is not None:
        average = WeightAverage(raw.network, raw.method.network_parameters(), plan.ema)
    step = _restore(job, optimizer, fabric, meter, best, average)
    log = Log(job.folder, step, job.engine.tensorboard)
    started_at = saved_at = time.monotonic()
    started_step, note = step, ""
    raw.train()
    with StopRequest() as stop, console.progress(job.title, total, done=step) as bar:
        while step < total and not _patience_is_out(job, best, step):
            clock = Clock(step, step // job.steps_per_epoch + 1)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * rate_at(plan, group["rates"], step, job.steps_per_epoch)
            if step % job.steps_per_epoch == 0:
                with memory("engine.evaluate_batch", job.engine.evaluate_batch, job.folder):
                    raw.method.begin_epoch(job.survey)
                ranks.follow_first(list(raw.method.state_dict().values()))

            with memory(batch_key, plan.batch, job.folder):
                batch = job.batches(step, raw.method.pool())
                for turn in range(raw.method.turns):
                    losses, logs = trainee(batch, clock._replace(turn=turn))
                    loss = finite.watch(losses, step, turn)
                    optimizer.zero_grad(set_to_none=True)
                    fabric.backward(loss)
                    for parameter in raw.method.frozen(raw.network, turn):
                        parameter.grad = None  # so that the optimizer passes it by, decay and momentum included
                    if plan.clip_norm is not None:
                        fabric.clip_gradients(trainee, optimizer, max_norm=plan.clip_norm, error_if_nonfinite=False)
                    optimizer.step()
                    meter.add({f"loss/{name}": value for name, value in losses.items()})
                    meter.add({f"log/{name}": value for name, value in logs.items()})
            if average is not None:
                average.update(step)
            finite.check(before=step)
            step += 1

            epoch_over = step % job.steps_per_epoch == 0
            if epoch_over or step % job.engine.log_every == 0:
                finite.check()
                means = meter.flush()
                log.write("train", step, clock.epoch, losses=_part(means, "loss/"), logs=_part(means, "log/"))
                note = f"epoch {clock.epoch}/{plan.epochs}  " + _brief(_part(means, "loss/"))
            bar.advance(note=note)
            time_is_up = time.monotonic() - saved_at > job.engine.save_every_s
            stopping, time_is_up = ranks.agree(stop.requested, time_is_up)
            save_due = epoch_over or stopping or time_is_up
            if save_due:
                finite.check()
                ranks.on_first(check_weights, raw, step, job.folder)
            if epoch_over:
                with nullcontext() if average is None else average.in_place():
                    with memory("engine.evaluate_batch", job.engine.evaluate_batch, job.folder):
                        scores = _validate(job, clock.epoch, raw)
                    log.write("validate", step, clock.epoch, scores=scores)
                    if job.afterwards is not None:
                        _save(_candidate(job, clock.epoch), job, None, meter, best, step)
                    elif _is_better(scores[job.rule], best):
                        best.update(epoch=clock.epoch, score=scores[job.rule])
                        _save(job.folder / "best.ckpt", job, None, meter, best, step)
            if save_due:
                # Float16 scales its gradients by what it has learned so far.
                going_on = {"optimizer": optimizer.state_dict(), "scaling": fabric.strategy.precision.state_dict()}
                if average is not None:
                    going_on["average"] = average.state()
                _save(job.folder / "last.ckpt", job, going_on, meter, best, step)
                saved_at = time.monotonic()
            if stopping and step < total:
                log.close()
                ranks.on_first(_interrupt, f"stopped at step {step} of {total}, saved in {job.folder}")
    log.close()
    if job.afterwards is not None:
        best.update(ranks.on_first(_choose_afterwards, job, best))
    seconds = time.monotonic() - started_at
    return {**best, "steps": step, "trained_steps": step - started_step, "seconds": round(seconds, 3)}


def _interrupt(done: str) -> None:
    raise Interrupted(f"{done}; the same command goes on")


def _is_better(score: float, best: dict[str, Any]) -> bool:
    """A score that is not a number never wins; but some epoch has to be kept, so the first one is."""
    return best["epoch"] == 0 or score > best["score"] or (math.isnan(best["score"]) and not math.isnan(score))


def _patience_is_out(job: Job, best: dict[str, Any], step: int) -> bool:
    patience, epochs = job.optimisation.patience, step // job.steps_per_epoch
    return patience is not None and epochs - best["epoch"] >= patience and step % job.steps_per_epoch == 0


def _candidate(job: Job, epoch: int) -> Path:
    return job.folder / "candidates" / f"epoch-{epoch:04d}.ckpt"


def _choose_afterwards(job: Job, best: dict[str, Any]) -> dict[str, Any]:
    """Make the epoch that compares best with all the others ``best.ckpt``; returns what `best` becomes.

    The others stay in ``candidates``: where epochs are raised, all are compared anew.
    """
    scores = job.afterwards()
    epoch = best_epoch(scores) or min(scores)
    best = {**best, "epoch": epoch, "score": scores[epoch]}
    checkpoint.save(job.folder / "best.ckpt", {**checkpoint.load(_candidate(job, epoch)), "best": best})
    return best


def _validate(job: Job, epoch: int, trainee: nn.Module) -> dict[str, float]:
    trainee.eval()
    with torch.no_grad():
        scores = job.validate(epoch)
    trainee.train()
    return ranks.on_first(lambda: scores)


def _save(path: Path, job: Job, going_on: dict[str, Any] | None, meter: Meter, best: dict[str, Any], step: int) -> None:
    ranks.on_first(lambda: checkpoint.save(path, _state(job, going_on, meter, best, step)))


def _state(job: Job, going_on: dict[str, Any] | None, meter: Meter, best: dict[str, Any], step: int) -> dict[str, Any]:
    """Everything a checkpoint holds; without the optimizer's state (`going_on`) it is for use, not for resuming."""
    status = job.trainee.method.status()
    state = {
        "network": job.trainee.network.state_dict(),
        "status": None if status is None else status.clone(),
        "decision": job.trainee.method.decision,
        "step": step,
        "epoch": -(-step // job.steps_per_epoch),
        "best": dict(best),
        **job.record,
    }
    if going_on is not None or job.trainee.method.refines:
        state["method"] = job.trainee.method.state_dict()
    if going_on is not None:
        state.update(
            going_on,
            meter=meter.state_dict(),
            rng={
                "torch": torch.get_rng_state(),
                # Of this process's device: several processes draw alike.
                "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
            },
        )
    return state


def _restore(
    job: Job, optimizer: Any, fabric: Any, meter: Meter, best: dict[str, Any], average: WeightAverage | None
) -> int:
    """Take up ``last.ckpt``; returns the steps already done."""
    path = job.folder / "last.ckpt"
    state = ranks.on_first(lambda: checkpoint.load(path) if path.exists() else None)
    if state is None:
        return 0
    try:
        _take_up(state, job, optimizer, fabric, meter, average)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as problem:
        raise FercliError(
            f"training cannot go on from {path} ({type(problem).__name__}): it was edited, or written by another "
            "version of fercli",
            "begin the stage again: --restart",
        ) from problem
    best.update(state["best"])
    return state["step"]


def _take_up(
    state: dict[str, Any], job: Job, optimizer: Any, fabric: Any, meter: Meter, average: WeightAverage | None
) -> None:
    job.trainee.network.load_state_dict(state["network"])
    job.trainee.method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    if state.get("scaling"):
        fabric.strategy.precision.load_state_dict(state["scaling"])
    if average is not None:
        average.load(state["average"])
    meter.load_state_dict(state["meter"], fabric.device)
    torch.set_rng_state(state["rng"]["torch"])
    if state["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng"]["cuda"][0])


def _part(means: dict[str, float], prefix: str) -> dict[str, float]:
    return {name[len(prefix) :]: value for name, value in means.items() if name.startswith(prefix)}


def _brief(losses: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
