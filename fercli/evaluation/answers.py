"""Files of answers without labels: a line with a digit a face, and a line that tells which faces they are about.

Labels join at evaluation alone. By then the dataset may be prepared again, with other faces or in another order:
answers are joined with labels of the same faces only.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from torch import Tensor

from fercli.errors import FercliError
from fercli.files import write_atomically
from fercli.store import Store

_EPOCH = re.compile(r"epoch-([0-9]{1,9})\.\w+")
_ANSWERS = re.compile(rb"([0-6]+)(?:\n(\S+))?\s*")


def by_epoch(folder: Path, ending: str) -> dict[int, Path]:
    """The files ``epoch-NNNN`` with this ending in a folder, by epoch, ascending; other files are passed over."""
    named = ((_EPOCH.fullmatch(path.name), path) for path in folder.glob(f"epoch-*{ending}"))
    return dict(sorted((int(found[1]), path) for found, path in named if found))


def write_answers(path: Path, answers: Tensor, store: Store) -> None:
    """Write the answers int64 [N], 0..6, on the scored part of a store."""
    digits = "".join(map(str, answers.tolist()))
    write_atomically(path, f"{digits}\n{store.faces_digest}\n".encode())


def read_answers(path: Path, store: Store) -> np.ndarray | None:
    """Return the answers int64 [N] in a file; None where there is no file, or it is about other faces than the store's.

    Files of earlier versions do not tell which faces they are about: as many as the store scores must do.

    Raises:
        FercliError: the file cannot be read, or holds something else.
    """
    if not path.exists():
        return None
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}") from None
    found = _ANSWERS.fullmatch(text)
    if found is None:
        raise FercliError(f"{path} holds no answers: it is damaged", "train that stage again: --restart")
    if found[2] not in (None, store.faces_digest.encode()):
        return None
    answers = np.frombuffer(found[1], np.uint8).astype(np.int64) - ord("0")
    return answers if len(answers) == len(store.indices(store.score_splits)) else None
