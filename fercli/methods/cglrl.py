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
    """Return the labels of the faces on which the heads agree with confidence (CGLRL).

    Args:
        probabilities: [N, 7, C].
        entropy_limit: in nats; the entropy of each of the seven heads must be below it.

    Returns:
        int64 [N]: the class that the global and the five local heads all predict, or -1. The fused head must be
        confident but need not agree. Also -1 if a probability is NaN.
    """
    answers = probabilities[:, : NUM_HEADS - 1].argmax(-1)
    agree = (answers == answers[:, :1]).all(1)
    sure = (entropy(probabilities.float()) < entropy_limit).all(1)
    return torch.where(agree & sure, answers[:, 0], -1)


def holds_up(new: Tensor, old: Tensor, min_size: float, min_agreement: float) -> bool:
    """Return whether new pseudo labels are good enough to replace old ones, without using true labels.

    They are rejected if they label no face, and accepted if the old ones label no face. Otherwise two conditions must
    hold:

    - They label at least `min_size` times as many faces as before: a network that grows less confident on the target is
      not learning it.
    - At least one face is labelled in both sets, and at least the fraction `min_agreement` of these faces has kept its
      label: if the heads confidently change a label, one of the two labels is wrong.

    This cannot detect a wrong first set, or errors that all heads share and keep.

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
    """The options of both variants of CGLRL."""

    adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of each head's adversarial loss."""
    entropy_conditioning: bool = True
    """Whether confident faces weigh more in the adversarial loss, as in CDAN+E."""
    reversal_steps: Annotated[float, Field(gt=0)] = 10_000
    """Training steps after which the gradient reversal is nearly complete."""
    reversal_counts: Literal["steps", "forwards"] = "steps"
    """What the reversal counts: steps, or a discriminator's forward passes as in the released code."""
    discriminators: Literal["shared", "separate"] = "shared"
    """``separate``: one for each head. ``shared``: one for the five local heads, as in the released code."""
    hidden: Annotated[int, Field(gt=0)] = 512
    """Width of the discriminators' hidden layers."""
    pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the pseudo labels' loss."""
    entropy_limit: Annotated[float, Field(gt=0)] = 0.19459
    """A face gets a pseudo label only if every head's entropy is below this, in nats; a tenth of ln 7."""
    decision: Literal["fused", "global+fused"] = "fused"
    """The head that predicts: the fused one, or the sum of its logits and the global head's."""
    drop_last: bool = False
    """Whether the last, incomplete batch of pseudo-labelled faces of an epoch is left out."""


class CGLRL(Method):
    """The published method, except that pseudo labels are accepted without using true labels.

    A step trains on the sum of three losses:

    - source: cross-entropy of the seven heads with ``adapt.head_weights``;
    - adversarial: `HeadDiscriminators`, each head's term with ``adversarial_weight`` (1; AGLRLS has 0.5);
    - pseudo: plain cross-entropy of the seven heads, each with ``pseudo_weight``, on a batch of target faces that have
      a pseudo label. If there are fewer than a batch, some faces are repeated; if there are none, there is no loss. The
      batch has a separate forward pass, as in the released code.

    Before each epoch, `consistent_labels` labels the target faces with ``entropy_limit`` (a tenth of ln 7). The new
    labels replace the current ones if `holds_up` accepts them: by default, if the set shrinks by at most a tenth
    (``min_size``), and at most a tenth of the labels that are in both sets has changed (``min_agreement``). This gate
    is fercli's. The released code requires that 99 % of the new labels are correct, and so reads the target's labels
    (`CGLRLOracle`).

    ``decision: fused`` predicts with the fused head, ``global+fused`` with the sum of its logits and the global head's.
    The released code reports both.

    Degenerate targets: with a single face, the set holds it or is empty. If all labels have the same class, they are
    used as usual.
    """

    name = "cglrl"
    reaches_all = True
    wants = frozenset({"target"})
    published_options: ClassVar[dict[str, Any]] = {"reversal_counts": "forwards", "drop_last": True}

    class Options(CommonOptions):
        """``adapt.options`` of CGLRL."""

        min_size: Annotated[float, Field(ge=0)] = 0.9
        """New pseudo labels need at least this share of the current ones' number."""
        min_agreement: Fraction = 0.9
        """New pseudo labels must agree with at least this share of the current ones on the same faces."""

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
        """Return whether pseudo labels int64 [N] (-1 for none) replace the current ones."""
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
    """CGLRL as in the released code: new pseudo labels replace the old ones if enough of them match the true labels.

    They do if at least ``min_accuracy`` of those that can be checked are correct. If none can be checked, the old ones
    stay. Because it reads target labels in training, its results are an oracle's and not comparable with other methods.
    """

    name = "cglrl-oracle"
    oracle = True

    class Options(CommonOptions):
        """``adapt.options`` of the oracle."""

        min_accuracy: Fraction = 0.99
        """Share of the new pseudo labels that must match the true labels."""

    def __init__(self, settings: Optimisation, options: CommonOptions, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        # Never in a checkpoint: a resumed run receives them again.
        self.register_buffer("truth", None, persistent=False)

    def give_labels(self, labels: Tensor) -> None:
        """Set the true labels of the target faces, int64 [N] in the order of `Batch.indices`, -1 if unknown.

        Raises:
            FercliError: the number of labels differs from the number of target faces.
        """
        if labels.shape != self.pseudo.shape:
            raise FercliError(
                f"cglrl-oracle: {len(labels)} labels for {len(self.pseudo)} target faces", "give one label per face"
            )
        self.truth = labels.to(self.pseudo)

    def accepts(self, offered: Tensor) -> bool:
        """Return whether pseudo labels int64 [N] (-1 for none) replace the current ones.

        Raises:
            FercliError: the target's true labels were never given, or none of them is known.
        """
        if self.truth is None or not (self.truth >= 0).any():
            raise FercliError("cglrl-oracle needs the target's true labels, but there are none", "use method cglrl")
        truth = self.truth.to(offered.device)
        checked = (offered >= 0) & (truth >= 0)
        number = int(checked.sum())
        return number > 0 and int((checked & (offered == truth)).sum()) / number >= self.options.min_accuracy
