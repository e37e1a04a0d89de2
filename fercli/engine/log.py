"""The files that a stage writes: metrics.jsonl (the record), tensorboard events (for viewing), environment.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fercli.engine import distributed
from fercli.errors import FercliError
from fercli.files import disk_error, write_atomically

METRICS, ENVIRONMENT = "metrics.jsonl", "environment.json"
#: Maximum number of steps whose losses and logs wait on the device.
MOST_ROWS = 1024


class _Kind(NamedTuple):
    """The kind of a row in the meter: the update within the step, and the names of its losses and logs."""

    update: int
    losses: tuple[str, ...]
    logs: tuple[str, ...]


class Meter:
    """Losses and logs of the steps since the last `flush`, kept on the device and read all at once.

    Each step writes one row. The row number is on the device too, so that a recorded step (`fercli.engine.capture`)
    writes the next row when it is replayed.

    Args:
        device: of the scalars.
        rows: steps that it can hold; it is read when it is full.
    """

    def __init__(self, device: torch.device, rows: int):
        self._device, self._most = device, max(1, min(rows, MOST_ROWS))
        self._row, self._one = torch.zeros(1, dtype=torch.long, device=device), torch.ones(1, device=device)
        self._first = self._next = 0
        #: On the device, [rows, ...]: losses, their sum, logs, and a 1 where the row was written.
        self._written: dict[_Kind, Tensor] = {}
        #: Rows read so far: steps int64 [n], counted from 0, and values float64 [n, ...] without the 1.
        self._kept: dict[_Kind, tuple[Tensor, Tensor]] = {}

    def begin_step(self, step: int) -> None:
        """Assign the values added from here on to `step`, counted from 0."""
        if step != self._next or step - self._first == self._most:
            self._read()
            self._first = step
        self._next = step + 1
        self._row.fill_(step - self._first)

    def add(self, update: int, losses: dict[str, Tensor], logs: dict[str, Tensor]) -> Tensor:
        """Add the losses and logs of one of a step's updates; return the sum of the losses, to be minimised."""
        if not losses and not logs:
            return torch.zeros((), device=self._device)
        values = torch.stack([*losses.values(), *([] if losses else [torch.zeros((), device=self._device)])])
        loss = values.sum()
        parts = [values.detach()[: len(losses)], loss.detach()[None]]
        if logs:
            parts.append(torch.stack([log.detach().to(self._device, non_blocking=True) for log in logs.values()]))
        row = torch.cat([*parts, self._one])
        kind = _Kind(update, tuple(losses), tuple(logs))
        if kind not in self._written:
            self._written[kind] = torch.zeros(self._most, len(row), dtype=row.dtype, device=row.device)
        self._written[kind].index_copy_(0, self._row, row[None])
        return loss

    def not_finite(self) -> tuple[int, int, dict[str, float]] | None:
        """The first step and update whose losses are not all finite, and those losses; None if all are finite."""
        self._read()
        bad = []
        for kind, (steps, values) in self._kept.items():
            values = values[:, : len(kind.losses) + 1]
            for place in (~values.isfinite().all(1)).nonzero().flatten().tolist()[:1]:
                losses = dict(zip(kind.losses, values[place].tolist(), strict=False))
                bad.append((int(steps[place]), kind.update, losses))
        return min(bad, key=lambda found: found[:2], default=None)

    def flush(self) -> tuple[dict[str, float], dict[str, float]]:
        """The means of losses and logs over all updates that reported them; then start again from nothing."""
        self._read()
        found: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for kind, (_, values) in self._kept.items():
            columns = values.T.tolist()
            for group, names, start in ((found[0], kind.losses, 0), (found[1], kind.logs, len(kind.losses) + 1)):
                for name, column in zip(names, columns[start:], strict=False):
                    group.setdefault(name, []).extend(column)
        self._kept = {}
        # an exact sum: the mean does not depend on how often the rows were read in between
        losses, logs = ({n: math.fsum(column) / len(column) for n, column in group.items()} for group in found)
        return losses, logs

    def _read(self) -> None:
        """Move the rows written so far to the CPU."""
        if self._next == self._first:
            return
        for kind, rows in self._written.items():
            values = rows[: self._next - self._first].to("cpu", torch.float64)
            there = values[:, -1] == 1
            if there.any():
                read = self._first + there.nonzero().flatten(), values[there, :-1]
                if kind in self._kept:
                    read = tuple(torch.cat(both) for both in zip(self._kept[kind], read, strict=True))
                self._kept[kind] = read
            rows.zero_()  # in place: a recorded step writes to this tensor
        self._first = self._next

    def state_dict(self) -> list[dict[str, Any]]:
        """For the checkpoint, so that a resumed run logs the same as an uninterrupted one."""
        self._read()
        return [{**kind._asdict(), "steps": steps, "values": values} for kind, (steps, values) in self._kept.items()]

    def load_state_dict(self, state: list[dict[str, Any]], step: int) -> None:
        """Restore what `state_dict` returned after `step` steps."""
        self._kept = {
            _Kind(rows["update"], tuple(rows["losses"]), tuple(rows["logs"])): (rows["steps"], rows["values"])
            for rows in state
        }
        self._first = self._next = step


class Log:
    """Appends to ``metrics.jsonl`` and to tensorboard; first drops lines after `step` (in a resumed run).

    Of processes that train together only the first writes; all must call each of these methods.
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
        except OSError as problem:  # a line cut short is dropped when the run resumes
            raise disk_error(problem, self._path) from None

    def close(self) -> None:
        """Flush and close the tensorboard file."""
        if self._writer is not None:
            self._writer.close()


class _Line(BaseModel):
    """The fields that are read from a line of metrics.jsonl."""

    model_config = ConfigDict(strict=True)

    kind: Literal["train", "validate"]
    step: int
    epoch: int
    losses: dict[str, float] = {}
    scores: dict[str, float] = {}


class Outcome(BaseModel):
    """The fields read from the outcome in environment.json: chosen epoch, selection rule, decision rule, seconds."""

    model_config = ConfigDict(strict=True)

    epoch: int
    rule: str
    decision: str
    seconds: float


class MadeOf(BaseModel):
    """The inputs and the result of a stage: digests of the stores, of the source model, and of its own model.

    Empty if an earlier version wrote the file.
    """

    stores: dict[str, str] = {}
    source_model: str = ""
    model: str = ""


class TrainedTo(BaseModel):
    """How far a stage was trained: to which epoch, out of how many, and with what patience."""

    epoch: int
    epochs: int
    patience: int | None


class Environment(BaseModel):
    """The fields read from environment.json. Earlier versions did not write how far a stage was trained."""

    outcome: Outcome
    made_of: MadeOf = MadeOf()
    trained_to: TrainedTo | None = None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a kill is skipped.

    Raises:
        FercliError: the file cannot be read, or is damaged before its last line.
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
                "remove that file (it contains only the curves), or train again with --restart",
            ) from None
        lines.append(line)
    return lines


def read_scores(folder: Path) -> dict[int, dict[str, float]]:
    """Epoch -> selection rule -> score, from a stage's log. Raises FercliError as `read_metrics` does."""
    return {line["epoch"]: line["scores"] for line in read_metrics(folder) if line["kind"] == "validate"}


def read_environment(folder: Path) -> Environment | None:
    """The contents of a finished stage's ``environment.json``; None if the stage is not finished.

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
