"""A stage's folder: made once, and taken up again only by a run with the same settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fercli.engine import checkpoint, ranks
from fercli.errors import FercliError
from fercli.files import write_atomically
from fercli.spec import Spec, to_yaml

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
FIXED = {"source": (*_SHARED, "train_source"), "adapt": (*_SHARED, "adapt")}
#: Keys of them that may differ all the same.
FREE = frozenset({"epochs", "patience"})
#: The section of a stage.
_PLANS = {"source": "train_source", "adapt": "adapt"}


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights, so that an adaptation knows which source model it started from."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_of(spec: Spec, stage: str) -> dict[str, Any]:
    """What every checkpoint of a stage says of itself."""
    return {"kind": "fercli", "stage": stage, "spec": json.loads(spec.model_dump_json())}


def open_folder(folder: Path, record: dict[str, Any], restart: bool) -> None:
    """Make the stage folder, or check that what lies there is this same run.

    Of processes that train together all must call it.

    Raises:
        FercliError: the folder cannot be made, or holds a run with other settings.
    """
    ranks.on_first(_open_folder, folder, record, restart)


def _open_folder(folder: Path, record: dict[str, Any], restart: bool) -> None:
    if restart and folder.exists():
        shutil.rmtree(folder)
    last = folder / "last.ckpt"
    if last.exists():
        old = checkpoint.load(last)
        stage = record["stage"]
        # Along a cosine every step's rate depends on the number of epochs.
        free = FREE - {"epochs"} if record["spec"][_PLANS[stage]]["schedule"] == "cosine" else FREE
        problem = differences(resolved(old["spec"]), record["spec"], FIXED[stage], free)
        if not problem and old.get("source_model") != record.get("source_model"):
            problem = "from another source model"
        if not problem and old.get("target_faces", record.get("target_faces")) != record.get("target_faces"):
            # Banks hold what was learned of each face by its position.
            problem = f"{record['target']} was prepared again, with other faces"
        if problem:
            raise FercliError(
                f"{folder} was begun with other settings ({problem}); give the run another name, or begin it anew "
                "(--restart; of a sweep, by removing that folder)"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(f"cannot make {folder}: {problem.strerror}; set paths.runs to a folder to write in") from None
    text = to_yaml(Spec.model_validate(record["spec"])).encode()
    write_atomically(folder / "spec.yaml", text)
    write_atomically(folder.parent / "spec.yaml", text)


def resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a checkpoint with the keys that fercli did not have yet when it was written, at their defaults.

    One that cannot be read is returned as it is.
    """
    try:
        return json.loads(Spec.model_validate(spec).model_dump_json())
    except ValueError:
        return spec


def differences(old: dict[str, Any], new: dict[str, Any], paths: tuple[str, ...], free: frozenset[str]) -> str:
    """What differs at the key paths, as "model.width 16 -> 24", or an empty string."""
    found = []

    def walk(path: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in [*a, *(k for k in b if k not in a)]:
                if key not in free:
                    walk(f"{path}.{key}", a.get(key), b.get(key))
        elif a != b:
            found.append(f"{path} {a} -> {b}")

    for path in paths:
        a, b = old, new
        for key in path.split("."):
            a, b = a.get(key, {}), b.get(key, {})
        walk(path, a, b)
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
