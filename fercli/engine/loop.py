"""The one training loop, for train-source and adapt alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fercli import console
from fercli.engine import checkpoint
from fercli.engine.interrupt import Interrupted, StopRequest
from fercli.engine.log import Log, Meter
from fercli.errors import FercliError
from fercli.evaluation.selection import best_epoch
from fercli.methods.base import Batch, Clock, Method, Survey
from fercli.spec import Engine, Optimisation, Rates


class Trainee(nn.Module):
    """The network and its method as one module, so that one wrapped forward computes the losses."""

    def __init__(self, network: nn.Module, method: Method):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, batch: Batch, clock: Clock):
        return self.method(self.network, batch, clock)


@dataclass
class Job:
    """One stage of training, ready to run.

    Attributes:
        title: what the progress bar says.
        folder: where checkpoints and metrics go.
        trainee: network and method.
        groups: optimizer groups, each with a ``rates`` entry (rate by epoch) and a ``scale`` beside its ``params``.
        batches: (step, the method's pool) -> batch.
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
    batches: Callable[[int, torch.Tensor | None], Batch]
    steps_per_epoch: int
    survey: Survey
    validate: Callable[[int], dict[str, float]]
    rule: str
    afterwards: Callable[[], dict[int, float]] | None
    optimisation: Optimisation
    engine: Engine
    record: dict[str, Any]


def rate_at(rates: Rates, epoch: int) -> float:
    """The rate in force in `epoch` (from 1): that of the latest step at or before it, or the first."""
    begun = [first for first in rates if first <= epoch]
    return rates[max(begun) if begun else min(rates)]


def fit(job: Job, fabric: Any) -> dict[str, Any]:
    """Train to the end of the last epoch, or until patience ends, taking up ``last.ckpt`` where there is one.

    Returns:
        ``{"epoch", "score", "rule", "steps", "trained_steps", "seconds"}`` of the chosen epoch.

    Raises:
        FercliError: a loss is not finite (the last good checkpoint is kept).
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    plan, raw = job.optimisation, job.trainee
    optimizer = torch.optim.SGD(
        job.groups, lr=0.0, momentum=plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.nesterov
    )
    trainee, optimizer = fabric.setup(raw, optimizer)
    meter, best = Meter(), {"epoch": 0, "score": -math.inf, "rule": job.rule}
    total = plan.epochs * job.steps_per_epoch
    step = _restore(job, optimizer, meter, best, fabric.device)
    log = Log(job.folder, step, job.engine.tensorboard)
    started_at = saved_at = time.monotonic()
    started_step, note = step, ""
    raw.train()
    with StopRequest() as stop, console.progress(job.title, total, done=step) as bar:
        while step < total and not _patience_is_out(job, best, step):
            clock = Clock(step, step // job.steps_per_epoch + 1)
            if step % job.steps_per_epoch == 0:
                raw.method.begin_epoch(job.survey)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * rate_at(group["rates"], clock.epoch)

            batch = job.batches(step, raw.method.pool())
            for turn in range(raw.method.turns):
                losses, logs = trainee(batch, clock._replace(turn=turn))
                loss = torch.stack(list(losses.values())).sum()
                _check_finite(loss, losses, step, job.folder)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                for parameter in raw.method.frozen(raw.network, turn):
                    parameter.grad = None  # so that the optimizer passes it by, decay and momentum included
                if plan.clip_norm is not None:
                    fabric.clip_gradients(trainee, optimizer, max_norm=plan.clip_norm, error_if_nonfinite=False)
                optimizer.step()
                meter.add({f"loss/{name}": value for name, value in losses.items()})
                meter.add({f"log/{name}": value for name, value in logs.items()})
            step += 1

            epoch_over = step % job.steps_per_epoch == 0
            if epoch_over or step % job.engine.log_every == 0:
                means = meter.flush()
                log.write("train", step, clock.epoch, losses=_part(means, "loss/"), logs=_part(means, "log/"))
                note = f"epoch {clock.epoch}/{plan.epochs}  " + _brief(_part(means, "loss/"))
            bar.advance(note=note)
            save_due = epoch_over or stop.requested or time.monotonic() - saved_at > job.engine.save_every_s
            if save_due:
                _check_weights(raw, step, job.folder)
            if epoch_over:
                scores = _validate(job, clock.epoch, raw)
                log.write("validate", step, clock.epoch, scores=scores)
                if job.afterwards is not None:
                    checkpoint.save(_candidate(job, clock.epoch), _state(job, None, meter, best, step))
                elif _is_better(scores[job.rule], best):
                    best.update(epoch=clock.epoch, score=scores[job.rule])
                    checkpoint.save(job.folder / "best.ckpt", _state(job, None, meter, best, step))
            if save_due:
                checkpoint.save(job.folder / "last.ckpt", _state(job, optimizer, meter, best, step))
                saved_at = time.monotonic()
            if stop.requested and step < total:
                log.close()
                raise Interrupted(f"stopped at step {step} of {total}, saved in {job.folder}; the same command goes on")
    log.close()
    if job.afterwards is not None:
        _choose_afterwards(job, best)
    seconds = time.monotonic() - started_at
    return {**best, "steps": step, "trained_steps": step - started_step, "seconds": round(seconds, 1)}


def _is_better(score: float, best: dict[str, Any]) -> bool:
    """A score that is not a number never wins; but some epoch has to be kept, so the first one is."""
    return best["epoch"] == 0 or score > best["score"] or (math.isnan(best["score"]) and not math.isnan(score))


def _patience_is_out(job: Job, best: dict[str, Any], step: int) -> bool:
    patience, epochs = job.optimisation.patience, step // job.steps_per_epoch
    return patience is not None and epochs - best["epoch"] >= patience and step % job.steps_per_epoch == 0


def _candidate(job: Job, epoch: int) -> Path:
    return job.folder / "candidates" / f"epoch-{epoch:04d}.ckpt"


def _choose_afterwards(job: Job, best: dict[str, Any]) -> None:
    """Make the epoch that compares best with all the others ``best.ckpt``.

    The others stay in ``candidates``: where epochs are raised, all are compared anew.
    """
    scores = job.afterwards()
    epoch = best_epoch(scores) or min(scores)
    best.update(epoch=epoch, score=scores[epoch])
    chosen = checkpoint.load(_candidate(job, epoch))
    checkpoint.save(job.folder / "best.ckpt", {**chosen, "best": dict(best)})


def _validate(job: Job, epoch: int, trainee: nn.Module) -> dict[str, float]:
    trainee.eval()
    with torch.no_grad():
        scores = job.validate(epoch)
    trainee.train()
    return scores


def _check_finite(loss: torch.Tensor, losses: dict[str, torch.Tensor], step: int, folder: Path) -> None:
    if not torch.isfinite(loss):
        bad = ", ".join(name for name, value in losses.items() if not torch.isfinite(value)) or "their sum"
        raise FercliError(f"the loss is not finite at step {step + 1} ({bad}); {_remedy(folder)}")


def _check_weights(trainee: nn.Module, step: int, folder: Path) -> None:
    """Refuse to save weights that the last update has ruined: infinite, or so large that their square is."""
    size = torch.stack([p.detach().float().square().sum() for p in trainee.parameters()]).sum()
    if not torch.isfinite(size):
        raise FercliError(f"the weights are not finite after step {step}; {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    kept = (
        f"the last good checkpoint in {folder} is kept" if (folder / "last.ckpt").exists() else "nothing was saved yet"
    )
    return f"lower the rate or set clip_norm; {kept}"


def _state(job: Job, optimizer: Any, meter: Meter, best: dict[str, Any], step: int) -> dict[str, Any]:
    """Everything a checkpoint holds; without an optimizer it is for use, not for resuming."""
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
    if optimizer is not None or job.trainee.method.refines:
        state["method"] = job.trainee.method.state_dict()
    if optimizer is not None:
        state.update(
            optimizer=optimizer.state_dict(),
            meter=meter.state_dict(),
            rng={
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        )
    return state


def _restore(job: Job, optimizer: Any, meter: Meter, best: dict[str, Any], device: torch.device) -> int:
    """Take up ``last.ckpt``; returns the steps already done."""
    path = job.folder / "last.ckpt"
    if not path.exists():
        return 0
    state = checkpoint.load(path)
    job.trainee.network.load_state_dict(state["network"])
    job.trainee.method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    meter.load_state_dict(state["meter"], device)
    best.update(state["best"])
    torch.set_rng_state(state["rng"]["torch"])
    if state["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    return state["step"]


def _part(means: dict[str, float], prefix: str) -> dict[str, float]:
    return {name[len(prefix) :]: value for name, value in means.items() if name.startswith(prefix)}


def _brief(losses: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
