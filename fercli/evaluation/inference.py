"""A trained network over chosen faces of a store: probabilities of all seven heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fercli.batches import Faces
from fercli.views import ViewSettings


@torch.no_grad()
def predict(network: nn.Module, faces: Faces, settings: ViewSettings, batch: int) -> Tensor:
    """Softmax of the seven heads on centre-crop views.

    Args:
        network: put in eval mode for the call and back afterwards.
        faces: N chosen faces.
        batch: faces at a time.

    Returns:
        float32 [N, 7 heads, 7 expressions] on the CPU, rows in the order of `faces`.
    """
    was_training = network.training
    network.eval()
    parts = [torch.empty(0, 7, 7)]
    for start in range(0, len(faces), batch):
        view = faces.plain(np.arange(start, min(start + batch, len(faces))), settings)
        parts.append(network(*view.inputs).logits.float().softmax(-1).cpu())
    network.train(was_training)
    return torch.cat(parts)
