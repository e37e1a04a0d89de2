"""Sweeps: methods x targets x seeds, and any key of the spec, in run folders of their own and one table.

A sweep is a run spec with a ``sweep`` section. For every seed, and every combination of those grid keys that the
source stage depends on, there is a run folder ``runs/NAME/seed-N[-key-value]`` as `train-source` and `adapt` make it;
each cell (method, target) is an adaptation in it, its label as the tag. So whatever goes for a single run goes here:
stopped or killed, the same command goes on. Results are read from those folders alone (`gather`), at any time.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fercli import console
from fercli.batches import Faces
from fercli.clusters import as_completed
from fercli.engine import checkpoint
from fercli.engine.fabric import launched
from fercli.engine.interrupt import PASSED_ON, Interrupted, StopRequest
from fercli.engine.stages import adapt, empty_network, load_network, open_store, train_source, view_settings
from fercli.errors import FercliError, SpecError
from fercli.evaluation.collect import collect
from fercli.evaluation.decision import FUSED
from fercli.evaluation.inference import look
from fercli.evaluation.sweep_report import write_csv
from fercli.files import write_atomically
from fercli.methods import method_class
from fercli.spec import Spec, parse

_STOPPED = "stopped by a signal"

#: The row that every difference is to.
REFERENCE = "source-only"


@dataclass(frozen=True)
class Cell:
    """One adaptation: `spec` is its whole run spec, its ``adapt`` section this method's; `keys` the grid's values."""

    spec: Spec
    seed: int
    keys: dict[str, Any]
    method: str
    target: str

    @property
    def title(self) -> str:
        """What it is, for progress and messages."""
        return f"{self.spec.name} {self.method} -> {self.target}"


def plan(spec: Spec) -> list[Cell]:
    """All cells of a sweep, seed by seed, so that whatever is done first can be compared; source-only among them.

    Raises:
        SpecError: no ``sweep`` section, no target or one that is a source, a grid key that does not exist or that the
            sweep or a method sets already, options that a method does not have, anything set of source-only, two
            combinations that would share a folder.
    """
    if spec.sweep is None:
        raise SpecError("the spec has no sweep section (sweep.methods, sweep.seeds, ...); see: fercli sweep --help")
    wanted = spec.sweep
    targets = list(dict.fromkeys(wanted.targets or spec.data.targets))
    if not targets:
        raise SpecError("no target: list them under sweep.targets or data.targets in the spec")
    if wanted.methods.get(REFERENCE):
        raise SpecError(f"sweep.methods.{REFERENCE}: the source model as it is, of which nothing can be set")
    base = json.loads(spec.model_dump_json(exclude={"sweep"}))
    base["paths"]["runs"] = str(spec.run_folder)
    bare = {**base, "adapt": {**base["adapt"], "options": {}}}  # those of a method that the source model has not
    cells: list[Cell] = []
    for seed in wanted.seeds:
        for values in itertools.product(*wanted.grid.values()):
            keys = dict(zip(wanted.grid, values, strict=True))
            early = {key: value for key, value in keys.items() if not key.startswith("adapt.")}
            late = {key: value for key, value in keys.items() if key.startswith("adapt.")}
            name = "-".join([f"seed-{seed}", *_slugs(early)])
            for label, overrides in {REFERENCE: {"method": REFERENCE}, **wanted.methods}.items():
                given = {f"adapt.{key}": value for key, value in {"method": label, **overrides}.items()}
                mine = {} if label == REFERENCE else late
                given["adapt.tag"] = "-".join([label, *_slugs(mine)])
                fixed = {"name": name, "engine.seed": seed, **given}
                _check_unset({**early, **mine}, fixed, label)
                made = _with(bare if label == REFERENCE else base, {**early, **mine, **fixed}, label)
                both = [target for target in targets if target in made.data.source]
                if both:
                    raise SpecError(f"sweep: {both[0]} is a source of this run; a target must be another dataset")
                method_class(made.adapt.method).read_options(made.adapt.options)
                shown = early if label == REFERENCE else keys
                new = [Cell(made, seed, shown, label, target) for target in targets]
                cells += [cell for cell in new if label != REFERENCE or cell not in cells]
    folders = [str(cell.spec.adapt_folder(cell.target)) for cell in cells]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise SpecError(f"sweep.grid: two combinations of values share the folder {twice}; make them differ in letters")
    return cells


def gather(spec: Spec) -> dict[str, Any]:
    """The results document of what is trained so far; see `fercli.evaluation.collect`."""
    return collect(spec, plan(spec), REFERENCE)


def sweep(spec: Spec) -> list[str]:
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
        raise FercliError("a sweep starts its own processes (sweep.jobs); start it once, not by torchrun or srun")
    for name in dict.fromkeys([*(n for c in cells for n in c.spec.data.source), *(c.target for c in cells)]):
        open_store(cells[0].spec, name, labels=False)
    targets = list(dict.fromkeys(cell.target for cell in cells))
    runs = list({cell.spec.name: cell.spec for cell in cells}.values())
    threads = spec.engine.threads or max(1, (torch.get_num_threads() if jobs == 1 else _cores() // jobs))
    failed: dict[str, str] = {}
    with StopRequest(_stop_workers) as stop, console.progress("sweep", len(runs) + _adaptations(cells)) as bar:

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
    return [f"{title}: {problem}" for title, problem in failed.items()]


def write_results(document: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write ``results.json`` and ``results.csv``; returns the files by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"results": folder / "results.json", "csv": folder / "results.csv"}
    write_atomically(files["results"], json.dumps(document, indent=1).encode())
    write_csv(document, files["csv"])
    return files


def _stop_workers() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, PASSED_ON)


def _adaptations(cells: list[Cell]) -> int:
    return sum(cell.method != REFERENCE for cell in cells)


def _cores() -> int:
    import joblib

    return joblib.cpu_count()


def _train_source(document: str, targets: list[str], threads: int) -> tuple[str, str | None]:
    """Train a run's source model and leave its answers on every target's scored faces, for the reference row."""
    spec = Spec.model_validate_json(document)
    return spec.name, _quietly(threads, lambda: (train_source(spec), _answer(spec, targets)))


def _adapt(document: str, target: str, title: str, threads: int) -> tuple[str, str | None]:
    spec = Spec.model_validate_json(document)
    return title, _quietly(threads, lambda: adapt(spec, target))


def _quietly(threads: int, work: Any) -> str | None:
    """Do the work without a word; a mistake of one cell is told at the end and costs no other cell."""
    torch.set_num_threads(threads)
    if threading.current_thread() is threading.main_thread():
        signal.signal(PASSED_ON, signal.SIG_IGN)  # between two stages there is nothing to save
    with console.hushed(warnings=True):
        try:
            work()
        except (Interrupted, KeyboardInterrupt):
            return _STOPPED
        except FercliError as problem:
            return str(problem)
    return None


def _answer(spec: Spec, targets: list[str]) -> None:
    state = checkpoint.load(spec.run_folder / "source" / "best.ckpt")
    network = empty_network(spec)
    load_network(network, state, spec, spec.run_folder / "source" / "best.ckpt")
    for name in targets:
        store = open_store(spec, name, labels=False)
        faces = Faces([store], [store.indices(store.score_splits)], torch.device("cpu"), spec.model.reads_crops)
        answers = (
            look(network, faces, view_settings(spec), spec.engine.evaluate_batch).probabilities[:, FUSED].argmax(-1)
        )
        path = spec.run_folder / "source" / "decisions" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, "".join(map(str, answers.tolist())).encode() + b"\n")


def _check_unset(grid: dict[str, Any], fixed: dict[str, Any], label: str) -> None:
    """Refuse a grid key whose value would not be used: rows would be told apart by what they do not differ in."""
    options = fixed.get("adapt.options")
    taken = {*fixed, *(f"adapt.options.{key}" for key in options if isinstance(options, dict))} if options else {*fixed}
    for key in grid:
        if any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in taken):
            raise SpecError(f"sweep.grid: {key} is set for {label} already; give it in one place")


def _slugs(keys: dict[str, Any]) -> list[str]:
    """Parts of a folder's name: the last word of each key and its value."""
    return [
        re.sub(r"[^A-Za-z0-9._]+", "-", f"{key.rsplit('.', 1)[-1]}-{value}").strip("-") for key, value in keys.items()
    ]


def _with(base: dict[str, Any], changes: dict[str, Any], label: str) -> Spec:
    """The base spec with ``key.path: value`` changes; a mapping given for a mapping replaces its keys one by one."""
    tree = json.loads(json.dumps(base))
    for path, value in changes.items():
        *parents, last = path.split(".")
        below = tree
        for key in parents:
            below = below.setdefault(key, {})
            if not isinstance(below, dict):
                raise SpecError(f"sweep: {path} is no key of the spec")
        below[last] = {**below[last], **value} if last == "options" and isinstance(value, dict) else value
    return parse(tree, where=f"sweep ({label})")
