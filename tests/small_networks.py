"""Small global-local networks for tests: their section of a run spec, and a batch for them."""

from __future__ import annotations

from types import SimpleNamespace

import torch


def model_spec(**changes) -> SimpleNamespace:
    """The model section of a run spec, small unless changed."""
    fields = {"backbone": "ir-small", "width": 8, "local": "feature-map", "classifiers": "shared", "weights": None}
    fields |= {"input": "colour", "test_flip": False}
    return SimpleNamespace(**(fields | changes))


def batch(size: int = 2, patch: int = 48) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, 112, 112, generator=generator)
    landmarks = torch.rand(size, 5, 2, generator=generator) * 112
    return images, landmarks, torch.randn(size, 5, 3, patch, patch, generator=generator)
