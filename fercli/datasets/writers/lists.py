"""Layouts of nobody in particular: a folder per class, and a csv of paths."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fercli.datasets.writers.common import made, whole, write_image
from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import Face

_COLUMNS = ("path", "label", "split", "subject", "left", "top", "right", "bottom")
_POINTS = tuple(f"{point}_{axis}" for point in ("leye", "reye", "nose", "lmouth", "rmouth") for axis in "xy")


def write_class_folders(
    root: str | Path, splits: Mapping[str, Iterable[Face]], names: Sequence[str] = EXPRESSIONS, ending: str = ".jpg"
) -> Path:
    """Write ``{split}/{class}/00001.jpg``; `names` are the seven class folders in the order of `EXPRESSIONS`.

    Returns the root; raises FercliError where it exists already and is not empty.
    """
    with whole(root, "a folder per class") as folder:
        for split, faces in splits.items():
            folders = [made(folder / split / name) for name in names]
            for number, face in enumerate(faces, 1):
                write_image(folders[face.label] / f"{number:05d}{ending}", face.image)
    return Path(root)


def write_csv(root: str | Path, splits: Mapping[str, Iterable[Face]], contempt: Iterable[Face] = ()) -> Path:
    """Write ``faces.csv`` and the images it lists, ``images/train_00001.png``.

    Columns: path (below ``images/``), label (in words), split, subject, left, top, right, bottom, and x and y of the
    five landmarks (leye_x ... rmouth_y). Faces of `contempt` come last, in the first split. Returns the root; raises
    FercliError where it exists already and is not empty.
    """
    with whole(root, "a csv of paths and labels") as folder, (folder / "faces.csv").open("w", newline="") as file:
        rows, images = csv.writer(file), made(folder / "images")
        rows.writerow(_COLUMNS + _POINTS)
        parts = [(split, faces, None) for split, faces in splits.items()]
        for split, faces, label in [*parts, (next(iter(splits), "all"), contempt, "contempt")]:
            for number, face in enumerate(faces, 1):
                name = f"{label or split}_{number:05d}.png"
                write_image(images / name, face.image)
                numbers = [f"{v:.3f}" for v in (*face.box, *face.landmarks.ravel().tolist())]
                rows.writerow([name, label or EXPRESSIONS[face.label], split, f"person-{face.identity}", *numbers])
    return Path(root)
