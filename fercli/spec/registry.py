"""The names that a spec may choose from: methods, and rules that select the best epoch.

Only names are here, so that a spec is checked without loading torch. `fercli.methods.method_class` loads the methods;
`fercli.evaluation.selection` computes the rules.
"""

from __future__ import annotations

from typing import NamedTuple

#: ``adapt.method`` -> module and class. The spec names a user's own method ``module:Class``.
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

#: The method that all others are compared with: the unchanged source model.
REFERENCE = "source-only"

_LABELS, _SOURCE, _TARGET = "source validation labels", "source training images", "target images"


class SelectionRule(NamedTuple):
    """What a selection rule reads, and when it can be computed.

    A rule that read target labels would be an oracle. None is registered: `fercli.evaluation.oracle` computes the
    oracle after the run, from the saved outputs of each epoch.

    Attributes:
        reads: the data it reads, in words, for reports.
        post_hoc: whether an epoch's score depends on the other epochs, so that it exists only after the last one.
        costly: whether an epoch's score takes one more pass over the source's training faces.
    """

    reads: tuple[str, ...]
    post_hoc: bool = False
    costly: bool = False

    @property
    def needs_target(self) -> bool:
        """Whether it reads the (unlabelled) target images, so that train-source cannot use it."""
        return _TARGET in self.reads

    @property
    def needs_source(self) -> bool:
        """Whether it reads source faces, so that it cannot be used where the source is not available."""
        return bool({_LABELS, _SOURCE} & set(self.reads))

    @property
    def needs_held_out(self) -> bool:
        """Whether it reads source faces that were held out of training."""
        return _LABELS in self.reads


#: The values of ``train_source.select``, ``adapt.select`` and ``adapt.also_score``.
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

#: How the authors of released checkpoints chose the epoch. No spec can ask for it. Their code keeps the epoch that is
#: best on the target's test labels or, in the source stage, on the source's.
ORACLE, SOURCE_TEST = "oracle", "source-test"
_OF_MAKERS = {ORACLE: ("target test labels",), SOURCE_TEST: ("source test labels",)}


def reads(rule: str) -> tuple[str, ...]:
    """The data that a rule reads to choose an epoch, in words."""
    return _OF_MAKERS[rule] if rule in _OF_MAKERS else RULES[rule].reads
