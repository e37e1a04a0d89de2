"""ExpW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from fercli.datasets.writers.common import code_of, made, whole, write_image
from fercli.faces.synthetic import Face


def write_expw(root: str | Path, faces: Iterable[Face]) -> Path:
    """Write ExpW: ``label/label.lst`` and ``data/image/origin/``; every third image shows two faces side by side.

    A row is name, face number, box as top left right bottom (integers), confidence, label. Returns the root; raises
    FercliError where it exists already and is not empty.
    """
    codes = code_of("expw")
    with whole(root, "ExpW") as folder:
        images, lines = made(folder / "data/image/origin"), []
        for number, group in enumerate(_in_groups(faces, (1, 1, 2)), 1):
            name = f"procedural_face_{number}.jpg"
            write_image(images / name, _side_by_side([face.image for face in group]))
            offset = 0
            for index, face in enumerate(group):
                left, top, right, bottom = (round(v) for v in face.box)
                box = f"{top} {left + offset} {right + offset} {bottom}"
                lines.append(f"{name} {index} {box} {60 + 10 * index}.0 {codes[face.label]}\n")
                offset += face.image.shape[1]
        (made(folder / "label") / "label.lst").write_text("".join(lines))
    return Path(root)


def _in_groups(faces: Iterable[Face], sizes: Sequence[int]) -> Iterator[list[Face]]:
    """Yield the faces in lists whose lengths cycle through `sizes`; the last may be shorter."""
    turn, group = 0, []
    for face in faces:
        group.append(face)
        if len(group) == sizes[turn % len(sizes)]:
            yield group
            turn, group = turn + 1, []
    if group:
        yield group


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    height = max(image.shape[0] for image in images)
    padded = (cv2.copyMakeBorder(i, 0, height - i.shape[0], 0, 0, cv2.BORDER_REPLICATE) for i in images)
    return np.hstack(list(padded))
