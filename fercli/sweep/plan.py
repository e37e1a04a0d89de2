"""What a sweep is made of: from a spec with a ``sweep`` section to one run spec a cell."""

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
    """One adaptation: `spec` is its whole run spec, its ``adapt`` section this method's; `keys` the grid's values."""

    spec: Spec
    seed: int
    keys: dict[str, Any]
    method: str
    target: str

    @property
    def folder(self) -> Path:
        """The folder of the stage that gives its row: of source-only that of the run's source model."""
        if self.method == REFERENCE:
            return self.spec.run_folder / "source"
        return self.spec.adapt_folder(self.target)

    @property
    def title(self) -> str:
        """What it is, for progress and messages."""
        return f"{self.spec.name} {self.method} -> {self.target}"


def plan(spec: Spec) -> list[Cell]:
    """All cells of a sweep, seed by seed, so that whatever is done first can be compared; source-only among them.

    Raises:
        FercliError: there is no such model as ``adapt.start``.
        SpecError: no ``sweep`` section, no target or one that is a source, a grid key that does not exist, that the
            sweep or a method sets already or that sets others, options that a method does not have, anything set of
            source-only, two combinations that would share a folder.
    """
    if spec.sweep is None:
        raise SpecError("the spec has no sweep section (sweep.methods, sweep.seeds, ...)", "see: fercli sweep --help")
    spec = resolve_start(spec)
    wanted = spec.sweep
    targets = list(dict.fromkeys(wanted.targets or spec.data.targets))
    if not targets:
        raise SpecError("no target: list them under sweep.targets or data.targets in the spec")
    if wanted.methods.get(REFERENCE):
        raise SpecError(f"sweep.methods.{REFERENCE}: the source model as it is, of which nothing can be set")
    if "faithful" in wanted.grid:
        raise SpecError(
            "sweep.grid: faithful sets other keys", "sweep twice: --set faithful=published --set name=another-name"
        )
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
                    raise SpecError(f"sweep: {both[0]} is a source of this run", "a target must be another dataset")
                method_class(made.adapt.method).options_of(made)
                shown = early if label == REFERENCE else keys
                new = [Cell(made, seed, shown, label, target) for target in targets]
                cells += [cell for cell in new if label != REFERENCE or cell not in cells]
    folders = [str(cell.spec.adapt_folder(cell.target)) for cell in cells]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise SpecError(
            f"sweep.grid: two combinations of values share the folder {twice}", "make them differ in letters"
        )
    return cells


def _check_unset(grid: dict[str, Any], fixed: dict[str, Any], label: str) -> None:
    """Refuse a grid key whose value would not be used: rows would be named by what they do not differ in."""
    options = fixed.get("adapt.options")
    taken = set(fixed)
    if isinstance(options, dict):  # merged key by key
        taken = {*taken - {"adapt.options"}, *(f"adapt.options.{key}" for key in options)}
    for key in grid:
        if any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in taken):
            raise SpecError(f"sweep.grid: {key} is set for {label} already", "give it in one place")


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
