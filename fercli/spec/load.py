"""Reading a run spec: where it is found, ``--set`` overrides, and the error message for each mistake."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fercli.console import brief
from fercli.errors import SpecError
from fercli.spec.plugins import trust
from fercli.spec.schema import RENAMED, Dataset, Spec, Sweep
from fercli.spec.yaml_data import MAX_DEPTH, NotYAML, read_yaml, read_yaml_file

#: Problems that are listed individually.
_MOST_PROBLEMS = 20


def to_yaml(spec: Spec) -> str:
    """The resolved spec as YAML, with every default written out."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=120)


def config_folder() -> Path:
    """The folder of the packaged specs: ``fercli/configs`` if installed, the sibling ``configs`` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged() -> dict[str, Path]:
    """The specs that come with fercli, by name. Those of single methods are ``methods/NAME``."""
    folder = config_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def local_spec() -> Path | None:
    """The working folder's spec, ``./fercli.yaml``; None if there is no such file."""
    local = Path("fercli.yaml")
    return local if os.path.isfile(local) else None


def find(file: str | None) -> Path:
    """The spec file that ``-c FILE`` refers to: a path, or the name of a packaged spec.

    Raises:
        SpecError: neither such a file nor such a packaged spec exists.
    """
    if file is None:
        return local_spec() or packaged()["default"]
    path = Path(file)
    if os.path.isfile(path):
        return path
    if file in packaged():
        return packaged()[file]
    known = ", ".join(packaged())
    raise SpecError(f"no such spec file: {brief(file, 200)}", f"give a path, or a packaged spec: {known}")


def load(file: str | None = None, overrides: Sequence[str] = (), shortcuts: dict[str, Any] | None = None) -> Spec:
    """Read the run spec.

    Args:
        file: what ``-c/--spec`` was given; see `find`.
        overrides: ``key.path=value`` strings, the value in YAML (``adapt.epochs=5``, ``data.source=[raf-db, ck+]``).
        shortcuts: key path -> value from other options, applied after the overrides.

    Raises:
        SpecError: lists every problem, one per line.
    """
    path = find(file)
    tree = read_yaml_file(path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SpecError(
            f"{path} must be a mapping of sections (paths, data, prepare, ...), not a {type(tree).__name__}"
        )
    if _is_record(path):
        tree = _of_run(up_to_date(tree), path.parent)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {brief(text)}: write it as key.path=value, such as --set adapt.epochs=5")
        try:
            _put(tree, key.strip(), read_yaml(value))
        except NotYAML as problem:
            raise SpecError(f"--set {brief(text)}: the value is not YAML that fercli reads: {problem}") from None
    for key, value in (shortcuts or {}).items():
        _put(tree, key, value)
    spec = parse(tree, where=str(path))
    sweep = {} if spec.sweep is None else spec.sweep.methods
    trust(spec.adapt.method, *(str(given.get("method", label)) for label, given in sweep.items()))
    return spec


def parse(tree: dict[str, Any], where: str = "spec") -> Spec:
    """Check a nested mapping and return the `Spec`; see `load` for errors."""
    try:
        return Spec.model_validate(tree)
    except ValidationError as problem:
        lines = list(explain(problem, Spec))
        head = f"{where}: {max(problem.error_count(), len(lines))} problems"
        raise SpecError("\n  ".join([head, *lines]) if len(lines) > 1 else f"{where}: {lines[0]}") from None


def parse_recorded(tree: dict[str, Any], where: str = "spec") -> Spec:
    """Like `parse`, for a spec that any version of fercli has saved: in a run folder, a checkpoint or a model file."""
    return parse(up_to_date(tree), where)


def up_to_date(tree: dict[str, Any]) -> dict[str, Any]:
    """A spec that fercli has saved, with its keys renamed to this version's names.

    This lets runs of earlier versions be resumed and compared. Users' own files are not translated: `explain` reports
    the new name.
    """
    stages = {name: tree[name] for name in ("train_source", "adapt") if isinstance(tree.get(name), dict)}
    renamed = {name: {RENAMED.get(key, key): value for key, value in stage.items()} for name, stage in stages.items()}
    return {**tree, **renamed}


def in_run(tree: dict[str, Any], run: Path) -> dict[str, Any]:
    """A saved spec with the paths of prepared stores inside the run folder pointing to `run`, where it is now."""
    data = tree.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("datasets"), dict):
        return tree
    found = dict(data["datasets"])
    for name, entry in found.items():
        inside = run / "prepared" / str(name)
        if isinstance(entry, dict) and entry.get("store") and inside.is_dir():
            found[name] = {**entry, "store": str(inside)}
    return {**tree, "data": {**data, "datasets": found}}


def _of_run(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A spec that a run has saved in `folder`, the run's or a stage's, with the paths of the run's present location."""
    run = folder.parent if any((folder / name).exists() for name in ("best.ckpt", "last.ckpt")) else folder
    run = run if run.name else run.resolve()
    paths = tree.get("paths")
    moved = {"name": run.name, "paths": {**(paths if isinstance(paths, dict) else {}), "runs": str(run.parent)}}
    return in_run({**tree, **moved}, run)


def _is_record(path: Path) -> bool:
    """Whether a run has saved this spec file, next to its checkpoints or one folder above."""
    saved = ("best.ckpt", "last.ckpt", "*/best.ckpt", "*/last.ckpt")
    return path.name == "spec.yaml" and any(next(path.parent.glob(below), None) for below in saved)


def explain(problem: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield one line per problem (key path, value, allowed values), and one line for all beyond the first twenty."""
    found = problem.errors(include_url=False)
    for item in found[:_MOST_PROBLEMS]:
        path = brief(".".join([prefix, *map(str, item["loc"])] if prefix else map(str, item["loc"])))
        value = brief(repr(item["input"]))
        if item["type"] == "extra_forbidden":
            *parents, key = item["loc"]
            yield f"{path}: {_unknown(str(key), _keys_at(model, parents), path)}"
        elif item["type"] == "literal_error":
            yield f"{path}: {value} is not allowed; choose one of {item['ctx']['expected'].replace(' or ', ', ')}"
        elif item["type"] == "value_error":
            yield from (f"{path + ': ' if path else ''}{line}" for line in str(item["ctx"]["error"]).splitlines())
        elif item["type"] == "string_type" and isinstance(item["input"], int | float | date):
            yield f"{path}: {value}: write it in quotes, '{item['input']}'"
        else:
            yield f"{path}: {value}: {item['msg'][0].lower()}{item['msg'][1:]}"
    if len(found) > _MOST_PROBLEMS:
        yield f"and {len(found) - _MOST_PROBLEMS} more"


def _unknown(key: str, known: list[str], path: str) -> str:
    new = RENAMED.get(key)
    if new in known:
        return f"renamed to {new} in 0.3; write {path.removesuffix(key)}{new}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"unknown key ({hint})"


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if len(parents) > MAX_DEPTH:
        raise SpecError(f"--set {brief(path)}: no key of the spec is nested that deep")
    for key in parents:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[last] = value


def _keys_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for key in path:
        field = model.model_fields.get(str(key))
        inner = field.annotation if field else None
        inner = next((one for one in get_args(inner) if one is Sweep), inner)  # Sweep | None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            # The values of a mapping (data.datasets.NAME) are Dataset sections.
            return list(Dataset.model_fields)
        model = inner
    return list(model.model_fields)
