"""The contract between methods and the engine: a method supplies losses and extra modules, but no training loop."""

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
    """How far training has progressed.

    Use `step` and `epoch` in computations, but not in conditions. During training they are float64 scalars on the
    device, so that no step has to wait for the device and a recorded step (`fercli.engine.capture`) can be replayed
    with other values. `update` is a Python int and may be used in conditions.

    Attributes:
        step: number of batches before this one, over all epochs.
        epoch: counts from 1.
        update: number of this update among the method's updates on this batch, 0..updates-1.
    """

    step: Tensor | int
    epoch: Tensor | int
    update: int = 0


class Outputs(NamedTuple):
    """The network's outputs on N faces, in eval mode on centre-crop views.

    Attributes:
        probabilities: float [N, 7 heads, 7 expressions].
        features: float [N, 6, 64].
        labels: int64 [N] for source faces; always None for target faces.
    """

    probabilities: Tensor
    features: Tensor
    labels: Tensor | None = None


class Evaluator(Protocol):
    """Evaluates the current network on all training faces, before `Method.transform_output`.

    Each call costs a pass over the faces.
    """

    def source(self) -> Outputs:
        """Evaluate all labelled training faces. There are none for a method that needs no source."""

    def target(self) -> Outputs:
        """Evaluate all unlabelled target faces, in the order of `Batch.indices`."""


class Step(NamedTuple):
    """What a method returns: scalar `losses`, whose sum is minimised, and scalar `logs`, which are only recorded.

    Without a loss no parameter is trained. Only what a forward pass updates, the batch norm statistics, changes.
    """

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]


class Method(nn.Module):
    """Base class of all methods.

    A subclass declares its settings in `Options` and the target views it needs in `wants`, and implements `forward`.
    State that must be kept when training is stopped and resumed (banks, moving averages) belongs in buffers, extra
    networks in submodules.

    `forward` must not wait for the device. It must not read numbers back (``item``, ``if tensor``, ``nonzero``,
    indexing by a mask), no shape may depend on a tensor's values, and its state must be changed in place. The engine
    tests every method on a device without memory, where reading a number fails.

    Attributes:
        Options: the pydantic model of ``adapt.options``.
        options: the validated options.
        head_weights: float [7], the weight of each head's loss (global, five local, fused).
    """

    class Options(Section):
        """A method without options."""

    head_weights: Tensor

    #: The target views that each batch holds: any of "target", "weak", "strong".
    wants: frozenset[str] = frozenset()
    #: The decision rule that the method's paper reports; see `fercli.evaluation.decision`.
    decision: str = "fused"
    name: ClassVar[str] = ""
    #: Whether the method trains on the source. If not, no source is opened, `Batch.source` and `Batch.labels` are None,
    #: and an epoch is one pass over the target.
    needs_source: ClassVar[bool] = True
    #: Whether the method reads target labels. Only methods with "oracle" in their name may.
    oracle: ClassVar[bool] = False
    #: Whether `transform_output` changes the output. If so, evaluated checkpoints include the method's state.
    transforms_output: ClassVar[bool] = False
    #: Whether every update gives a gradient to each parameter of the network and the method, as far as the method knows
    #: the network. Training in several processes can then skip the search for parameters without a gradient.
    reaches_all: ClassVar[bool] = False
    #: Whether a pass over the target's pseudo-labelled faces drops an incomplete last batch.
    drop_last: bool = False
    #: Defaults of ``adapt.options`` with ``faithful: published``.
    published_options: ClassVar[Mapping[str, Any]] = {}
    #: Updates on each batch, each with its own forward pass, backward pass and optimizer step.
    updates: int = 1

    def __init__(self, settings: Optimisation, options: Section, feature_dim: int, target_size: int):
        super().__init__()
        self.options = options
        self.register_buffer("head_weights", torch.tensor(settings.head_weights), persistent=False)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        """Compute the losses of one step, or of one of its updates."""
        raise NotImplementedError

    def frozen(self, network: nn.Module, update: int) -> Iterable[nn.Parameter]:
        """Return the parameters of the network or the method that this update must not change."""
        return ()

    def network_parameters(self) -> list[nn.Parameter]:
        """Return the method's parameters that belong to the recogniser and train at the rate of its new layers.

        The method's other parameters (discriminators) train at ``adapt.discriminator_lr``.
        """
        return []

    def begin(self, network: nn.Module) -> None:
        """Called once with the starting model, before a resumed run loads its checkpoint."""

    def begin_epoch(self, evaluator: Evaluator) -> None:
        """Called before the first step of every epoch."""

    def pseudo_labelled(self) -> Tensor | None:
        """Return positions int64 [M] of the target faces to draw `Batch.pseudo_labelled` from, or None for none.

        Called once per epoch, after `begin_epoch`.
        """
        return None

    def transform_output(self, output: Output) -> Output:
        """Transform the network's output before predictions are made from it, in training and afterwards."""
        return output

    def status(self) -> Tensor | None:
        """Return the learning status b, float [7 heads, 7 expressions] in 0..1, or None if the method has none."""
        return None

    @classmethod
    def decision_options(cls, options: Section) -> dict[str, Any]:
        """Return the settings of the decision rule that follow from the method's options, as fields of `DecisionRule`.

        See `fercli.evaluation.decision`. Other fields keep the rule's defaults.
        """
        return {}

    @classmethod
    def options_of(cls, spec: Spec) -> Section:
        """Return a spec's validated ``adapt.options``; errors as in `read_options`."""
        return cls.read_options(spec.adapt.options, spec.faithful)

    @classmethod
    def read_options(cls, options: Mapping[str, Any], faithful: str = "corrected") -> Section:
        """Validate ``adapt.options``, with the defaults that belong to ``faithful``.

        Raises:
            SpecError: the options are not valid; one line per problem, as in `fercli.spec.load`.
        """
        from pydantic import ValidationError

        try:
            defaults = cls.published_options if faithful == "published" else {}
            return cls.Options.model_validate({**defaults, **options})
        except ValidationError as problem:
            raise SpecError("\n  ".join(explain(problem, cls.Options, "adapt.options"))) from None
