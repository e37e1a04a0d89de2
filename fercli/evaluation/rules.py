"""Names of the rules that choose the best epoch, and what each reads. Computed in `fercli.evaluation.selection`.

A rule that read target labels would be an oracle. None stands here: the oracle is reckoned after the run, by
`fercli.evaluation.oracle`, from the decisions that each epoch left behind.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What a selection rule reads, and when it can be reckoned.

    Attributes:
        reads: in words, for reports.
        needs_target: true where it looks at the (unlabelled) target images, so that it cannot choose in train-source.
        post_hoc: true where an epoch's score depends on the other epochs, so that it exists only after the last one.
        costly: true where an epoch's score takes one more pass over the source's training faces.
    """

    reads: tuple[str, ...]
    needs_target: bool
    post_hoc: bool = False
    costly: bool = False


_LABELS, _SOURCE, _TARGET = "source validation labels", "source training images", "target images"

RULES: dict[str, Rule] = {
    "last": Rule((), needs_target=False),
    "source-val": Rule((_LABELS,), needs_target=False),
    "entropy": Rule((_TARGET,), needs_target=True),
    "infomax": Rule((_TARGET,), needs_target=True),
    "agreement": Rule((_TARGET,), needs_target=True),
    "bnm": Rule((_TARGET,), needs_target=True),
    "snd": Rule((_TARGET,), needs_target=True),
    "corr-c": Rule((_TARGET,), needs_target=True),
    "dev": Rule((_LABELS, _SOURCE, _TARGET), needs_target=True, costly=True),
    "ensv": Rule((_TARGET,), needs_target=True, post_hoc=True),
}
