"""What a method is to the engine: losses and extra modules, never a loop of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fercli.errors import SpecError
from fercli.models import HEADS, Output
from fercli.spec import Optimisation, Section, explain
from fercli.views import View

NUM_HEADS = len(HEADS)


class Clock(NamedTuple):
    """Where training stands.

    Attributes:
        step: batches done in all, before this one.
        epoch: counts from 1.
        turn: which of the method's updates on this batch this is, 0..turns-1.
    """

    step: int
    epoch: int
    turn: int = 0


class Seen(NamedTuple):
    """The network's outputs on N faces, in eval mode on centre-crop views.

    Attributes:
        probabilities: float [N, 7 heads, 7 expressions].
        features: float [N, 6, 64].
        labels: int64 [N] of source faces; None of target faces, always.
    """

    probabilities: Tensor
    features: Tensor
    labels: Tensor | None = None


class Survey(Protocol):
    """A look at all training faces through the network as it is now, before `Method.refine`. Each costs a pass."""

    def source(self) -> Seen:
        """All labelled training faces."""

    def target(self) -> Seen:
        """All unlabelled target faces, in the order of `Batch.indices`."""


class Batch(NamedTuple):
    """One step's faces. Nothing here, and nothing that made it, has read a target label.

    Where several processes train together (`fercli.engine.shares`) the views hold this process's share of the faces,
    while labels and positions are those of the whole batch, as are the network's answers: count by them, never by the
    length of a view. A view may be cut to nothing, and views joined, but not cut otherwise.

    Attributes:
        source: B views of labelled source faces.
        labels: int64 [B], 0..6.
        target: views of unlabelled target faces for alignment, or None.
        weak, strong: two views of the same target faces, for pseudo labels, or None.
        indices: int64 [B], position of the faces of `weak` in the target set, 0..N-1, or None.
        pool: weak views of up to B faces of the method's own choice (`Method.pool`), or None where it chose none.
        pool_indices: int64, their positions in the target set, or None.
        soft_labels: float [B, 7], shares of the expressions times the face's weight, where the source is blended or
            weighed (``train_source.mixup``, ``class_balance``): they are what is learned, and `labels` say which share
            is larger. None where the labels say it all.
    """

    source: View
    labels: Tensor
    target: View | None = None
    weak: View | None = None
    strong: View | None = None
    indices: Tensor | None = None
    pool: View | None = None
    pool_indices: Tensor | None = None
    soft_labels: Tensor | None = None


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

    head_weights: Tensor

    #: Which target views each batch holds: any of "target", "weak", "strong".
    wants: frozenset[str] = frozenset()
    #: The decision rule that the method's paper reports; see `fercli.evaluation.decision`.
    decision: str = "fused"
    name: ClassVar[str] = ""
    #: Reads target labels. Only methods whose name says oracle may.
    oracle: ClassVar[bool] = False
    #: Whether `refine` does anything: then the method's state goes into the checkpoints that are evaluated.
    refines: ClassVar[bool] = False
    #: Whether each update gives every parameter of network and method a gradient, as far as the method knows the
    #: network. Several processes then need not search each step for those without.
    reaches_all: ClassVar[bool] = False
    #: Updates on each batch. Every one is a forward, a backward and an optimizer step of its own.
    turns: int = 1

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__()
        self.options = options
        self.register_buffer("head_weights", torch.tensor(settings.head_weights), persistent=False)

    def forward(self, network: nn.Module, batch: Batch, clock: Clock) -> Step:
        """Compute the losses of one step, or of one turn of it."""
        raise NotImplementedError

    def frozen(self, network: nn.Module, turn: int) -> Iterable[nn.Parameter]:
        """Parameters, of the network or of the method, that this turn leaves as they are."""
        return ()

    def network_parameters(self) -> list[nn.Parameter]:
        """Parameters of the method that belong to the recogniser: they train at the rate of the network's new layers.

        All others of the method's (discriminators) train at ``adapt.discriminator_lr``.
        """
        return []

    def begin_epoch(self, survey: Survey) -> None:
        """Called before the first step of every epoch."""

    def pool(self) -> Tensor | None:
        """Positions int64 [M] of target faces from which `Batch.pool` is drawn, or None for none."""
        return None

    def refine(self, output: Output) -> Output:
        """What the network's output becomes before it is answered from, in training and in use."""
        return output

    def status(self) -> Tensor | None:
        """The learning status b, float [7 heads, 7 expressions] in 0..1, of methods that keep one."""
        return None

    @classmethod
    def decision_options(cls, options: Section) -> dict[str, float]:
        """Settings of the decision rule that follow from the method's options: fields of `DecisionRule`.

        See `fercli.evaluation.decision`. What is not named keeps the rule's default.
        """
        return {}

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
