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


def perturbed(
    network: nn.Module, loss: Tensor, rho: float, parameters: Mapping[str, nn.Parameter] | None = None
) -> Callable[..., Output]:
    """The network at w + e, where e leads uphill: e = rho g / ||g||, g the gradient of `loss` by w (SAM, Foret et al.,
    ICLR 2021, eq. 2).

    No weight changes. What the returned network is trained on gives its gradient to w itself: e is a constant, as in
    the paper's approximation. So both halves of a step fit into one forward and one backward, and the optimizer knows
    of none of it. The second pass moves the running statistics of batch norms again.

    Args:
        network: computed `loss`.
        loss: a scalar; its graph is used up, so that it cannot be trained on itself.
        rho: length of e over all parameters together, >= 0.
        parameters: w, by their names in `network`; None is all of them. The others stay where they are. One that `loss`
            does not reach stays too; where `loss` has no gradient at all, e is 0.

    Returns:
        What is called as `network` is.

    Raises:
        FercliError: several processes share the batch: then each knows the gradient of its own faces alone.
    """
    if not isinstance(network, nn.Module):
        raise FercliError("a sharpness-aware step runs in one process", "start it alone, without torchrun or srun")
    chosen = dict(network.named_parameters() if parameters is None else parameters)
    found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(chosen, found, strict=True) if gradient is not None}
    if not gradients:
        return network
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    moved = {name: chosen[name] + rho * gradient / (norm + NORM_FLOOR) for name, gradient in gradients.items()}

    def at_moved(*inputs: Any) -> Output:
        return functional_call(network, moved, inputs)

    return at_moved
