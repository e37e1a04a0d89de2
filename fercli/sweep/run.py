"""Sweeps: methods x targets x seeds, and any key of the spec, in separate run folders and one results table.

A sweep is a run spec with a ``sweep`` section. For every seed, and every combination of the grid keys that the source
stage depends on, there is a run folder ``runs/NAME/seed-N[-key-value]``, as `train-source` and `adapt` make it. Each
cell (method, target) is an adaptation in such a folder, with its label as the tag. So a sweep behaves like a single
run: after it is stopped or killed, the same command resumes it. Results are read only from those folders
(`aggregate`), at any time.

The unit of work is a stage: each run's source model, then its adaptations. The process that does a stage claims it
(`claims`). It may be a worker of this sweep, a worker of a sweep on another machine, or a single cell's process (SLURM
arrays). These processes share the work, wait for stages that others are training, and take over what a dead process
has left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch

from fercli import console
from fercli.engine.data import open_store
from fercli.engine.fabric import launched, resolve_device, tell_device, warn_of_unused_card
from fercli.engine.interrupt import PASSED_ON, Interrupted, StopRequest
from fercli.engine.stages import adapt, train_source
from fercli.engine.start import begin_from_start
from fercli.engine.trained import source_model
from fercli.errors import Advice, FercliError, SpecError
from fercli.files import AtWork
from fercli.methods import method_class
from fercli.parallel import Cluster, WorkerEnded, Workers
from fercli.scoring.trained_evaluator import TrainedEvaluator
from fercli.spec import Spec
from fercli.spec.registry import REFERENCE
from fercli.store import Store, read_meta
from fercli.sweep.claims import Watch, take
from fercli.sweep.devices import one_gpu_each
from fercli.sweep.finished import adaptation_is_finished, cell_is_finished, source_is_finished
from fercli.sweep.plan import Cell, plan

#: Seconds between checks of what other processes are doing: initially, and at most.
_LOOK_S, _LOOK_MOST_S = 0.1, 5.0


def sweep(spec: Spec, cell: int | None = None) -> list[Advice]:
    """Train everything that is not trained yet, ``sweep.jobs`` stages at a time.

    Args:
        cell: number, from 0, of a cell of `plan`. Only this cell, and first the source model that it needs, is trained,
            in this process, and its progress is printed. Without it a progress bar counts the stages.

    Returns:
        One line for each failed stage. All other stages are done.

    Raises:
        SpecError: see `plan`; there is no such cell; ``sweep.jobs`` does not suit a cluster.
        FercliError: a dataset is not prepared, or the requested GPU or cluster does not exist.
        Interrupted: SIGINT or SIGTERM arrived; running stages are saved.
    """
    cells = plan(spec)
    chosen = cells if cell is None else [_chosen(cells, cell)]
    if launched().processes > 1:
        raise FercliError("a sweep starts its own processes (sweep.jobs)", "start it once, without torchrun or srun")
    stores = _open_stores(cells)
    if cell is not None:
        console.say(f"cell {cell} of {len(cells)}: {chosen[0].title}")
    # With the sweep's own adapt section, because the cells of a run differ in theirs.
    runs = {c.spec.name: c.spec.model_copy(update={"adapt": spec.adapt}) for c in chosen}
    targets = list(dict.fromkeys(c.target for c in cells))
    stages = [_Stage(run, name, None, targets) for name, run in runs.items()]
    stages += [_Stage(c.spec, c.title, c.target, []) for c in chosen if c.method != REFERENCE]
    pool, threads = _workers(spec, len(stages), alone=cell is not None)
    if spec.sweep.backend == "local":  # a cluster's workers have their own devices
        warn_of_unused_card(spec.engine.device)
        tell_device(resolve_device(spec.engine.device))  # the cells print nothing
    with (
        pool,
        StopRequest(lambda: _stop(pool)) as stop,
        nullcontext() if cell is not None else console.progress("sweep", len(stages)) as bar,
    ):
        work = _Work(stages, stores, stop, bar)
        work.do(pool, threads)
        if stop.requested:
            raise Interrupted(
                f"stopped; finished work is saved in {spec.run_folder}; run the same command again to resume"
            )
    return [Advice(f"{title}: ", problem) for title, problem in work.failed.items()]


def unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a sweep that are not trained to the end. Raises FercliError as `sweep` does."""
    stores = _open_stores(cells)
    return [cell for cell in cells if not cell_is_finished(cell, stores)]


def _open_stores(cells: Sequence[Cell]) -> dict[str, Store]:
    """The stores of a sweep's targets (without labels) and sources. Sources that no cell trains on may be missing.

    Raises:
        FercliError: a dataset is not prepared, or not with the spec's settings.
    """
    spec, stores = cells[0].spec, {}
    needed = [name for cell in cells if _needs_source(cell) for name in cell.spec.data.source]
    for name in dict.fromkeys(name for cell in cells for name in cell.spec.data.source):
        if name in needed or read_meta(spec.store_path(name)) is not None:
            stores[name] = open_store(spec, name)
    for name in dict.fromkeys(cell.target for cell in cells):
        stores[name] = open_store(spec, name, labels=False)
    return stores


def _chosen(cells: Sequence[Cell], number: int) -> Cell:
    if not 0 <= number < len(cells):
        raise SpecError(f"--cell {number}: the sweep has {len(cells)} cells", f"give one from 0 to {len(cells) - 1}")
    return cells[number]


def _needs_source(cell: Cell) -> bool:
    """Whether a cell needs the source's faces for training. The reference of a starting model is already trained."""
    if cell.method == REFERENCE:
        return cell.spec.adapt.start is None
    return method_class(cell.spec.adapt.method).needs_source


def _workers(spec: Spec, most: int, alone: bool = False) -> tuple[Workers | Cluster, int]:
    """The workers, and the number of threads of each.

    Args:
        most: maximum number of stages at a time.
        alone: whether this process does the work.
    """
    wanted, threads = spec.sweep, spec.engine.threads
    if alone or (wanted.backend == "local" and wanted.jobs in (None, 1)):
        return Workers(1), threads or torch.get_num_threads()
    if wanted.backend != "local":
        if wanted.jobs == "gpus":
            raise SpecError(
                f"sweep.jobs: gpus is for the GPUs of one machine, but sweep.backend is {wanted.backend}",
                "start one worker per GPU there, each seeing only its own, and leave out sweep.jobs",
            )
        # As dask and ray do: they start one worker, or one thread of a worker, per core.
        threads = threads or 1
        own = {"OMP_NUM_THREADS": str(threads)}
        return Cluster(wanted.backend, wanted.cluster, "sweep", min(wanted.jobs or 0, most), own), threads
    environments = one_gpu_each()[:most] if wanted.jobs == "gpus" else [{}] * min(wanted.jobs, most)
    threads = threads or max(1, joblib.cpu_count() // len(environments))
    environments = [{**own, "OMP_NUM_THREADS": str(threads)} for own in environments]
    return Workers(len(environments), environments, at_hand=1), threads


def _stop(pool: Workers | Cluster) -> None:
    """Pass a stop on to the workers."""
    if isinstance(pool, Cluster):
        raise Interrupted(
            "stopped; stages running on the cluster continue to their end; run the same command again to resume"
        )
    pool.signal(PASSED_ON)


class _Stage(NamedTuple):
    """A unit of work: a run's source model with its outputs on `targets`, or the adaptation to `target`."""

    spec: Spec
    title: str
    target: str | None
    targets: list[str]

    @property
    def folder(self) -> Path:
        return self.spec.run_folder / "source" if self.target is None else self.spec.adapt_folder(self.target)

    @property
    def words(self) -> str:
        return f"the source model of {self.title}" if self.target is None else self.title


class _End(NamedTuple):
    """How work on a stage ended: ``done``, ``busy`` (another process has it), ``failed`` or ``stopped``, and why."""

    how: str
    why: str = ""


class _Work:
    """The remaining stages and what is known about them.

    Args:
        stages: a run's source model before its adaptations.
        stores: the stores by name.
        bar: counts the stages; None prints a line for each instead.

    Attributes:
        failed: title -> why.
    """

    def __init__(self, stages: list[_Stage], stores: Mapping[str, Store], stop: StopRequest, bar: console.Bar | None):
        self.failed: dict[str, str] = {}
        self._left, self._stores, self._stop, self._bar = stages, stores, stop, bar
        self._watch, self._dead = Watch(), dict[Path, list[bytes]]()
        self._ready: set[str] = set()  # runs whose source model exists
        self._others: dict[str, str] = {}  # stages that other processes have: stage -> process, in words
        self._shared, self._moved = False, True

    def do(self, pool: Workers | Cluster, threads: int) -> None:
        """Do the stages in rounds. Stages that other processes have are checked again in the next round."""
        look, told = _LOOK_S, ""
        while self._left and not self._stop.requested:
            left, self._left, self._others, self._moved = self._left, [], {}, False
            for stage, end in pool.as_completed(_do, self._to_do(left), lambda stage: self._call(stage, threads)):
                self._take_down(stage, _ended(end))
            if self._moved or not self._left:
                look, told = _LOOK_S, ""
                continue
            if told != (told := self._waiting()):
                console.say(told)
            self._pause(look)
            look = min(2 * look, _LOOK_MOST_S)

    def _to_do(self, stages: list[_Stage]) -> Iterator[_Stage]:
        """The stages that can be done now."""
        for number, stage in enumerate(stages):
            if self._stop.requested:
                self._left += stages[number:]
                return
            if stage.spec.name in self.failed:  # its source model failed
                continue
            found = self._watch.look(stage.folder)
            if found.holder:
                self._wait_for(stage, found.holder)
            elif stage.target is not None and stage.spec.name not in self._ready:
                self._left.append(stage)
            elif self._is_finished(stage):
                self._take_down(stage, _End("done"))
            else:
                self._dead[stage.folder] = found.dead
                if found.left:
                    console.say(f"{stage.words}: {found.left} is gone; taking over its work")
                elif self._bar is None:
                    console.say(f"{stage.words} ...")
                yield stage

    def _is_finished(self, stage: _Stage) -> bool:
        if stage.target is None:
            # Only the model itself shows whether the starting model is still the one that the run began with.
            return stage.spec.adapt.start is None and source_is_finished(stage.spec, stage.targets, self._stores)
        return adaptation_is_finished(stage.spec, stage.target, self._stores)

    def _call(self, stage: _Stage, threads: int) -> tuple[Any, ...]:
        dead = self._dead.pop(stage.folder, [])
        return stage.spec.model_dump_json(), stage.target, stage.targets, dead, threads, self._bar is None

    def _take_down(self, stage: _Stage, end: _End) -> None:
        if end.how == "stopped":
            self._stop.requested = True  # also for a signal that reached only the training process
        elif end.how == "busy":
            self._wait_for(stage, end.why or "another process")
            return
        elif end.how == "failed" and not self._stop.requested:
            self.failed[stage.title] = end.why
        elif stage.target is None:
            self._ready.add(stage.spec.name)
        self._moved = True
        if self._bar is not None:
            self._bar.advance(note=stage.title)

    def _wait_for(self, stage: _Stage, who: str) -> None:
        self._left.append(stage)
        self._others[stage.words] = who
        if self._bar is not None and not self._shared:
            self._shared = True
            console.say(f"{stage.words}: {who} is working on it; the work is shared with other processes")

    def _waiting(self) -> str:
        """The stages waited for, in words."""
        named = [f"{words} ({who})" for words, who in self._others.items()]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return f"waiting for {', '.join(named[:3])}{more}"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stop.requested:
            time.sleep(0.05)


def _ended(end: _End | WorkerEnded) -> _End:
    return end if isinstance(end, _End) else _End("failed", end.what)


def _do(document: str, target: str | None, targets: list[str], dead: list[bytes], threads: int, talks: bool) -> _End:
    """Do a stage, in the worker process, unless another process has claimed it.

    A source stage trains the run's source model, or takes the starting model. It then saves that model's outputs on
    every target's scored faces, for the reference row.
    """
    spec = Spec.model_validate_json(document)
    torch.set_num_threads(threads)
    # A stop request that arrives while stores and weights are read takes effect when training begins.
    with nullcontext() if talks else console.hushed(warnings=True), StopRequest() as stop:
        try:
            claim = take(spec.run_folder / "source" if target is None else spec.adapt_folder(target), dead)
            if claim is None:
                return _End("busy")
            with claim:
                if target is not None:
                    adapt(spec, target)
                else:
                    make = train_source if spec.adapt.start is None else begin_from_start
                    make(spec)
                    _leave_outputs(spec, targets)
        except AtWork as other:  # a command of the user's, or a process that was taken for dead
            return _End("busy", other.what)
        except (Interrupted, KeyboardInterrupt):
            return _End("stopped")
        except FercliError as problem:
            return _End("failed", problem.text)
        except Exception as problem:  # out of memory, or a bug: only this stage fails
            return _End("failed", f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}")
    return _End("stopped" if stop.requested else "done")


def _leave_outputs(spec: Spec, targets: list[str]) -> None:
    model = source_model(spec)
    there = [name for name in spec.data.source if read_meta(spec.store_path(name)) is not None]
    evaluator = TrainedEvaluator(spec, [open_store(spec, name) for name in there])
    for name in targets:
        evaluator.outputs(model, open_store(spec, name, labels=False), model.folder)
