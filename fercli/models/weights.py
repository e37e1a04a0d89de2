"""Other people's checkpoints: what is in a file, and its tensors into our network.

A checkpoint is input, not code: every file is read with ``torch.load(weights_only=True)``, and a file that needs more
than tensors and plain values is refused. Five kinds are known:

- ``fercli``: our own, a dict with the network's state under ``network``;
- ``aglrls``: AGLRLS and CGLRL, a dict with the state under ``model``, in the names that `to_published_names` gives;
- ``agra``: AGRA and its baselines in the CD-FER benchmark, the same backbone and crop nets, but other classifiers;
- ``face-evolve``: an IR backbone of face.evoLVe (``input_layer``, ``body.N``; its ``output_layer`` is not used);
- ``torchvision``: ImageNet weights of torchvision's MobileNetV2.

A state found bare, under ``state_dict``, or with DataParallel's ``module.`` before each name is accepted likewise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fercli.errors import FercliError
from fercli.models.names import Architecture, architecture_of, from_face_evolve_names, from_published_names

#: Parts of the network that each kind of file fills; the others keep their first weights.
PARTS: dict[str, tuple[str, ...]] = {
    "fercli": ("backbone", "global_head", "patch_stems", "local_nets", "classifiers"),
    "aglrls": ("backbone", "global_head", "patch_stems", "local_nets", "classifiers"),
    "agra": ("backbone", "global_head", "local_nets"),
    "face-evolve": ("backbone",),
    "torchvision": ("backbone",),
}

_KIND_TITLES = {
    "fercli": "fercli checkpoint",
    "aglrls": "AGLRLS/CGLRL checkpoint",
    "agra": "AGRA checkpoint",
    "face-evolve": "face.evoLVe backbone",
    "torchvision": "torchvision MobileNetV2",
}

#: Names that a kind of file brings and our network has no place for.
_UNUSED = {
    "agra": ("fc.", "loc_fc.", "GCN.", "SourceMean.", "TargetMean.", "SourceBN.", "TargetBN."),
    "face-evolve": ("output_layer.",),
    "torchvision": ("features.18.", "classifier."),
}

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMED_AT_MOST = 6


@dataclass(frozen=True)
class Description:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        kind: a key of `PARTS`.
        architecture: depth, width, classifiers and local features, guessed from names and shapes.
        tensors: how many tensors the state has; `parameters`: how many numbers in those that our network would use.
        parts: parts of our network that the file fills.
        epoch: as the file says, or None.
        class_status: [7 heads, 7 expressions], AGLRLS's learning status b (the file's ``classwise``), or None.
    """

    path: Path
    kind: str
    architecture: Architecture
    tensors: int
    parameters: int
    parts: tuple[str, ...]
    epoch: int | None = None
    class_status: Tensor | None = None

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        size = f"{self.parameters / 1e6:.2f} M parameters"
        return f"{_KIND_TITLES[self.kind]}: {self.architecture}, {size} in {self.tensors} tensors{epoch}"


def inspect(path: str | Path) -> Description:
    """Tell what a checkpoint file holds, without a network to put it into.

    Raises:
        FercliError: the file is missing, empty, truncated, no checkpoint of a known kind, or asks to run code.
    """
    return _read(Path(path))[0]


def load_weights(network: nn.Module, path: str | Path) -> Description:
    """Fill `network` (a `GlobalLocal`) from a checkpoint file; all that fits or nothing.

    Counters of batches seen (``num_batches_tracked``) may be missing; half-precision tensors are widened.

    Returns:
        What the file holds; its ``parts`` are now filled, the other parts keep their first weights.

    Raises:
        FercliError: as `inspect`, or the file does not fit: one line that names every misfit (another architecture,
            tensors missing, unexpected, of another shape or type, not finite). The network is left as it was.
    """
    description, state = _read(Path(path))
    problems = _misfits(network, description, state)
    if problems:
        title = _KIND_TITLES[description.kind]
        raise FercliError(f"weights {path} ({title}) do not fit the network: {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)
    return description


def _read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """Return what the file holds and its state in our names, less what our network has no place for."""
    document = _load(path)
    if not isinstance(document, Mapping):
        raise FercliError(
            f"weights {path}: holds a {type(document).__name__}, not a dict of tensors; give a checkpoint file"
        )
    kind_by_place = {"network": "fercli", "model": "aglrls", "state_dict": None}
    place = next((key for key in kind_by_place if isinstance(document.get(key), Mapping)), None)
    state = document if place is None else document[place]
    strange = [key for key, value in state.items() if not (isinstance(key, str) and _is_plain(value))]
    if strange or not state:
        what = f"is not a plain tensor at {_some(strange)}" if strange else "is empty"
        raise FercliError(
            f"weights {path}: no checkpoint of a kind known here, since its state {what};"
            " known are fercli, AGLRLS, AGRA, face.evoLVe and torchvision MobileNetV2 files"
        )
    state = {key.removeprefix("module."): value for key, value in state.items()}
    kind = _kind(state, kind_by_place.get(place))
    if kind is None:
        raise FercliError(
            f"weights {path}: {len(state)} tensors under names of no kind known here ({_some(state)});"
            " known are fercli, AGLRLS, AGRA, face.evoLVe and torchvision MobileNetV2 files"
        )
    tensors = len(state)
    state = {key: value for key, value in state.items() if not key.startswith(_UNUSED.get(kind, ()))}
    if kind in ("aglrls", "agra"):
        state = from_published_names(state)
    elif kind == "face-evolve":
        state = from_face_evolve_names(state)
    elif kind == "torchvision":
        state = {f"backbone.{key}": value for key, value in state.items()}
    epoch, status = document.get("epoch"), document.get("classwise")
    description = Description(
        path=path,
        kind=kind,
        architecture=architecture_of(state),
        tensors=tensors,
        parameters=sum(value.numel() for key, value in state.items() if not _is_buffer(key)),
        parts=PARTS[kind],
        epoch=epoch if isinstance(epoch, int) else None,
        class_status=_class_status(status),
    )
    return description, state


def _load(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FercliError(f"weights {path}: {what}; set model.weights to a checkpoint file, or to null for none")
    if path.stat().st_size == 0:
        raise FercliError(f"weights {path}: the file is empty; fetch or copy it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FercliError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the unpickler meets arbitrary bytes: KeyError, IndexError, EOFError, ...
        raise FercliError(f"weights {path}: {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return (
            f"asks to run code ({wanted[1]}) while it is read, which is refused;"
            " save its tensors alone with torch.save(model.state_dict(), file) where you trust it, and give that"
        )
    if "TorchScript" in text:
        return "is a TorchScript archive; give the checkpoint with the state_dict instead"
    if "central directory" in text or "unexpected EOF" in text or isinstance(error, EOFError):
        return "is truncated or damaged; fetch or copy it again"
    return "is not a PyTorch checkpoint, or is damaged; give a file that torch.save wrote"


def _is_plain(value: Any) -> bool:
    """Tell a strided tensor that holds its numbers from all else a file may hold (sparse, quantised, ...)."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.dtype in _FLOATS or value.dtype == torch.int64)
    )


def _kind(state: Mapping[str, Tensor], expected: str | None) -> str | None:
    heads = {key.split(".", 1)[0] for key in state}
    if expected == "fercli":
        return expected
    if {"backbone", "global_head", "local_nets"} <= heads:
        return "fercli"
    if heads & {"GCN", "SourceMean", "TargetMean", "fc", "loc_fc"} and "Crop_Net" in heads:
        return "agra"
    if "Crop_Net" in heads or {"input_layer", "layer1"} <= heads:
        return "aglrls"
    if {"input_layer", "body"} <= heads:
        return "face-evolve"
    if "features" in heads and "features.1.conv.0.0.weight" in state:
        return "torchvision"
    return None


def _class_status(value: Any) -> Tensor | None:
    """Read AGLRLS's ``classwise``, a list of seven tensors of seven (or one tensor), as [7, 7]."""
    rows = list(value) if isinstance(value, list | tuple | Tensor) else []
    if len(rows) != 7 or any(not _is_plain(row) or row.shape != (7,) for row in rows):
        return None
    return torch.stack([row.detach().float() for row in rows])


def _misfits(network: nn.Module, description: Description, state: Mapping[str, Tensor]) -> list[str]:
    ours = network.state_dict()
    problems = description.architecture.differences(architecture_of(ours), description.parts)
    if problems:
        return problems  # hundreds of names follow from it and would only hide it
    due = {key: value for key, value in ours.items() if key.split(".", 1)[0] in description.parts}
    if description.kind == "torchvision":
        due = {key: value for key, value in due.items() if not key.startswith("backbone.project_")}
    missing = [key for key in due if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in due]
    shared = [key for key in due if key in state]
    shapes = [
        f"{key} is {list(state[key].shape)}, here {list(due[key].shape)}"
        for key in shared
        if state[key].shape != due[key].shape
    ]
    types = [
        f"{key} is {state[key].dtype}"
        for key in shared
        if state[key].is_floating_point() != due[key].is_floating_point()
    ]
    # only tensors of our shapes are looked through: a hostile one may claim to be of any size
    broken = [key for key in shared if state[key].shape == due[key].shape and not bool(state[key].isfinite().all())]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another type": types,
        "with NaN or infinite numbers": broken,
    }
    return [f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
