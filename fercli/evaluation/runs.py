"""Evaluated runs as `fercli compare` reads them, and the matching of models between two runs.

This reads what `fercli evaluate` writes to a run's report folder: results.json (schema 5) and predictions/*.csv.
"""

from __future__ import annotations

import csv
import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from fercli.errors import Advice, Command, FercliError, SpecError
from fercli.expressions import EXPRESSIONS
from fercli.spec import up_to_date
from fercli.spec.yaml_data import read_yaml_file

#: Schema version of the results documents that this module reads.
SCHEMA = 5


class _Entry(BaseModel):
    """The fields that are read from an entry of a results document."""

    folder: str
    dataset: str
    method: str
    oracle_method: bool
    predictions: Annotated[str, Field(pattern=r"^[^/\\]+/[^/\\]+\.csv$")]


class _Dataset(BaseModel):
    synthetic: bool


class _Results(BaseModel):
    """The fields that are read from a results document."""

    created: str
    entries: list[_Entry]
    datasets: dict[str, _Dataset]
    spec: dict[str, Any]


class Answer(NamedTuple):
    """One row of a predictions file; the label is "" where not known."""

    subject: str
    label: str
    answer: str


@dataclass(frozen=True)
class Model:
    """One model's entry in a results document, unchanged; `run` is its run's name in tables, `report` the folder."""

    run: str
    report: Path
    entry: dict[str, Any]

    @property
    def folder(self) -> str:
        """The stage folder's name."""
        return self.entry["folder"]

    @property
    def dataset(self) -> str:
        """The dataset that the model was scored on."""
        return self.entry["dataset"]

    @property
    def predictions(self) -> Path:
        """The file of the model's predictions."""
        return self.report / self.entry["predictions"]

    def answers(self) -> dict[tuple[str, str], Answer]:
        """(split, id) -> prediction, for every face. Raises FercliError where the file is missing or is not one."""
        path = self.predictions
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = list(csv.DictReader(file))
            found = {(r["split"], r["id"]): Answer(r["subject"], r["label"], r["answer"]) for r in rows}
        except OSError as problem:
            raise FercliError(f"{path}: {problem.strerror}", _advice(self.report.parent)) from None
        except (KeyError, UnicodeDecodeError, csv.Error):
            found = {}
        names = {name for answer in found.values() for name in (answer.label or answer.answer, answer.answer)}
        if not found or len(found) < len(rows) or not names <= set(EXPRESSIONS):
            raise FercliError(f"{path} is not a predictions file", _advice(self.report.parent))
        return found


@dataclass(frozen=True)
class Run:
    """The run that a user named; with `only`, just one of its stage folders."""

    name: str
    folder: Path
    results: dict[str, Any]
    only: str | None

    def models(self) -> list[Model]:
        """The scored models, in the document's order."""
        kept = [entry for entry in self.results["entries"] if self.only in (None, entry["folder"])]
        return [Model(self.name, self.folder / "report", entry) for entry in kept]

    def spec_of(self, folder: str) -> dict[str, Any]:
        """The spec that a stage was trained with, as data; the results' spec where the stage's cannot be read."""
        try:
            tree = read_yaml_file(self.folder / folder / "spec.yaml")
        except SpecError:
            tree = None
        return up_to_date(tree if isinstance(tree, dict) else self.results["spec"])

    def outdated(self) -> list[str]:
        """Stage folders whose model is newer than the results."""
        scored = (self.folder / "report" / "results.json").stat().st_mtime
        best = {name: self.folder / name / "best.ckpt" for name in dict.fromkeys(m.folder for m in self.models())}
        return [name for name, path in best.items() if path.exists() and path.stat().st_mtime > scored]


def find_run(given: str, runs: Path) -> Run:
    """Find what a user means by RUN: a run folder or one of its stage folders, also by its path relative to `runs`.

    Raises:
        FercliError: the folder does not exist, was not evaluated, was evaluated by another version of fercli, or holds
            damaged results; or the stage was not scored.
    """
    path = next((path for path in (Path(given), runs / given) if path.is_dir()), None)
    if path is None:
        known = sorted(spec.parent.name for spec in runs.glob("*/spec.yaml"))
        close = difflib.get_close_matches(given, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"{runs} contains {', '.join(known) or 'no runs'}"
        raise FercliError(f"no such run: {given}; {hint}")
    path, only = path if path.name else path.resolve(), None  # "." has neither a name nor a parent
    if not (path / "report").is_dir() and (path / "best.ckpt").exists():
        path, only = path.parent, path.resolve().name
    file = path / "report" / "results.json"
    try:
        results = json.loads(file.read_bytes())
    except OSError:
        below = sorted(spec.parent for spec in path.glob("*/spec.yaml") if spec.parent.name.startswith("seed-"))
        if below:
            raise FercliError(f"{path} is a sweep, not one run", f"compare its runs, such as {below[0]}") from None
        raise FercliError(f"{path} has not been evaluated", _advice(path)) from None
    except (ValueError, RecursionError):
        results = None
    if isinstance(results, dict) and results.get("schema") != SCHEMA:
        raise FercliError(f"{file} was written by another version of fercli", _advice(path))
    try:
        _Results.model_validate(results)
    except ValidationError:
        raise FercliError(f"{file} is damaged", _advice(path)) from None
    run = Run(path.resolve().name, path, results, only)
    if not run.models():
        raise FercliError(f"{path / only} was not scored", _advice(path))
    return run


def tell_apart(runs: list[Run]) -> list[Run]:
    """The same runs; runs that share a name but are in different folders are named by their paths."""
    folders: dict[str, set[Path]] = {}
    for run in runs:
        folders.setdefault(run.name, set()).add(run.folder.resolve())
    return [run if len(folders[run.name]) == 1 else replace(run, name=str(run.folder)) for run in runs]


def _advice(run: Path) -> str:
    return f"run: fercli evaluate -c {run / 'spec.yaml'}"


class Pair(NamedTuple):
    """Two models scored on one dataset."""

    reference: Model
    other: Model


def match(reference: Run, other: Run) -> tuple[list[Pair], list[str]]:
    """Match the models of two runs for comparison.

    On each dataset, a run that is given as a stage folder contributes that stage only. Otherwise models in stage
    folders of the same name are paired. The rest is paired if one adapted model is left on each side (under different
    tags or methods).

    Returns:
        The pairs. When whole runs are compared, also a line for the models of each dataset that have no counterpart.
    """
    pairs: list[Pair] = []
    left: list[str] = []
    ours, theirs = reference.models(), other.models()
    for dataset in dict.fromkeys(model.dataset for model in (*ours, *theirs)):
        here = {model.folder: model for model in ours if model.dataset == dataset}
        there = {model.folder: model for model in theirs if model.dataset == dataset}
        if reference.only and other.only:
            named = [(reference.only, other.only)] if here and there else []
        else:
            named = [(folder, folder) for folder in here if folder in there]
        pairs += [Pair(here.pop(a), there.pop(b)) for a, b in named]
        # A source model's counterpart is a source model, unless one is named.
        a = [folder for folder in here if folder != "source" or reference.only]
        b = [folder for folder in there if folder != "source" or other.only]
        if len(a) == len(b) == 1:
            pairs.append(Pair(here.pop(a[0]), there.pop(b[0])))
        elif a and b and not (reference.only or other.only):
            left.append(
                Advice(
                    f"{dataset}: {', '.join(a)} of {reference.name} and {', '.join(b)} of {other.name} have different "
                    "names; name two of them, such as: ",
                    Command("compare", f"{reference.folder / a[0]} {other.folder / b[0]}"),
                )
            )
            continue
        if (here or there) and not (reference.only or other.only):
            for side, others in ((here, other), (there, reference)):
                if side:
                    models = ", ".join(f"{model.run}/{folder}" for folder, model in side.items())
                    left.append(f"{dataset}: no counterpart in {others.name} for {models}")
    return pairs, left


def within(run: Run) -> list[Pair]:
    """Pairs of one run's models on the same dataset: each with the first, which is source-only if it was scored."""
    pairs = []
    for dataset in dict.fromkeys(model.dataset for model in run.models()):
        here = sorted((m for m in run.models() if m.dataset == dataset), key=lambda m: m.folder != "source")
        pairs += [Pair(here[0], other) for other in here[1:]]
    return pairs
