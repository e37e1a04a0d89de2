"""The oracle: the epoch that looks best when the target's own labels choose it. An upper bound, never a result.

Target labels are read here, by the final score (`fercli.scoring`, `fercli.sweep.aggregate`) and by the reports of
`fercli prepare`. What trains or chooses never reads them, but for methods whose name says oracle. Published figures of
the field are mostly oracles; ours stand beside the honest choice, marked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fercli.evaluation.answers import by_epoch, read_answers
from fercli.store import Store


def oracle_epoch(folder: Path, store: Store) -> tuple[int, np.ndarray] | None:
    """The adaptation epoch with the highest accuracy on the scored target faces.

    Args:
        folder: a stage folder with ``decisions/epoch-NNNN.txt`` (`fercli.evaluation.answers`).
        store: the target, opened with labels; faces without one do not count.

    Returns:
        (epoch, answers int64 [N]) of the earliest best epoch, or None where there is none: no decisions, no labels, or
        decisions about other faces.

    Raises:
        FercliError: a file of decisions is damaged.
    """
    labels = store.labels[store.indices(store.score_splits)]
    known = labels >= 0
    best: tuple[float, int, np.ndarray] | None = None
    for epoch, path in by_epoch(folder / "decisions", ".txt").items():
        answers = read_answers(path, store)
        if answers is None or not known.any():
            return None
        accuracy = float((answers == labels)[known].mean())
        if best is None or accuracy > best[0]:
            best = accuracy, epoch, answers
    return None if best is None else best[1:]


def oracle_labels(store: Store, indices: np.ndarray) -> Tensor:
    """True labels int64 [N] (-1 unknown) of target faces, for methods whose name says that they are oracles."""
    return torch.from_numpy(store.labels[indices].astype(np.int64))
