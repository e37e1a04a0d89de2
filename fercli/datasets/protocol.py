"""Which faces of a dataset are trained on or adapted to, and which are scored: split names, options, our own splits.

A protocol is (adapt_splits, score_splits). `WHOLE` is the split of a dataset that has none: it is adapted to and scored
as a whole. No other split is in both, unless the user says so with the options ``adapt`` and ``score``, which every
reader has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fercli.errors import Advice, FercliError

Protocol = tuple[tuple[str, ...], tuple[str, ...]]

#: The split of a dataset without splits. As an option's value, it means every split.
WHOLE = "all"

#: The usual names of each split, in lower case, without separators.
_NAMES = {
    "train": "train|training|trn",
    "val": "val|valid|validate|validation|dev|devel|development|eval|evaluate|evaluation|publictest",
    "test": "test|tests|testing|tst|privatetest",
}
#: The order of splits in all tables.
_ORDER = ("train", "val", "public-test", "private-test", "test")
#: Words that may come before or after these names.
_AROUND = "set|subset|data|split|part|partition|folder|dir|list|images?|imgs?|pics?|pictures?|photos?|faces?|files?"
_SPLITS = {split: re.compile(rf"(?:{_AROUND})*(?:{names})(?:{_AROUND})*") for split, names in _NAMES.items()}


class UnknownSplits(Exception):
    """Some splits have names that are not understood.

    Attributes:
        names: the names of these splits.
        protocol: the protocol that follows from the other splits.
    """

    def __init__(self, names: Sequence[str], protocol: Protocol):
        super().__init__(", ".join(names))
        self.names, self.protocol = tuple(names), protocol


@lru_cache(maxsize=1024)
def known_split(text: str) -> str | None:
    """Return the split that a word in a folder or column stands for: train, val or test; None if it is another word.

    Case, separators and surrounding words such as set, data or images do not matter: ``Train_Set`` is train.
    """
    word = plain_name(text)
    return next((split for split, names in _SPLITS.items() if names.fullmatch(word)), None)


def split_name(text: str) -> str:
    """Return the split by `known_split`, or else the word itself in lower case."""
    return known_split(text) or text.strip().lower()


def in_order(splits: Iterable[str]) -> list[str]:
    """Return the splits in table order: train, val, the test splits, others in the order given, `WHOLE` last."""

    def rank(split: str) -> int:
        return _ORDER.index(split) if split in _ORDER else len(_ORDER) + (split == WHOLE)

    return sorted(dict.fromkeys(splits), key=rank)


def plain_name(text: str) -> str:
    """Return a name in lower case without spaces, ``_``, ``-`` and ``.``: ``Public Test`` is ``publictest``."""
    return re.sub(r"[-_.\s]+", "", text.lower())


def default_protocol(splits: Iterable[str]) -> Protocol:
    """Return the protocol of a dataset without its own, from the splits it has.

    It adapts to train and scores test (or val, if there is val but no test). A dataset without splits is adapted to and
    scored as a whole. If only some faces have a split, the others are not used. Raises UnknownSplits if the dataset has
    a split with another name.
    """
    present = dict.fromkeys(splits)
    if set(present) <= {WHOLE}:
        return (WHOLE,), (WHOLE,)
    protocol = ("train",), ("val",) if "val" in present and "test" not in present else ("test",)
    unknown = [split for split in present if split not in (*_NAMES, WHOLE)]
    if unknown:
        raise UnknownSplits(unknown, protocol)
    return protocol


def settle(
    name: str,
    root: Path,
    present: Sequence[str],
    given: Protocol | UnknownSplits,
    adapt: Any = None,
    score: Any = None,
) -> Protocol:
    """Return the protocol of the dataset called `name`, from its reader or from the options that override it.

    Args:
        name, root: the dataset's name and folder, for messages.
        present: the splits in which it has faces.
        given: the reader's protocol.
        adapt, score: the options: a split, a list of splits, or `WHOLE`. None keeps the reader's choice.

    Raises:
        FercliError: an option does not name an existing split; a split's name is not understood and the options do not
            settle it; or the reader scores faces that are adapted to, and no option is given.
    """
    known, unknown = (given.protocol, given.names) if isinstance(given, UnknownSplits) else (given, ())
    stated = tuple(
        None if value is None else _chosen(name, option, value, present)
        for option, value in (("adapt", adapt), ("score", score))
    )
    adapted, scored = (own if said is None else said for own, said in zip(known, stated, strict=True))
    unclear = [split for split in unknown if split not in (*adapted, *scored)]
    if unclear and None in stated:
        listed = ", ".join(map(repr, unclear[:4])) + (f", ... ({len(unclear)} in all)" if len(unclear) > 4 else "")
        raise FercliError(
            f"{name}: split names are not understood: {listed} (in {root}); say which splits to adapt to (or train on) "
            f"and which to score, each as a split, a list [A, B] or {WHOLE}: on the command line with --option adapt=A "
            f"--option score=B, in a run spec with data.datasets.{name}.options: {{adapt: A, score: B}} (splits found: "
            f"{', '.join(present)})"
        )
    both = overlap(adapted, scored)
    if both and stated == (None, None):
        raise FercliError(
            f"{name}: its reader scores splits that are adapted to ({', '.join(both)}); if that is intended, set "
            f"data.datasets.{name}.options: {{adapt: [{', '.join(adapted)}], score: [{', '.join(scored)}]}}"
        )
    return adapted, scored


def _chosen(name: str, option: str, value: Any, present: Sequence[str]) -> tuple[str, ...]:
    words = [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    chosen: list[str] = []
    for word in words:
        if word.strip().lower() == WHOLE:
            chosen += present
            continue
        found = next((split for split in present if plain_name(split) == plain_name(word)), known_split(word))
        if found is None or found not in present:
            raise FercliError(
                f"{name}: option {option} is '{word}', which is not a split (splits found: {', '.join(present)}; "
                "several are written [A, B])"
            )
        chosen.append(found)
    if not chosen:
        raise FercliError(f"{name}: option {option} names no split (splits found: {', '.join(present)})")
    return tuple(dict.fromkeys(chosen))


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def overlap(adapt_splits: Iterable[str], score_splits: Iterable[str]) -> list[str]:
    """Return the splits, other than `WHOLE`, that are both adapted to and scored."""
    scored = set(score_splits) - {WHOLE}
    return [split for split in adapt_splits if split in scored]


def describe(adapt_splits: Sequence[str], score_splits: Sequence[str], present: Iterable[str]) -> str:
    """Describe in one line how a dataset's splits are used."""
    if tuple(adapt_splits) == tuple(score_splits) == (WHOLE,):
        return "no splits: a target is adapted to and scored as a whole"
    both = overlap(adapt_splits, score_splits)
    again = f" ({', '.join(both)} is scored though it is adapted to)" if both else ""
    unused = [split for split in present if split not in (*adapt_splits, *score_splits)]
    rest = ", ".join("faces without a split" if split == WHOLE else split for split in unused)
    used = f"trained on or adapted to {', '.join(adapt_splits)}; scored on {', '.join(score_splits)}{again}"
    return used + (f"; not used: {rest}" if rest else "")


def absent(name: str, option: str, splits: Iterable[str], present: Sequence[str]) -> Advice:
    """Return one line saying that a dataset has no face in the splits of `option` (adapt or score)."""
    what = "train on or adapt to" if option == "adapt" else "score"
    note = "" if option == "adapt" else "; faces that are also adapted to are scored only if this option says so"
    return Advice(
        f"{name} has no face to {what}: none is in {_or(list(splits))} (splits found: {', '.join(present)}); to name "
        "another split, ",
        Advice.run("prepare", f"--dataset {name} --option {option}=SPLIT"),
        f" (one of {', '.join(dict.fromkeys([*present, WHOLE]))}{note})",
    )


def hashed_part(key: str, one_in: int) -> str:
    """Return ``train`` or ``test`` for a subject or image. These splits are OURS and frozen, for datasets without any.

    One key in `one_in` is for testing: a key is if the first 8 hex digits of its SHA-256, as a number, are divisible by
    `one_in`. Only the key matters, so it is always in the same split, whatever else is listed.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return "test" if int(digest[:8], 16) % one_in == 0 else "train"
