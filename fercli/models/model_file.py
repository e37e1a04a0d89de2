"""A whole model in one safetensors file: the network's tensors, and the other facts of a checkpoint in the metadata.

The file cannot hold code. Its tensors have the names of the network's state, so that any safetensors reader can read
them. If a method predicts through its own networks, their tensors are stored too, under ``method.``. Two entries of the
metadata, which maps names to text, are fercli's:

- ``fercli.format``: the number of this layout, `FORMAT`;
- ``fercli.record``: JSON of `Record`.

Settings of the machine that trained the model are left out: see `portable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from fercli.errors import FercliError
from fercli.files import is_file_name
from fercli.models.reading import BROKEN, check_plain, is_plain, is_safetensors, shown, some
from fercli.spec import Section, Spec, parse, parse_recorded, up_to_date
from fercli.spec.load import explain
from fercli.spec.plugins import is_place
from fercli.spec.registry import METHODS, ORACLE, RULES, SOURCE_TEST
from fercli.spec.schema import Fraction
from fercli.version import __version__

FORMAT = 1
_MARK, _RECORD, _METHOD = "fercli.format", "fercli.record", "method."

#: The hint for a file that has changed since it was written.
_AGAIN = "download, copy or export it again: fercli weights export RUN FILE --format fercli"

_Row = Annotated[list[Fraction], Field(min_length=7, max_length=7)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class Foreign(FercliError):
    """A file is neither a fercli checkpoint nor a model in one file; another program may have written it."""


class NoCheckpoint(ValueError):
    """The document is not a fercli checkpoint."""


class Best(Section):
    """The chosen epoch: its number, its score, and the selection rule's name (`fercli.spec.registry`).

    Before the end of the first epoch the score is minus infinity. Some rules have no score (NaN).
    """

    model_config = ConfigDict(allow_inf_nan=True)

    epoch: _Count
    score: float | None
    rule: str
    #: Why an adaptation was rejected in favour of its starting model; `epoch` is 0 then.
    kept: str | None = None

    @field_validator("rule")
    @classmethod
    def _rule_exists(cls, value: str) -> str:
        if value not in (*RULES, ORACLE, SOURCE_TEST):
            raise ValueError(f"{value!r} is not a selection rule; choose one of {', '.join(RULES)}")
        return value


class ModelFacts(Section):
    """What a checkpoint and a model in one file record about their model, besides its tensors.

    Attributes:
        stage: "source", or "adapt" for a model that was adapted to `target` with `method_name`.
        decision: the decision rule.
        best: the chosen epoch.
        epoch: the epoch that training had reached when the file was written.
        step: the step that training had reached then.
    """

    stage: Literal["source", "adapt"]
    decision: Literal["fused", "global+fused", "glpc"]
    best: Best
    epoch: _Count
    step: _Count
    method_name: str | None = None
    target: str | None = None

    @field_validator("method_name")
    @classmethod
    def _method_exists(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS and not is_place(value):
            raise ValueError(f"{value!r} is not a method; choose one of {', '.join(METHODS)}")
        return value

    @field_validator("target")
    @classmethod
    def _target_is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not is_file_name(value):
            raise ValueError(f"{value!r} cannot be a dataset's name")
        return value


class CheckpointFacts(ModelFacts):
    """What a checkpoint records in addition: the fercli version that wrote it, and digests of what it was made from."""

    fercli: str | None = None
    format: _Count = 0
    source_model: str | None = None
    target_faces: str | None = None
    stores: dict[str, str] = Field(default_factory=dict)


class Record(ModelFacts):
    """What a model in one file records about itself.

    Attributes:
        fercli: the version that trained it.
        status: b of the decision rule, [7 heads][7 expressions] in 0..1, or None.
        spec: the run spec that it was trained with, as data (`portable`).
        digest: the digest of the tensors as the file holds them (`digest_of`).
    """

    fercli: str
    status: Annotated[list[_Row], Field(min_length=7, max_length=7)] | None
    spec: dict[str, Any]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @field_validator("spec")
    @classmethod
    def _spec_is_one(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = up_to_date(value)
        try:
            Spec.model_validate(value)
        except ValidationError as problem:
            raise ValueError("\n".join(explain(problem, Spec))) from None
        return value

    @model_validator(mode="after")
    def _adapted_to_something(self) -> Record:
        if self.stage == "adapt" and (self.target is None or self.method_name is None):
            raise ValueError("stage adapt needs a target and a method_name")
        return self


def check_checkpoint(document: Any) -> None:
    """Check that a document, which may come from anybody, is a valid fercli checkpoint before any of it is used.

    Weights that are not finite are detected when they are loaded into a network. Entries that a checkpoint may lack
    (because an earlier version wrote it, or because it has only weights) are not required.

    Raises:
        NoCheckpoint: it is not a fercli checkpoint.
        ValueError: it cannot be used. The message says why and is meant to follow the file's name.
    """
    if not isinstance(document, Mapping) or not all(isinstance(document.get(key), dict) for key in ("network", "spec")):
        raise NoCheckpoint("is not a fercli checkpoint; load weights of other projects with model.weights")
    check_plain(document)
    strange = [name for name, value in document["network"].items() if not (isinstance(name, str) and is_plain(value))]
    if strange:
        raise ValueError(f"is damaged or was edited: its network has entries that are not tensors: {some(strange)}")
    facts = {"stage": "source", "decision": "fused", "best": {"epoch": 0, "score": None, "rule": "last"}}
    facts.update(epoch=0, step=0)
    try:
        known = {key: document[key] for key in CheckpointFacts.model_fields if key in document}
        CheckpointFacts.model_validate({**facts, **known})
    except ValidationError as problem:
        raise ValueError(f"is damaged or was edited: {first_problems(problem, CheckpointFacts)}") from None
    status = document.get("status")
    if status is None:
        return
    if not is_plain(status) or status.shape != (7, 7) or not bool(((status >= 0) & (status <= 1)).all()):
        raise ValueError("is damaged or was edited: its status is not a 7 x 7 table of numbers from 0 to 1")


def portable(spec: Spec) -> dict[str, Any]:
    """Return a run spec as data, without the settings of the machine where it ran.

    ``paths`` are set to the defaults. Datasets keep only their reader, since roots and reader options name files. The
    cluster and the sweep are left out. ``model.weights`` and ``adapt.start`` are reduced to the file's name, because a
    model card reports the starting model.
    """
    weights, start = spec.model.weights, spec.adapt.start
    kept = {
        "paths": {},
        "data": {"datasets": {name: {"reader": given.reader} for name, given in spec.data.datasets.items()}},
        "prepare": {"cluster": None},
        "model": {"weights": None if weights is None else weights.name},
        "adapt": {"start": None if start is None else Path(start).name},
        "sweep": None,
    }
    tree = json.loads(spec.model_dump_json())
    for section, values in kept.items():
        tree[section] = {**tree[section], **values} if values and section != "paths" else values
    return json.loads(parse(tree).model_dump_json())


def model_bytes(
    document: Mapping[str, Any], network: Mapping[str, Tensor], source: Path, transforms_output: bool
) -> bytes:
    """Return the bytes of a checkpoint as a model in one file.

    Args:
        document: the checkpoint, as `fercli.engine.checkpoint.load` returns it.
        network: its network's state, in the types that the file should have.
        source: the file it was read from, for error messages.
        transforms_output: whether its method predicts through its own networks; if so, the file includes them.

    Raises:
        FercliError: the checkpoint lacks something that a whole model needs.
    """
    from safetensors.torch import save

    needed = [key for key in ("stage", "spec", "decision", "best") if key not in document]
    method = document.get("method") if transforms_output else {}
    if method is None:
        needed.append(f"state of {document['method_name']}'s networks")
    if needed:
        raise FercliError(
            f"{source} cannot be exported as one file: it has no {', no '.join(needed)}", "train it again"
        )
    tensors = {**network, **{f"{_METHOD}{name}": value.contiguous() for name, value in method.items()}}
    status, best = document.get("status"), document["best"]
    tree = {
        "fercli": document.get("fercli", __version__),
        **{key: document[key] for key in ("stage", "decision")},
        "status": None if status is None else status.tolist(),
        "best": {key: best.get(key) for key in Best.model_fields},
        **{key: document.get(key, 0) for key in ("epoch", "step")},
        **{key: document.get(key) for key in ("method_name", "target")},
        "spec": portable(parse_recorded(document["spec"], where=str(source))),
        "digest": digest_of(tensors),
    }
    try:
        record = Record.model_validate(tree)
    except ValidationError as problem:
        raise FercliError(f"{source} cannot be exported as one file: {first_problems(problem, Record)}") from None
    return _steady(save(tensors, {"format": "pt", _MARK: str(FORMAT), _RECORD: record.model_dump_json()}))


def _steady(data: bytes) -> bytes:
    """Sort a safetensors file's metadata, which the writer shuffles, so that one model always gives the same bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def holds_model(path: Path) -> bool:
    """Return whether a file is a model in one file, judging by its metadata; False also if it cannot be read."""
    from safetensors import safe_open

    try:
        if not (path.is_file() and is_safetensors(path)):
            return False
        with safe_open(path, framework="pt") as file:
            return _MARK in (file.metadata() or {})
    except Exception:  # the function that reads the file reports what is wrong with it
        return False


def read_model(path: Path) -> dict[str, Any]:
    """Read a model in one file, as `fercli.engine.checkpoint.load` reads a checkpoint; floats become float32.

    Raises:
        FercliError: the file is missing, truncated, damaged, edited, from a newer fercli, or contains only tensors.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except Exception:  # the bytes may be arbitrary
        raise FercliError(f"{path} {BROKEN}") from None
    record = _record(path, metadata)
    if digest_of(tensors) != record.digest:
        raise FercliError(f"{path} is damaged or was edited: its tensors have changed since it was written", _AGAIN)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    method = {name.removeprefix(_METHOD): value for name, value in tensors.items() if name.startswith(_METHOD)}
    tree = record.model_dump(exclude={"digest", "status"}, exclude_none=True)
    return {
        **tree,
        "kind": "fercli",
        "status": None if record.status is None else torch.tensor(record.status),
        "network": {name: value for name, value in tensors.items() if not name.startswith(_METHOD)},
        **({"method": method} if method else {}),
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _record(path: Path, metadata: Mapping[str, str]) -> Record:
    if _MARK not in metadata:
        raise Foreign(
            f"{path} contains only tensors, not a whole model",
            "start a training from them with model.weights, or export the model's run again: "
            "fercli weights export RUN FILE --format fercli",
        )
    mark, text = metadata[_MARK], metadata.get(_RECORD, "")
    if mark.isdecimal() and int(mark) > FORMAT:
        raise FercliError(
            f"{path} was written by a newer fercli (format {shown(mark)}) than this one ({__version__})",
            "update fercli",
        )
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if mark != str(FORMAT) or not isinstance(tree, dict):
        what = f"format {shown(mark)}" if mark != str(FORMAT) else "no record"
        raise FercliError(f"{path} is damaged or was edited: its metadata has {what}", _AGAIN)
    try:
        return Record.model_validate(tree)
    except ValidationError as problem:
        wrote = shown(tree.get("fercli"))
        raise FercliError(
            f"{path} was edited or was written by another version of fercli ({wrote}; this is {__version__}): "
            f"{first_problems(problem, Record)}",
            _AGAIN,
        ) from None


def first_problems(problem: ValidationError, model: type[Section]) -> str:
    """Return the first two problems in one line; text from the file is made safe to print."""
    lines = [shown(line) for line in explain(problem, model)]
    return "; ".join(lines[:2]) + (f" and {len(lines) - 2} more" if len(lines) > 2 else "")
