"""The dataset card: what a dataset is, its sizes, where to request it, its terms, the origin of its split, the paper.

Counts are in the order of `fercli.expressions.EXPRESSIONS` (surprise, fear, disgust, happiness, sadness, anger,
neutral). They count what the reader lists by default, so that a tree can be compared with them. A number that is not
published, or was not found, is None. A comment at each count names its source: *paper* is the cited paper, *list* the
release's own label list, *field* public code that counted the release (several sources that agree, with sums checked
against the totals). Addresses and terms come from the datasets' own pages or from the cross-domain benchmark's README
(github.com/HCPLab-SYSU/CD-FER-Benchmark). They are a pointer, not legal advice: the agreement you sign is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fercli.datasets.protocol import WHOLE, in_order
from fercli.expressions import EXPRESSIONS

#: Faces per expression.
Counts = tuple[int, ...]


@dataclass(frozen=True)
class Official:
    """The contents of one release of a dataset.

    Attributes:
        splits: {split: its faces per expression, or only their total where no more is known}. `WHOLE` stands for all
            splits together, if all are known.
        form: which release it is, if there are several ("" for the only one).
    """

    splits: Mapping[str, int | Counts]
    form: str = ""

    @classmethod
    def of_whole(cls, counts: Counts, form: str = "") -> Official:
        """Describe a release without splits by its faces per expression."""
        return cls({WHOLE: counts}, form)

    @classmethod
    def of_splits(cls, **splits: int | Counts) -> Official:
        """Describe a release by all its splits (``_`` for ``-``), each by its total or by its faces per expression."""
        parts = {name.replace("_", "-"): known for name, known in splits.items()}
        if all(isinstance(known, tuple) for known in parts.values()):
            return cls({**parts, WHOLE: tuple(map(sum, zip(*parts.values(), strict=True)))})
        return cls({**parts, WHOLE: sum(cls(parts).total(split) or 0 for split in parts)})

    def total(self, split: str) -> int | None:
        """Return the number of faces in a split, or None if it is not known."""
        known = self.splits.get(split)
        return sum(known) if isinstance(known, tuple) else known

    def count(self, split: str, label: int) -> int | None:
        """Return the number of faces of an expression in a split, or None if it is not known."""
        known = self.splits.get(split)
        return known[label] if isinstance(known, tuple) else None


@dataclass(frozen=True)
class DatasetCard:
    """What is known about one dataset. Every text is one line.

    Attributes:
        title: full name.
        about: what the images are.
        apply: address at which to request the dataset.
        licence: summary of the terms.
        split: the origin of the split that the reader gives.
        split_note: how the split is made or used, if that needs explaining.
        paper: citation.
        releases: the official sizes. A tree is compared with the nearest release.
        subjects: number of people in the dataset, if known.
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
        """Total number of faces, with ``+`` if some splits are not counted, or ``?`` if none is."""
        if not self.releases:
            return "?"
        release = self.releases[0]
        whole = release.total(WHOLE)
        known = sum(release.total(split) or 0 for split in release.splits)
        return f"{known:,}+" if whole is None else f"{whole:,}"

    def document(self) -> dict[str, Any]:
        """Return the whole card, ready for JSON."""
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
