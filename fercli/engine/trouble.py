"""What can go wrong in a step: a loss that is not finite, ruined weights, too little memory. Each is told in one line.

The last good checkpoint is kept in every case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fercli.engine import ranks
from fercli.errors import FercliError
from fercli.files import write_atomically

if TYPE_CHECKING:
    from fercli.engine.loop import Job

#: Where the faces of a batch whose loss is not finite are named, in the stage's folder.
FAILED_BATCH = "failed-batch.json"


class Finite:
    """Watches that the losses are finite, without making an accelerator wait for its host.

    On a CPU a loss is looked at once; elsewhere one step later, when it is long there, and before anything is saved.
    """

    def __init__(self, job: Job):
        self._job = job
        self._waiting: list[tuple[int, int, list[str], Tensor, Any]] = []

    def watch(self, losses: dict[str, Tensor], step: int, turn: int) -> Tensor:
        """Take note of the losses of a turn of a step; returns their sum."""
        values = list(losses.values())
        loss = torch.stack(values).sum()
        seen = torch.stack([*values, loss]).detach()
        arrived = None
        if seen.device.type == "cuda":
            seen = seen.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((step, turn, list(losses), seen, arrived))
        if arrived is None:
            self.check()
        return loss

    def check(self, before: int | None = None) -> None:
        """Look at what is noted, with `before` at steps before that only.

        Raises:
            FercliError: a loss is not finite; which one, at which step, and where its batch is described.
        """
        while self._waiting and (before is None or self._waiting[0][0] < before):
            step, turn, names, seen, arrived = self._waiting.pop(0)
            if arrived is not None:
                arrived.synchronize()
            if not torch.isfinite(seen).all():
                values = dict(zip(names, seen.tolist(), strict=False))
                ranks.on_first(_fail, self._job, step, turn, values)


def _fail(job: Job, step: int, turn: int, losses: dict[str, float]) -> None:
    bad = ", ".join(name for name, value in losses.items() if not abs(value) < float("inf")) or "their sum"
    document = {
        "step": step + 1,
        "epoch": step // job.steps_per_epoch + 1,
        "turn": turn,
        "seed": job.engine.seed,
        "losses": {name: str(value) for name, value in losses.items()},  # JSON has no word for what is not finite
        "faces": {
            drawn_for: [{"position": position, "dataset": dataset, "id": name} for position, dataset, name in faces]
            for drawn_for, faces in job.batches.names(step, job.trainee.method.pool()).items()
        },
    }
    path = job.folder / FAILED_BATCH
    try:
        write_atomically(path, json.dumps(document, indent=1).encode())
        told = f"its faces are named in {path}"
    except (FercliError, OSError):  # the disk is full, say: that must not hide what happened
        told = f"{path} could not be written"
    raise FercliError(f"the loss is not finite at step {step + 1} ({bad}); {told}", _remedy(job.folder))


def check_weights(trainee: nn.Module, step: int, folder: Path) -> None:
    """Refuse to save weights that the last update has ruined: infinite, or so large that their square is."""
    size = torch.stack([p.detach().float().square().sum() for p in trainee.parameters()]).sum()
    if not torch.isfinite(size):
        raise FercliError(f"the weights are not finite after step {step}", _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"lower lr or set clip_norm; {_kept(folder)}"


def _kept(folder: Path) -> str:
    if (folder / "last.ckpt").exists():
        return f"the last good checkpoint in {folder} is kept"
    return "nothing was saved yet"


@contextmanager
def memory(key: str, batch: int, folder: Path) -> Iterator[None]:
    """Turn a want of memory within the block into one line that says which batch size to try.

    Args:
        key: of the spec, that sets the batch size of what is done here: a stage's, or engine.evaluate_batch.
        batch: that size.
        folder: of the stage.
    """
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as problem:
        raise FercliError(_too_much(key, batch, folder, isinstance(problem, MemoryError))) from None
    except RuntimeError as problem:
        if "DefaultCPUAllocator" not in str(problem):
            raise
        raise FercliError(_too_much(key, batch, folder, True)) from None


def _too_much(key: str, batch: int, folder: Path, of_cpu: bool) -> str:
    world = ranks.count()
    smaller = batch // 2 // world * world
    if smaller >= max(2, world):
        # A stage that has begun holds on to its batch.
        begun = key.split(".")[0] != "engine" and (folder / "last.ckpt").exists()
        try_this = f"try {key}={smaller}{' with --restart' if begun else ''}"
    else:
        try_this = "free memory that others hold, or take a smaller model.backbone"
    return f"out of {'memory' if of_cpu else 'GPU memory'} with {key} {batch}: {try_this}; {_kept(folder)}"
