"""Writes fercli's checkpoints in the formats of other code, and reports what each format cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fercli.errors import FercliError
from fercli.files import disk_error, os_error_behind, replacing
from fercli.methods import method_in_file
from fercli.models.model_file import model_bytes
from fercli.models.names import Architecture, to_face_evolve_names, to_published_names
from fercli.models.reading import SAFETENSORS, some
from fercli.models.weights import Weights, misfits, own_network, read_weights
from fercli.output_files import check_output
from fercli.starter import is_starter, starter_file

#: Formats by name, and what each contains.
FORMATS: dict[str, str] = {
    "aglrls": "a released AGLRLS checkpoint: epoch, classwise (b), model",
    "face-evolve": "the IR backbone alone, as face.evoLVe names it",
    "torchvision": "the MobileNetV2 alone, as torchvision names it",
    "fercli": "a fercli checkpoint without the entries for resuming; .safetensors: a whole model in one file",
}

#: Entries of fercli's checkpoints that are needed only to resume training.
_FOR_RESUMING = ("optimizer", "meter", "rng")


class Exported(NamedTuple):
    """What was written: the file, its format, its tensors and numbers (parameters and buffers), what was left out."""

    path: Path
    format: str
    tensors: int
    numbers: int
    left_out: tuple[str, ...]


def export(
    source: str | Path, out: str | Path, kind: str = "aglrls", force: bool = False, half: bool = False
) -> Exported:
    """Write a fercli checkpoint in another format, completely or not at all.

    Unless `half` is set, every tensor is written unchanged, including the counters of batches seen:
    `fercli.models.weights.load_weights` reads back the same bits.

    Args:
        source: a checkpoint, or a folder with one (see `find_checkpoint`); ``starter`` is the model in the package.
        out: the file to write. If its name ends in ``.safetensors``, it contains only the tensors, written by
            safetensors; with kind ``fercli`` it is a whole model (`fercli.models.model_file`).
        kind: a key of `FORMATS`.
        force: whether an existing file may be replaced.
        half: store the network's floats as float16; integers are unchanged.

    Raises:
        FercliError: the source is not a fercli checkpoint, the format cannot hold it, float16 cannot hold its numbers,
            or the output exists.
    """
    source, out = starter_file() if is_starter(source) else find_checkpoint(Path(source)), Path(out)
    check_output("OUT", out, force, [source])
    weights = read_weights(source)
    description = weights.description
    if description.kind != "fercli":
        raise FercliError(
            f"{source} is not a fercli checkpoint ({description.title}); only fercli checkpoints can be exported,"
            " and model.weights reads the others directly"
        )
    network = own_network(description.architecture)
    problems = ["unknown architecture"] if network is None else misfits(weights, network)
    problems = list(map(str, problems)) or _obstacles(kind, description.architecture, weights.document, source)
    if problems:
        other = "" if kind == "fercli" or network is None else "; use --format fercli, which stores every fercli model"
        raise FercliError(f"{source} cannot be exported as {kind}: {'; '.join(problems)}{other}")
    state = {key: value.contiguous() for key, value in weights.state.items()}
    state = _halved(state, source) if half else state
    document, left_out = _document(kind, state, weights)
    data = None
    if out.suffix == SAFETENSORS:
        data, left = _safetensors(kind, document, source)
        left_out += left
    _write(out, document, data)
    state, _ = _state_of(document)
    return Exported(out, kind, len(state), sum(value.numel() for value in state.values()), tuple(left_out))


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint for a path: a file, the ``best.ckpt`` in a folder, or that in its only stage folder.

    Raises:
        FercliError: there is no checkpoint, or several stages have one.
    """
    if not path.is_dir():
        return path  # errors are reported when it is read
    if (path / "best.ckpt").is_file():
        return path / "best.ckpt"
    found = sorted(path.glob("*/best.ckpt"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FercliError(
            f"{path} contains {len(found)} checkpoints ({', '.join(it.parent.name for it in found)});"
            " give one of these folders"
        )
    raise FercliError(
        f"{path} contains no best.ckpt", "give a checkpoint, or the folder of a run's stage (runs/NAME/source)"
    )


def _halved(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the state with floats as float16; raises FercliError if a number would become infinite."""
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    beyond = [key for key, value in halved.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if beyond:
        raise FercliError(
            f"{source} cannot be stored in float16, whose largest number is 65504: {some(beyond)} has larger numbers",
            "export it without --half",
        )
    return halved


def _safetensors(kind: str, document: dict[str, Any], source: Path) -> tuple[bytes, list[str]]:
    """Return the bytes of a .safetensors file, and which parts of the document it leaves out."""
    from safetensors.torch import save

    state, beside = _state_of(document)
    if kind == "fercli" and "spec" in document:
        transforms_output = _transforms_output(document, source)
        kept = set() if transforms_output else {"method"} & set(beside)
        left = [f"{', '.join(kept)}: needed only for training"] if kept else []
        return model_bytes(document, state, source, transforms_output), [
            *left,
            "paths, roots and options of datasets, sweep: they belong to the machine that trained it",
        ]
    if kind == "fercli":
        left = [f"a record of its training: {source} has none, so {SAFETENSORS[1:]} contains only tensors"]
    else:
        left = [f"{', '.join(beside)}: a .safetensors file contains only tensors"] if beside else []
    return save(state, {"format": "pt"}), left


def _obstacles(kind: str, architecture: Architecture, document: Mapping[str, Any], source: Path) -> list[str]:
    """Return the reasons why a format cannot hold a network."""
    published_ir = architecture.backbone == "ir" and not architecture.light
    said = []
    if kind == "aglrls" and not (published_ir or architecture.backbone == "mobilenet-v2-wide"):
        said.append(f"the format is for IR-50, IR-18 and mobilenet-v2-wide, but this is {architecture.title}")
    if kind == "face-evolve" and not published_ir:
        said.append(f"the format is for IR-50 and IR-18, but this is {architecture.title}")
    if kind == "torchvision" and architecture.backbone != "mobilenet-v2":
        said.append(f"the format is for MobileNetV2, but this is {architecture.title}")
    if kind == "aglrls":
        if architecture.classifiers != "shared":
            said.append("the format has three classifiers, but this network has seven (model.classifiers: separate)")
        if architecture.local != "feature-map":
            said.append("the format has no patch stems (model.local: image-crop)")
        if _transforms_output(document, source):
            name = document["method_name"]
            said.append(f"the format cannot store the networks of {name}, which its predictions need")
    return said


def _transforms_output(document: Mapping[str, Any], source: Path) -> bool:
    name = document.get("method_name")
    return name is not None and method_in_file(name, source).transforms_output


def _document(kind: str, state: dict[str, Tensor], weights: Weights) -> tuple[dict[str, Any], list[str]]:
    """Return the document to write, and which parts of the checkpoint it leaves out."""
    description, document = weights.description, weights.document
    if kind == "fercli":
        kept = {key: value for key, value in document.items() if key not in _FOR_RESUMING}
        dropped = [key for key in _FOR_RESUMING if key in document]
        # a bare fercli state (safetensors) has no record to keep
        return ({**kept, "network": state} if "network" in document else {"network": state}), (
            [f"{', '.join(dropped)}: needed only to resume training"] if dropped else []
        )
    if kind == "aglrls":
        status = description.class_status
        classwise = {} if status is None else {"classwise": [row.clone() for row in status]}
        epoch = {} if description.epoch is None else {"epoch": description.epoch}
        missing = [] if classwise else ["classwise: the checkpoint has no learning status b"]
        return {**epoch, **classwise, "model": to_published_names(state)}, missing
    parts = dict.fromkeys(key.split(".", 1)[0] for key in state if not key.startswith("backbone."))
    if kind == "face-evolve":
        return to_face_evolve_names(state), [f"{', '.join(parts)}: the format contains only a backbone"]
    begin = "backbone.features."
    features = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith(begin)}
    return features, [f"backbone.project_*, {', '.join(parts)}: the format contains only torchvision's layers"]


def _state_of(document: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the network's tensors in the document to write, and the names of its other entries."""
    place = next((key for key in ("network", "model") if isinstance(document.get(key), Mapping)), None)
    return (document, []) if place is None else (document[place], [key for key in document if key != place])


def _write(out: Path, document: dict[str, Any], data: bytes | None) -> None:
    """Write `data`, or if it is None the document, with torch."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            if data is None:
                torch.save(document, file)
            else:
                file.write(data)
    except (OSError, RuntimeError) as failure:
        problem = os_error_behind(failure)  # torch.save wraps errors of its file in its own errors
        if problem is None:
            raise
        full = disk_error(problem, out)
        if full is not problem:
            raise full from problem
        raise FercliError(f"cannot write {out}: {problem.strerror or problem}") from problem
