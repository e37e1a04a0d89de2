"""A trained network over chosen faces of a store: what all seven heads say, and the features they say it from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fercli.batches import Faces
from fercli.engine import ranks
from fercli.methods.base import Seen
from fercli.models import Output
from fercli.views import ViewSettings


@torch.no_grad()
def look(
    network: nn.Module,
    faces: Faces,
    settings: ViewSettings,
    batch: int,
    refine: Callable[[Output], Output] | None = None,
) -> Seen:
    """Show the network centre-crop views of faces.

    Args:
        network: put in eval mode for the call and back afterwards.
        faces: N chosen faces.
        batch: faces at a time.
        refine: what the method makes of the network's output (`fercli.methods.base.Method.refine`).

    Returns:
        Probabilities float32 [N, 7 heads, 7 expressions] and features float32 [N, 6, 64] on the CPU, rows in the order
        of `faces`; no labels. Processes that train together share the faces out, and each gets the whole; all must call
        it.
    """
    was_training = network.training
    network.eval()
    together = ranks.count() > 1
    probabilities, features = torch.zeros(len(faces), 7, 7), torch.zeros(len(faces), 6, 64)
    # In whole batches, so that each is what it would be in one process.
    for start in range(batch * ranks.rank(), len(faces), batch * ranks.count()):
        view = faces.plain(np.arange(start, min(start + batch, len(faces))), settings)
        output = network(*view.inputs)
        if refine is not None:
            output = refine(output)
        probabilities[start : start + batch] = output.logits.float().softmax(-1).cpu()
        features[start : start + batch] = output.features.float().cpu()
    network.train(was_training)
    if together:
        probabilities, features = ranks.sum_up(probabilities), ranks.sum_up(features)
    return Seen(probabilities, features)
