"""CK+ (Lucey et al., CVPR-W 2010): sequences from neutral to peak, or the CK+48 folders of peak frames; our split.

According to the release's own read-me, a label belongs to a sequence and its file is named after the sequence's last
frame, the peak. A sequence without a label file has no label. As in the benchmark, fercli takes the last three frames
of each labelled sequence except contempt, and the first frame of each labelled sequence, including contempt, as
neutral: 1,254 images in total.

The benchmark's 1,125 / 129 images are not published, so the split is ours: a tenth of the subjects is for testing, by
`fercli.datasets.sequences.split_of`. Of the release's 123 subjects, these 14 are for testing: S011 S026 S037 S045 S057
S065 S099 S108 S113 S124 S138 S155 S505 S506.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.parsing import five_of_68, numbers_in, text_lines, whole_number
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Points, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.sequences import (
    PEAK_HELP,
    SPLIT_HELP,
    add_sequence,
    check_options,
    frames_of,
    in_order,
    part_of,
    protocol,
)
from fercli.datasets.tree_files import first_existing, images_under, subfolders
from fercli.expressions import label_of

#: *_emotion.txt: 0 neutral 1 anger 2 contempt 3 disgust 4 fear 5 happy 6 sadness 7 surprise.
CODES: dict[int, int | None] = {0: 6, 1: 5, 2: None, 3: 2, 4: 1, 5: 3, 6: 4, 7: 0}

#: One subject in ONE_IN is for testing.
ONE_IN = 10
_ENDING = "_emotion.txt"
_NAME_48 = re.compile(r"(?P<subject>[Ss]\d+)_\d+_\d+\.\w+")


def parse(root: Path, collector: Collector, peak: int = 3, split: str = "subject") -> Protocol:
    """Read the release if it exists, else the CK+48 folders.

    Args:
        root: contains cohn-kanade-images/ and Emotion/ (under these names or as their archives unpack), or class
            folders.
        collector: receives the records. They have the five landmarks, in pixels of the frame, if Landmarks/ has them.
        peak: how many frames at the end of a sequence show its expression. CK+48 has three, and no neutral frames.
        split: ``subject`` (adapted to train, scored on test) or ``all`` (one split for both, as with JAFFE).
    """
    check_options(peak, split)
    images = first_existing(
        root, "cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", "extended-cohn-kanade-images"
    )
    if images is not None:
        _parse_release(root, images, collector, peak, split)
    else:
        _parse_48(root, collector, peak, split)
    return protocol(split)


def _parse_release(root: Path, images: Path, collector: Collector, peak: int, split: str) -> None:
    emotion = first_existing(root, "Emotion", "Emotion_labels/Emotion", "Emotion_labels")
    if emotion is None:
        raise WrongLayout("no Emotion/ next to the images")
    landmarks = first_existing(root, "Landmarks/Landmarks", "Landmarks")
    # Sequences are counted that have a label but no frames, and also those that have frames but no label.
    for subject, sequence in sorted(_sequences(images) | {s for s in _sequences(emotion) if any(_files(emotion, s))}):
        told = _label(emotion, (subject, sequence), collector)
        if told is None:
            continue
        label, last = told
        frames = frames_of(images / subject / sequence, root, collector)
        folder = (images / subject / sequence).relative_to(root).as_posix()
        if all(_stem(path) != last for path in frames):
            frames = in_order([*frames, f"{folder}/{last}.png"])
        frames = frames[: [_stem(path) for path in frames].index(last) + 1]
        points = partial(_points, landmarks, subject, sequence)
        part = part_of(subject, ONE_IN, split)
        shown = add_sequence(collector, frames, label, peak, f"{subject}/{sequence}", subject, part, points)
        if label is None:
            collector.leave_out("contempt (outside the seven)", shown)


def _sequences(folder: Path) -> set[tuple[str, str]]:
    return {(subject.name, sequence.name) for subject in subfolders(folder) for sequence in subfolders(subject)}


def _files(emotion: Path, sequence: tuple[str, str]) -> list[Path]:
    folder = emotion.joinpath(*sequence)
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(_ENDING) and not p.name.startswith("."))


def _label(emotion: Path, sequence: tuple[str, str], collector: Collector) -> tuple[int | None, str] | None:
    """Return (label, stem of the peak frame) of a sequence. The label is None for contempt.

    A sequence without a readable label is counted as left out and gives None.
    """
    files = _files(emotion, sequence)
    if not files:
        collector.leave_out("sequence without emotion label")
        return None
    codes = [_code(file) for file in files]
    for code in codes[1:]:
        collector.leave_out("listed twice" if code == codes[0] else "listed twice with different labels")
    if codes[0] is None:
        collector.leave_out("unreadable emotion file")
        return None
    if codes[0] not in CODES:
        collector.leave_out(f"unknown code '{codes[0]}'")
        return None
    return CODES[codes[0]], files[0].name.removesuffix(_ENDING)


def _code(file: Path) -> int | None:
    """Return the single number of an emotion file, written as 3.0000000e+00; None if the file has other content."""
    try:
        (line,) = (line for _, line in text_lines(file))
    except (OSError, ValueError):
        return None
    return whole_number(line)


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _points(landmarks: Path | None, subject: str, sequence: str, frame: str) -> Points | None:
    if landmarks is None:
        return None
    return five_of_68(numbers_in(landmarks / subject / sequence / f"{_stem(frame)}_landmarks.txt"))


def _parse_48(root: Path, collector: Collector, peak: int, split: str) -> None:
    inner = first_existing(root, "CK+48") or root
    folders = subfolders(inner)
    if not any(label_of(folder.name) is not None for folder in folders):
        raise WrongLayout("no cohn-kanade-images/ and no folder named after an expression")
    if peak != 3:
        raise WrongOption(f"option peak is {peak}, but the CK+48 folders contain three frames per sequence")
    for folder in folders:
        label = label_of(folder.name)
        for path in images_under(folder, root, collector):
            name = path.rsplit("/", 1)[-1]
            match = _NAME_48.fullmatch(name)
            if label is None:
                collector.leave_out_class(folder.name)
            elif match is None:
                collector.leave_out("image not named like S010_004_00000017.png")
            else:
                part = part_of(match["subject"], ONE_IN, split)
                person = match["subject"].upper()
                collector.add(Record(id=name, path=path, label=label, split=part, subject=person, cropped=True))


READER = Reader(
    layout="cohn-kanade-images/S005/001/S005_001_00000011.png ... with Emotion/S005/001/*_emotion.txt (and Landmarks/ "
    "if you have it), or the CK+48 folders anger/S010_004_00000017.png ...",
    parse=parse,
    codes=CODES,
    tree="""\
cohn-kanade-images/
  S005/001/S005_001_00000011.png ...         a folder per sequence
Emotion/
  S005/001/S005_001_00000011_emotion.txt     one number; no file means no label
Landmarks/                                   if you have it
  S005/001/S005_001_00000011_landmarks.txt   68 points

or CK+48:
anger/S010_004_00000017.png ...              and contempt/ disgust/ fear/ happy/ ...""",
    option_help={"peak": f"{PEAK_HELP}; CK+48 folders contain 3", "split": SPLIT_HELP},
    card=DatasetCard(
        title="Extended Cohn-Kanade",
        about="posed sequences, 123 people",
        apply="http://www.jeffcohn.net/Resources/",
        licence="research; agreement signed",
        split="fercli's, by subject",
        split_note="a tenth for testing, frozen: the benchmark's split is not published",
        paper="Lucey et al.: The Extended Cohn-Kanade Dataset (CK+): a complete dataset for action unit and "
        "emotion-specified expression. CVPR Workshops 2010",
        # Paper: 83 25 59 69 28 45 labelled sequences (and 18 of contempt), three frames each; first frame of all 327.
        releases=(
            Official.of_whole((249, 75, 177, 207, 84, 135, 327), "the release: last three frames, first as neutral"),
            Official.of_whole((249, 75, 177, 207, 84, 135, 0), "CK+48 folders: no neutral"),
        ),
    ),
)
