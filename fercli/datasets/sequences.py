"""Code shared by the lab datasets: ordered frames of a sequence, its neutral first frame, a frozen subject split."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fercli.datasets.protocol import Protocol, hashed_part
from fercli.datasets.reader import Collector, Points, Record, WrongOption
from fercli.datasets.tree_files import images_under
from fercli.expressions import EXPRESSIONS

#: Help texts of the options that `check_options` checks.
PEAK_HELP = "frames of a sequence that show its expression, 1 or more"
SPLIT_HELP = "subject (adapted to train, scored on test, with other subjects) or all (one split for both)"

#: If a sequence's first frame has a higher number than this, its beginning is missing and the frame may not be neutral.
_HIGHEST_FIRST = 3


def split_of(subject: str, one_in: int) -> str:
    """Return ``train`` or ``test`` for a subject. The split is OURS and frozen, for datasets without one.

    One subject in `one_in` is for testing, by `hashed_part` of the name in capitals. The split is by subject, so that
    no subject is in both splits.
    """
    return hashed_part(subject.upper(), one_in)


def part_of(subject: str, one_in: int, split: str) -> str:
    """Return the split of a subject's frames: by `split_of`, or ``all`` if the option split is ``all``."""
    return "all" if split == "all" else split_of(subject, one_in)


def protocol(split: str) -> Protocol:
    """Return (adapt_splits, score_splits) for the option split."""
    return (("all",), ("all",)) if split == "all" else (("train",), ("test",))


def check_options(peak: int, split: str) -> None:
    """Raise WrongOption unless `peak` is an integer of at least 1 and `split` is ``subject`` or ``all``."""
    if not isinstance(peak, int) or isinstance(peak, bool) or peak < 1:
        raise WrongOption(f"option peak is '{peak}', not an integer of at least 1")
    if split not in ("subject", "all"):
        raise WrongOption(f"option split is '{split}', not 'subject' or 'all'")


def frame_number(path: str) -> int | None:
    """Return the last number in a frame's name (``S005_001_00000011.png``: 11), None if there is none."""
    numbers = re.findall(r"\d+", path.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return int(numbers[-1]) if numbers else None


def in_order(paths: list[str]) -> list[str]:
    """Return the frames sorted by number. Frames without a number come first, sorted by name."""
    return sorted(paths, key=lambda path: (-1 if (number := frame_number(path)) is None else number, path))


def frames_of(folder: Path, root: Path, collector: Collector) -> list[str]:
    """Return the frames in a sequence's folder in order, as paths relative to `root`; [] if the folder is missing."""
    return in_order(list(images_under(folder, root, collector))) if folder.is_dir() else []


def labelled(neutral: str | None, shown: list[str], label: int | None) -> list[tuple[str, int]]:
    """Return (path, label) of the frames used of a sequence: its neutral frame, and those that show its label."""
    first = [(neutral, EXPRESSIONS.index("neutral"))] if neutral else []
    return first + ([] if label is None else [(path, label) for path in shown])


def neutral_of(frames: list[str], collector: Collector) -> str | None:
    """Return the first frame of a sequence, which is neutral in these datasets.

    If the beginning of the sequence is missing or it has a single frame, count it and return None.
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
    """Add the records of a sequence from neutral to its peak: its first frame and its last `peak` frames.

    Args:
        collector: receives the records.
        frames: the frames in order, relative to the root; at least one.
        label: the label of the peak. If it is None (outside the seven), only the neutral frame is added.
        peak: how many frames at the end show the label.
        prefix: prefix of the records' ids, before the frame's name.
        subject: the subject's name.
        part: the split of the whole sequence.
        landmarks_of: returns the five landmarks of a frame.
        cropped: whether the frames are faces that the dataset has cropped.

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
