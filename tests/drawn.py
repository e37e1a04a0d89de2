"""Procedural faces for tests only: two more domains, and faces in the layouts of three more datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from fercli.expressions import EXPRESSIONS
from fercli.synthetic.render import LAB, STUDIO, Domain, Face
from fercli.synthetic.writers import _code_of, _made, _whole, _write_image

#: Tight grey thumbnails like those of FER2013, 48x48.
THUMBNAIL = Domain(
    name="thumbnail",
    size=(48, 48),
    grey=True,
    supersample=6,
    face_width=(0.78, 0.9),
    wander=0.03,
    roll=7.0,
    yaw=8.0,
    pitch=5.0,
    blur=(0.2, 0.4),
    noise=(1, 4),
    contrast=(0.8, 1.15),
    gamma=(0.8, 1.3),
    brightness=(-15, 15),
    light_side=0.9,
    background=(30, 220),
    clutter=3,
    intensity=(0.6, 1.1),
    au_jitter=0.2,
    au_noise=0.3,
)

#: Colour images of crowded, badly lit places, like those of ExpW.
STREET = Domain(
    name="street",
    size=(280, 260),
    face_width=(0.34, 0.5),
    wander=0.10,
    roll=8.0,
    yaw=9.0,
    pitch=5.0,
    blur=(0.4, 1.3),
    noise=(3, 9),
    contrast=(0.7, 1.2),
    gamma=(0.75, 1.5),
    brightness=(-20, 15),
    jpeg=(30, 75),
    tint=0.06,
    light_side=1.1,
    light_above=(-0.1, 0.9),
    ambient=(0.25, 0.5),
    gloss=0.15,
    background=(30, 200),
    clutter=14,
    intensity=(0.55, 1.0),
    au_jitter=0.2,
    au_noise=0.35,
    glasses=0.15,
    beard=0.15,
)

DOMAINS = (STUDIO, LAB, THUMBNAIL, STREET)


def write_fer2013(
    root: str | Path, train: Iterable[Face], public: Iterable[Face] = (), private: Iterable[Face] = ()
) -> Path:
    """Write ``fer2013.csv``: emotion, 2,304 grey pixels, Usage. Faces of another size are reduced to 48x48.

    Returns the root; raises FercliError if it already exists and is not empty.
    """
    codes, lines = _code_of("fer2013"), ["emotion,pixels,Usage"]
    with _whole(root, "FER2013") as folder:
        for usage, faces in (("Training", train), ("PublicTest", public), ("PrivateTest", private)):
            for face in faces:
                pixels = " ".join(map(str, _thumbnail(face.image).ravel().tolist()))
                lines.append(f"{codes[face.label]},{pixels},{usage}")
        (folder / "fer2013.csv").write_text("\n".join(lines) + "\n")
    return Path(root)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return image if image.shape == (48, 48) else cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)


def write_expw(root: str | Path, faces: Iterable[Face]) -> Path:
    """Write ExpW: ``label/label.lst`` and ``data/image/origin/``; every third image shows two faces side by side.

    A row is name, face number, box as top left right bottom (integers), confidence, label. Returns the root; raises
    FercliError if it already exists and is not empty.
    """
    codes = _code_of("expw")
    with _whole(root, "ExpW") as folder:
        images, lines = _made(folder / "data/image/origin"), []
        for number, group in enumerate(_in_groups(faces, (1, 1, 2)), 1):
            name = f"procedural_face_{number}.jpg"
            _write_image(images / name, _side_by_side([face.image for face in group]))
            offset = 0
            for index, face in enumerate(group):
                left, top, right, bottom = (round(v) for v in face.box)
                box = f"{top} {left + offset} {right + offset} {bottom}"
                lines.append(f"{name} {index} {box} {60 + 10 * index}.0 {codes[face.label]}\n")
                offset += face.image.shape[1]
        (_made(folder / "label") / "label.lst").write_text("".join(lines))
    return Path(root)


def _in_groups(faces: Iterable[Face], sizes: Sequence[int]) -> Iterator[list[Face]]:
    """Yield the faces in lists whose lengths cycle through `sizes`; the last list may be shorter."""
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


def write_class_folders(root: str | Path, splits: Mapping[str, Iterable[Face]]) -> Path:
    """Write ``{split}/{class}/00001.jpg``, with the classes named as in `EXPRESSIONS`.

    Returns the root; raises FercliError if it already exists and is not empty.
    """
    with _whole(root, "a folder per class") as folder:
        for split, faces in splits.items():
            folders = [_made(folder / split / name) for name in EXPRESSIONS]
            for number, face in enumerate(faces, 1):
                _write_image(folders[face.label] / f"{number:05d}.jpg", face.image)
    return Path(root)
