"""The decision rules, which turn the outputs of seven heads into one prediction.

Probabilities are float [N, 7 heads, 7 expressions], with the heads in the order of `fercli.models.HEADS`. Predictions
are int64 [N].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fercli.errors import SpecError
from fercli.methods.losses import class_thresholds
from fercli.models import HEADS

GLOBAL, FUSED = HEADS.index("global"), HEADS.index("fused")

#: The stage of GLPC that made the prediction.
STAGES = ("fused", "global", "sum")


class Decision(NamedTuple):
    """The result of a decision rule on the outputs of seven heads.

    Attributes:
        answers: int64 [N], the predicted expression.
        stages: int64 [N], an index into `STAGES`.
        probabilities: [N, 7], of the heads that decided. Rows sum to one; the prediction has the largest.
    """

    answers: Tensor
    stages: Tensor
    probabilities: Tensor


def by_head(probabilities: Tensor, head: int = FUSED) -> Decision:
    """One head's most probable expression."""
    answers = probabilities[:, head].argmax(-1)
    return Decision(answers, torch.zeros_like(answers), probabilities[:, head])


def global_and_fused(probabilities: Tensor) -> Decision:
    """The argmax of the sum of the global and the fused head's logits (CGLRL, Xie et al., ICPR 2022, its code).

    The sum uses log-probabilities, which differ from the logits by one constant per head. A probability of zero counts
    as the smallest positive float. Two heads that are each certain of a different class therefore tie, and the class
    with the lower index wins.
    """
    least = torch.finfo(probabilities.dtype).tiny
    summed = probabilities[:, [GLOBAL, FUSED]].clamp_min(least).log().sum(1)
    answers = summed.argmax(-1)
    return Decision(answers, torch.zeros_like(answers), summed.softmax(-1))


def glpc(probabilities: Tensor, status: Tensor, threshold: float, empty_sum: str = "all") -> Decision:
    """Global-local prediction consistency (AGLRLS, arXiv 2401.11085, the selection at test time).

    The fused head decides where its top probability, for class c, is >= threshold * ((b_c + 1) / 2) ** 2 with that
    head's b. Otherwise the global head decides by the same rule. Otherwise the seven heads' probabilities are summed by
    class, and the largest sum decides; a probability below its head's b for that class counts zero.

    Args:
        probabilities: [N, 7, 7].
        status: b, [7 heads, 7 expressions] in 0..1; see `fercli.methods.losses.learning_status`.
        threshold: confidence required of a class that is fully learned, 0..1; 0.95 as published.
        empty_sum: what decides where no head's probability reaches its b, so that the sum is zero for every class:
            ``all``, the plain sum of all probabilities, or ``class-0``, the first class, as in the released code.
            `Decision.probabilities` are those of the plain sum in either case.

    Thresholds are float64, as in the released code. In float32 the result differs for a probability that equals one.
    """
    limits = class_thresholds(status.double(), threshold)
    wide = probabilities.double()
    counted = torch.where(wide >= status.double(), wide, 0.0).sum(1)
    nothing = counted.amax(-1, keepdim=True) <= 0
    said = torch.where(nothing, wide.sum(1), counted)
    answers, said = said.argmax(-1), (said / said.sum(-1, keepdim=True)).to(probabilities.dtype)
    if empty_sum == "class-0":
        answers = torch.where(nothing[:, 0], torch.zeros_like(answers), answers)
    stages = torch.full_like(answers, STAGES.index("sum"))
    for head, stage in ((GLOBAL, "global"), (FUSED, "fused")):  # the fused head is tried first, so it is written last
        probability, label = probabilities[:, head].max(-1)
        sure = probability.double() >= limits[head, label]
        answers = torch.where(sure, label, answers)
        said = torch.where(sure[:, None], probabilities[:, head], said)
        stages = torch.where(sure, torch.full_like(stages, STAGES.index(stage)), stages)
    return Decision(answers, stages, said)


class DecisionRule(NamedTuple):
    """A decision rule with its parameters, as the model was trained. A call applies it.

    Attributes:
        name: "glpc", "global+fused", or one of `fercli.models.HEADS`, which then decides alone.
        status: b of GLPC, [7 heads, 7 expressions]. Without it (the model was not adapted) GLPC is the fused head.
        threshold: of GLPC, 0..1: the threshold that selected the model's pseudo labels.
        empty_sum: of GLPC; see `glpc`.
    """

    name: str
    status: Tensor | None = None
    threshold: float = 0.95
    empty_sum: str = "all"

    def __call__(self, probabilities: Tensor) -> Decision:
        """Decide on N faces from their probabilities [N, 7, 7]."""
        if self.name == "global+fused":
            return global_and_fused(probabilities)
        if self.name == "glpc":
            if self.status is None:
                return by_head(probabilities)
            return glpc(probabilities, self.status.to(probabilities.device), self.threshold, self.empty_sum)
        return by_head(probabilities, HEADS.index(self.name))

    def named(self, text: str) -> DecisionRule:
        """Another rule for the same model, by its name; ``glpc:0.8`` is GLPC with its own threshold.

        Raises:
            SpecError: there is no such rule.
        """
        name, _, number = text.partition(":")
        try:
            threshold = float(number) if number else self.threshold
        except ValueError:
            threshold = -1.0
        if name not in (*HEADS, "global+fused", "glpc") or (number and name != "glpc") or not 0 < threshold <= 1:
            raise SpecError(
                f"{text!r} is not a decision rule",
                f"choose one of {', '.join(HEADS)}, global+fused, glpc, glpc:THRESHOLD (0 to 1)",
            )
        return self._replace(name=name, threshold=threshold)

    @property
    def key(self) -> str:
        """The rule's name in tables; GLPC without a status is the fused head."""
        return "fused" if self.name == "glpc" and self.status is None else self.name
