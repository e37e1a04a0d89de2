"""A trained network over chosen faces of a store: what all seven heads say, and the features they say it from."""

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
    """Show the network centre-crop views of faces.

    Whatever precision trains, this is float32: neither half precision nor TF32 gives the same scores (docs). A CUDA
    device is waited for once, at the end: until then the host fetches the faces that come next, and what the network
    says of them stays on the device, 2 kB a face.

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
    was_training, device = network.training, faces.device
    network.eval()
    # In whole batches, so that each is what it would be in one process.
    starts = range(batch * distributed.rank(), len(faces), batch * distributed.world_size())
    parts = [slice(start, min(start + batch, len(faces))) for start in starts]

    def fetch(number: int) -> RawBatch:
        return faces.fetch(np.arange(parts[number].start, parts[number].stop))

    # Made outside of inference mode: its tensors refuse much of what is done with them later.
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
    """Within it a CUDA device multiplies in float32, not in TF32, which cuDNN takes by default and training may."""
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
