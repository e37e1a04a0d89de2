"""Whether a stage of a sweep is finished, judged by the files in its folder. Loads no network and claims nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fercli.engine.folder import FIXED, FREE, differences, prepared_again
from fercli.engine.log import Environment, read_environment, read_scores
from fercli.errors import FercliError, SpecError
from fercli.evaluation.outputs import FOLDER, read_outputs
from fercli.spec import Spec, parse_recorded
from fercli.spec.registry import REFERENCE
from fercli.spec.yaml_data import read_yaml_file
from fercli.store import Store
from fercli.sweep.plan import Cell


def source_is_finished(spec: Spec, targets: Sequence[str], stores: Mapping[str, Store]) -> bool:
    """Whether a run's source model is trained and its outputs on the targets' scored faces are saved.

    Args:
        spec: the run's spec.
        stores: the stores of its sources, as far as they are prepared, and of the targets.
    """
    folder = spec.run_folder / "source"
    sources = [stores[name] for name in spec.data.source if name in stores]
    made = _finished(spec, folder, "source", sources)
    return made is not None and all(_are_there(folder, made, stores[name]) for name in targets)


def adaptation_is_finished(spec: Spec, target: str, stores: Mapping[str, Store]) -> bool:
    """Whether an adaptation is trained to its end."""
    of = [stores[name] for name in (*spec.data.source, target) if name in stores]
    return _finished(spec, spec.adapt_folder(target), "adapt", of) is not None


def cell_is_finished(cell: Cell, stores: Mapping[str, Store]) -> bool:
    """Whether a cell of a sweep is finished; for source-only, see `source_is_finished`."""
    if cell.method == REFERENCE:
        return source_is_finished(cell.spec, [cell.target], stores)
    return adaptation_is_finished(cell.spec, cell.target, stores)


def _finished(spec: Spec, folder: Path, stage: str, stores: Sequence[Store]) -> Environment | None:
    """The environment recorded in a stage's folder if the stage is finished according to the spec, otherwise None."""
    try:
        made = read_environment(folder)
        if made is None or not all((folder / name).exists() for name in _kept(spec, stage)):
            return None
        if other_settings(spec, folder, stage) or other_origins(spec, made, stores):
            return None
        return made if _to_the_end(spec, folder, stage, made) else None
    except FercliError:  # damaged: training reports it
        return None


def _kept(spec: Spec, stage: str) -> tuple[str, ...]:
    """Files that a finished stage has. With a starting model there is no checkpoint to resume from."""
    if stage == "source":
        return ("best.ckpt",) if spec.adapt.start is not None else ("best.ckpt", "last.ckpt", "../spec.yaml")
    return ("best.ckpt", "last.ckpt")


def _to_the_end(spec: Spec, folder: Path, stage: str, made: Environment) -> bool:
    if stage == "source" and spec.adapt.start is not None:
        return True
    plan, until = spec.train_source if stage == "source" else spec.adapt, made.trained_to
    if until is None:  # written by an earlier version
        return max(read_scores(folder), default=0) >= plan.epochs
    return until.epoch >= plan.epochs or (until.epochs, until.patience) == (plan.epochs, plan.patience)


def _are_there(folder: Path, made: Environment, target: Store) -> bool:
    try:
        _, about = read_outputs(folder / FOLDER / f"dataset-{target.name}.safetensors")
    except FercliError:
        return False
    return about.get("model") == made.made_of.model and about.get("faces") == target.faces_digest


def other_settings(spec: Spec, folder: Path, stage: str) -> str:
    """How a folder's run differs from the spec, or an empty string. Its results would appear under the wrong name."""
    path = folder / "spec.yaml"
    if not path.exists():
        return ""
    try:
        trained = parse_recorded(read_yaml_file(path), str(path))
    except SpecError:
        raise FercliError(f"{path} is damaged", f"remove {folder} and train that stage again") from None
    old, new = (json.loads(one.model_dump_json()) for one in (trained, spec))
    problem = differences(old, new, FIXED[stage], FREE)
    if stage == "adapt" and not problem:
        problem = differences(old, new, ("train_source",), frozenset())
    return f"trained with other settings ({problem})" if problem else ""


def other_origins(spec: Spec, made: Environment, stores: Sequence[Store]) -> str:
    """How the inputs of a finished model differ from the present ones, or an empty string.

    Args:
        stores: the prepared stores of its sources and its target.
    """
    record = {"stores": made.made_of.stores, "spec": {"data": {"source": spec.data.source}}}
    other = prepared_again(record, stores)
    if other:
        return f"{', '.join(store.name for store in other)} was prepared again after it was trained"
    start, source = made.made_of.source_model, read_environment(spec.run_folder / "source")
    if start and source is not None and source.made_of.model not in ("", start):
        return "not adapted from the run's current source model"
    return ""
