"""SFEW 2.0: film frames and the aligned faces cut from them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path

from fercli.datasets.writers.common import aligned, made, whole, write_image
from fercli.faces.synthetic import Face

#: Class folders in the order of `EXPRESSIONS`.
_FOLDERS = ("Surprise", "Fear", "Disgust", "Happy", "Sad", "Angry", "Neutral")
_ALIGNED = {
    "Train": "Train/Train_Aligned_Faces",
    "Val": "Val/Val_Aligned_Faces_new/Val_Aligned_Faces",
    "Test": "Test/Test_Aligned_Faces",
}


def write_sfew(
    root: str | Path,
    train: Iterable[Face],
    val: Iterable[Face],
    test: Iterable[Face] = (),
    frames: bool = True,
    with_aligned: bool = True,
) -> Path:
    """Write SFEW 2.0 (Dhall et al., ICMI 2015): frames as png and their aligned faces, 143 wide and 181 high.

    ``Train/Angry/Film7_000000240_00000001.png`` (film, time, number) has its aligned face in
    ``Train/Train_Aligned_Faces/Angry/``, of Val in ``Val/Val_Aligned_Faces_new/Val_Aligned_Faces/``, by the same name.
    The test images have no label and no class folders. A film shows one person, whose seed its name bears.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    # No name comes twice, in whatever part: the film's time goes on.
    numbers = count(1)
    with whole(root, "SFEW 2.0") as folder:
        for split, faces in (("Train", train), ("Val", val), ("Test", test)):
            kinds = [place for place, wanted in ((split, frames), (_ALIGNED[split], with_aligned)) if wanted]
            for place in kinds if split != "Test" else ():
                for name in _FOLDERS:
                    made(folder / place / name)
            for face, number in zip(faces, numbers, strict=False):
                file = f"Film{face.identity}_{number * 40:06d}240_{number:08d}.png"
                for place in kinds:
                    below = made(folder / place if split == "Test" else folder / place / _FOLDERS[face.label])
                    image = face.image if place == split else aligned(face, 143, 181)[0]
                    write_image(below / file, image)
    return Path(root)
