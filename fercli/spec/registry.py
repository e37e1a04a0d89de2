"""The names that a spec may choose from: methods, and rules that select the best epoch.

Names alone, so that a spec is checked without loading torch: methods are loaded by `fercli.methods.method_class`, rules
are computed in `fercli.evaluation.selection`.
"""

from __future__ import annotations

from typing import NamedTuple

#: ``adapt.method`` -> module and class. Methods of your own are named ``module:Class`` in the spec.
METHODS: dict[str, str] = {
    "source-only": "fercli.methods.source_only:SourceOnly",
    "aglrls": "fercli.methods.aglrls:AGLRLS",
    "cglrl": "fercli.methods.cglrl:CGLRL",
    "cglrl-oracle": "fercli.methods.cglrl:CGLRLOracle",
    "dann": "fercli.methods.dann:DANN",
    "cdan": "fercli.methods.cdan:CDAN",
    "cdan-e": "fercli.methods.cdan:CDANE",
    "safn": "fercli.methods.safn:SAFN",
    "mcd": "fercli.methods.mcd:MCD",
    "swd": "fercli.methods.swd:SWD",
    "mcc": "fercli.methods.mcc:MCC",
    "bnm": "fercli.methods.bnm:BNM",
    "daln": "fercli.methods.daln:DALN",
    "fixmatch": "fercli.methods.fixmatch:FixMatch",
    "agra": "fercli.methods.agra:AGRA",
    "shot": "fercli.methods.shot:SHOT",
    "aad": "fercli.methods.aad:AaD",
    "nrc": "fercli.methods.nrc:NRC",
    "aglrls-sf": "fercli.methods.aglrls_sf:AGLRLSSourceFree",
    "adabn": "fercli.methods.adabn:AdaBN",
    "tent": "fercli.methods.tent:Tent",
    "sar": "fercli.methods.sar:SAR",
}

#: The method that all others are compared with: the source model as it is.
REFERENCE = "source-only"

_LABELS, _SOURCE, _TARGET = "source validation labels", "source training images", "target images"


class SelectionRule(NamedTuple):
    """What a selection rule reads, and when it can be computed.

    A rule that read target labels would be an oracle. None is registered: the oracle is computed after the run, by
    `fercli.evaluation.oracle`, from the outputs that each epoch left behind.

    Attributes:
        reads: in words, for reports.
        post_hoc: true where an epoch's score depends on the other epochs, so that it exists only after the last one.
        costly: true where an epoch's score takes one more pass over the source's training faces.
    """

    reads: tuple[str, ...]
    post_hoc: bool = False
    costly: bool = False

    @property
    def needs_target(self) -> bool:
        """Whether it looks at the (unlabelled) target images, so that it cannot choose in train-source."""
        return _TARGET in self.reads

    @property
    def needs_source(self) -> bool:
        """Whether it looks at source faces, so that it cannot choose where the source is not at hand."""
        return bool({_LABELS, _SOURCE} & set(self.reads))

    @property
    def needs_held_out(self) -> bool:
        """Whether it looks at source faces that were held out of training."""
        return _LABELS in self.reads


#: ``train_source.select``, ``adapt.select`` and ``adapt.also_score``.
RULES: dict[str, SelectionRule] = {
    "last": SelectionRule(()),
    "source-val": SelectionRule((_LABELS,)),
    "entropy": SelectionRule((_TARGET,)),
    "infomax": SelectionRule((_TARGET,)),
    "agreement": SelectionRule((_TARGET,)),
    "bnm": SelectionRule((_TARGET,)),
    "snd": SelectionRule((_TARGET,)),
    "corr-c": SelectionRule((_TARGET,)),
    "dev": SelectionRule((_LABELS, _SOURCE, _TARGET), costly=True),
    "ensv": SelectionRule((_TARGET,), post_hoc=True),
}

#: How the makers of released checkpoints chose the epoch; no spec can ask for it. Their code keeps the epoch that is
#: best on the target's test labels, or in its source stage on the source's.
ORACLE, SOURCE_TEST = "oracle", "source-test"
_OF_MAKERS = {ORACLE: ("target test labels",), SOURCE_TEST: ("source test labels",)}


def reads(rule: str) -> tuple[str, ...]:
    """What a rule that chose an epoch has read, in words."""
    return _OF_MAKERS[rule] if rule in _OF_MAKERS else RULES[rule].reads
