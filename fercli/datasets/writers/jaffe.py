"""JAFFE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fercli.datasets.writers.common import Subjects, grey, whole, write_image
from fercli.faces.synthetic import Face

#: Two letters a subject, as in JAFFE's names.
JAFFE_SUBJECTS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")
_EXPRESSIONS = ("SU", "FE", "DI", "HA", "SA", "AN", "NE")


def write_jaffe(root: str | Path, faces: Iterable[Face]) -> Path:
    """Write JAFFE's flat folder of 256x256 grey tiffs, ``KM.NE1.1.tiff``: subject, expression, take, serial number.

    Identities become `JAFFE_SUBJECTS` in the order in which they first come; take and serial count within a subject,
    so takes pass 9 where there are many. Returns the root.

    Raises:
        FercliError: the root exists already and is not empty.
        ValueError: a face is not 256x256, or there are more than ten identities.
    """
    subjects = Subjects("JAFFE", JAFFE_SUBJECTS)
    takes: Counter[tuple[str, str]] = Counter()
    serials: Counter[str] = Counter()
    with whole(root, "JAFFE") as folder:
        for face in faces:
            if face.image.shape[:2] != (256, 256):
                raise ValueError(f"JAFFE's images are 256x256, not {face.image.shape[1]}x{face.image.shape[0]}")
            subject, expression = subjects.of(face.identity), _EXPRESSIONS[face.label]
            takes[subject, expression] += 1
            serials[subject] += 1
            name = f"{subject}.{expression}{takes[subject, expression]}.{serials[subject]}.tiff"
            write_image(folder / name, grey(face.image))
    return Path(root)
