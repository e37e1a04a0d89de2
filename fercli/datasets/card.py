"""The dataset card: what a dataset is, its sizes, where to apply, on what terms, whose split, which paper.

Counts are in the order of `fercli.expressions.EXPRESSIONS` (surprise, fear, disgust, happiness, sadness, anger,
neutral), of what the reader lists by default, so that a tree can be compared with them; where a number is not
published, or was not found, it is None. Beside each stands its source: *paper* is the one cited, *list* the release's
own label list, *field* public code that counted the release (several agreeing, the sums checked against the totals).
Addresses and terms are those of the datasets' own pages, or as the cross-domain benchmark's README gives them
(github.com/HCPLab-SYSU/CD-FER-Benchmark); they are a pointer, not legal advice: the agreement you sign is what counts.
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
    """What one release of a dataset holds.

    Attributes:
        splits: {split: its faces per expression, or in all where no more is known}; `WHOLE` stands for all splits
            together, where all are known.
        form: which release, where there are several ("" for the only one).
    """

    splits: Mapping[str, int | Counts]
    form: str = ""

    @classmethod
    def of_whole(cls, counts: Counts, form: str = "") -> Official:
        """A release without splits: its faces per expression."""
        return cls({WHOLE: counts}, form)

    @classmethod
    def of_splits(cls, **splits: int | Counts) -> Official:
        """A release in parts (``_`` for ``-``), all of them known, each by its total or by its faces per expression."""
        parts = {name.replace("_", "-"): known for name, known in splits.items()}
        if all(isinstance(known, tuple) for known in parts.values()):
            return cls({**parts, WHOLE: tuple(map(sum, zip(*parts.values(), strict=True)))})
        return cls({**parts, WHOLE: sum(cls(parts).total(split) or 0 for split in parts)})

    def total(self, split: str) -> int | None:
        """Faces in a split, or None where that is not known."""
        known = self.splits.get(split)
        return sum(known) if isinstance(known, tuple) else known

    def count(self, split: str, label: int) -> int | None:
        """Faces of an expression in a split, or None where that is not known."""
        known = self.splits.get(split)
        return known[label] if isinstance(known, tuple) else None


@dataclass(frozen=True)
class DatasetCard:
    """What is known of one dataset; every text is one line.

    Attributes:
        title: full name.
        about: what the images are.
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
        known = sum(release.total(split) or 0 for split in release.splits)
        return f"{known:,}+" if whole is None else f"{whole:,}"

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
