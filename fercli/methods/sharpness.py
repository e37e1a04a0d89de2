"""The network with weights moved to where a loss is higher: the first half of a sharpness-aware step (SAM)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fercli.errors import FercliError
from fercli.models import Output

#: Keeps the step finite if the loss has no gradient; the value of SAM's public PyTorch code.
NORM_FLOOR = 1e-12


def uphill(
    network: nn.Module, loss: Tensor, rho: float, parameters: Mapping[str, nn.Parameter] | None = None
) -> dict[str, Tensor]:
    """Return the weights w + e, where e = rho g / ||g|| points uphill and g is the gradient of `loss` at w.

    This is SAM (Foret et al., ICLR 2021, eq. 2). The weights do not change. A loss computed with the returned weights
    gives its gradient to w itself, since e is a constant, as in the paper's approximation. So both halves of a step fit
    into one `Method.forward` and one backward pass, and the optimizer needs no changes.

    Args:
        network: the network that computed `loss`.
        loss: a scalar; its graph is freed, so that it cannot be used for training as well.
        rho: the length of e over all parameters together, >= 0.
        parameters: w, by their names in `network`; None for all of them. Parameters that `loss` does not reach stay
            unchanged; if `loss` has no gradient at all, e is 0.

    Returns:
        w + e by the same names, without the unchanged parameters.

    Raises:
        FercliError: several processes share the batch, so that each knows only the gradient of its own faces.
    """
    if not isinstance(network, nn.Module):
        raise FercliError("a sharpness-aware step works in one process only", "start one process")
    chosen = dict(network.named_parameters() if parameters is None else parameters)
    found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(chosen, found, strict=True) if gradient is not None}
    if not gradients:
        return {}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    return {name: chosen[name] + rho * gradient / (norm + NORM_FLOOR) for name, gradient in gradients.items()}


def perturbed(
    network: nn.Module, loss: Tensor, rho: float, parameters: Mapping[str, nn.Parameter] | None = None
) -> Callable[..., Output]:
    """Return the network with the weights of `uphill`; call it like `network`. Arguments and errors are the same.

    Parameters that are not in `parameters` stay unchanged. The second pass updates the running statistics of batch
    norms again.
    """
    moved = uphill(network, loss, rho, parameters)

    def at_moved(*inputs: Any) -> Output:
        return functional_call(network, moved, inputs)

    return at_moved
