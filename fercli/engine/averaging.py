"""A moving average of the weights, which is scored and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network's weights and batch-norm statistics (Polyak and Juditsky, 1992).

    After update t (from 0) the average a of a weight w becomes d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)),
    so that the first weights are soon forgotten. Integer tensors (counters that nothing depends on) are not averaged.

    Args:
        network: its parameters and buffers are averaged.
        more: parameters of the method that belong to the recogniser (`Method.network_parameters`).
        decay: 0 to 1, such as 0.999: roughly the mean of the last 1 / (1 - decay) updates.
    """

    def __init__(self, network: nn.Module, more: Iterable[nn.Parameter], decay: float):
        self._live: list[Tensor] = [*network.state_dict().values(), *(parameter.data for parameter in more)]
        self._average = [tensor.clone() for tensor in self._live]
        real = [pair for pair in zip(self._average, self._live, strict=True) if pair[0].is_floating_point()]
        self._moving, self._towards = ([pair[side] for pair in real] for side in range(2))
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights as they are after update `step`, counted from 0, to the average."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._moving, self._towards, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the network has the averaged weights; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, live in zip(self._average, self._live, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    def state(self) -> list[Tensor]:
        """The state that a checkpoint stores."""
        return [tensor.clone() for tensor in self._average]

    def load(self, state: list[Tensor]) -> None:
        """Restore a state that `state` returned."""
        for average, saved in zip(self._average, state, strict=True):
            average.copy_(saved)
