"""CGLRL: learning consistent global-local representation for cross-domain FER (Xie et al., ICPR 2022).

Separate adversarial learning of the seven heads, and pseudo labels for the target faces on which the heads agree.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fercli.errors import FercliError
from fercli.loading.batches import Batch
from fercli.methods.adversarial import HeadDiscriminators
from fercli.methods.base import NUM_HEADS, Evaluator, Method, Progress, Step
from fercli.methods.joint import joint_pass
from fercli.methods.losses import entropy, head_cross_entropy
from fercli.spec import Optimisation, Section
from fercli.spec.schema import Fraction


def consistent_labels(probabilities: Tensor, entropy_limit: float) -> Tensor:
    """The label of each face on which the heads agree and are sure (CGLRL).

    Args:
        probabilities: [N, 7, C].
        entropy_limit: in nats; each of the seven heads must stay below it.

    Returns:
        int64 [N]: what the global and the five local heads all answer, or -1. The fused head must be sure, but need not
        agree. -1 also where a probability is NaN.
    """
    answers = probabilities[:, : NUM_HEADS - 1].argmax(-1)
    agree = (answers == answers[:, :1]).all(1)
    sure = (entropy(probabilities.float()) < entropy_limit).all(1)
    return torch.where(agree & sure, answers[:, 0], -1)


def holds_up(new: Tensor, old: Tensor, min_size: float, min_agreement: float) -> bool:
    """Whether pseudo labels are good enough to replace others, judged without the truth.

    They are refused where nothing is labelled, and accepted where nothing was labelled before. Else both must hold:

    - at least `min_size` times as many faces are labelled as before: a network that grows less sure of the target is
      not learning it;
    - of the faces labelled in both, of which there must be one, at least the share `min_agreement` has kept its label:
      faces that heads were sure of and are now sure of otherwise show that one of the two is wrong.

    What this cannot see: a first set that is wrong, or errors that all heads share and keep.

    Args:
        new, old: int64 [N], -1 for faces without a label.
    """
    number, before = int((new >= 0).sum()), int((old >= 0).sum())
    if number == 0 or before == 0:
        return number > 0
    both = (new >= 0) & (old >= 0)
    common, kept = int(both.sum()), int((both & (new == old)).sum())
    return number / before >= min_size and common > 0 and kept / common >= min_agreement


class CommonOptions(Section):
    """What both variants of CGLRL can be told."""

    adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
    entropy_conditioning: bool = True
    reversal_steps: Annotated[float, Field(gt=0)] = 10_000
    reversal_counts: Literal["steps", "forwards"] = "steps"
    discriminators: Literal["shared", "separate"] = "shared"
    hidden: Annotated[int, Field(gt=0)] = 512
    pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
    entropy_limit: Annotated[float, Field(gt=0)] = 0.19459
    decision: Literal["fused", "global+fused"] = "fused"
    drop_last: bool = False


class CGLRL(Method):
    """The published method, with pseudo labels that are judged without the truth.

    A step trains on the sum of three:

    - source: cross-entropy of the seven heads with ``adapt.head_weights``;
    - adversarial: `HeadDiscriminators`, each head's term with ``adversarial_weight`` (1; AGLRLS has 0.5);
    - pseudo: plain cross-entropy of the seven heads, each with ``pseudo_weight``, on a batch of the target faces that
      have a pseudo label, some of them several times where there are fewer, in a forward pass of their own as in the
      released code. None where there are none.

    Before each epoch the target faces are labelled by `consistent_labels` with ``entropy_limit`` (a tenth of ln 7). The
    new labels replace those in force if they hold up against them (`holds_up`): by default, if the set shrinks by no
    more than a tenth (``min_size``), and no more than a tenth of the labels that both sets give has changed
    (``min_agreement``). That gate is ours: the released code asks that 99% of the new labels be true, and so reads the
    target's (`CGLRLOracle`).

    ``decision: fused`` answers by the fused head, ``global+fused`` by the sum of its and the global head's logits; the
    released code reports both.

    Degenerate targets: of one face, the set holds it or is empty; where all labels are of one class they are used like
    any other.
    """

    name = "cglrl"
    reaches_all = True
    wants = frozenset({"target"})
    published_options: ClassVar[dict[str, Any]] = {"reversal_counts": "forwards", "drop_last": True}

    class Options(CommonOptions):
        """``adapt.options`` of CGLRL."""

        min_size: Annotated[float, Field(ge=0)] = 0.9
        min_agreement: Fraction = 0.9

    def __init__(self, settings: Optimisation, options: CommonOptions, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        self.decision, self.drop_last = options.decision, options.drop_last
        self.discriminators = HeadDiscriminators(
            feature_dim, options.discriminators, options.hidden, options.reversal_steps, options.reversal_counts
        )
        self.register_buffer("pseudo", torch.full((target_size,), -1, dtype=torch.long))
        self.register_buffer("renewed", torch.tensor(False))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        offered = consistent_labels(evaluator.target().probabilities.to(self.pseudo.device), self.options.entropy_limit)
        self.renewed.fill_(self.accepts(offered))
        if self.renewed:
            self.pseudo.copy_(offered)

    def accepts(self, offered: Tensor) -> bool:
        """Whether pseudo labels int64 [N] (-1 for none) replace those in force."""
        return holds_up(offered, self.pseudo, self.options.min_size, self.options.min_agreement)

    def pseudo_labelled(self) -> Tensor:
        return (self.pseudo >= 0).nonzero().squeeze(1)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options = self.options
        source, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        adversarial = self.discriminators(source, target, progress.step, options.entropy_conditioning)
        losses["adversarial"] = options.adversarial_weight * adversarial
        logs["reversal"] = self.discriminators.coefficients(progress.step)[-1]
        logs["pseudo-labelled"] = (self.pseudo >= 0).sum() / max(1, len(self.pseudo))
        logs["pseudo-renewed"] = self.renewed.float()
        if batch.pseudo_labelled is not None:
            logits = network(*batch.pseudo_labelled.inputs).logits
            even = torch.ones_like(self.head_weights)
            losses["pseudo"] = options.pseudo_weight * head_cross_entropy(
                logits, self.pseudo[batch.pseudo_labelled_indices], even
            )
        return Step(losses, logs)


class CGLRLOracle(CGLRL):
    """CGLRL as its code was released: new pseudo labels replace the old where the true labels find them good enough.

    That is where at least ``min_accuracy`` of those that can be checked are true; where none can be, the old ones stay.
    It reads target labels in training, so its figures are an oracle's and stand beside no other method's.
    """

    name = "cglrl-oracle"
    oracle = True

    class Options(CommonOptions):
        """``adapt.options`` of the oracle."""

        min_accuracy: Fraction = 0.99

    def __init__(self, settings: Optimisation, options: CommonOptions, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        # Never in a checkpoint: a run that is taken up is given them again.
        self.register_buffer("truth", None, persistent=False)

    def give_labels(self, labels: Tensor) -> None:
        """Take the true labels of the target faces, int64 [N] in the order of `Batch.indices`, -1 where unknown.

        Raises:
            FercliError: they are not as many as the target's faces.
        """
        if labels.shape != self.pseudo.shape:
            raise FercliError(
                f"cglrl-oracle: {len(labels)} labels for {len(self.pseudo)} target faces", "give each one"
            )
        self.truth = labels.to(self.pseudo)

    def accepts(self, offered: Tensor) -> bool:
        """Whether pseudo labels int64 [N] (-1 for none) replace those in force.

        Raises:
            FercliError: the target's true labels were never given, or none of them is known.
        """
        if self.truth is None or not (self.truth >= 0).any():
            raise FercliError("cglrl-oracle judges by the target's true labels and has none", "use method cglrl")
        truth = self.truth.to(offered.device)
        checked = (offered >= 0) & (truth >= 0)
        number = int(checked.sum())
        return number > 0 and int((checked & (offered == truth)).sum()) / number >= self.options.min_accuracy
