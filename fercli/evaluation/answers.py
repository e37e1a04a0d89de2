"""Files of answers without labels: a line with a digit a face, and a line that tells which faces they are about.

Labels join at evaluation alone. By then the dataset may be prepared again, with other faces or in another order:
answers are joined with labels of the same faces only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from fercli.files import write_atomically
from fercli.store import Store


def write_answers(path: Path, answers: Tensor, store: Store) -> None:
    """Write the answers int64 [N], 0..6, on the scored part of a store."""
    digits = "".join(map(str, answers.tolist()))
    write_atomically(path, f"{digits}\n{store.faces_digest}\n".encode())


def read_answers(path: Path, store: Store) -> np.ndarray | None:
    """Return the answers int64 [N] in a file; None where there is no file, or it is about other faces than the store's.

    Files of earlier versions do not tell which faces they are about: as many as the store scores must do.
    """
    if not path.exists():
        return None
    digits, _, digest = path.read_text(encoding="ascii").strip().partition("\n")
    if digest not in ("", store.faces_digest):
        return None
    answers = np.array(list(digits), dtype=np.int64)
    return answers if len(answers) == len(store.indices(store.score_splits)) else None
