"""The cells of a sweep: turns a spec with a ``sweep`` section into one run spec per cell."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fercli.engine.start import resolve_start
from fercli.errors import SpecError
from fercli.methods import method_class
from fercli.spec import Spec, parse
from fercli.spec.registry import REFERENCE


@dataclass(frozen=True)
class Cell:
    """One adaptation: `spec` is its whole run spec, its ``adapt`` section this method's; `keys` has the grid values."""

    spec: Spec
    seed: int
    keys: dict[str, Any]
    method: str
    target: str

    @property
    def folder(self) -> Path:
        """The folder of the stage that gives its row; for source-only, that of the run's source model."""
        if self.method == REFERENCE:
            return self.spec.run_folder / "source"
        return self.spec.adapt_folder(self.target)

    @property
    def title(self) -> str:
        """The cell's name in progress lines and messages."""
        return f"{self.spec.name} {self.method} -> {self.target}"


def plan(spec: Spec) -> list[Cell]:
    """All cells of a sweep, including source-only, seed by seed, so that the first results can be compared.

    Raises:
        FercliError: the model of ``adapt.start`` does not exist.
        SpecError: there is no ``sweep`` section, or no target; a target is a source; a grid key does not exist, is
            already set by the sweep or a method, or sets other keys; a method does not have a given option; a key is
            set for source-only; or two combinations would share a folder.
    """
    if spec.sweep is None:
        raise SpecError("the spec has no sweep section (sweep.methods, sweep.seeds, ...)", "see: fercli sweep --help")
    spec = resolve_start(spec)
    wanted = spec.sweep
    targets = list(dict.fromkeys(wanted.targets or spec.data.targets))
    if not targets:
        raise SpecError("no target: list them under sweep.targets or data.targets in the spec")
    if wanted.methods.get(REFERENCE):
        raise SpecError(f"sweep.methods.{REFERENCE}: this is the unchanged source model; no keys can be set for it")
    if "faithful" in wanted.grid:
        raise SpecError(
            "sweep.grid: faithful sets other keys and cannot be in the grid",
            "run a second sweep: --set faithful=published --set name=another-name",
        )
    base = json.loads(spec.model_dump_json(exclude={"sweep"}))
    base["paths"]["runs"] = str(spec.run_folder)
    bare = {**base, "adapt": {**base["adapt"], "options": {}}}  # the source model has no method options
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
                    raise SpecError(f"sweep: {both[0]} is a source of this run", "a target must be another dataset")
                method_class(made.adapt.method).options_of(made)
                shown = early if label == REFERENCE else keys
                new = [Cell(made, seed, shown, label, target) for target in targets]
                cells += [cell for cell in new if label != REFERENCE or cell not in cells]
    folders = [str(cell.spec.adapt_folder(cell.target)) for cell in cells]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise SpecError(
            f"sweep.grid: two combinations of values share the folder {twice}",
            "choose values that differ in letters or digits",
        )
    return cells


def _check_unset(grid: dict[str, Any], fixed: dict[str, Any], label: str) -> None:
    """Refuse a grid key whose value would not be used: rows would be named by a key in which they do not differ."""
    options = fixed.get("adapt.options")
    taken = set(fixed)
    if isinstance(options, dict):  # merged key by key
        taken = {*taken - {"adapt.options"}, *(f"adapt.options.{key}" for key in options)}
    for key in grid:
        if any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in taken):
            raise SpecError(f"sweep.grid: {key} is already set for {label}", "set it in one place only")


def _slugs(keys: dict[str, Any]) -> list[str]:
    """Parts of a folder name: the last component of each key, with its value."""
    return [
        re.sub(r"[^A-Za-z0-9._]+", "-", f"{key.rsplit('.', 1)[-1]}-{value}").strip("-") for key, value in keys.items()
    ]


def _with(base: dict[str, Any], changes: dict[str, Any], label: str) -> Spec:
    """The base spec with ``key.path: value`` changes. A mapping of method options is merged key by key."""
    tree = json.loads(json.dumps(base))
    for path, value in changes.items():
        *parents, last = path.split(".")
        below = tree
        for key in parents:
            below = below.setdefault(key, {})
            if not isinstance(below, dict):
                raise SpecError(f"sweep: unknown key {path}")
        below[last] = {**below[last], **value} if last == "options" and isinstance(value, dict) else value
    return parse(tree, where=f"sweep ({label})")
