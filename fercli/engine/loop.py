"""The one training loop, for train-source and adapt alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fercli import console
from fercli.engine import checkpoint, distributed
from fercli.engine.averaging import WeightAverage
from fercli.engine.evaluator import SourceEvaluator
from fercli.engine.guards import NonFiniteGuard, check_weights, memory_hint
from fercli.engine.interrupt import Interrupted, StopRequest
from fercli.engine.log import Log, Meter
from fercli.engine.schedule import rate_at, rate_in
from fercli.engine.sharding import ShardedNetwork, check_batch, sync_norms
from fercli.errors import FercliError
from fercli.evaluation.selection import best_epoch
from fercli.loading.batches import Batch, Batches
from fercli.methods.base import Method, Progress, Step
from fercli.spec import Engine, Optimisation
from fercli.spec.registry import RULES


class TrainingModule(nn.Module):
    """The network and its method as one module, so that one wrapped forward computes the losses."""

    def __init__(self, network: nn.Module, method: Method):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, batch: Batch, progress: Progress):
        network = self.network
        if distributed.world_size() > 1:
            chosen = batch.pseudo_labelled_indices
            uneven = chosen is not None and len(chosen) % distributed.world_size() != 0
            network = ShardedNetwork(network, uneven)
        return self.method(network, batch, progress)


@dataclass
class Stage:
    """One stage of training, ready to run.

    Attributes:
        title: what the progress bar says.
        folder: where checkpoints and metrics go.
        module: network and method.
        batches: called with a step and the positions of `Method.pseudo_labelled`, gives the batch.
        steps_per_epoch: steps that make an epoch.
        evaluator: the look at all training faces that a method may take before an epoch, and the scores after it.
        plan: the stage's section of the spec.
        record: plain data saved in each checkpoint beside the state: the spec, the model, what it was trained on.
    """

    title: str
    folder: Path
    module: TrainingModule
    batches: Batches
    steps_per_epoch: int
    evaluator: SourceEvaluator
    plan: Optimisation
    engine: Engine
    record: dict[str, Any]

    @property
    def post_hoc(self) -> bool:
        """Whether the epoch is chosen at the end, by a rule that compares all epochs with each other."""
        return RULES[self.plan.select].post_hoc


def make_optimizer(module: TrainingModule, plan: Optimisation) -> torch.optim.SGD:
    """Backbone at the rate, new layers at ten times it, the method's discriminators at theirs.

    Each group has a ``rates`` entry (rate by epoch) and a ``scale`` beside its ``params``.
    """
    parts, more = module.network.parameter_groups(), module.method.network_parameters()
    groups = [
        {"params": parts["backbone"], "rates": plan.lr, "scale": 1.0},
        {"params": [*parts["new"], *more], "rates": plan.lr, "scale": plan.head_lr_multiplier},
    ]
    ids = set(map(id, more))
    extra = [parameter for parameter in module.method.parameters() if id(parameter) not in ids]
    if extra:
        groups.append({"params": extra, "rates": plan.discriminator_lr, "scale": 1.0})
    how = {"momentum": plan.momentum, "weight_decay": plan.weight_decay, "nesterov": plan.nesterov}
    return torch.optim.SGD(groups, lr=rate_in(plan.lr, 1), **how)


def update(
    module: Any,
    optimizer: Any,
    fabric: Any,
    plan: Optimisation,
    batch: Batch,
    progress: Progress,
    add_up: Callable[[dict[str, Tensor], int, int], Tensor],
    timed: Callable[[str], AbstractContextManager] = nullcontext,
) -> Step:
    """Do one of the method's updates on a batch: a forward, a backward and an optimizer step.

    Args:
        module, optimizer: a `TrainingModule` and its optimizer as `fabric` has set them up.
        add_up: losses, step and number of the update -> the sum of the losses.
        timed: name of a part -> a context to do it in.
    """
    raw = module.module
    with timed("forward"):
        losses, logs = module(batch, progress)
        loss = add_up(losses, progress.step, progress.update)
    with timed("backward"):
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
    with timed("optimizer"):
        for parameter in raw.method.frozen(raw.network, progress.update):
            parameter.grad = None  # so that the optimizer passes it by, decay and momentum included
        if plan.clip_norm is not None:
            fabric.clip_gradients(module, optimizer, max_norm=plan.clip_norm, error_if_nonfinite=False)
        optimizer.step()
    return Step(losses, logs)


def fit(stage: Stage, fabric: Any) -> dict[str, Any]:
    """Train to the end of the last epoch, or until patience ends, taking up ``last.ckpt`` where there is one.

    Returns:
        ``{"epoch", "score", "rule", "steps", "trained_steps", "seconds"}`` of the chosen epoch.

    Raises:
        FercliError: a loss is not finite, memory or disk is full (the last good checkpoint is kept), or the
            processes cannot share the batch evenly.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    plan, raw = stage.plan, stage.module
    batch_key = f"{'train_source' if stage.record['stage'] == 'source' else 'adapt'}.batch"
    distributed.on_rank_zero(check_batch, plan.batch, batch_key)
    if distributed.world_size() > 1:
        sync_norms(raw.network, fabric.device)
    module, optimizer = fabric.setup(raw, make_optimizer(raw, plan))
    meter, best = Meter(), {"epoch": 0, "score": -math.inf, "rule": plan.select}
    guard = NonFiniteGuard(stage.folder, lambda step: _describe(stage, step))
    total = plan.epochs * stage.steps_per_epoch
    average = None
    if plan.ema is not None:
        average = WeightAverage(raw.network, raw.method.network_parameters(), plan.ema)
    step = _restore(stage, optimizer, fabric, meter, best, average)
    log = Log(stage.folder, step, stage.engine.tensorboard)
    started_at = saved_at = time.monotonic()
    started_step, note = step, ""
    raw.train()
    with StopRequest() as stop, console.progress(stage.title, total, done=step) as bar:
        while step < total and not _patience_is_out(stage, best, step):
            progress = Progress(step, step // stage.steps_per_epoch + 1)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * rate_at(plan, group["rates"], step, stage.steps_per_epoch)
            if step % stage.steps_per_epoch == 0:
                with memory_hint("engine.evaluate_batch", stage.engine.evaluate_batch, stage.folder):
                    raw.method.begin_epoch(stage.evaluator)
                distributed.broadcast(list(raw.method.state_dict().values()))

            with memory_hint(batch_key, plan.batch, stage.folder):
                batch = stage.batches(step, raw.method.pseudo_labelled())
                for number in range(raw.method.updates):
                    now = progress._replace(update=number)
                    losses, logs = update(module, optimizer, fabric, plan, batch, now, guard.watch)
                    meter.add({f"loss/{name}": value for name, value in losses.items()})
                    meter.add({f"log/{name}": value for name, value in logs.items()})
            if average is not None:
                average.update(step)
            guard.check(before=step)
            step += 1

            epoch_over = step % stage.steps_per_epoch == 0
            if epoch_over or step % stage.engine.log_every == 0:
                guard.check()
                means = meter.flush()
                log.write("train", step, progress.epoch, losses=_part(means, "loss/"), logs=_part(means, "log/"))
                note = f"epoch {progress.epoch}/{plan.epochs}  " + _brief(_part(means, "loss/"))
            bar.advance(note=note)
            time_is_up = time.monotonic() - saved_at > stage.engine.save_every_s
            stopping, time_is_up = distributed.any_of(stop.requested, time_is_up)
            save_due = epoch_over or stopping or time_is_up
            if save_due:
                guard.check()
                distributed.on_rank_zero(check_weights, raw, step, stage.folder)
            if epoch_over:
                with nullcontext() if average is None else average.in_place():
                    with memory_hint("engine.evaluate_batch", stage.engine.evaluate_batch, stage.folder):
                        scores = _validate(stage, progress.epoch, raw)
                    log.write("validate", step, progress.epoch, scores=scores)
                    if stage.post_hoc:
                        _save(_candidate(stage, progress.epoch), stage, None, meter, best, step)
                    elif _is_better(scores[plan.select], best):
                        best.update(epoch=progress.epoch, score=scores[plan.select])
                        _save(stage.folder / "best.ckpt", stage, None, meter, best, step)
                    if not stage.post_hoc:  # which compares all epochs
                        stage.evaluator.prune(stage.engine.keep_outputs, best["epoch"])
            if save_due:
                # Float16 scales its gradients by what it has learned so far.
                going_on = {"optimizer": optimizer.state_dict(), "scaling": fabric.strategy.precision.state_dict()}
                if average is not None:
                    going_on["average"] = average.state()
                _save(stage.folder / "last.ckpt", stage, going_on, meter, best, step)
                saved_at = time.monotonic()
            if stopping and step < total:
                log.close()
                distributed.on_rank_zero(_interrupt, f"stopped at step {step} of {total}, saved in {stage.folder}")
    log.close()
    if stage.post_hoc:
        best.update(distributed.on_rank_zero(_choose_afterwards, stage, best))
    seconds = time.monotonic() - started_at
    return {**best, "steps": step, "trained_steps": step - started_step, "seconds": round(seconds, 3)}


def _describe(stage: Stage, step: int) -> dict[str, Any]:
    """Where training stood at a step, and the faces of its batch, for `NonFiniteGuard`."""
    drawn = stage.batches.names(step, stage.module.method.pseudo_labelled())
    return {
        "epoch": step // stage.steps_per_epoch + 1,
        "seed": stage.engine.seed,
        "faces": {
            name: [{"position": position, "dataset": dataset, "id": face} for position, dataset, face in faces]
            for name, faces in drawn.items()
        },
    }


def _interrupt(done: str) -> None:
    raise Interrupted(f"{done}; the same command goes on")


def _is_better(score: float, best: dict[str, Any]) -> bool:
    """A score that is not a number never wins; but some epoch has to be kept, so the first one is."""
    return best["epoch"] == 0 or score > best["score"] or (math.isnan(best["score"]) and not math.isnan(score))


def _patience_is_out(stage: Stage, best: dict[str, Any], step: int) -> bool:
    patience, epochs = stage.plan.patience, step // stage.steps_per_epoch
    return patience is not None and epochs - best["epoch"] >= patience and step % stage.steps_per_epoch == 0


def _candidate(stage: Stage, epoch: int) -> Path:
    return stage.folder / "candidates" / f"epoch-{epoch:04d}.ckpt"


def _choose_afterwards(stage: Stage, best: dict[str, Any]) -> dict[str, Any]:
    """Make the epoch that compares best with all the others ``best.ckpt``; returns what `best` becomes.

    The others stay in ``candidates``: where epochs are raised, all are compared again.
    """
    scores = stage.evaluator.afterwards()
    epoch = best_epoch(scores) or min(scores)
    best = {**best, "epoch": epoch, "score": scores[epoch]}
    checkpoint.save(stage.folder / "best.ckpt", {**checkpoint.load(_candidate(stage, epoch)), "best": best})
    return best


def _validate(stage: Stage, epoch: int, module: nn.Module) -> dict[str, float]:
    module.eval()
    with torch.no_grad():
        scores = stage.evaluator.validate(epoch)
    module.train()
    return distributed.on_rank_zero(lambda: scores)


def _save(
    path: Path, stage: Stage, going_on: dict[str, Any] | None, meter: Meter, best: dict[str, Any], step: int
) -> None:
    """Write a checkpoint; without the optimizer's state (`going_on`) it is for use, not for resuming."""
    method = stage.module.method
    status = method.status()
    state = {
        "network": stage.module.network.state_dict(),
        "status": None if status is None else status.clone(),
        "decision": method.decision,
        "step": step,
        "epoch": -(-step // stage.steps_per_epoch),
        "best": dict(best),
        **stage.record,
    }
    if going_on is not None or method.transforms_output:
        state["method"] = method.state_dict()
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
    distributed.on_rank_zero(checkpoint.save, path, state)


def _restore(
    stage: Stage, optimizer: Any, fabric: Any, meter: Meter, best: dict[str, Any], average: WeightAverage | None
) -> int:
    """Take up ``last.ckpt``; returns the steps already done."""
    path = stage.folder / "last.ckpt"
    state = distributed.on_rank_zero(lambda: checkpoint.load(path) if path.exists() else None)
    if state is None:
        return 0
    try:
        stage.module.network.load_state_dict(state["network"])
        stage.module.method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        if state.get("scaling"):
            fabric.strategy.precision.load_state_dict(state["scaling"])
        if average is not None:
            average.load(state["average"])
        meter.load_state_dict(state["meter"], fabric.device)
        torch.set_rng_state(state["rng"]["torch"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"][0])
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as problem:
        raise FercliError(
            f"training cannot go on from {path} ({type(problem).__name__}): it was edited, or written by another "
            "version of fercli",
            "begin the stage again: --restart",
        ) from problem
    best.update(state["best"])
    return state["step"]


def _part(means: dict[str, float], prefix: str) -> dict[str, float]:
    return {name[len(prefix) :]: value for name, value in means.items() if name.startswith(prefix)}


def _brief(losses: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
