"""A stage's folder: made once, worked in by one command at a time, and taken up again only by the same run."""

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

#: Sections (and keys) that two commands of one run must agree on. Epochs may be raised; devices and logging may change.
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
#: Keys of them that may differ all the same.
FREE = frozenset({"epochs", "patience", "start"})
#: The section of a stage.
_PLANS = {"source": "train_source", "adapt": "adapt"}


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights, so that an adaptation knows which source model it started from."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_of(spec: Spec, stage: str, stores: Sequence[Store]) -> dict[str, Any]:
    """What every checkpoint of a stage says of itself.

    Args:
        stores: what it is trained on. Those of the spec's sources count with their labels.
    """
    return {
        "kind": "fercli",
        "stage": stage,
        "spec": json.loads(spec.model_dump_json()),
        "stores": {store.name: store.content_digest(store.name in spec.data.source) for store in stores},
    }


def write_environment(folder: Path, record: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Write what a finished stage says of itself (`fercli.engine.log.Environment`).

    Args:
        record: of its checkpoints.
        told: the rest of the document, its ``outcome`` among it.
    """
    model = digest(checkpoint.load(folder / "best.ckpt")["network"])
    made_of = {key: record[key] for key in ("stores", "source_model") if key in record}
    document = {**told, "made_of": {**made_of, "model": model}}
    write_atomically(folder / ENVIRONMENT, json.dumps(document, indent=2).encode())


def prepared_again(record: Mapping[str, Any], stores: Sequence[Store]) -> list[Store]:
    """Those stores that hold other faces than a stage was trained on, by its record (`record_of`).

    Records of earlier versions do not tell the faces, but for the names of a target's.
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
    """Make the stage folder, or check that what lies there is this same run, and keep others out of it. Yields it.

    Of processes that train together all must call it.

    Args:
        record: from `record_of`, of the same stores.
        restart: remove what lies there.

    Raises:
        FercliError: the folder cannot be made, another command works in it, or it holds a run with other settings or
            of other faces.
    """
    with ExitStack() as held:
        distributed.on_rank_zero(_open_folder, held, folder, record, stores, restart)
        yield folder


def _open_folder(held: ExitStack, folder: Path, record: dict[str, Any], stores: Sequence[Store], restart: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(
            f"cannot make {folder}: {problem.strerror}", "set paths.runs to a folder to write in"
        ) from None
    stage = record["stage"]
    held.enter_context(only_one(folder, _PLANS[stage].replace("_", "-")))
    for below in ("outputs", "candidates"):
        remove_half_written(folder / below)
    if restart:
        # Without a checkpoint nothing of the old run can pass for the new one's, should a kill come here.
        empty_folder(folder, first=("last.ckpt", "best.ckpt"))
    last = folder / "last.ckpt"
    if last.exists():
        old = checkpoint.load(last)
        # Along a cosine every step's rate depends on the number of epochs.
        free = FREE - {"epochs"} if record["spec"][_PLANS[stage]]["schedule"] == "cosine" else FREE
        problem = differences(resolved(old["spec"]), record["spec"], FIXED[stage], free)
        if not problem and old.get("source_model") != record.get("source_model"):
            problem = "from another source model"
        other = [] if problem else prepared_again(old, stores)
        if other:
            problem = f"{', '.join(store.name for store in other)} was prepared again, with other faces"
        if problem:
            raise FercliError(
                f"{folder} was begun with other settings ({problem})",
                "give the run another name, or begin it again (--restart; of a sweep, by removing that folder)",
            )
    text = to_yaml(Spec.model_validate(record["spec"])).encode()
    write_atomically(folder / "spec.yaml", text)
    # Adaptations may run at the same time, and differ: what the run's own spec says is the source stage's.
    run = folder.parent / "spec.yaml"
    if stage == "source":
        remove_half_written(folder.parent, f"{run.name}.*")
    if stage == "source" or not run.exists():
        write_atomically(run, text)


def resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a checkpoint as this version would write it: keys that fercli did not have yet at their defaults.

    One that cannot be read is returned as it is.
    """
    try:
        return json.loads(Spec.model_validate(up_to_date(spec)).model_dump_json())
    except ValueError:
        return spec


def differences(old: dict[str, Any], new: dict[str, Any], paths: tuple[str, ...], free: frozenset[str]) -> str:
    """What differs at the key paths, as "model.width 16 -> 24", or an empty string."""
    found = []
    for path in paths:
        a, b = old, new
        for key in path.split("."):
            a, b = a.get(key, {}), b.get(key, {})
        found += [f"{where} {x} -> {y}" for where, (x, y) in spec_differences(a, b, path, free).items()]
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
