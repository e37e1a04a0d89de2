"""Names of the rules that choose the best epoch, and what each reads. Computed in `fercli.evaluation.selection`.

A rule that read target labels would be an oracle. None stands here: the oracle is reckoned after the run, by
`fercli.evaluation.oracle`, from the decisions that each epoch left behind.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What a selection rule reads.

    Attributes:
        reads: in words, for reports.
        needs_target: true where it looks at the (unlabelled) target images, so that it cannot choose in train-source.
    """

    reads: tuple[str, ...]
    needs_target: bool


RULES: dict[str, Rule] = {
    "last": Rule((), needs_target=False),
    "source-val": Rule(("source validation labels",), needs_target=False),
    "entropy": Rule(("target images",), needs_target=True),
    "infomax": Rule(("target images",), needs_target=True),
    "agreement": Rule(("target images",), needs_target=True),
}
