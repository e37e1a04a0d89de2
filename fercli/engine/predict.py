"""A trained network applied to chosen faces of a store: the probabilities of all seven heads, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from fercli.engine import distributed
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import ViewSettings, plain_view
from fercli.loading.face_dataset import FaceDataset, to_device
from fercli.loading.placement import Prefetcher, RawBatch
from fercli.methods.base import NUM_HEADS, Outputs
from fercli.models import FEATURE_SIZE, Output
from fercli.models.heads import NUM_FEATURES


def predict(
    network: nn.Module,
    faces: FaceDataset,
    settings: ViewSettings,
    batch: int,
    output_transform: Callable[[Output], Output] | None = None,
) -> Outputs:
    """Apply the network to centre-crop views of faces.

    This runs in float32, whatever precision is used in training: neither half precision nor TF32 gives the same
    scores. It waits for a CUDA device only once, at the end. Until then the CPU fetches the next faces, and the
    outputs stay on the device, 2 kB per face.

    Args:
        network: put in eval mode for the call, and back afterwards.
        faces: N chosen faces.
        batch: faces per forward pass.
        output_transform: the method's change to the network's output (`fercli.methods.base.Method.transform_output`).

    Returns:
        Probabilities float32 [N, 7 heads, 7 expressions] and features float32 [N, 6, 64] on the CPU, rows in the order
        of `faces`; no labels. Processes that train together split the faces, and each gets the whole result; all must
        call it.
    """
    was_training, device = network.training, faces.device
    network.eval()
    # Whole batches, so that each batch is the same as in a single process.
    starts = range(batch * distributed.rank(), len(faces), batch * distributed.world_size())
    parts = [slice(start, min(start + batch, len(faces))) for start in starts]

    def fetch(number: int) -> RawBatch:
        return faces.fetch(np.arange(parts[number].start, parts[number].stop))

    # Allocated outside inference mode, whose tensors do not support many later operations.
    probabilities = torch.zeros(len(faces), NUM_HEADS, NUM_EXPRESSIONS, device=device)
    features = torch.zeros(len(faces), NUM_FEATURES, FEATURE_SIZE, device=device)
    with closing(Prefetcher(fetch, len(parts))) if faces.worth_fetching_ahead else nullcontext(fetch) as fetched:
        for number, rows in enumerate(parts):
            view = plain_view(*to_device(fetched(number), device), settings)
            with torch.inference_mode(), float32_products(device):
                output = network(*view.inputs)
                if output_transform is not None:
                    output = output_transform(output)
                probabilities[rows] = output.logits.float().softmax(-1)
                features[rows] = output.features.float()
    network.train(was_training)
    return Outputs(distributed.all_reduce(probabilities).cpu(), distributed.all_reduce(features).cpu())


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Within this context CUDA multiplies in float32, not TF32, which cuDNN uses by default and training may use."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
