"""The kinds of checkpoint files that are known, and what each says of itself.

Whatever is read here was written by anybody: texts are taken by `fercli.models.reading.shown`, numbers within reason.
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
        title: what people call it.
        parts: the parts of our network that it fills; the others keep their first weights.
        unused: beginnings of names that it brings and our network has no place for, and why.
    """

    title: str
    parts: tuple[str, ...]
    unused: Mapping[str, str]


_CLASSIFIER = "AGRA's classifier, of the features its graph networks make"
_MEANS = "AGRA's mean features of classes and domains"
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
    "face-evolve": Kind(
        "face.evoLVe backbone", ("backbone",), {"output_layer.": "the embedding by which faces are recognised"}
    ),
    "torchvision": Kind(
        "torchvision MobileNetV2",
        ("backbone",),
        {"features.18.": "the layer that our projection to 512 channels replaces", "classifier.": "ImageNet's classes"},
    ),
}

#: No epoch and no score is that large, whatever a file says.
_IMMENSE = 10**9

#: Entries of a checkpoint beside the network's state, and what they are.
BESIDE = {
    "optimizer": "the optimizer's state",
    "optimizer_ad": "the discriminators' optimizer's state",
    "ad_nets": "the discriminators",
    "method": "the method's own networks and banks",
    "rng": "the state of the random numbers",
    "meter": "running means of the losses",
}


class LeftOver(NamedTuple):
    """What a file holds and our network does not take: a name or its beginning, how many tensors (or None), why."""

    name: str
    tensors: int | None
    why: str


@dataclass(frozen=True)
class Description:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        kind: a key of `KINDS`.
        architecture: depth, width, classifiers and local features, guessed from names and shapes.
        tensors: how many tensors the state has; `parameters`: how many numbers in those that our network would use.
        parts: parts of our network that the file fills.
        epoch: as the file says, or None.
        class_status: float [7 heads, 7 expressions], AGLRLS's learning status b (``classwise``, ours ``status``), or
            None where the file has none.
        left_over: what our network does not take.
        record: of our own checkpoints what they say of themselves: run, stage, source, method, target, selection,
            decision, fercli; keys they lack are missing. Of others {}.
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
        """What people call this kind of file."""
        return KINDS[self.kind].title


def kind_of(state: Mapping[str, Tensor], place: str | None) -> str | None:
    """Tell a file's kind (a key of `KINDS`) from its tensors' names and the entry that held them; None if unknown."""
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
    """List what our network does not take: of the state's tensors, and of what held it."""
    unused = KINDS[kind].unused
    tensors = [LeftOver(f"{begin}*", sum(key.startswith(begin) for key in state), why) for begin, why in unused.items()]
    entries = [LeftOver(key, None, why) for key, why in BESIDE.items() if holder.get(key) is not None]
    return (*(it for it in tensors if it.tensors), *entries)


def epoch_of(document: Mapping[str, Any]) -> int | None:
    """The ``epoch`` of a checkpoint, or None where it has none."""
    epoch = document.get("epoch")
    return epoch if isinstance(epoch, int) and 0 <= epoch < _IMMENSE else None


def class_status_of(kind: str, document: Mapping[str, Any]) -> Tensor | None:
    """Read b, a list of seven tensors of seven (AGLRLS) or one tensor (ours), as float [7, 7]; None for all else."""
    value = document.get("status" if kind == "fercli" else "classwise")
    rows = list(value) if isinstance(value, list | tuple) or (is_plain(value) and value.ndim) else []
    if len(rows) != len(HEADS) or any(not is_plain(row) or row.shape != (7,) for row in rows):
        return None
    status = torch.stack([row.detach().float() for row in rows])
    return status if bool(status.isfinite().all()) else None


def record_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read what a checkpoint of ours says of itself (see `Description.record`)."""

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
