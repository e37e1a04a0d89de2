"""A trained network over chosen faces of a store: what all seven heads say, and the features they say it from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fercli.engine import distributed
from fercli.loading.augment import ViewSettings
from fercli.loading.face_dataset import FaceDataset
from fercli.methods.base import Outputs
from fercli.models import Output


@torch.no_grad()
def predict(
    network: nn.Module,
    faces: FaceDataset,
    settings: ViewSettings,
    batch: int,
    output_transform: Callable[[Output], Output] | None = None,
) -> Outputs:
    """Show the network centre-crop views of faces.

    Args:
        network: put in eval mode for the call and back afterwards.
        faces: N chosen faces.
        batch: faces at a time.
        output_transform: what the method makes of the network's output (`fercli.methods.base.Method.transform_output`).

    Returns:
        Probabilities float32 [N, 7 heads, 7 expressions] and features float32 [N, 6, 64] on the CPU, rows in the order
        of `faces`; no labels. Processes that train together share the faces out, and each gets the whole; all must call
        it.
    """
    was_training = network.training
    network.eval()
    probabilities, features = torch.zeros(len(faces), 7, 7), torch.zeros(len(faces), 6, 64)
    # In whole batches, so that each is what it would be in one process.
    for start in range(batch * distributed.rank(), len(faces), batch * distributed.world_size()):
        view = faces.plain(np.arange(start, min(start + batch, len(faces))), settings)
        output = network(*view.inputs)
        if output_transform is not None:
            output = output_transform(output)
        probabilities[start : start + batch] = output.logits.float().softmax(-1).cpu()
        features[start : start + batch] = output.features.float().cpu()
    network.train(was_training)
    return Outputs(distributed.all_reduce(probabilities), distributed.all_reduce(features))
