"""What a stage writes down: metrics.jsonl (the record), tensorboard events (for looking), environment.json."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fercli.engine import distributed
from fercli.errors import FercliError
from fercli.files import disk_error, write_atomically

METRICS, ENVIRONMENT = "metrics.jsonl", "environment.json"


class Meter:
    """Means of named scalars since the last `flush`, kept on the device and read once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def flush(self) -> dict[str, float]:
        """The means; starts again."""
        means = {name: (total / self._counts[name]).item() for name, total in self._sums.items()}
        self._sums, self._counts = {}, defaultdict(int)
        return means

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, so that a resumed run logs what an unbroken one would."""
        return {"sums": {n: v.cpu() for n, v in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what `state_dict` gave."""
        self._sums = {n: v.to(device) for n, v in state["sums"].items()}
        self._counts = defaultdict(int, state["counts"])


class Log:
    """Appends to ``metrics.jsonl`` and to tensorboard; lines after `step` are dropped first (a resumed run).

    Of processes that train together the first writes; all must call each of these methods.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        self._path, self._writer = folder / METRICS, None
        distributed.on_rank_zero(self._open, folder, step, tensorboard)

    def _open(self, folder: Path, step: int, tensorboard: bool) -> None:
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        if self._path.exists() or kept:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, kind: str, step: int, epoch: int, **groups: Any) -> None:
        """Append one line; numbers in `groups` (dicts of name -> number) go to tensorboard too.

        Raises:
            FercliError: the disk is full.
        """
        distributed.on_rank_zero(self._write, kind, step, epoch, groups)

    def _write(self, kind: str, step: int, epoch: int, groups: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **groups}) + "\n")
            if self._writer is not None:
                for group, values in groups.items():
                    for name, value in values.items() if isinstance(values, dict) else ():
                        if isinstance(value, int | float):
                            self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as problem:  # a line cut short is dropped when the run goes on
            raise disk_error(problem, self._path) from None

    def close(self) -> None:
        """Flush and close the tensorboard file."""
        if self._writer is not None:
            self._writer.close()


class _Line(BaseModel):
    """What is read of a line of metrics.jsonl."""

    model_config = ConfigDict(strict=True)

    kind: Literal["train", "validate"]
    step: int
    epoch: int
    losses: dict[str, float] = {}
    scores: dict[str, float] = {}


class Outcome(BaseModel):
    """What is read of the outcome in environment.json: the chosen epoch, by which rule, and what it took."""

    model_config = ConfigDict(strict=True)

    epoch: int
    rule: str
    decision: str
    seconds: float


class MadeOf(BaseModel):
    """What a stage was made of, and what it made: digests of the stores, of the source model, and of its own model.

    Empty where an earlier version wrote it.
    """

    stores: dict[str, str] = {}
    source_model: str = ""
    model: str = ""


class TrainedTo(BaseModel):
    """How far a stage was trained: to which epoch, of how many, and with what patience."""

    epoch: int
    epochs: int
    patience: int | None


class Environment(BaseModel):
    """What is read of environment.json. An earlier version did not write how far a stage was trained."""

    outcome: Outcome
    made_of: MadeOf = MadeOf()
    trained_to: TrainedTo | None = None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a kill is left out.

    Raises:
        FercliError: the file cannot be read, or is damaged before its end.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}") from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            _Line.model_validate(line)
        except (ValueError, RecursionError):
            if number == len(texts):
                break
            raise FercliError(
                f"line {number} of {path} is damaged",
                "remove that file (it holds the curves alone), or train again: --restart",
            ) from None
        lines.append(line)
    return lines


def read_scores(folder: Path) -> dict[int, dict[str, float]]:
    """Epoch -> selection rule -> score, of a stage's log. Raises FercliError as `read_metrics`."""
    return {line["epoch"]: line["scores"] for line in read_metrics(folder) if line["kind"] == "validate"}


def read_environment(folder: Path) -> Environment | None:
    """What a finished stage says of itself in ``environment.json``; None where the stage is not finished.

    Raises:
        FercliError: the file is damaged.
    """
    path = folder / ENVIRONMENT
    try:
        return Environment.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as problem:
        why = getattr(problem, "strerror", None) or "it is damaged"
        raise FercliError(
            f"{path} cannot be read ({why})", "remove it, and run the command that trained the stage again"
        ) from None
