"""Explain a face's prediction: where the global branch looked, and what each head predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fercli.evaluation.decision import FUSED
from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS, GlobalLocal, Output
from fercli.report.pictures import Picture
from fercli.store import Store


def picture_of(store: Store, position: int, size: int, heat: np.ndarray) -> Picture:
    """The image of the face at `position` in a store, cropped to `size` pixels a side as in `plain_view`."""
    face, landmarks = np.asarray(store.faces[position]), np.asarray(store.landmarks[position])
    offset = (len(face) - size) // 2
    return Picture(face[offset : offset + size, offset : offset + size].copy(), landmarks - offset, heat)


def grad_cam(
    network: GlobalLocal,
    view_inputs: tuple[Tensor, Tensor, Tensor | None],
    expressions: Tensor,
    output_transform: Callable[[Output], Output] | None = None,
) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2) of the global branch, for a given expression per face.

    The heat is ReLU(sum over k of a_k A^k), where A is the backbone's global map and a_k the mean of dy / dA^k over its
    pixels. y is the fused head's logit of the expression, not the global head's. The fused head reads all six features,
    so the gradient at the global map is the global branch's own contribution to the prediction, whatever the five local
    branches add (`votes` shows those). Only the path through the global head counts, even where the local windows are
    cropped from an earlier map of the same backbone.

    Args:
        network: in any mode. Its mode, its parameters' gradients and its hooks are restored afterwards.
        view_inputs: `fercli.loading.augment.View.inputs` of B faces.
        expressions: int64 [B], the class to explain for each face.
        output_transform: the method's transform of the network's output
            (`fercli.methods.base.Method.transform_output`). It must treat each face separately.

    Returns:
        float32 [B, h, w] on the CPU, 7 x 7 for faces of 112 pixels. Each is divided by its own maximum, so values are
        in 0..1 and the strength cannot be compared between faces. All zero where no pixel supports the expression.
    """
    caught: list[Tensor] = []
    hook = network.global_head.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():  # the backbone's own gradients are not needed and would take most of the memory
            output = network(*view_inputs)
        hook.remove()
        maps = caught[0].detach().requires_grad_()
        with torch.enable_grad():
            feature = network.global_head(maps).to(output.features.dtype)
            features = torch.cat([feature[:, None], output.features[:, 1:]], 1)
            if output_transform is None:
                logits = network.classifiers[-1](features.flatten(1))
            else:
                logits = output_transform(Output(output.logits, features)).logits[:, FUSED]
            # Faces do not mix in eval mode, so the gradient of the sum is each face's own gradient.
            chosen = logits.gather(1, expressions.to(logits.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, maps)
    finally:
        hook.remove()
        network.train(was_training)
    weights = gradient.float().mean((2, 3), keepdim=True)
    heat = (weights * maps.detach().float()).sum(1).relu()
    most = heat.amax((1, 2), keepdim=True)
    return torch.where(most > 0, heat / most, 0.0).cpu()


def votes(probabilities: Tensor) -> list[dict[str, Any]]:
    """The prediction of each head, from one face's probabilities [7 heads, 7 expressions].

    Returns:
        Seven dicts {"head", "expression" (name), "probability"} in the order of `HEADS`.
    """
    sure, answers = probabilities.max(-1)
    return [
        {"head": head, "expression": EXPRESSIONS[answer], "probability": probability}
        for head, answer, probability in zip(HEADS, answers.tolist(), sure.tolist(), strict=True)
    ]
