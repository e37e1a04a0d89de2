"""A network of two parameters for tests of methods: every test sets its own predictions by its pictures."""

from __future__ import annotations

import torch
from torch import nn

from fercli.models import FEATURE_SIZE, Output


class Tiny(nn.Module):
    """Logits read off the picture's first 49 values of 192, features >= 0 from all of them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.mix = nn.Parameter(0.1 * torch.randn(192, 6 * FEATURE_SIZE, generator=generator))

    def forward(self, images, landmarks, crops=None) -> Output:
        flat = images.flatten(1)
        features = (flat @ self.mix).relu().view(-1, 6, FEATURE_SIZE)
        return Output(self.gain * flat[:, :49].view(-1, 7, 7), features)
