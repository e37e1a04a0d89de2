"""FER2013, as csv and as folders, and FERPlus, its second labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from fercli.datasets.writers.common import code_of, grey, made, whole, write_image
from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import Face

_USAGES = ("Training", "PublicTest", "PrivateTest")
#: Class folders in the order of `EXPRESSIONS`.
_FOLDERS = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
#: FERPlus's columns of votes.
_VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")


def write_fer2013(
    root: str | Path, train: Iterable[Face], public: Iterable[Face] = (), private: Iterable[Face] = ()
) -> Path:
    """Write ``fer2013.csv``: emotion, 2,304 grey pixels, Usage. Faces of another size are reduced to 48x48.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    codes = code_of("fer2013")
    with whole(root, "FER2013") as folder, _table(folder) as table:
        for usage, face in _in_parts(train, public, private):
            _write_row(table, codes[face.label], _thumbnail(face.image), usage)
    return Path(root)


def write_fer2013_folders(
    root: str | Path, train: Iterable[Face], public: Iterable[Face] = (), private: Iterable[Face] = ()
) -> Path:
    """Write the folders that circulate: ``train/angry/Training_3908.jpg``, ``test/angry/PublicTest_88305.jpg``.

    Both test parts lie in ``test/``. Returns the root; raises FercliError where it exists already and is not empty.
    """
    with whole(root, "FER2013's folders") as folder:
        for part in ("train", "test"):
            for name in _FOLDERS:
                made(folder / part / name)
        for number, (usage, face) in enumerate(_in_parts(train, public, private), 1):
            part = "train" if usage == "Training" else "test"
            # The numbers in circulation have gaps.
            name = f"{usage}_{number * 7919 % 10**8}.jpg"
            write_image(folder / part / _FOLDERS[face.label] / name, _thumbnail(face.image))
    return Path(root)


def write_ferplus(
    root: str | Path,
    train: Iterable[Face],
    public: Iterable[Face] = (),
    private: Iterable[Face] = (),
    contempt: Iterable[Face] = (),
    undecided: Iterable[Face] = (),
    not_faces: int = 0,
) -> Path:
    """Write FERPlus (Barsoum et al., ICMI 2016): ``fer2013.csv``, and beside it ``fer2013new.csv`` row by row.

    A row of the second is Usage, image name, and the votes of ten people on neutral, happiness, surprise, sadness,
    anger, disgust, fear, contempt, unknown, NF (no face). A labelled face has seven votes for its label and three
    others. `contempt` and `undecided` (most votes on unknown) and `not_faces` empty grey pictures (all votes on NF, no
    name) follow the training faces as Training. FER2013's own labels being wrong at times, every fifth row's is here.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    codes = code_of("fer2013")
    of_label = [_VOTES.index(name) for name in EXPRESSIONS]

    def training() -> Iterator[tuple[str, Face, dict[int, int]]]:
        for usage, face in _in_parts(train, (), ()):
            yield usage, face, _votes_on(of_label[face.label])
        for column, faces in ((_VOTES.index("contempt"), contempt), (_VOTES.index("unknown"), undecided)):
            for face in faces:
                yield "Training", face, _votes_on(column)
        blank = np.full((48, 48, 3), 128, np.uint8)
        for _ in range(not_faces):
            yield "Training", Face(blank, np.zeros((5, 2), np.float32), 0, 0, (0, 0, 47, 47)), {_VOTES.index("NF"): 10}
        for usage, face in _in_parts((), public, private):
            yield usage, face, _votes_on(of_label[face.label])

    named = 0
    with whole(root, "FERPlus") as folder, _table(folder) as table, (folder / "fer2013new.csv").open("w") as new:
        new.write(",".join(("Usage", "Image name", *_VOTES)) + "\n")
        for number, (usage, face, votes) in enumerate(training(), 1):
            label = (face.label + 1) % len(EXPRESSIONS) if number % 5 == 0 else face.label
            _write_row(table, codes[label], _thumbnail(face.image), usage)
            is_face = _VOTES.index("NF") not in votes
            name = f"fer{named:07d}.png" if is_face else ""
            named += is_face
            new.write(",".join((usage, name, *(str(votes.get(i, 0)) for i in range(len(_VOTES))))) + "\n")
    return Path(root)


def _votes_on(column: int) -> dict[int, int]:
    """Return ten votes, most of them on one column: seven, and the rest on two emotions beside it."""
    return {column: 7, (column + 1) % 7: 2, (column + 3) % 7: 1}


def _in_parts(*faces: Iterable[Face]) -> Iterator[tuple[str, Face]]:
    for usage, part in zip(_USAGES, faces, strict=True):
        for face in part:
            yield usage, face


def _table(folder: Path) -> TextIO:
    table = (folder / "fer2013.csv").open("w", newline="")
    table.write("emotion,pixels,Usage\n")
    return table


def _write_row(table: TextIO, code: int, image: np.ndarray, usage: str) -> None:
    table.write(f"{code},{' '.join(map(str, image.ravel().tolist()))},{usage}\n")


def _thumbnail(image: np.ndarray) -> np.ndarray:
    image = grey(image)
    return image if image.shape == (48, 48) else cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
