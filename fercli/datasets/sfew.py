"""SFEW 2.0 (Dhall et al., ICCV-W 2011; EmotiW 2015): frames of films, or faces cropped from them; official splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.tree_files import images_under, is_image_name, subfolders
from fercli.expressions import UNLABELLED, label_of

#: The scored split comes first: a frame in two splits stays in it and counts as listed twice in the other.
_PARTS = {"val": "Val", "train": "Train", "test": "Test"}
_KINDS = ("frames", "aligned")


def parse(root: Path, collector: Collector, images: str | None = None) -> Protocol:
    """Read the class folders of Train and Val, and the unlabelled images of Test if they exist.

    Args:
        root: contains Train/ and Val/, or the folders of aligned faces themselves.
        collector: receives the records. They have no subjects, because the actors are not named.
        images: ``frames`` or ``aligned`` (default: the frames if they exist, because the benchmark uses them and fercli
            aligns faces itself). A frame may show several people. Only the aligned faces say whose face is labelled.
    """
    if images not in (None, *_KINDS):
        raise WrongOption(f"option images is '{images}', not 'frames' or 'aligned'")
    kinds = (images,) if images else _KINDS
    found = {kind: {split: _folder(root, split, kind) for split in _PARTS} for kind in kinds}
    folders = next((parts for parts in found.values() if parts["train"] and parts["val"]), None)
    if folders is None:
        have = [split for split in ("train", "val") if any(parts[split] for parts in found.values())]
        missing = " and ".join(f"{_PARTS[split]}/" for split in ("train", "val") if split not in have)
        what = " or ".join({"frames": "frames", "aligned": "aligned faces"}[kind] for kind in kinds)
        lack = (
            f"no class folders of {what} below {missing}"
            if missing
            else "frames of one split, aligned faces of the other"
        )
        raise WrongLayout(lack)
    for split, folder in folders.items():
        if folder is not None:
            _read(root, folder, split, collector)
    return ("train",), ("val",)


def _folder(root: Path, split: str, kind: str) -> Path | None:
    """Return the folder of one split's images of one kind, under any of the names in circulation."""
    part = _PARTS[split]
    faces = (f"{part}_Aligned_Faces_new/{part}_Aligned_Faces", f"{part}_Aligned_Faces_new", f"{part}_Aligned_Faces")
    for above in (part, split):
        names = [f"{above}/imgs", above] if kind == "frames" else [*(f"{above}/{name}" for name in faces), *faces]
        for name in names:
            if (root / name).is_dir() and (_classes(root / name) or (split == "test" and any(_flat(root / name)))):
                return root / name
    return None


def _classes(folder: Path) -> list[Path]:
    return [inner for inner in subfolders(folder) if label_of(inner.name) is not None]


def _flat(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if is_image_name(path.name))


def _read(root: Path, folder: Path, split: str, collector: Collector) -> None:
    for inner in subfolders(folder):
        label = label_of(inner.name)
        if label is not None:
            for path in images_under(inner, root, collector):
                # The id is the name alone (it has film and time), so that a frame in two classes or splits is detected.
                collector.add(Record(path.rsplit("/", 1)[-1], path, label, split))
        elif "aligned" not in inner.name.lower():
            collector.leave_out_class(inner.name, sum(1 for _ in images_under(inner, root, Collector())))
    for path in sorted(_flat(folder)):
        if split == "test":
            collector.add(Record(path.name, path.relative_to(root).as_posix(), UNLABELLED, split))
        else:
            collector.leave_out("image outside a class folder")


READER = Reader(
    layout="Train/Angry/*.png ... and Val/Angry/*.png ... (or Train/imgs/Angry/), or the faces "
    "Train/Train_Aligned_Faces/Angry/ and Val/Val_Aligned_Faces_new/Val_Aligned_Faces/Angry/; Test/ if you have it",
    parse=parse,
    tree="""\
Train/
  Angry/*.png ...                            and Disgust/ Fear/ Happy/ ... (or all below imgs/)
Val/
  Angry/*.png ...
Test/*.png                                   if you have it; no labels

or the aligned faces:
Train/Train_Aligned_Faces/Angry/*.png ...
Val/Val_Aligned_Faces_new/Val_Aligned_Faces/Angry/*.png ...""",
    option_help={"images": "frames or aligned (default: the frames if they exist)"},
    card=DatasetCard(
        title="Static Facial Expressions in the Wild 2.0",
        about="stills from films",
        apply="https://cs.anu.edu.au/few/AFEW.html",
        licence="academic research; agreement signed",
        split="official",
        split_note="scored on val: the test split has no labels",
        paper="Dhall et al.: Video and image based emotion recognition challenges in the wild: EmotiW 2015. ICMI 2015",
        # paper; no counts per expression were found, and the 372 images of the test split have no labels
        releases=(Official.of_splits(train=958, val=436),),
    ),
)
