"""What a method is to the engine: losses and extra modules, never a loop of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fercli.errors import SpecError
from fercli.models import HEADS
from fercli.spec import Optimisation, Section, explain
from fercli.views import View

NUM_HEADS = len(HEADS)


class Clock(NamedTuple):
    """Where training stands: `step` steps are done in all; `epoch` counts from 1."""

    step: int
    epoch: int


class Batch(NamedTuple):
    """One step's faces. Nothing here, and nothing that made it, has read a target label.

    Attributes:
        source: B views of labelled source faces.
        labels: int64 [B], 0..6.
        target: views of unlabelled target faces for alignment, or None.
        weak, strong: two views of the same target faces, for pseudo labels, or None.
        indices: int64 [B], position of the faces of `weak` in the target set, 0..N-1, or None.
    """

    source: View
    labels: Tensor
    target: View | None = None
    weak: View | None = None
    strong: View | None = None
    indices: Tensor | None = None


class Step(NamedTuple):
    """What a method returns: scalar `losses`, whose sum is trained, and scalar `logs`, which are only written down."""

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]


class Method(nn.Module):
    """Base of all methods.

    A subclass names its settings in `Options` and the target views it wants in `wants`, and implements `forward`.
    State that must survive a stop (banks, moving averages) belongs in buffers, extra networks in submodules.

    Attributes:
        Options: pydantic model of ``adapt.options``.
        options: the checked options.
        head_weights: float [7], weight of each head's loss (global, five local, fused).
    """

    class Options(Section):
        """A method without options."""

    #: Which target views each batch holds: any of "target", "weak", "strong".
    wants: frozenset[str] = frozenset()
    #: The decision rule that the method's paper reports; see `fercli.evaluation.decision`.
    decision: str = "fused"
    name: ClassVar[str] = ""

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__()
        self.options = options
        self.register_buffer("head_weights", torch.tensor(settings.head_weights), persistent=False)

    def forward(self, network: nn.Module, batch: Batch, clock: Clock) -> Step:
        """Compute the losses of one step."""
        raise NotImplementedError

    def begin_epoch(self) -> None:
        """Called before the first step of every epoch."""

    def status(self) -> Tensor | None:
        """The learning status b, float [7 heads, 7 expressions] in 0..1, of methods that keep one."""
        return None

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> Section:
        """Check ``adapt.options``.

        Raises:
            SpecError: one line a problem, as `fercli.spec.load` does.
        """
        from pydantic import ValidationError

        try:
            return cls.Options.model_validate(dict(options))
        except ValidationError as problem:
            raise SpecError("\n  ".join(explain(problem, cls.Options, "adapt.options"))) from None
