"""The oracle: the epoch that is best when the target's own labels choose it. An upper bound, never a result.

Target labels are read here, for the final score (`fercli.scoring`, `fercli.sweep.aggregate`) and for the reports of
`fercli prepare`. Training and selection never read them, except for methods that have "oracle" in their name. Most
published figures in the field are oracles. fercli reports its oracle next to the label-free choice, and marks it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fercli.store import Store


def oracle_epoch(answers: Mapping[int, np.ndarray], labels: np.ndarray) -> int | None:
    """The earliest epoch with the highest accuracy.

    Args:
        answers: epoch -> predictions int64 [N] on the target's scored faces.
        labels: int64 [N]; faces without a label (-1) do not count.

    Returns:
        The epoch. None without epochs, and where no face has a label.
    """
    known = labels >= 0
    right = {epoch: int((answers[epoch] == labels)[known].sum()) for epoch in sorted(answers)}
    return max(right, key=lambda epoch: right[epoch]) if right and known.any() else None


def oracle_labels(store: Store, indices: np.ndarray) -> Tensor:
    """True labels int64 [N] (-1 unknown) of target faces, for methods that have "oracle" in their name."""
    return torch.from_numpy(store.labels[indices].astype(np.int64))
