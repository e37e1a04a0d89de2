"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al., Towards Stable Test-Time Adaptation in Dynamic
Wild World, ICLR 2023, arXiv 2302.12400).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.batches import Batch
from fercli.methods.base import Method, Progress, Step
from fercli.methods.sharpness import perturbed
from fercli.methods.source_free import all_but_norms, head_entropy, norm_parameters
from fercli.spec import Optimisation, Section

#: The value of `SAR.average` before the first update.
NONE_YET = -1.0


class SAR(Method):
    """Tent on reliable faces only, towards weights in a region of low entropy, and with recovery from a collapse.

    - A face is reliable for a head if the head's entropy is below ``margin`` ln 7 (eq. 2). Other faces do not count.
    - The batch norms' affine parameters are updated with the gradient at `fercli.methods.sharpness.perturbed`, ``rho``
      uphill (eq. 3 and 4). There the reliable faces are filtered once more. The loss is each head's mean entropy over
      the remaining faces, times the head's weight; zero if no face remains.
    - Recovery: a moving average of that mean over the heads is kept, 0.9 of the old value plus 0.1 of the new one. If
      it falls below ``reset_below``, the model has collapsed to being confident on everything. The batch norms'
      parameters are then reset to the starting model's before the next step, and the average starts again.

    The paper has one head and filters its faces. ``reset_below`` is the paper's 0.2, for 1000 classes. A model that is
    rightly confident on seven classes may be below it from the start and is then reset at every step (the log
    "recovered"). There are three differences from the authors' code (commit 492c1ad): SGD's momentum is kept after a
    recovery, the norms of the last blocks train too, and the running statistics are updated, twice per step, and used
    for predictions.
    """

    name = "sar"
    needs_source = False
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        """``adapt.options`` of SAR."""

        margin: Annotated[float, Field(gt=0, le=1)] = 0.4
        """Entropy, as a share of ln 7, below which a prediction is reliable."""
        rho: Annotated[float, Field(ge=0)] = 0.05
        """Length of the step uphill, over all trained parameters."""
        reset_below: Annotated[float, Field(ge=0)] = 0.2
        """The model is reset when the moving average of the entropy, in nats, falls below this."""

    def __init__(self, settings: Optimisation, options: SAR.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.limit = options.margin * math.log(NUM_EXPRESSIONS)
        self.register_buffer("average", torch.tensor(NONE_YET))

    def begin(self, network: nn.Module) -> None:
        parts = [parameter.detach().flatten() for parameter in norm_parameters(network).values()]
        self.register_buffer("start", torch.cat(parts))

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        return all_but_norms(network)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        norms, faces = norm_parameters(network), batch.target.inputs
        recovered = self._recover(norms.values())
        uncertain = head_entropy(network(*faces).logits)
        reliable = uncertain.detach() < self.limit
        uphill = perturbed(network, self._mean(uncertain, reliable), self.options.rho, norms)
        uncertain = head_entropy(uphill(*faces).logits)
        kept = reliable & (uncertain.detach() < self.limit)
        self._follow(uncertain.detach(), kept)
        logs = {"reliable": kept[:, -1].float().mean(), "recovered": recovered.float(), "average": self.average.clone()}
        return Step({"entropy": self._mean(uncertain, kept)}, logs)

    def _mean(self, uncertain: Tensor, kept: Tensor) -> Tensor:
        """Sum over the heads the mean entropy of the kept faces, times the head's weight; both arguments are [B, H]."""
        return ((uncertain * kept).sum(0) / kept.sum(0).clamp_min(1) * self.head_weights).sum()

    @torch.no_grad()
    def _follow(self, uncertain: Tensor, kept: Tensor) -> None:
        weights = kept * self.head_weights
        mass = weights.sum()
        now = ((uncertain * weights).sum() / mass.clamp_min(1e-12)).clamp_min(0)
        follows = torch.where(self.average < 0, now, 0.9 * self.average + 0.1 * now)
        self.average.copy_(torch.where(mass > 0, follows, self.average))

    @torch.no_grad()
    def _recover(self, norms: Iterable[nn.Parameter]) -> Tensor:
        """Restore the starting model's parameters if the average is too low; returns a bool scalar, whether it was."""
        due = (self.average >= 0) & (self.average < self.options.reset_below)
        norms = list(norms)
        for parameter, start in zip(norms, self.start.split([p.numel() for p in norms]), strict=True):
            parameter.copy_(torch.where(due, start.view_as(parameter), parameter))
        self.average.copy_(torch.where(due, torch.full_like(self.average, NONE_YET), self.average))
        return due
