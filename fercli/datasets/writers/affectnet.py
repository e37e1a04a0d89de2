"""AffectNet: the csv release of 2017 and the later one of npy files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fercli.datasets.writers.common import code_of, codes_outside, cropped, made, whole, write_image
from fercli.datasets.writers.points import sixty_eight
from fercli.faces.synthetic import Face

_COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
_FOLDERS_A_SPLIT = 20


def write_affectnet_csv(
    root: str | Path,
    train: Iterable[Face],
    val: Iterable[Face],
    contempt: Iterable[Face] = (),
    none: Iterable[Face] = (),
) -> Path:
    """Write AffectNet's first release (Mollahosseini et al., TAC 2019), the manually annotated part.

    ``Manually_Annotated_file_lists/training.csv`` and ``validation.csv`` list images in
    ``Manually_Annotated_Images/<folder>/<56 hex digits>.jpg`` with the face's box as x, y, width, height, 68 landmarks
    as ``x;y;x;y...`` in pixels of the image, code, valence and arousal (constants: drawn faces have none). Faces of
    `contempt` and `none` (code 8, a face without expression) come last in training.csv.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    with whole(root, "AffectNet") as folder:
        lists, images = made(folder / "Manually_Annotated_file_lists"), folder / "Manually_Annotated_Images"
        for split, faces in (("training", _coded(train, contempt, none)), ("validation", _coded(val))):
            with (lists / f"{split}.csv").open("w", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(_COLUMNS)
                for number, (face, code) in enumerate(faces, 1):
                    digest = hashlib.blake2b(f"{split} {number}".encode(), digest_size=28).hexdigest()
                    path = f"{number % _FOLDERS_A_SPLIT + 1}/{digest}.jpg"
                    write_image(made((images / path).parent) / path.rsplit("/", 1)[1], face.image)
                    left, top, right, bottom = (round(v) for v in face.box)
                    points = ";".join(f"{v:.2f}" for v in sixty_eight(face.landmarks).ravel().tolist())
                    # -2 stands where the release has no valence.
                    feeling = (0.25, 0.5) if code < codes_outside("affectnet")[1] else (-2, -2)
                    rows.writerow([path, left, top, right - left, bottom - top, points, code, *feeling])
    return Path(root)


def write_affectnet_npy(
    root: str | Path, train: Iterable[Face], val: Iterable[Face], contempt: Iterable[Face] = ()
) -> Path:
    """Write AffectNet's later release: ``train_set/images/7.jpg``, 224x224 and cropped to the face, and val_set.

    Beside ``images``, ``annotations`` holds of each ``7_exp.npy`` (the code, 0-7), ``7_val.npy``, ``7_aro.npy`` (each a
    0-d array of text) and ``7_lnd.npy`` (68 landmarks, float64 [136] as x y x y ..., in pixels of the crop). Faces of
    `contempt` come last in train_set. Numbers have gaps, as there.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    with whole(root, "AffectNet") as folder:
        for split, faces in (("train_set", _coded(train, contempt)), ("val_set", _coded(val))):
            images, notes = made(folder / split / "images"), made(folder / split / "annotations")
            for number, (face, code) in enumerate(faces):
                image, landmarks = cropped(face, 224, 224)
                name = str(3 * number)
                write_image(images / f"{name}.jpg", image)
                for kind, value in (("exp", str(code)), ("val", "0.25"), ("aro", "0.5")):
                    np.save(notes / f"{name}_{kind}.npy", np.array(value))
                np.save(notes / f"{name}_lnd.npy", sixty_eight(landmarks).ravel())
    return Path(root)


def _coded(faces: Iterable[Face], *outside: Iterable[Face]) -> Iterator[tuple[Face, int]]:
    """Yield faces with AffectNet's codes; those of `outside` are none of the seven: contempt, none."""
    codes = code_of("affectnet")
    for face in faces:
        yield face, codes[face.label]
    for code, others in zip(codes_outside("affectnet"), outside, strict=False):
        for face in others:
            yield face, code
