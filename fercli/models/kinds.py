"""The known kinds of checkpoint file, and what each file records about itself.

Anybody may have written these files: texts pass through `fercli.models.reading.shown`, and numbers are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fercli.models.heads import HEADS
from fercli.models.names import Architecture
from fercli.models.reading import is_plain, shown

_WHOLE = ("backbone", "global_head", "patch_stems", "local_nets", "classifiers")


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        title: its usual name.
        parts: the parts of our network that it fills; the others keep their initial weights.
        unused: name prefixes of the tensors that our network has no place for, and what those tensors are.
    """

    title: str
    parts: tuple[str, ...]
    unused: Mapping[str, str]


_CLASSIFIER = "AGRA's classifier, which reads the features of its graph networks"
_MEANS = "AGRA's mean features per class and domain"
KINDS: dict[str, Kind] = {
    "fercli": Kind("fercli checkpoint", _WHOLE, {}),
    "aglrls": Kind("AGLRLS/CGLRL checkpoint", _WHOLE, {}),
    "agra": Kind(
        "AGRA checkpoint",
        ("backbone", "global_head", "local_nets"),
        {
            "fc.": _CLASSIFIER,
            "loc_fc.": _CLASSIFIER,
            "GCN.": "AGRA's graph networks",
            **dict.fromkeys(("SourceMean.", "TargetMean.", "SourceBN.", "TargetBN."), _MEANS),
        },
    ),
    "face-evolve": Kind("face.evoLVe backbone", ("backbone",), {"output_layer.": "the embedding for face recognition"}),
    "torchvision": Kind(
        "torchvision MobileNetV2",
        ("backbone",),
        {
            "features.18.": "the layer that fercli's projection to 512 channels replaces",
            "classifier.": "ImageNet's classifier",
        },
    ),
}

#: Epochs and scores from this size on are ignored, whatever a file says.
_IMMENSE = 10**9

#: Entries of a checkpoint other than the network's state, and what they are.
BESIDE = {
    "optimizer": "the optimizer's state",
    "optimizer_ad": "the discriminators' optimizer's state",
    "ad_nets": "the discriminators",
    "method": "the method's own networks and banks",
    "rng": "the state of the random number generators",
    "meter": "running means of the losses",
}


class LeftOver(NamedTuple):
    """What a file holds and our network does not use: a name or prefix, the number of tensors (or None), and why."""

    name: str
    tensors: int | None
    why: str


@dataclass(frozen=True)
class Description:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        kind: a key of `KINDS`.
        architecture: depth, width, classifiers and local features, inferred from names and shapes.
        tensors: the number of tensors in the state.
        parameters: the number of values in the tensors that our network would use.
        parts: parts of our network that the file fills.
        epoch: the epoch that the file records, or None.
        class_status: float [7 heads, 7 expressions], AGLRLS's learning status b (``classwise``, in our files
            ``status``), or None if the file has none.
        left_over: what our network does not use.
        record: what our own checkpoints record: run, stage, source, method, tag, target, selection, score, decision,
            fercli. Facts that the file lacks are left out. {} for other kinds.
    """

    path: Path
    kind: str
    architecture: Architecture
    tensors: int
    parameters: int
    parts: tuple[str, ...]
    epoch: int | None = None
    class_status: Tensor | None = None
    left_over: tuple[LeftOver, ...] = ()
    record: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """The usual name of this kind of file."""
        return KINDS[self.kind].title


def kind_of(state: Mapping[str, Tensor], place: str | None) -> str | None:
    """Infer a file's kind (a key of `KINDS`) from its tensors' names and the entry that held them; None if unknown."""
    heads = {key.split(".", 1)[0] for key in state}
    if (place == "network" and heads & set(_WHOLE)) or {"backbone", "global_head", "local_nets"} <= heads:
        return "fercli"
    if heads & {"GCN", "SourceMean", "TargetMean", "fc", "loc_fc"} and "Crop_Net" in heads:
        return "agra"
    if "Crop_Net" in heads or {"input_layer", "layer1"} <= heads:
        return "aglrls"
    if {"input_layer", "body"} <= heads:
        return "face-evolve"
    if "features.1.conv.0.0.weight" in state:
        return "torchvision"
    return None


def left_over(kind: str, state: Mapping[str, Tensor], holder: Mapping[str, Any]) -> tuple[LeftOver, ...]:
    """List what our network does not use, both of the state's tensors and of the mapping that held the state."""
    unused = KINDS[kind].unused
    tensors = [LeftOver(f"{begin}*", sum(key.startswith(begin) for key in state), why) for begin, why in unused.items()]
    entries = [LeftOver(key, None, why) for key, why in BESIDE.items() if holder.get(key) is not None]
    return (*(it for it in tensors if it.tensors), *entries)


def epoch_of(document: Mapping[str, Any]) -> int | None:
    """Return the ``epoch`` of a checkpoint, or None if it has none."""
    epoch = document.get("epoch")
    return epoch if isinstance(epoch, int) and 0 <= epoch < _IMMENSE else None


def class_status_of(kind: str, document: Mapping[str, Any]) -> Tensor | None:
    """Read b, a list of seven tensors of seven (AGLRLS) or one tensor (ours), as float [7, 7]; else return None."""
    value = document.get("status" if kind == "fercli" else "classwise")
    rows = list(value) if isinstance(value, list | tuple) or (is_plain(value) and value.ndim) else []
    if len(rows) != len(HEADS) or any(not is_plain(row) or row.shape != (7,) for row in rows):
        return None
    status = torch.stack([row.detach().float() for row in rows])
    return status if bool(status.isfinite().all()) else None


def record_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read what one of our checkpoints records about itself (see `Description.record`)."""

    def at(*keys: str) -> Any:
        value: Any = document
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(*keys: str) -> str | None:
        value = at(*keys)
        return shown(value) if isinstance(value, str) and value else None

    adapting, source, score = at("stage") == "adapt", at("spec", "data", "source"), at("best", "score")
    found = {
        "run": text("spec", "name"),
        "stage": text("stage"),
        "source": [shown(name) for name in source] if isinstance(source, list) else None,
        "method": text("method_name") if adapting else text("stage") and "source-only",
        "tag": text("spec", "adapt", "tag") if adapting else None,
        "target": text("target"),
        "selection": text("best", "rule"),
        "score": score if isinstance(score, int | float) and abs(score) < _IMMENSE else None,
        "decision": text("decision"),
        "fercli": text("fercli"),
    }
    return {key: value for key, value in found.items() if value is not None}
