"""What every writer shares: roots that are whole or not there, codes, names of people, images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from fercli.datasets import READERS
from fercli.datasets.reader import STAND_IN_MARKER
from fercli.errors import FercliError
from fercli.faces.align import ARCFACE_TEMPLATE, transform, umeyama
from fercli.faces.synthetic import Face

_SENTENCE = (
    "These are procedural faces drawn by fercli, a stand-in written in the layout of {layout}: "
    "no photographs, no real people, and none of that dataset's images.\n"
)
_JPEG_QUALITY = 92


@contextmanager
def whole(root: str | Path, layout: str) -> Iterator[Path]:
    """Give a folder to fill that becomes `root` when the block ends well, and never exists half filled under it."""
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FercliError(f"{root} exists already; remove it to write procedural faces there")
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    (partial / STAND_IN_MARKER).write_text(_SENTENCE.format(layout=layout))
    if root.exists():
        root.rmdir()
    partial.rename(root)


def made(folder: Path) -> Path:
    """Return the folder, made with its parents where it was not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def code_of(dataset: str) -> dict[int, int]:
    """Return the dataset's code of each of our labels: the table that its reader uses, the other way round."""
    return {label: code for code, label in READERS[dataset].codes.items() if label is not None}


def codes_outside(dataset: str) -> list[int]:
    """Return the dataset's codes that are none of the seven, in order; contempt is the first wherever it is known."""
    return sorted(code for code, label in READERS[dataset].codes.items() if label is None)


class Subjects:
    """Names of a dataset's people, given to identities in the order in which they first come."""

    def __init__(self, dataset: str, names: Sequence[str]):
        self.dataset, self.names = dataset, names
        self._given: dict[int, str] = {}

    def of(self, identity: int) -> str:
        """Return the identity's name; raises ValueError where the dataset has no more people."""
        if identity not in self._given:
            if len(self._given) == len(self.names):
                raise ValueError(f"{self.dataset} has {len(self.names)} subjects: sample from that many identities")
            self._given[identity] = self.names[len(self._given)]
        return self._given[identity]

    def of_all(self, sequence: Sequence[Face]) -> str:
        """Return the name of the one person in a sequence; raises ValueError where it shows none or several."""
        if len({face.identity for face in sequence}) != 1:
            raise ValueError("a sequence shows one person in at least one frame")
        return self.of(sequence[0].identity)


def grey(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W] of an RGB image."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def cropped(face: Face, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the upright crop around the face's box, uint8 [height, width, 3], and the five landmarks in it [5, 2]."""
    left, top, right, bottom = face.box
    scale = min(width / (right - left), height / (bottom - top))
    x, y = (width - 1 - scale * (left + right)) / 2, (height - 1 - scale * (top + bottom)) / 2
    return _seen(face, np.array([[scale, 0, x], [0, scale, y]]), width, height)


def aligned(face: Face, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """As `cropped`, but turned so that eyes, nose and mouth come nearest to where they are in every aligned face."""
    points = (ARCFACE_TEMPLATE - 55.5) * (width / 112) + (np.array([width, height]) - 1) / 2
    return _seen(face, umeyama(face.landmarks, points), width, height)


def _seen(face: Face, matrix: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.warpAffine(face.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return image, transform(matrix, face.landmarks)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 [H, W] or RGB [H, W, 3]; through bytes, for cv2 cannot open every name on every system."""
    ordered = image if image.ndim == 2 else image[..., ::-1]
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(path.suffix, ordered, options)
    if not done:
        raise ValueError(f"OpenCV cannot write {path.suffix} images")
    path.write_bytes(data.tobytes())
