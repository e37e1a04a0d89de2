"""Sweeps: methods x targets x seeds, and any key of the spec, in run folders of their own and one table.

A sweep is a run spec with a ``sweep`` section. For every seed, and every combination of those grid keys that the
source stage depends on, there is a run folder ``runs/NAME/seed-N[-key-value]`` as `train-source` and `adapt` make it;
each cell (method, target) is an adaptation in it, its label as the tag. So whatever goes for a single run goes here:
stopped or killed, the same command goes on. Results are read from those folders alone (`aggregate`), at any time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import joblib
import torch

from fercli import console
from fercli.engine.data import open_store
from fercli.engine.fabric import launched, resolve_device, tell_device, warn_of_unused_card
from fercli.engine.interrupt import PASSED_ON, Interrupted, StopRequest
from fercli.engine.stages import adapt, train_source
from fercli.engine.start import begin_from_start
from fercli.engine.trained import source_model
from fercli.errors import Advice, FercliError
from fercli.files import only_one
from fercli.methods import method_class
from fercli.parallel import as_completed
from fercli.scoring.trained_evaluator import TrainedEvaluator
from fercli.spec import Spec
from fercli.spec.registry import REFERENCE
from fercli.store import read_meta
from fercli.sweep.plan import Cell, plan

_STOPPED = "stopped by a signal"


def sweep(spec: Spec) -> list[Advice]:
    """Train whatever is not trained yet, ``sweep.jobs`` cells at a time.

    Returns:
        What failed, a line each; the rest is done.

    Raises:
        SpecError: as `plan`.
        FercliError: a dataset is not prepared.
        Interrupted: SIGINT or SIGTERM came; what runs is saved.
    """
    cells, jobs = plan(spec), spec.sweep.jobs
    if launched().processes > 1:
        raise FercliError("a sweep starts its own processes (sweep.jobs)", "start it once, not by torchrun or srun")
    sources = [name for cell in cells if _needs_source(cell) for name in cell.spec.data.source]
    for name in dict.fromkeys([*sources, *(cell.target for cell in cells)]):
        open_store(cells[0].spec, name, labels=False)
    warn_of_unused_card(spec.engine)
    tell_device(resolve_device(spec.engine.device))  # the cells do not speak
    targets = list(dict.fromkeys(cell.target for cell in cells))
    # With the sweep's own adapt section, in which the cells of a run differ.
    runs = list({c.spec.name: c.spec.model_copy(update={"adapt": spec.adapt}) for c in cells}.values())
    threads = spec.engine.threads or max(1, (torch.get_num_threads() if jobs == 1 else joblib.cpu_count() // jobs))
    failed: dict[str, str] = {}
    adaptations = sum(cell.method != REFERENCE for cell in cells)
    spec.run_folder.mkdir(parents=True, exist_ok=True)
    with (
        only_one(spec.run_folder, "sweep"),
        StopRequest(_stop_workers) as stop,
        console.progress("sweep", len(runs) + adaptations) as bar,
    ):

        def work(function: Any, tasks: list[tuple[Any, ...]]) -> None:
            def until_stopped() -> Iterator[tuple[Any, ...]]:
                for task in tasks:
                    if stop.requested:
                        return
                    yield (task[0].model_dump_json(), *task[1:], threads)

            try:
                for title, problem in as_completed(function, until_stopped(), jobs, threads):
                    if problem == _STOPPED:
                        stop.requested = True  # a signal that reached the one who trains
                    elif problem:
                        failed[title] = problem
                    bar.advance(note=title)
            except FercliError:  # a worker that was stopped between two cells is gone
                if not stop.requested:
                    raise

        work(_train_source, [(run, targets) for run in runs])
        work(
            _adapt,
            [(c.spec, c.target, c.title) for c in cells if c.method != REFERENCE and c.spec.name not in failed],
        )
        if stop.requested:
            raise Interrupted(f"stopped; what is done is in {spec.run_folder}, and the same command goes on")
    return [Advice(f"{title}: ", problem) for title, problem in failed.items()]


def _stop_workers() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, PASSED_ON)


def _needs_source(cell: Cell) -> bool:
    """Whether a cell cannot be trained without the source's faces: the reference of a start is trained already."""
    if cell.method == REFERENCE:
        return cell.spec.adapt.start is None
    return method_class(cell.spec.adapt.method).needs_source


def _train_source(document: str, targets: list[str], threads: int) -> tuple[str, str | None]:
    """Train a run's source model, or take its start, and leave its outputs on every target's scored faces, for the
    reference row.
    """
    spec = Spec.model_validate_json(document)
    make = train_source if spec.adapt.start is None else begin_from_start
    return spec.name, _quietly(threads, lambda: (make(spec), _leave_outputs(spec, targets)))


def _adapt(document: str, target: str, title: str, threads: int) -> tuple[str, str | None]:
    spec = Spec.model_validate_json(document)
    return title, _quietly(threads, lambda: adapt(spec, target))


def _quietly(threads: int, work: Any) -> str | None:
    """Do the work without a word; a mistake of one cell is told at the end and costs no other cell."""
    torch.set_num_threads(threads)
    # A request that comes while stores and weights are read is there when training begins.
    with console.hushed(warnings=True), StopRequest() as stop:
        try:
            work()
        except (Interrupted, KeyboardInterrupt):
            return _STOPPED
        except FercliError as problem:
            return problem.text
        except Exception as problem:  # out of memory, or a mistake of ours: it is this cell's alone
            return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    return _STOPPED if stop.requested else None


def _leave_outputs(spec: Spec, targets: list[str]) -> None:
    model = source_model(spec)
    there = [name for name in spec.data.source if read_meta(spec.store_path(name)) is not None]
    evaluator = TrainedEvaluator(spec, [open_store(spec, name) for name in there])
    for name in targets:
        evaluator.outputs(model, open_store(spec, name, labels=False), model.folder)
