"""Tensor names (ours, the released AGLRLS code's, face.evoLVe's), and what they reveal about a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from fercli.models.backbones import IR_BLOCKS, LIGHT, MOBILE
from fercli.models.heads import REGIONS

T = TypeVar("T")


def _prefixes(blocks: int) -> tuple[tuple[str, str], ...]:
    """Return pairs of name prefixes, ours and the published one, for crop nets of `blocks` blocks.

    A crop net's head has the number after its last block. The heads come before the blocks, whose prefixes also match
    them.
    """
    return (
        ("backbone.stem.", "input_layer."),
        *((f"backbone.stages.{i}.", f"layer{i + 1}.") for i in range(4)),
        ("global_head.conv.", "output_layer.0."),
        *((f"local_nets.nets.{i}.head.conv.", f"Crop_Net.{i}.{blocks}.") for i in range(len(REGIONS))),
        *((f"local_nets.nets.{i}.blocks.", f"Crop_Net.{i}.") for i in range(len(REGIONS))),
    )


#: Name prefixes, ours and published, that only inverted residuals have; their crop nets have 7 blocks, IR nets 4.
_INVERTED = ("local_nets.nets.0.blocks.0.conv.", "Crop_Net.0.0.conv.")

#: The two parts of a block: our name and the published one.
_HALVES = ((".body.", ".res_layer."), (".shortcut.", ".shortcut_layer."))


def to_published_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename our state as in the released AGLRLS checkpoints; names without a counterpart there stay the same."""
    prefixes = _prefixes(_crop_blocks(state))
    return {_rename(key, prefixes, _HALVES): value for key, value in state.items()}


def from_published_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename the state of a released AGLRLS checkpoint to our names; the inverse of `to_published_names`."""
    prefixes = tuple((theirs, ours) for ours, theirs in _prefixes(_crop_blocks(state)))
    halves = tuple((theirs, ours) for ours, theirs in _HALVES)
    return {_rename(key, prefixes, halves): value for key, value in state.items()}


def _crop_blocks(state: Mapping[str, T]) -> int:
    return 7 if any(key.startswith(_INVERTED) for key in state) else 4


def from_face_evolve_names(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a face.evoLVe IR backbone to our names.

    Its ``body.N`` numbers the blocks across all stages. After stage 1, a block whose shortcut is a convolution starts a
    new stage, so any depth is recognised.
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
    """Rename the IR backbone in our state as in face.evoLVe, which has no names for the rest of the network.

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
    """What the names and shapes of a state (in our names) reveal about its network.

    Attributes:
        backbone: ``ir``, ``mobilenet-v2``, ``mobilenet-v2-wide``, ``unknown``, or ``ir-se`` (squeeze-and-excite), which
            fercli does not build.
        blocks: the number of blocks in each stage of an IR net, else ().
        width: the number of channels of an IR net's stem, else 0.
        light: whether an IR net's blocks have no PReLU (fercli's variant for CPUs).
        classifiers: ``shared``, ``separate``, or None if the state has none.
        local: ``feature-map``, ``image-crop``, or None if the state has no crop nets.
        classes: the number of classes of the classifiers, or None if they differ or there are no classifiers.
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
        """The backbone's usual name, with its article. An IR-50 has 50 layers: two per block and two more."""
        if not self.blocks:
            return _TITLES.get(self.backbone, "an unknown backbone")
        name = f"{'IR-SE' if self.backbone == 'ir-se' else 'IR'}-{2 * sum(self.blocks) + 2}"
        if self.light:
            return f"a small {name} of width {self.width}"
        return f"an {name}" if self.width == 64 else f"an {name} of width {self.width}"

    @property
    def model(self) -> dict[str, Any] | None:
        """The run spec's ``model`` keys (without weights) for this network, or None if fercli cannot build it.

        Keys that the state does not determine have their default values.
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
        """The run spec's setting for this backbone, or None if there is none."""
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
        """List how a file's architecture differs from the `asked` one in the `parts` that the file should fill."""
        said = []
        if "classifiers" in parts and self.classes is not None and self.classes != asked.classes:
            said.append(
                f"the file distinguishes {self.classes} classes, but fercli has {asked.classes} expressions"
                " (give weights trained on these expressions, or a backbone only)"
            )
        mine, theirs = ((it.backbone, it.blocks, it.width, it.light) for it in (self, asked))
        if self.backbone != "unknown" and mine != theirs:
            remedy = f"set {self.setting}" if self.setting else "fercli cannot build the file's backbone"
            said.append(f"the file is {self.title}, but the spec asks for {asked.title} ({remedy})")
        for part, key in (("classifiers", "classifiers"), ("local_nets", "local")):
            value, wanted = getattr(self, key), getattr(asked, key)
            if part in parts and value is not None and value != wanted:
                said.append(f"the file has model.{key}: {value}, but the spec asks for {wanted}")
        return said


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Infer the network's architecture from a state in our names."""
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
