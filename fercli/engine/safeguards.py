"""What keeps an adaptation without a source from making a model worse unseen: it is compared with what it began with.

With a source, held-out faces tell whether the network still recognises expressions. Without one nothing does but the
answers themselves: an epoch in which one expression takes over ends the adaptation and is never chosen, and where every
selection rule prefers the start, the start is what is kept.
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
    """Whether one expression has taken over the answers in an epoch, in words; None where it has not.

    It is told from the faces that selection rules watch, by `fercli.evaluation.drift.collapsed`.
    """
    return distributed.on_rank_zero(_collapse_in, training, epoch)


def _collapse_in(training: Training, epoch: int) -> str | None:
    return collapsed(*map(answer_shares, _before_and_after(training, epoch)))


def settle(training: Training) -> None:
    """After the last epoch: keep the start where no epoch may be chosen, or where every rule prefers it.

    ``best`` then is epoch 0, and its ``kept`` says why.
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
    """`fercli.evaluation.drift.drift` from the start to the chosen epoch, on the faces that rules watch."""
    return drift(*_before_and_after(training, training.best["epoch"]))


def _before_and_after(training: Training, epoch: int | None) -> list[Any]:
    paths = [start_file(training.folder), *([] if epoch is None else [epoch_file(training.folder, epoch)])]
    return [watched(read_outputs(path)[0]) for path in paths]
