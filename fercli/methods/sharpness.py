"""The network at weights where a loss is worse: the first half of a sharpness-aware step (SAM)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fercli.errors import FercliError
from fercli.models import Output

#: Keeps a step of no length finite, where the loss has no gradient; the value of SAM's public PyTorch code.
NORM_FLOOR = 1e-12


def uphill(
    network: nn.Module, loss: Tensor, rho: float, parameters: Mapping[str, nn.Parameter] | None = None
) -> dict[str, Tensor]:
    """The weights w + e, where e leads uphill: e = rho g / ||g||, g the gradient of `loss` by w (SAM, Foret et al.,
    ICLR 2021, eq. 2).

    No weight changes. What is trained on these weights gives its gradient to w itself: e is a constant, as in the
    paper's approximation. So both halves of a step fit into one forward and one backward, and the optimizer knows of
    none of it.

    Args:
        network: computed `loss`.
        loss: a scalar; its graph is used up, so that it cannot be trained on itself.
        rho: length of e over all parameters together, >= 0.
        parameters: w, by their names in `network`; None is all of them. One that `loss` does not reach stays where it
            is; where `loss` has no gradient at all, e is 0.

    Returns:
        w + e by the same names, without those that stay.

    Raises:
        FercliError: several processes share the batch: then each knows the gradient of its own faces alone.
    """
    if not isinstance(network, nn.Module):
        raise FercliError("a sharpness-aware step runs in one process", "start one process")
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
    """The network at the weights `uphill`, of the same arguments and errors; it is called as `network` is.

    Parameters that are not among `parameters` stay where they are. The second pass moves the running statistics of
    batch norms again.
    """
    moved = uphill(network, loss, rho, parameters)

    def at_moved(*inputs: Any) -> Output:
        return functional_call(network, moved, inputs)

    return at_moved
