"""A trained network over chosen faces of a store: what all seven heads say, and the features they say it from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fercli.batches import Faces
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
        of `faces`; no labels.
    """
    was_training = network.training
    network.eval()
    probabilities, features = [torch.empty(0, 7, 7)], [torch.empty(0, 6, 64)]
    for start in range(0, len(faces), batch):
        view = faces.plain(np.arange(start, min(start + batch, len(faces))), settings)
        output = network(*view.inputs)
        if refine is not None:
            output = refine(output)
        probabilities.append(output.logits.float().softmax(-1).cpu())
        features.append(output.features.float().cpu())
    network.train(was_training)
    return Seen(torch.cat(probabilities), torch.cat(features))
