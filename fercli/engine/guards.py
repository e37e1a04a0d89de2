"""Failures in a step: a loss that is not finite, ruined weights, too little memory. Each is reported in one line.

The last good checkpoint is kept in every case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fercli.engine import distributed
from fercli.engine.log import Meter
from fercli.errors import FercliError
from fercli.files import write_atomically

#: File in the stage's folder that names the faces of a batch whose loss is not finite.
FAILED_BATCH = "failed-batch.json"


class NonFiniteGuard:
    """Refuses losses that are not finite. They are checked with every line of the log, and before anything is saved.

    Args:
        folder: of the stage; its `FAILED_BATCH` names the faces of a batch whose loss is not finite.
        meter: the meter that collects the losses.
        describe: step (from 0) -> more entries for that file: the training position, and the faces of the batch.
    """

    def __init__(self, folder: Path, meter: Meter, describe: Callable[[int], dict[str, Any]]):
        self._folder, self._meter, self._describe = folder, meter, describe

    def check(self) -> None:
        """Check the losses added since the last check.

        Raises:
            FercliError: a loss is not finite; it names the loss, the step and the file that describes the batch.
        """
        found = self._meter.not_finite()
        if found is not None:
            distributed.on_rank_zero(self._fail, *found)

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Refuse weights that update `step` has ruined: infinite, or so large that their square is infinite."""
        size = torch.stack([p.detach().float().square().sum() for p in module.parameters()]).sum()
        if not torch.isfinite(size):
            raise FercliError(f"the weights are not finite after step {step}", _remedy(self._folder))

    def _fail(self, step: int, update: int, losses: dict[str, float]) -> None:
        bad = ", ".join(name for name, value in losses.items() if not abs(value) < float("inf")) or "their sum"
        document = {
            "step": step + 1,
            "update": update,
            "losses": {name: str(value) for name, value in losses.items()},  # JSON cannot express non-finite numbers
            **self._describe(step),
        }
        path = self._folder / FAILED_BATCH
        try:
            write_atomically(path, json.dumps(document, indent=1).encode())
            told = f"its faces are listed in {path}"
        except (FercliError, OSError):  # such as a full disk: it must not hide the actual error
            told = f"{path} could not be written"
        raise FercliError(f"the loss is not finite at step {step + 1} ({bad}); {told}", _remedy(self._folder))


def _remedy(folder: Path) -> str:
    return f"lower lr or set clip_norm; {_kept(folder)}"


def _kept(folder: Path) -> str:
    if (folder / "last.ckpt").exists():
        return f"the last good checkpoint in {folder} is kept"
    return "nothing was saved yet"


@contextmanager
def memory_hint(key: str, batch: int, folder: Path) -> Iterator[None]:
    """Turn an out-of-memory error within the block into one line that says which batch size to try.

    Args:
        key: the spec key that sets the batch size of this work: a stage's, or engine.evaluate_batch.
        batch: its value.
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
    world = distributed.world_size()
    smaller = batch // 2 // world * world
    if smaller >= max(2, world):
        # A stage that has been started cannot change its batch size.
        begun = key.split(".")[0] != "engine" and (folder / "last.ckpt").exists()
        try_this = f"try {key}={smaller}{' with --restart' if begun else ''}"
    else:
        try_this = "free memory used by other programs, or use a smaller model.backbone"
    return f"out of {'memory' if of_cpu else 'GPU memory'} with {key} {batch}: {try_this}; {_kept(folder)}"
