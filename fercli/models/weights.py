"""Loads checkpoints, ours and others': reads what a file holds and copies its tensors into our network.

A checkpoint is data, not code: see `fercli.models.reading`. There are five known kinds:

- ``fercli``: our own, a dict with the network's state under ``network``, or one file (`fercli.models.model_file`);
- ``aglrls``: AGLRLS and CGLRL, a dict with the state under ``model``, with the names of `to_published_names`;
- ``agra``: AGRA and its baselines in the CD-FER benchmark, with the same backbone and crop nets but other classifiers;
- ``face-evolve``: an IR backbone of face.evoLVe (``input_layer``, ``body.N``; its ``output_layer`` is not used);
- ``torchvision``: ImageNet weights of torchvision's MobileNetV2.

The state may be the whole file or under any key, with any prefixes in its names (`fercli.models.unwrapping`). Both
torch and safetensors files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fercli.errors import FercliError
from fercli.models.backbones import build_backbone
from fercli.models.global_local import GlobalLocal
from fercli.models.kinds import KINDS, Description, class_status_of, epoch_of, left_over, record_of
from fercli.models.model_file import check_checkpoint, holds_model, read_model
from fercli.models.names import Architecture, architecture_of, from_face_evolve_names, from_published_names
from fercli.models.reading import NAMED_AT_MOST, read_document, some
from fercli.models.unwrapping import unwrap
from fercli.spec import Model
from fercli.starter import NAME, starter_file

#: The parts of our MobileNetV2 that no torchvision file has.
_PROJECTIONS = ("backbone.project_local.", "backbone.project_global.")


class Misfit(NamedTuple):
    """One way in which a file does not fit: `what`, and the tensors concerned (none: the whole file)."""

    what: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.names)} {self.what}: {some(self.names)}" if self.names else self.what


class Weights(NamedTuple):
    """The content of a weights file.

    Attributes:
        description: what it holds.
        state: its network's tensors in our names.
        beside: tensors of the same state that our network has no place for, under the file's names.
        document: the mapping that held the state; empty if the state is the whole file.
    """

    description: Description
    state: dict[str, Tensor]
    beside: dict[str, Tensor]
    document: Mapping[str, Any]


def load_weights(network: nn.Module, path: str | Path) -> Description:
    """Fill `network` (a `GlobalLocal`) from a checkpoint file, completely or not at all.

    Batch counters (``num_batches_tracked``) may be missing; half-precision tensors are converted.

    Returns:
        What the file holds; its ``parts`` are now filled, the other parts keep their initial weights.

    Raises:
        FercliError: as in `read_weights`, or the file does not fit. One line names every misfit (another architecture
            or number of classes; tensors that are missing, unexpected, of another shape or type, or not finite). The
            network is not changed.
    """
    weights = read_weights(path)
    problems = misfits(weights, network)
    if problems:
        said = "; ".join(map(str, problems))
        if any(len(problem.names) > NAMED_AT_MOST for problem in problems):
            said += "; to list all of them: fercli weights inspect FILE -c SPEC"
        raise FercliError(f"weights {path} ({weights.description.title}) do not fit the network: {said}")
    network.load_state_dict(weights.state, strict=False)
    return weights.description


def read_weights(path: str | Path) -> Weights:
    """Read a checkpoint file of any kind.

    Args:
        path: the file. ``starter``, also as the Path that a spec stores, is the model that comes with fercli.

    Raises:
        FercliError: the file is missing, empty, truncated, not a checkpoint of a known kind, or asks to run code.
    """
    path = starter_file() if str(path) == NAME else Path(path)
    document = read_model(path) if holds_model(path) else read_document(path)
    if not isinstance(document, Mapping):
        raise FercliError(
            f"weights {path}: contains an object of type {type(document).__name__}, not a dict of tensors",
            "give a checkpoint file",
        )
    try:
        if document.get("kind") == "fercli":
            check_checkpoint(document)
        kind, whole, holder = unwrap(document)
    except ValueError as problem:
        raise FercliError(f"weights {path}: {problem}") from None
    beside = {key: value for key, value in whole.items() if key.startswith(tuple(KINDS[kind].unused))}
    state = {key: value for key, value in whole.items() if key not in beside}
    if kind in ("aglrls", "agra"):
        state = from_published_names(state)
    elif kind == "face-evolve":
        state = from_face_evolve_names(state)
    elif kind == "torchvision":
        state = {f"backbone.{key}": value for key, value in state.items()}
    description = Description(
        path=path,
        kind=kind,
        architecture=architecture_of(state),
        tensors=len(whole),
        parameters=sum(value.numel() for key, value in state.items() if not _is_buffer(key)),
        parts=KINDS[kind].parts,
        epoch=epoch_of(holder),
        class_status=class_status_of(kind, holder),
        left_over=left_over(kind, whole, holder),
        record=record_of(holder) if kind == "fercli" else {},
    )
    return Weights(description, state, beside, holder)


def misfits(weights: Weights, network: nn.Module) -> list[Misfit]:
    """List every way in which a file does not fit `network` (a `GlobalLocal`, on any device, even meta); [] if it fits.

    If the architectures differ, only that is listed: hundreds of names follow from it and would only hide it.
    """
    description, state, ours = weights.description, weights.state, network.state_dict()
    differences = description.architecture.differences(architecture_of(ours), description.parts)
    if differences:
        return [Misfit(text) for text in differences]
    due = {key: value for key, value in ours.items() if key.split(".", 1)[0] in description.parts}
    if description.kind == "torchvision":
        due = {key: value for key, value in due.items() if not key.startswith(_PROJECTIONS)}
    return unfit(state, due)


def unfit(state: Mapping[str, Tensor], due: Mapping[str, Tensor]) -> list[Misfit]:
    """List every way in which tensors differ from the `due` ones, on any device; [] if they match.

    Batch counters may be missing.
    """
    shared = [key for key in due if key in state]
    same = [key for key in shared if state[key].shape == due[key].shape]
    found = {
        "missing": [key for key in due if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in due],
        "of another shape": [
            f"{key} is {list(state[key].shape)}, not {list(due[key].shape)}" for key in shared if key not in set(same)
        ],
        "of another type": [
            f"{key} is {state[key].dtype}"
            for key in shared
            if state[key].is_floating_point() != due[key].is_floating_point()
        ],
        # only tensors of our shapes are checked: a hostile one may claim any size
        "with NaN or infinite numbers": [key for key in same if not bool(state[key].isfinite().all())],
    }
    return [Misfit(what, tuple(names)) for what, names in found.items() if names]


def first_weights(description: Description, network: nn.Module) -> list[str]:
    """Name the parts of `network` that keep their initial weights because the file does not fill them."""
    parts = dict.fromkeys(key.split(".", 1)[0] for key in network.state_dict())
    left = [part for part in parts if part not in description.parts]
    if description.kind == "torchvision" and "backbone.project_local.0.weight" in network.state_dict():
        left = [*(name.rstrip(".") for name in _PROJECTIONS), *left]
    return left


def empty_network(model: Model) -> GlobalLocal:
    """Build the network of a spec's ``model`` section on the meta device: names and shapes, without numbers."""
    with torch.device("meta"):
        backbone = build_backbone(model.backbone, model.width)
        return GlobalLocal(backbone, model.local, model.classifiers, test_flip=model.test_flip)


def own_network(architecture: Architecture) -> GlobalLocal | None:
    """Build the network of a file's architecture, as `empty_network` does; None if fercli cannot build it."""
    return None if architecture.model is None else empty_network(Model(**architecture.model))


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
