"""Write procedural faces in the layouts of real datasets, so that a demo or a test uses the actual readers.

Each writer fills a sibling folder ``NAME.partial`` and renames it to ``NAME`` at the end. A folder that exists is
therefore complete, and the next write removes what a killed write has left. Every root contains `SYNTHETIC_MARKER`, a
file that states in one sentence that these are not photographs. Faces may be any iterable and are written one by one.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from fercli.datasets import READERS
from fercli.datasets.csv_list import LANDMARKS
from fercli.datasets.reader import SYNTHETIC_MARKER
from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.synthetic.render import Face

_SENTENCE = (
    "These are synthetic, procedural faces drawn by fercli in the layout of {layout}: "
    "no photographs, no real people, and none of that dataset's images.\n"
)
_JPEG_QUALITY = 92
_JAFFE_SUBJECTS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")
_JAFFE_EXPRESSIONS = ("SU", "FE", "DI", "HA", "SA", "AN", "NE")
_COLUMNS = ("path", "label", "split", "subject", "left", "top", "right", "bottom", *LANDMARKS)


def write_raf_db(root: str | Path, train: Iterable[Face], test: Iterable[Face]) -> Path:
    """Write RAF-DB's basic part: label list, original images, and five landmarks and a face box per image.

    The attributes after the landmarks are constants, because drawn people have none: gender 2 (unsure), race 0, age 2
    (20-39). Returns the root; raises FercliError if it already exists and is not empty.
    """
    codes = _code_of("raf-db")
    with _whole(root, "RAF-DB") as folder:
        images, points, boxes = (
            _made(folder / name) for name in ("Image/original", "Annotation/manual", "Annotation/boundingbox")
        )
        lines = []
        for split, faces, digits in (("train", train, 5), ("test", test, 4)):
            for number, face in enumerate(faces, 1):
                stem = f"{split}_{number:0{digits}d}"
                _write_image(images / f"{stem}.jpg", face.image)
                rows = [f"{x:.3f}\t{y:.3f}" for x, y in face.landmarks.tolist()] + ["2", "0", "2"]
                (points / f"{stem}_manu_attri.txt").write_text("\n".join(rows) + "\n")
                (boxes / f"{stem}_boundingbox.txt").write_text(" ".join(f"{v:.3f}" for v in face.box) + "\n")
                lines.append(f"{stem}.jpg {codes[face.label]}\n")
        (_made(folder / "EmoLabel") / "list_patition_label.txt").write_text("".join(lines))
    return Path(root)


def write_jaffe(root: str | Path, faces: Iterable[Face]) -> Path:
    """Write JAFFE's flat folder of 256x256 grey tiffs, ``KM.NE1.1.tiff``: subject, expression, take, serial number.

    Identities become JAFFE's ten subjects in the order in which they first appear. Take and serial number are counted
    within a subject, so takes exceed 9 if there are many. Returns the root.

    Raises:
        FercliError: the root already exists and is not empty.
        ValueError: a face is not 256x256, or there are more than ten identities.
    """
    subjects: dict[int, str] = {}
    takes: Counter[tuple[str, str]] = Counter()
    serials: Counter[str] = Counter()
    with _whole(root, "JAFFE") as folder:
        for face in faces:
            if face.image.shape[:2] != (256, 256):
                raise ValueError(f"JAFFE's images are 256x256, not {face.image.shape[1]}x{face.image.shape[0]}")
            if face.identity not in subjects:
                if len(subjects) == len(_JAFFE_SUBJECTS):
                    raise ValueError("JAFFE has 10 subjects; sample from at most 10 identities")
                subjects[face.identity] = _JAFFE_SUBJECTS[len(subjects)]
            subject, expression = subjects[face.identity], _JAFFE_EXPRESSIONS[face.label]
            takes[subject, expression] += 1
            serials[subject] += 1
            name = f"{subject}.{expression}{takes[subject, expression]}.{serials[subject]}.tiff"
            _write_image(folder / name, cv2.cvtColor(face.image, cv2.COLOR_RGB2GRAY))
    return Path(root)


def write_csv(root: str | Path, splits: Mapping[str, Iterable[Face]]) -> Path:
    """Write ``faces.csv`` and the images it lists, ``images/train_00001.png``.

    Columns: path (below ``images/``), label (in words), split, subject, left, top, right, bottom, and x and y of the
    five landmarks (leye_x ... rmouth_y). Returns the root; raises FercliError if it already exists and is not empty.
    """
    with _whole(root, "a csv of paths and labels") as folder, (folder / "faces.csv").open("w", newline="") as file:
        rows, images = csv.writer(file), _made(folder / "images")
        rows.writerow(_COLUMNS)
        for split, faces in splits.items():
            for number, face in enumerate(faces, 1):
                name = f"{split}_{number:05d}.png"
                _write_image(images / name, face.image)
                numbers = [f"{v:.3f}" for v in (*face.box, *face.landmarks.ravel().tolist())]
                rows.writerow([name, EXPRESSIONS[face.label], split, f"person-{face.identity}", *numbers])
    return Path(root)


@contextmanager
def _whole(root: str | Path, layout: str) -> Iterator[Path]:
    """Yield a folder to fill that is renamed to `root` when the block succeeds, so that `root` is never half filled."""
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FercliError(f"{root} already exists; remove it to write procedural faces there")
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    (partial / SYNTHETIC_MARKER).write_text(_SENTENCE.format(layout=layout))
    if root.exists():
        root.rmdir()
    partial.rename(root)


def _made(folder: Path) -> Path:
    """Return the folder, created with its parents if it did not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _code_of(dataset: str) -> dict[int, int]:
    """Return the dataset's code for each of fercli's labels: the inverse of the table that its reader uses."""
    return {label: code for code, label in READERS[dataset].codes.items() if label is not None}


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 [H, W] or RGB [H, W, 3]; via bytes, because cv2 cannot open every name on every system."""
    ordered = image if image.ndim == 2 else image[..., ::-1]
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, ordered, options)
    if not done:
        raise ValueError(f"OpenCV cannot write {path.suffix} images")
    path.write_bytes(data.tobytes())
