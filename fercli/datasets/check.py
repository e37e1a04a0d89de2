"""Compare a dataset's tree with its card, without opening an image."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.protocol import WHOLE, in_order
from fercli.datasets.reader import Listing
from fercli.expressions import EXPRESSIONS, UNLABELLED

#: How many missing files a result names; the rest are only counted.
EXAMPLES = 3


@dataclass(frozen=True)
class Check:
    """What a tree contains, compared with what it should contain.

    Attributes:
        listing: the tree as the reader lists it.
        official: the release it was compared with; None if no sizes are known or the faces were drawn by fercli.
        counts: {(split, label): faces}, labels 0..6 and -1.
        images: number of image files listed.
        missing: listed images that do not exist, as listed, relative to the root.
        subjects: number of subjects named.
    """

    listing: Listing
    official: Official | None
    counts: Counter[tuple[str, int]]
    images: int
    missing: list[str]
    subjects: int

    @property
    def splits(self) -> list[str]:
        """The splits found or expected, in order, without `WHOLE`."""
        splits = [*(split for split, _ in self.counts), *(self.official.splits if self.official else ())]
        return [split for split in in_order(splits) if split != WHOLE]

    @property
    def unscored(self) -> list[str]:
        """The scored splits that have no labelled face."""
        return [split for split in self.listing.score_splits if not self.found(split)]

    def found(self, split: str, label: int | None = None) -> int:
        """Return the number of faces with a label (None: with any of the seven) in a split (`WHOLE`: in all splits)."""
        labels = range(len(EXPRESSIONS)) if label is None else (label,)
        splits = {part for part, _ in self.counts} if split == WHOLE else (split,)
        return sum(self.counts[part, code] for part in splits for code in labels)

    def expected(self, split: str, label: int | None = None) -> int | None:
        """Return the same as `found` for the official release; None if it is not known."""
        if self.official is None:
            return None
        return self.official.total(split) if label is None else self.official.count(split, label)

    @property
    def differences(self) -> int | None:
        """How many of the known numbers differ; None if no number is known."""
        pairs = [
            (self.found(split, label), self.expected(split, label))
            for split in [*self.splits, WHOLE]
            for label in (*range(len(EXPRESSIONS)), None)
        ]
        known = [(found, expected) for found, expected in pairs if expected is not None]
        return sum(found != expected for found, expected in known) if known else None

    def document(self) -> dict[str, Any]:
        """Return the whole comparison, ready for JSON."""

        def both(split: str, label: int | None = None) -> dict[str, int | None]:
            return {"found": self.found(split, label), "official": self.expected(split, label)}

        return {
            "name": self.listing.name,
            "root": str(self.listing.root),
            "synthetic": self.listing.synthetic,
            "release": self.official.form if self.official else None,
            "adapt_splits": list(self.listing.adapt_splits),
            "score_splits": list(self.listing.score_splits),
            "unscored": self.unscored,
            "faces": len(self.listing),
            "subjects": self.subjects,
            "images": self.images,
            "missing": {"count": len(self.missing), "examples": self.missing[:EXAMPLES]},
            "splits": {
                split: {
                    **both(split),
                    "unlabelled": self.found(split, UNLABELLED),
                    "expressions": {name: both(split, label) for label, name in enumerate(EXPRESSIONS)},
                }
                for split in [*self.splits, WHOLE]
            },
            "left_out": dict(self.listing.left_out),
            "differences": self.differences,
        }


def check(listing: Listing, card: DatasetCard | None) -> Check:
    """Count a listing, check that its files exist, and compare it with the nearest official release.

    Faces are counted per split and expression. Files are checked for existence, not opened.
    """
    counts = Counter((record.split, record.label) for record in listing)
    root = os.fspath(listing.root)
    images = dict.fromkeys(record.path for record in listing)
    missing = [path for path in images if not os.path.exists(os.path.join(root, path))]
    subjects = len({record.subject for record in listing} - {None})
    releases = card.releases if card and not listing.synthetic else ()
    checks = (Check(listing, one, counts, len(images), missing, subjects) for one in releases or (None,))
    return min(checks, key=_distance)


def _distance(check: Check) -> int:
    known = ((check.found(WHOLE, label), check.expected(WHOLE, label)) for label in range(len(EXPRESSIONS)))
    return sum(abs(found - expected) for found, expected in known if expected is not None)
