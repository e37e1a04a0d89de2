"""What a method is to the engine: losses and extra modules, never a loop of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fercli.errors import SpecError
from fercli.loading.batches import Batch
from fercli.models import HEADS, Output
from fercli.spec import Optimisation, Section, Spec
from fercli.spec.load import explain

NUM_HEADS = len(HEADS)


class Progress(NamedTuple):
    """Where training stands.

    `step` and `epoch` are numbers to compute with, never to decide by: while training they are float64 scalars on the
    device, so that nothing of a step waits for it, and a step that is recorded once (`fercli.engine.capture`) can be
    run again at another. `update` is known to the program and may decide.

    Attributes:
        step: batches done in all, before this one.
        epoch: counts from 1.
        update: which of the method's updates on this batch this is, 0..updates-1.
    """

    step: Tensor | int
    epoch: Tensor | int
    update: int = 0


class Outputs(NamedTuple):
    """The network's outputs on N faces, in eval mode on centre-crop views.

    Attributes:
        probabilities: float [N, 7 heads, 7 expressions].
        features: float [N, 6, 64].
        labels: int64 [N] of source faces; None of target faces, always.
    """

    probabilities: Tensor
    features: Tensor
    labels: Tensor | None = None


class Evaluator(Protocol):
    """A look at all training faces through the network as it is now, before `Method.transform_output`. Each costs a
    pass.
    """

    def source(self) -> Outputs:
        """All labelled training faces. There are none for a method that needs no source."""

    def target(self) -> Outputs:
        """All unlabelled target faces, in the order of `Batch.indices`."""


class Step(NamedTuple):
    """What a method returns: scalar `losses`, whose sum is trained, and scalar `logs`, which are only written down.

    Without a loss nothing is trained: what a forward pass changes, the statistics of batch norms, is all that changes.
    """

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]


class Method(nn.Module):
    """Base of all methods.

    A subclass names its settings in `Options` and the target views it wants in `wants`, and implements `forward`.
    State that must survive a stop (banks, moving averages) belongs in buffers, extra networks in submodules.

    `forward` must not wait for the device: no number is read back from it (``item``, ``if tensor``, ``nonzero``,
    indexing by a mask), no shape depends on what is in a tensor, and what it changes of its state it changes in place.
    The engine tries every method on a device without memory, where whatever reads a number fails.

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
    #: Whether it trains on the source. For one that does not no source is opened, `Batch.source` and `Batch.labels` are
    #: None, and an epoch is once through the target.
    needs_source: ClassVar[bool] = True
    #: Reads target labels. Only methods whose name says oracle may.
    oracle: ClassVar[bool] = False
    #: Whether `transform_output` does anything: then the method's state goes into the checkpoints that are evaluated.
    transforms_output: ClassVar[bool] = False
    #: Whether each update gives every parameter of network and method a gradient, as far as the method knows the
    #: network. Several processes then need not search each step for those without.
    reaches_all: ClassVar[bool] = False
    #: Whether a pass over the target's pseudo-labelled faces leaves out those that fill no whole batch.
    drop_last: bool = False
    #: What ``adapt.options`` are with ``faithful: published``, where the spec does not set them.
    published_options: ClassVar[Mapping[str, Any]] = {}
    #: Updates on each batch. Every one is a forward, a backward and an optimizer step of its own.
    updates: int = 1

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__()
        self.options = options
        self.register_buffer("head_weights", torch.tensor(settings.head_weights), persistent=False)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        """Compute the losses of one step, or of one update of it."""
        raise NotImplementedError

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        """Parameters, of the network or of the method, that this update leaves as they are."""
        return ()

    def network_parameters(self) -> list[nn.Parameter]:
        """Parameters of the method that belong to the recogniser: they train at the rate of the network's new layers.

        All others of the method's (discriminators) train at ``adapt.discriminator_lr``.
        """
        return []

    def begin(self, network: nn.Module) -> None:
        """Called once, with the network as it starts, and before a stopped run takes up its checkpoint."""

    def begin_epoch(self, evaluator: Evaluator) -> None:
        """Called before the first step of every epoch."""

    def pseudo_labelled(self) -> Tensor | None:
        """Positions int64 [M] of target faces from which `Batch.pseudo_labelled` is drawn, or None for none.

        Asked for once an epoch, after `begin_epoch`.
        """
        return None

    def transform_output(self, output: Output) -> Output:
        """What the network's output becomes before it is answered from, in training and in use."""
        return output

    def status(self) -> Tensor | None:
        """The learning status b, float [7 heads, 7 expressions] in 0..1, of methods that keep one."""
        return None

    @classmethod
    def decision_options(cls, options: Section) -> dict[str, Any]:
        """Settings of the decision rule that follow from the method's options: fields of `DecisionRule`.

        See `fercli.evaluation.decision`. What is not named keeps the rule's default.
        """
        return {}

    @classmethod
    def options_of(cls, spec: Spec) -> Section:
        """A spec's ``adapt.options``, checked; errors as `read_options`."""
        return cls.read_options(spec.adapt.options, spec.faithful)

    @classmethod
    def read_options(cls, options: Mapping[str, Any], faithful: str = "corrected") -> Section:
        """Check ``adapt.options``, with the defaults that ``faithful`` asks for.

        Raises:
            SpecError: one line a problem, as `fercli.spec.load` does.
        """
        from pydantic import ValidationError

        try:
            defaults = cls.published_options if faithful == "published" else {}
            return cls.Options.model_validate({**defaults, **options})
        except ValidationError as problem:
            raise SpecError("\n  ".join(explain(problem, cls.Options, "adapt.options"))) from None
