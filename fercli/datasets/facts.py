"""What is known of each dataset: sizes, where to apply, terms, whose split, paper, and the tree its reader expects.

Counts are in the order of `fercli.expressions.EXPRESSIONS` (surprise, fear, disgust, happiness, sadness, anger,
neutral), of what the reader lists by default, so that a tree can be compared with them; where a number is not
published, or was not found, it is None. Beside each stands its source: *paper* is the one cited, *list* the release's
own label list, *field* public code that counted the release (several agreeing, the sums checked against the totals).
Addresses and terms are those of the datasets' own pages, or as the cross-domain benchmark's README gives them
(github.com/HCPLab-SYSU/CD-FER-Benchmark); they are a pointer, not legal advice: the agreement you sign is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fercli.datasets.base import Reader
from fercli.datasets.layouts import options_of, tree_of
from fercli.expressions import EXPRESSIONS, NUM_EXPRESSIONS

#: Faces per expression, or None where that is not known.
Counts = tuple[int | None, ...]
UNKNOWN: Counts = (None,) * NUM_EXPRESSIONS

#: Name, among the splits of `Official.splits`, of all splits together.
WHOLE = "all"

_ORDER = ("train", "val", "public-test", "private-test", "test")


def in_order(splits: Iterable[str]) -> list[str]:
    """Return the splits in the order of all tables: train, val, the test parts, others as they come, `WHOLE` last."""

    def rank(split: str) -> int:
        return _ORDER.index(split) if split in _ORDER else len(_ORDER) + (split == WHOLE)

    return sorted(dict.fromkeys(splits), key=rank)


@dataclass(frozen=True)
class Official:
    """What one release of a dataset holds.

    Attributes:
        form: which release, where there are several ("" for the only one).
        splits: {split: (faces in all or None, faces per expression)}; `WHOLE` stands for all splits together.
    """

    splits: Mapping[str, tuple[int | None, Counts]]
    form: str = ""

    def total(self, split: str) -> int | None:
        """Faces in a split, or None where that is not known."""
        return self.splits.get(split, (None, UNKNOWN))[0]

    def count(self, split: str, label: int) -> int | None:
        """Faces of an expression in a split, or None where that is not known."""
        return self.splits.get(split, (None, UNKNOWN))[1][label]


@dataclass(frozen=True)
class Facts:
    """What is known of one dataset; every text is one line.

    Attributes:
        title: full name.
        about: what the pictures are.
        apply: address at which to ask for it.
        licence: the terms' gist.
        split: whose split the reader gives.
        split_note: how it is made or used, where that needs saying.
        paper: citation.
        releases: the official sizes; a tree is compared with the nearest.
        subjects: people in it, where known.
    """

    title: str
    about: str
    apply: str
    licence: str
    split: str
    paper: str
    split_note: str = ""
    releases: tuple[Official, ...] = ()
    subjects: int | None = None

    @property
    def size(self) -> str:
        """Faces in all; with ``+`` where not all splits are counted, ``?`` where none is."""
        if not self.releases:
            return "?"
        release = self.releases[0]
        whole = release.total(WHOLE)
        known = [total for split, (total, _) in release.splits.items() if split != WHOLE and total is not None]
        return f"{whole:,}" if whole is not None else f"{sum(known):,}+"

    def document(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        releases = [
            {
                "form": official.form,
                "splits": {
                    split: {
                        "faces": official.total(split),
                        "expressions": {name: official.count(split, i) for i, name in enumerate(EXPRESSIONS)},
                    }
                    for split in in_order(official.splits)
                },
            }
            for official in self.releases
        ]
        keys = ("title", "about", "apply", "licence", "split", "split_note", "paper", "subjects")
        return {**{key: getattr(self, key) for key in keys}, "official": releases}


def describe(name: str, reader: Reader) -> dict[str, Any]:
    """Return all that is known of a reader's dataset and its layout, ready for JSON."""
    layout = {"layout": reader.layout, "tree": tree_of(name, reader), "options": options_of(name, reader)}
    return {**(FACTS[name].document() if name in FACTS else {}), **layout}


def _whole(counts: Counts) -> dict[str, tuple[int | None, Counts]]:
    return {WHOLE: (sum(counts), counts)}


def _parts(**splits: int | Counts) -> dict[str, tuple[int | None, Counts]]:
    """Splits, `_` for `-`, each given by its total or by its counts; `WHOLE` is added where all are counted."""
    parts = {
        name.replace("_", "-"): (known, UNKNOWN) if isinstance(known, int) else (sum(known), known)
        for name, known in splits.items()
    }
    if all(None not in counts for _, counts in parts.values()):
        parts[WHOLE] = _whole(tuple(sum(column) for column in zip(*(c for _, c in parts.values()), strict=True)))[WHOLE]
    else:
        parts[WHOLE] = (sum(total for total, _ in parts.values()), UNKNOWN)
    return parts


#: By the reader's name. The readers `folders` and `csv` read anybody's files and have none.
FACTS: dict[str, Facts] = {
    "raf-db": Facts(
        title="Real-world Affective Faces Database, basic expressions",
        about="web photographs",
        apply="http://www.whdeng.cn/raf/model1.html",
        licence="non-commercial research; on request",
        split="official",
        paper="Li, Deng and Du: Reliable crowdsourcing and deep locality-preserving learning for expression "
        "recognition in the wild. CVPR 2017",
        # train: paper; test: field
        releases=(
            Official(_parts(train=(1290, 281, 717, 4772, 1982, 705, 2524), test=(329, 74, 160, 1185, 478, 162, 680))),
        ),
    ),
    "ck+": Facts(
        title="Extended Cohn-Kanade",
        about="posed sequences, 123 people",
        apply="http://www.jeffcohn.net/Resources/",
        licence="research; agreement signed",
        split="ours, by subject",
        split_note="a tenth for testing, frozen: the benchmark's is not published",
        paper="Lucey et al.: The Extended Cohn-Kanade Dataset (CK+): a complete dataset for action unit and "
        "emotion-specified expression. CVPR Workshops 2010",
        # Paper: 83 25 59 69 28 45 labelled sequences (and 18 of contempt), three frames each; first frame of all 327.
        releases=(
            Official(_whole((249, 75, 177, 207, 84, 135, 327)), "the release: last three frames, first as neutral"),
            Official(_whole((249, 75, 177, 207, 84, 135, 0)), "CK+48 folders: no neutral"),
        ),
    ),
    "jaffe": Facts(
        title="Japanese Female Facial Expression",
        about="posed portraits, 10 people",
        apply="https://zenodo.org/record/3451524",
        licence="non-commercial research; on request",
        split="none",
        split_note="all 213 to adapt and to score",
        paper="Lyons, Akamatsu, Kamachi and Gyoba: Coding facial expressions with Gabor wavelets. FG 1998",
        # list: the 213 file names themselves
        releases=(Official(_whole((30, 32, 29, 31, 31, 30, 30))),),
        subjects=10,
    ),
    "sfew": Facts(
        title="Static Facial Expressions in the Wild 2.0",
        about="stills of films",
        apply="https://cs.anu.edu.au/few/AFEW.html",
        licence="academic research; agreement signed",
        split="official",
        split_note="scored on val: the test part has no labels",
        paper="Dhall et al.: Video and image based emotion recognition challenges in the wild: EmotiW 2015. ICMI 2015",
        # paper; counts per expression were found nowhere, and the 372 of the test part have no labels
        releases=(Official(_parts(train=958, val=436)),),
    ),
    "fer2013": Facts(
        title="FER2013, challenge of the ICML 2013 workshop on representation learning",
        about="web photographs, 48x48, grey",
        apply="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        licence="the competition's rules; account needed",
        split="official",
        split_note="scored on private-test, or on public-test by the option score",
        paper="Goodfellow et al.: Challenges in representation learning: a report on three machine learning contests. "
        "ICONIP 2013",
        # field; the sums agree with the paper's totals
        releases=(
            Official(
                _parts(
                    train=(3171, 4097, 436, 7215, 4830, 3995, 4965),
                    public_test=(415, 496, 56, 895, 653, 467, 607),
                    private_test=(416, 528, 55, 879, 594, 491, 626),
                )
            ),
        ),
    ),
    "expw": Facts(
        title="Expression in-the-Wild",
        about="web photographs, boxes given",
        apply="http://mmlab.ie.cuhk.edu.hk/projects/socialrelation/index.html",
        licence="non-commercial research",
        split="ours, by picture",
        split_note="a fifth for testing, hashed from the name: there is none, and the benchmark's is lost",
        paper="Zhang, Luo, Loy and Tang: From facial expression recognition to interpersonal relation prediction. "
        "IJCV 2018",
        # list
        releases=(Official(_whole((7060, 1088, 3995, 30537, 10559, 3671, 34883))),),
    ),
    "afe": Facts(
        title="Asian Facial Expression",
        about="stills of Asian films, boxes given",
        apply="https://github.com/HCPLab-SYSU/CD-FER-Benchmark",
        licence="research; agreement signed by faculty",
        split="official",
        paper="Chen et al.: Cross-domain facial expression recognition: a unified evaluation benchmark and adversarial "
        "graph learning. TPAMI 2022",
    ),
    "affectnet": Facts(
        title="AffectNet, manually annotated part",
        about="web photographs, landmarks given",
        apply="http://mohammadmahoor.com/affectnet/",
        licence="research; agreement signed by a professor",
        split="official",
        split_note="scored on val: no test part was released",
        paper="Mollahosseini, Hasani and Mahoor: AffectNet: a database for facial expression, valence, and arousal "
        "computing in the wild. TAC 2019",
        # field (github.com/coder-xinxiaohai/AffectNet_Processing); the same seven classes in both releases
        releases=(
            Official(_parts(train=(14090, 6378, 3803, 134415, 25459, 24882, 74874), val=(500,) * NUM_EXPRESSIONS)),
        ),
    ),
    "ferplus": Facts(
        title="FER+: FER2013 labelled anew by ten people a picture",
        about="FER2013's, ten votes each",
        apply="https://github.com/microsoft/FERPlus",
        licence="labels MIT; pictures as FER2013",
        split="official",
        split_note="FER2013's: scored on private-test, or on public-test by the option score",
        paper="Barsoum, Zhang, Canton Ferrer and Zhang: Training deep networks for facial expression recognition with "
        "crowd-sourced label distribution. ICMI 2016",
        # field, by the majority rule of the paper's code, one source whose sums others confirm (25,060 and 3,153 with
        # 119 and 16 of contempt, left out here); nothing was found of public-test
        releases=(
            Official(
                {
                    "train": (24941, (3149, 532, 119, 7287, 3014, 2100, 8740)),
                    "private-test": (3137, (396, 83, 18, 893, 384, 273, 1090)),
                },
                "majority vote",
            ),
        ),
    ),
    "oulu-casia": Facts(
        title="Oulu-CASIA NIR&VIS facial expression database",
        about="posed sequences, 80 people",
        apply="https://www.oulu.fi/cmvs/node/41319",
        licence="research; agreement signed",
        split="ours, by subject",
        split_note="a fifth for testing, frozen: everyone draws ten folds anew",
        paper="Zhao, Huang, Taini, Li and Pietikäinen: Facial expression recognition from near-infrared videos. "
        "Image and Vision Computing 2011",
        # paper: 80 subjects, six expressions each under every light; three frames each, the first as neutral
        releases=(Official(_whole((240, 240, 240, 240, 240, 240, 480)), "three frames at the peak, first as neutral"),),
        subjects=80,
    ),
    "mmi": Facts(
        title="MMI facial expression database",
        about="posed videos and stills",
        apply="https://mmifacedb.eu/",
        licence="research; agreement signed",
        split="ours, by subject",
        split_note="a fifth for testing, frozen",
        paper="Pantic, Valstar, Rademaker and Maat: Web-based database for facial expression analysis. ICME 2005",
    ),
}
