"""The subjects of the scored faces. Faces of one subject are alike, so statistics treat a subject as one unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Subjects(NamedTuple):
    """The subjects of N faces.

    Attributes:
        owner: each face's subject number, int64 [N] in 0..count-1; zeros where not every face has a subject.
        count: the number of subjects; None where not every face has one.
    """

    owner: np.ndarray
    count: int | None

    @property
    def several(self) -> bool:
        """Whether subjects can be the units: every face has one, and there are at least two."""
        return self.count is not None and self.count > 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum integers over each subject's faces, int64 [N] to [count]. Only valid where `count` is known."""
        found = np.zeros(self.count, np.int64)
        np.add.at(found, self.owner, values)
        return found


def subjects_of(names: Sequence[str] | None, faces: int) -> Subjects:
    """Number the subjects of N faces.

    Args:
        names: the subject of each face, empty where not known; None: not known for any face.

    Raises:
        ValueError: the number of names differs from the number of faces.
    """
    if names is not None and len(names) != faces:
        raise ValueError(f"{faces} labels but {len(names)} subjects")
    if names is None or not len(names) or not all(names):
        return Subjects(np.zeros(faces, np.int64), None)
    found, owner = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return Subjects(owner.ravel().astype(np.int64), len(found))
