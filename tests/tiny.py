"""Small networks for tests: one of two parameters, whose predictions a test sets with its images, one with all parts
that methods use, and the real ones."""

from __future__ import annotations

import torch
from torch import nn

from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods.base import Method, Outputs
from fercli.models import FEATURE_SIZE, Output
from fercli.spec import Model


class Tiny(nn.Module):
    """Logits from the first 49 of an image's 192 values, and features >= 0 from all of them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.mix = nn.Parameter(0.1 * torch.randn(192, 6 * FEATURE_SIZE, generator=generator))

    def forward(self, images, landmarks, crops=None) -> Output:
        flat = images.flatten(1)
        features = (flat @ self.mix).relu().view(-1, 6, FEATURE_SIZE)
        return Output(self.gain * flat[:, :49].view(-1, 7, 7), features)


class Small(nn.Module):
    """A convolution, a batch norm and seven heads on images of 8x8 or larger: all that methods need of a network."""

    compiled = None

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.spread = nn.Linear(24, 6 * FEATURE_SIZE)
        self.classifiers = nn.ModuleList([nn.Linear(FEATURE_SIZE, 7), nn.Linear(FEATURE_SIZE, 7)])
        self.classifiers.append(nn.Linear(6 * FEATURE_SIZE, 7))

    def forward(self, images, landmarks, crops=None) -> Output:
        features = self.spread(self.backbone(images).flatten(1)).relu().view(-1, 6, FEATURE_SIZE)
        first, local, last = self.classifiers
        logits = [first(features[:, :1]), local(features[:, 1:]), last(features.flatten(1))[:, None]]
        return Output(torch.cat(logits, 1), features)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        new = list(self.classifiers.parameters())
        return {"backbone": [*self.backbone.parameters(), *self.spread.parameters()], "new": new}


class NormedTiny(Tiny):
    """The same after a batch norm of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(192)

    def forward(self, images, landmarks, crops=None) -> Output:
        return super().forward(self.norm(images.flatten(1)), landmarks)


class Looking:
    """The evaluator that a method receives before an epoch, for all target faces; here they are images of noise."""

    def __init__(self, network: nn.Module, faces: View) -> None:
        self.network, self.faces = network, faces

    @torch.no_grad()
    def target(self) -> Outputs:
        self.network.eval()
        seen = self.network(*self.faces.inputs)
        self.network.train()
        return Outputs(seen.logits.softmax(-1).cpu(), seen.features.cpu())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(seed: int, count: int = 4, scale: float = 2.0) -> View:
    """Images of noise that collect gradients."""
    return pictures(*scale * draw(count, 3, 8, 8, seed=seed))


def pictures(*images: torch.Tensor) -> View:
    return View(torch.stack(images).requires_grad_(), torch.zeros(len(images), 5, 2))


def sure(label: int, strength: float = 9.0) -> torch.Tensor:
    """An image for which all seven heads predict `label`; with strength 0 all predictions are uniform."""
    logits = torch.zeros(7, 7)
    logits[:, label] = strength
    return torch.cat([logits.flatten(), torch.zeros(192 - 49)]).view(3, 8, 8)


def batch_for(method: Method, count: int = 4, scale: float = 2.0) -> Batch:
    """A batch of the target's first faces, with the views that a method needs."""

    def wanted(name: str, seed: int) -> View | None:
        return view(seed, count, scale) if name in method.wants else None

    labels = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(9))
    views = [wanted("target", 2), wanted("weak", 3), wanted("strong", 4)]
    return Batch(view(1, count, scale), labels, *views, indices=torch.arange(count))


def model_spec(**changes) -> Model:
    """The model section of a run spec, small unless changed."""
    return Model(**{"backbone": "ir-small", "width": 8, **changes})


def batch(size: int = 2, patch: int = 48) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, 112, 112, generator=generator)
    landmarks = torch.rand(size, 5, 2, generator=generator) * 112
    return images, landmarks, torch.randn(size, 5, 3, patch, patch, generator=generator)
