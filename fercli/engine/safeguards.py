"""Safeguards that keep an adaptation without a source from degrading a model unnoticed: it is compared with its start.

With a source, held-out faces show whether the network still recognises expressions. Without one, only the predictions
can show it. An epoch in which one expression takes over ends the adaptation and is never chosen. If every selection
rule prefers the starting model, that model is kept.
"""

from __future__ import annotations

from typing import Any

from fercli.engine import distributed
from fercli.engine.resume import save_start
from fercli.engine.training import Training
from fercli.evaluation.drift import answer_shares, collapsed, drift, rules_prefer_start
from fercli.evaluation.outputs import epoch_file, read_outputs, start_file, watched
from fercli.evaluation.selection import last_score, target_scores
from fercli.files import write_atomically


def collapse_in(training: Training, epoch: int) -> str | None:
    """Why an epoch counts as collapsed (one expression dominates its predictions), in words; None if it does not.

    It is decided by `fercli.evaluation.drift.collapsed` on the faces that the selection rules watch.
    """
    return distributed.on_rank_zero(_collapse_in, training, epoch)


def _collapse_in(training: Training, epoch: int) -> str | None:
    return collapsed(*map(answer_shares, _before_and_after(training, epoch)))


def settle(training: Training) -> None:
    """After the last epoch: keep the starting model if no epoch may be chosen, or if every rule prefers it.

    ``best`` is then epoch 0, and its ``kept`` gives the reason.
    """
    training.best.update(distributed.on_rank_zero(_settle, training))


def _settle(training: Training) -> dict[str, Any]:
    best = dict(training.best)
    if best["epoch"]:
        before, after = (target_scores(outputs) for outputs in _before_and_after(training, best["epoch"]))
        if not rules_prefer_start(before, after):
            return best
        why = f"every selection rule prefers it to epoch {best['epoch']}"
    else:
        before, why = target_scores(_before_and_after(training, None)[0]), training.collapse
    best.update(epoch=0, score={**last_score(0), **before}.get(training.plan.select), kept=why)
    write_atomically(epoch_file(training.folder, 0), start_file(training.folder).read_bytes())
    save_start(training, training.folder / "best.ckpt", best)
    return best


def compared(training: Training) -> dict[str, Any]:
    """`fercli.evaluation.drift.drift` from the starting model to the chosen epoch, on the faces that rules watch."""
    return drift(*_before_and_after(training, training.best["epoch"]))


def _before_and_after(training: Training, epoch: int | None) -> list[Any]:
    paths = [start_file(training.folder), *([] if epoch is None else [epoch_file(training.folder, epoch)])]
    return [watched(read_outputs(path)[0]) for path in paths]
