"""A stage's folder: created once, used by one command at a time, and resumed only by the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fercli.engine import checkpoint, distributed
from fercli.engine.log import ENVIRONMENT
from fercli.errors import FercliError
from fercli.evaluation.compare import spec_differences
from fercli.files import empty_folder, only_one, remove_half_written, write_atomically
from fercli.spec import Spec, to_yaml, up_to_date
from fercli.store import Store

#: Sections (and keys) that two commands of one run must agree on. Epochs may increase; devices and logging may change.
_SHARED = (
    "data.source",
    "data.balance",
    "data.validation",
    "data.augment",
    "prepare.size",
    "model",
    "engine.seed",
)
FIXED = {"source": (*_SHARED, "train_source"), "adapt": (*_SHARED, "faithful", "adapt")}
#: Keys in these sections that may still differ.
FREE = frozenset({"epochs", "patience", "start"})
#: Stage -> its section of the spec.
_PLANS = {"source": "train_source", "adapt": "adapt"}


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights, which identifies the source model that an adaptation started from."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_of(spec: Spec, stage: str, stores: Sequence[Store]) -> dict[str, Any]:
    """The record that every checkpoint of a stage carries.

    Args:
        stores: the stores it is trained on. For those of the spec's sources the digest covers the labels too.
    """
    return {
        "kind": "fercli",
        "stage": stage,
        "spec": json.loads(spec.model_dump_json()),
        "stores": {store.name: store.content_digest(store.name in spec.data.source) for store in stores},
    }


def write_environment(folder: Path, record: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Write the description of a finished stage (`fercli.engine.log.Environment`).

    Args:
        record: the record of its checkpoints.
        told: the rest of the document, including its ``outcome``.
    """
    model = digest(checkpoint.load(folder / "best.ckpt")["network"])
    made_of = {key: record[key] for key in ("stores", "source_model") if key in record}
    document = {**told, "made_of": {**made_of, "model": model}}
    write_atomically(folder / ENVIRONMENT, json.dumps(document, indent=2).encode())


def prepared_again(record: Mapping[str, Any], stores: Sequence[Store]) -> list[Store]:
    """The stores whose faces differ from those that a stage was trained on, according to its record (`record_of`).

    Records of earlier versions do not identify the faces, except for the names of a target's faces.
    """
    sources = record["spec"]["data"]["source"]
    other = []
    for store in stores:
        then = record.get("stores", {}).get(store.name)
        now = store.content_digest(store.name in sources)
        if then is None and record.get("target") == store.name:
            then, now = record.get("target_faces"), store.faces_digest
        if then not in (None, now):
            other.append(store)
    return other


@contextmanager
def stage_folder(folder: Path, record: dict[str, Any], stores: Sequence[Store], restart: bool) -> Iterator[Path]:
    """Create the stage folder, or check that it holds this same run; lock out other commands. Yields the folder.

    All processes that train together must call it.

    Args:
        record: from `record_of`, for the same stores.
        restart: remove what the folder contains.

    Raises:
        FercliError: the folder cannot be created, another command uses it, or it holds a run with different settings
            or faces.
    """
    with ExitStack() as held:
        distributed.on_rank_zero(_open_folder, held, folder, record, stores, restart)
        yield folder


def _open_folder(held: ExitStack, folder: Path, record: dict[str, Any], stores: Sequence[Store], restart: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(
            f"cannot create {folder}: {problem.strerror}", "set paths.runs to a writable folder"
        ) from None
    stage = record["stage"]
    held.enter_context(only_one(folder, _PLANS[stage].replace("_", "-")))
    for below in ("outputs", "candidates"):
        remove_half_written(folder / below)
    if restart:
        # Without a checkpoint nothing of the old run can be taken for the new one, even after a kill at this point.
        empty_folder(folder, first=("last.ckpt", "best.ckpt"))
    last = folder / "last.ckpt"
    if last.exists():
        old = checkpoint.load(last)
        # With a cosine schedule every step's rate depends on the number of epochs.
        free = FREE - {"epochs"} if record["spec"][_PLANS[stage]]["schedule"] == "cosine" else FREE
        problem = differences(resolved(old["spec"]), record["spec"], FIXED[stage], free)
        if not problem and old.get("source_model") != record.get("source_model"):
            problem = "adapted from another source model"
        other = [] if problem else prepared_again(old, stores)
        if other:
            problem = f"{', '.join(store.name for store in other)} was prepared again, with different faces"
        if problem:
            raise FercliError(
                f"{folder} was started with different settings ({problem})",
                "give the run another name, or start it again (--restart; for a sweep, remove that folder)",
            )
    text = to_yaml(Spec.model_validate(record["spec"])).encode()
    write_atomically(folder / "spec.yaml", text)
    # Adaptations may run at the same time with different specs: the run's own spec is that of the source stage.
    run = folder.parent / "spec.yaml"
    if stage == "source":
        remove_half_written(folder.parent, f"{run.name}.*")
    if stage == "source" or not run.exists():
        write_atomically(run, text)


def resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a checkpoint as this version would write it: newer keys get their defaults.

    A spec that cannot be read is returned unchanged.
    """
    try:
        return json.loads(Spec.model_validate(up_to_date(spec)).model_dump_json())
    except ValueError:
        return spec


def differences(old: dict[str, Any], new: dict[str, Any], paths: tuple[str, ...], free: frozenset[str]) -> str:
    """The differences at the key paths, as "model.width 16 -> 24", or an empty string."""
    found = []
    for path in paths:
        a, b = old, new
        for key in path.split("."):
            a, b = a.get(key, {}), b.get(key, {})
        found += [f"{where} {x} -> {y}" for where, (x, y) in spec_differences(a, b, path, free).items()]
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
