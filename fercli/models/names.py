"""Names of tensors (ours, the released AGLRLS code's, face.evoLVe's), and what names tell of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from fercli.models.backbones import IR_BLOCKS, LIGHT, MOBILE
from fercli.models.heads import REGIONS

T = TypeVar("T")


def _prefixes(blocks: int) -> tuple[tuple[str, str], ...]:
    """Beginnings of names, ours to published, where crop nets have so many `blocks`: their head is counted on.

    The heads stand before the blocks, which are less specific.
    """
    return (
        ("backbone.stem.", "input_layer."),
        *((f"backbone.stages.{i}.", f"layer{i + 1}.") for i in range(4)),
        ("global_head.conv.", "output_layer.0."),
        *((f"local_nets.nets.{i}.head.conv.", f"Crop_Net.{i}.{blocks}.") for i in range(len(REGIONS))),
        *((f"local_nets.nets.{i}.blocks.", f"Crop_Net.{i}.") for i in range(len(REGIONS))),
    )


#: By the beginning of a name, ours or published, that only inverted residuals have: 7 blocks to an IR net's 4.
_INVERTED = ("local_nets.nets.0.blocks.0.conv.", "Crop_Net.0.0.conv.")

#: The two halves of a block, ours to published.
_HALVES = ((".body.", ".res_layer."), (".shortcut.", ".shortcut_layer."))


def to_published_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a state of ours as the released AGLRLS checkpoints name it; a name they do not have stays as it is."""
    prefixes = _prefixes(_crop_blocks(state))
    return {_rename(key, prefixes, _HALVES): value for key, value in state.items()}


def from_published_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a state of a released AGLRLS checkpoint as ours; the inverse of `to_published_names`."""
    prefixes = tuple((theirs, ours) for ours, theirs in _prefixes(_crop_blocks(state)))
    halves = tuple((theirs, ours) for ours, theirs in _HALVES)
    return {_rename(key, prefixes, halves): value for key, value in state.items()}


def _crop_blocks(state: Mapping[str, T]) -> int:
    return 7 if any(key.startswith(_INVERTED) for key in state) else 4


def from_face_evolve_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a face.evoLVe IR backbone as ours.

    Its ``body.N`` counts the blocks through the stages; after stage 1 a stage begins where a block has a convolution
    for a shortcut, so that any depth is understood.
    """
    numbers = {key.split(".")[1] for key in state if key.startswith("body.")}
    widening = {key.split(".")[1] for key in state if key.startswith("body.") and ".shortcut_layer." in key}
    place, stage, block = {}, 0, -1
    for number in sorted((n for n in numbers if n.isdecimal() and len(n) < 5), key=int):
        stage, block = (stage + 1, 0) if number in widening else (stage, block + 1)
        place[number] = f"layer{stage + 1}.{block}"
    published = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        number, _, name = rest.partition(".")
        published[f"{place[number]}.{name}" if head == "body" and number in place else key] = value
    return from_published_names(published)


def to_face_evolve_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename the backbone in a state of ours, an IR net's, as face.evoLVe names it; the rest has no name there.

    The inverse of `from_face_evolve_names`.
    """
    published = to_published_names({key: value for key, value in state.items() if key.startswith("backbone.")})
    blocks = _blocks(state)
    renamed = {}
    for key, value in published.items():
        head, _, rest = key.partition(".")
        if head.startswith("layer"):
            block, _, rest = rest.partition(".")
            key = f"body.{sum(blocks[: int(head.removeprefix('layer')) - 1]) + int(block)}.{rest}"
        renamed[key] = value
    return renamed


def _blocks(state: Mapping[str, T]) -> tuple[int, ...]:
    """Count the blocks in each of the four stages of an IR net."""
    prefixes = [f"backbone.stages.{stage}." for stage in range(4)]
    return tuple(len({key.removeprefix(p).split(".")[0] for key in state if key.startswith(p)}) for p in prefixes)


def _rename(name: str, prefixes: tuple[tuple[str, str], ...], halves: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for half, renamed in halves:
                name = name.replace(half, renamed)
            return name
    return name


_TITLES = {"mobilenet-v2": "a MobileNetV2", "mobilenet-v2-wide": "a wide MobileNetV2 (the released checkpoints')"}


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of a state (in our names) tell of its network.

    Attributes:
        backbone: ``ir``, ``mobilenet-v2``, ``mobilenet-v2-wide``, ``unknown``, or one that is not built here:
            ``ir-se`` (squeeze-and-excite).
        blocks: blocks in each stage of an IR net, else ().
        width: channels of the stem of an IR net, else 0.
        light: whether an IR net's blocks have no PReLU (ours for CPUs).
        classifiers: ``shared``, ``separate``, or None where the state has none.
        local: ``feature-map``, ``image-crop``, or None where the state has no crop nets.
        classes: how many the classifiers distinguish, or None where they do not agree or there are none.
    """

    backbone: str
    blocks: tuple[int, ...] = ()
    width: int = 0
    light: bool = False
    classifiers: str | None = None
    local: str | None = None
    classes: int | None = None

    @property
    def title(self) -> str:
        """The backbone as people say it, with its article: an IR-50 has 50 layers, two for each block and two more."""
        if not self.blocks:
            return _TITLES.get(self.backbone, "an unknown backbone")
        name = f"{'IR-SE' if self.backbone == 'ir-se' else 'IR'}-{2 * sum(self.blocks) + 2}"
        if self.light:
            return f"a small {name} of width {self.width}"
        return f"an {name}" if self.width == 64 else f"an {name} of width {self.width}"

    @property
    def model(self) -> dict[str, Any] | None:
        """The run spec's ``model`` keys (without weights) for this network, or None where fercli builds none such.

        What the state does not tell is at its default.
        """
        rest = {"local": self.local or "feature-map", "classifiers": self.classifiers or "shared"}
        if self.backbone in MOBILE:
            return {"backbone": self.backbone, "width": 16, **rest}
        name = next((name for name, blocks in IR_BLOCKS.items() if blocks == self.blocks), None)
        if self.backbone != "ir" or name is None or self.light != (name in LIGHT):
            return None
        if not (4 <= self.width <= 64 if self.light else self.width == 64):
            return None
        return {"backbone": name, "width": self.width if self.light else 16, **rest}

    @property
    def setting(self) -> str | None:
        """The key of the run spec that asks for this backbone, or None if none does."""
        if self.model is None:
            return None
        width = f" and model.width: {self.width}" if self.light else ""
        return f"model.backbone: {self.model['backbone']}{width}"

    def __str__(self) -> str:
        blocks = f" (blocks {'-'.join(map(str, self.blocks))})" if self.blocks else ""
        local = f", local features from {self.local}" if self.local else ", backbone only"
        classifiers = f", {self.classifiers} classifiers" if self.classifiers else ""
        return f"{self.title}{blocks}{local}{classifiers}"

    def differences(self, asked: Architecture, parts: tuple[str, ...]) -> list[str]:
        """Say how this, a file's, differs from the network `asked` for, in the `parts` that the file is to fill."""
        said = []
        if "classifiers" in parts and self.classes is not None and self.classes != asked.classes:
            said.append(
                f"the file tells {self.classes} classes apart, fercli's expressions are {asked.classes}"
                " (give weights trained on these, or a backbone alone)"
            )
        mine, theirs = ((it.backbone, it.blocks, it.width, it.light) for it in (self, asked))
        if self.backbone != "unknown" and mine != theirs:
            remedy = f"set {self.setting}" if self.setting else "no setting of fercli builds the file's"
            said.append(f"the file is {self.title}, the spec asks for {asked.title} ({remedy})")
        for part, key in (("classifiers", "classifiers"), ("local_nets", "local")):
            value, wanted = getattr(self, key), getattr(asked, key)
            if part in parts and value is not None and value != wanted:
                said.append(f"the file has model.{key}: {value}, the spec asks for {wanted}")
        return said


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Guess the network from a state in our names."""
    blocks = _blocks(state)
    stem = state.get("backbone.stem.0.weight")
    if all(blocks) and stem is not None and stem.ndim:
        squeeze = any(key.startswith("backbone.stages.") and ".fc1." in key for key in state)
        light = "backbone.stages.0.0.body.2.weight" not in state
        found = Architecture("ir-se" if squeeze else "ir", blocks, stem.shape[0], light)
    elif "backbone.features.1.conv.0.0.weight" in state:
        found = Architecture("mobilenet-v2")
    else:
        inverted = any(key.startswith("backbone.stages.0.0.conv.") for key in state)
        found = Architecture("mobilenet-v2-wide" if inverted else "unknown")
    heads = len({key.split(".")[1] for key in state if key.startswith("classifiers.")})
    local = None
    if any(key.startswith("local_nets.") for key in state):
        local = "image-crop" if any(key.startswith("patch_stems.") for key in state) else "feature-map"
    classifiers = [
        v for key, v in state.items() if key.startswith("classifiers.") and key.endswith(".weight") and v.ndim
    ]
    classes = {value.shape[0] for value in classifiers}
    return replace(
        found,
        classifiers={3: "shared", 7: "separate"}.get(heads),
        local=local,
        classes=classes.pop() if len(classes) == 1 else None,
    )
