"""What the lab datasets share: a sequence's frames in order, its neutral first one, and a frozen split by subject."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fercli.datasets.protocol import Protocol, hashed_part
from fercli.datasets.reader import Collector, Points, Record, WrongOption
from fercli.datasets.tree_files import images_under
from fercli.expressions import EXPRESSIONS

#: What the options of `check_options` may be.
PEAK_HELP = "frames of a sequence that show its expression, 1 or more"
SPLIT_HELP = "subject (adapted on train, scored on test: other people) or all (one part for both)"

#: A sequence whose first frame has a higher number than this has lost its beginning: that frame need not be neutral.
_HIGHEST_FIRST = 3


def split_of(subject: str, one_in: int) -> str:
    """Return ``train`` or ``test`` for a subject: OUR split, frozen, for datasets that have none.

    One subject in `one_in` is for testing, by `hashed_part` of the name in capitals. By subject, so that no person is
    on both sides.
    """
    return hashed_part(subject.upper(), one_in)


def part_of(subject: str, one_in: int, split: str) -> str:
    """Return the part a subject's frames belong to: as `split_of`, or ``all`` where the option split says so."""
    return "all" if split == "all" else split_of(subject, one_in)


def protocol(split: str) -> Protocol:
    """Return (adapt_splits, score_splits) under the option split."""
    return (("all",), ("all",)) if split == "all" else (("train",), ("test",))


def check_options(peak: int, split: str) -> None:
    """Raise WrongOption unless `peak` is a whole number from 1 on and `split` is ``subject`` or ``all``."""
    if not isinstance(peak, int) or isinstance(peak, bool) or peak < 1:
        raise WrongOption(f"option peak is '{peak}', not a whole number from 1 on")
    if split not in ("subject", "all"):
        raise WrongOption(f"option split is '{split}', not 'subject' or 'all'")


def frame_number(path: str) -> int | None:
    """Return the last number in a frame's name (``S005_001_00000011.png``: 11), None if there is none."""
    numbers = re.findall(r"\d+", path.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return int(numbers[-1]) if numbers else None


def in_order(paths: list[str]) -> list[str]:
    """Return the frames by number, those without one first, by name."""
    return sorted(paths, key=lambda path: (-1 if (number := frame_number(path)) is None else number, path))


def frames_of(folder: Path, root: Path, collector: Collector) -> list[str]:
    """Return the frames in a sequence's folder in order, as paths relative to `root`; none where it is missing."""
    return in_order(list(images_under(folder, root, collector))) if folder.is_dir() else []


def labelled(neutral: str | None, shown: list[str], label: int | None) -> list[tuple[str, int]]:
    """Return (path, label) of the frames that a sequence gives: its neutral one, and those that show its label."""
    first = [(neutral, EXPRESSIONS.index("neutral"))] if neutral else []
    return first + ([] if label is None else [(path, label) for path in shown])


def neutral_of(frames: list[str], collector: Collector) -> str | None:
    """Return the frame with which the sequence begins, neutral in these datasets.

    None, and counted, where the sequence has lost its beginning or has a single frame.
    """
    if len(frames) > 1 and (frame_number(frames[0]) or 0) <= _HIGHEST_FIRST:
        return frames[0]
    collector.leave_out("sequence without its neutral first frame")
    return None


def add_sequence(
    collector: Collector,
    frames: list[str],
    label: int | None,
    peak: int,
    prefix: str,
    subject: str,
    part: str,
    landmarks_of: Callable[[str], Points | None] = lambda path: None,
    cropped: bool = False,
) -> int:
    """Add the records of a sequence that goes from neutral to its peak: its first frame and its last `peak` frames.

    Args:
        collector: takes the records.
        frames: in order, relative to the root; at least one.
        label: what the peak shows; None where that is none of the seven, and only the neutral frame is added.
        peak: how many frames at the end show it.
        prefix: of the records' ids, before the frame's name.
        subject: the person's name.
        part: the split of all of it.
        landmarks_of: a frame's five points.
        cropped: whether the frames are faces that the dataset has cut out.

    Returns:
        How many frames show the peak.
    """
    neutral = neutral_of(frames, collector)
    peaks = (frames[1:] if neutral else frames)[-peak:]
    for path, its_label in labelled(neutral, peaks, label):
        name = path.rsplit("/", 1)[-1]
        points = landmarks_of(path)
        about = Record(f"{prefix}/{name}", path, its_label, part, subject.upper(), landmarks=points, cropped=cropped)
        collector.add(about)
    return len(peaks)
