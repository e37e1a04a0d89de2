"""AFE."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fercli.datasets.writers.common import code_of, made, whole, write_image
from fercli.faces.synthetic import Face


def write_afe(root: str | Path, train: Iterable[Face], test: Iterable[Face]) -> Path:
    """Write AFE (Chen et al., TPAMI 2022): ``annos/TrainTest/Train.csv``, ``Test.csv``, images in ``src/image/``.

    A row, without header, is path (below ``src/image``), left, top, right, bottom (integers) and code, space separated.
    Returns the root; raises FercliError where it exists already and is not empty.
    """
    codes = code_of("afe")
    with whole(root, "AFE") as folder:
        lists, images = made(folder / "annos/TrainTest"), folder / "src/image"
        for split, faces in (("Train", train), ("Test", test)):
            lines = []
            for number, face in enumerate(faces, 1):
                path = f"{split.lower()}{face.identity % 10}/{number:06d}.jpg"
                write_image(made((images / path).parent) / path.rsplit("/", 1)[1], face.image)
                lines.append(f"{path} {' '.join(str(round(v)) for v in face.box)} {codes[face.label]}\n")
            (lists / f"{split}.csv").write_text("".join(lines))
    return Path(root)
