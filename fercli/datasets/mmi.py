"""MMI (Pantic et al., ICME 2005; Valstar and Pantic, LREC 2010): a list of frames, or downloaded sessions; our split.

The database provides sessions of one video each. fercli does not read these videos: extract their frames first. The
frames must be upright, because several cameras were mounted sideways. If two views share a frame, crop the frontal one.
A video begins and ends neutral. As usual with this database, its middle frames stand for the expression and its first
frame for neutral. There is no official split: a fifth of the subjects is for testing, by
`fercli.datasets.sequences.split_of`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from fercli.datasets.card import DatasetCard
from fercli.datasets.parsing import numbers_in, text_lines, whole_number
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout, WrongOption
from fercli.datasets.sequences import (
    PEAK_HELP,
    SPLIT_HELP,
    check_options,
    frames_of,
    in_order,
    labelled,
    neutral_of,
    part_of,
    protocol,
)
from fercli.datasets.tree_files import first_existing, images_under, is_image_name, subfolders
from fercli.media import is_video_name

#: As numbered in the field's lists: 0 anger 1 disgust 2 fear 3 happiness 4 sadness 5 surprise.
CODES: dict[int, int | None] = {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0}

#: One subject in ONE_IN is for testing.
ONE_IN = 5
_CLIP = re.compile(r"(?P<subject>[Ss]\d+)[-_]\d+")
_EXTRACT = "video without frames next to it (extract them: ffmpeg -i S001-001.avi S001-001_%05d.png)"


def parse(root: Path, collector: Collector, peak: int = 3, split: str = "subject") -> Protocol:
    """Read the list if there is one, else the sessions.

    Args:
        root: contains list/list.txt and images/, or Sessions/ as downloaded, with the frames extracted.
        collector: receives the records.
        peak: how many frames in the middle of a session show its expression (a list names the frames itself).
        split: ``subject`` (adapted to train, scored on test) or ``all`` (one split for both, as with JAFFE).
    """
    check_options(peak, split)
    listed = first_existing(root, "list/list.txt", "list.txt")
    if listed is not None:
        if peak != 3:
            raise WrongOption(f"option peak is {peak}, but {listed.name} names the frames")
        _parse_list(root, listed, collector, split)
    else:
        _parse_sessions(root, collector, peak, split)
    return protocol(split)


def _parse_list(root: Path, listed: Path, collector: Collector, split: str) -> None:
    """Read the list. A row is an image below images/ and its code, counted from 0 as in the benchmark's own lists.

    Boxes (annos/bbox: left top right bottom) and five landmarks (annos/landmark_5: x y on each line) are read too if
    they exist.
    """
    if not (root / "images").is_dir():
        raise WrongLayout("no images/")
    names = set()
    for _, line in text_lines(listed):
        fields = line.rsplit(None, 1)
        if len(fields) != 2:
            collector.leave_out("unreadable row")
            continue
        name = fields[0].strip()
        names.add(name)
        label = collector.label(CODES, fields[1])
        if label is not None:
            stem = name.rpartition(".")[0]
            box = _exactly(root / "annos/bbox" / f"{stem}.txt", 4)
            points = _exactly(root / "annos/landmark_5" / f"{stem}.txt", 10)
            landmarks = tuple(zip(points[0::2], points[1::2], strict=True)) if points else None
            _add(collector, Record(name, f"images/{name}", label, box=box, landmarks=landmarks), split)
    collector.need_rows(listed, "image code")
    paths = images_under(root / "images", root / "images", Collector())
    collector.leave_out("file without row", sum(path not in names for path in paths))


def _parse_sessions(root: Path, collector: Collector, peak: int, split: str) -> None:
    sessions = first_existing(root, "Sessions") or root
    folders = [folder for folder in subfolders(sessions) if (folder / "session.xml").exists()]
    if not folders:
        raise WrongLayout("no list/list.txt and no Sessions/*/session.xml")
    for session in folders:
        clips = list(_clips(session, collector))
        if not clips:
            collector.leave_out("session without emotion label")
        for clip, code in clips:
            # The files count from 1 to 9: the six expressions that the lists number from 0, and others.
            label = CODES.get(code - 1)
            if label is None:
                collector.leave_out(f"emotion {code} (outside the seven)")
            elif _view(session) == "1":
                collector.leave_out("session filmed from the side")
            else:
                _read_clip(root, session, clip, label, collector, peak, split)


def _clips(session: Path, collector: Collector) -> Iterator[tuple[str, int]]:
    """Yield (S001-001, number of its emotion) for each annotation file in a session folder."""
    for file in sorted(session.glob("*.xml")):
        if file.name == "session.xml" or file.name.startswith(".") or "aucs" in file.name:
            continue
        try:
            tags = ElementTree.parse(file).getroot().iter("Metatag")
            codes = [whole_number(tag.get("Value", "")) for tag in tags if tag.get("Name") == "Emotion"]
        except (OSError, ValueError, ElementTree.ParseError):
            codes = [None]
        if codes[:1] == [None]:
            collector.leave_out("unreadable annotation file")
        elif codes:
            yield file.stem, codes[0]


def _view(session: Path) -> str | None:
    """Return the camera view from session.xml: 0 frontal, 1 side, 2 both in one frame; None if not given."""
    try:
        track = next(ElementTree.parse(session / "session.xml").getroot().iter("track"), None)
    except (OSError, ValueError, ElementTree.ParseError):
        return None
    return None if track is None else track.get("view")


def _read_clip(root: Path, session: Path, clip: str, label: int, collector: Collector, peak: int, split: str) -> None:
    frames = frames_of(session / clip, root, collector)
    if not frames:
        beside = (p for p in session.iterdir() if is_image_name(p.name) and p.name.startswith(clip))
        frames = in_order([p.relative_to(root).as_posix() for p in beside])
    if not frames:
        filmed = any(is_video_name(p.name) for p in session.iterdir())
        collector.leave_out(_EXTRACT if filmed else "session without video or frames")
        return
    start = max(len(frames) // 2 - peak // 2, 0)
    neutral = neutral_of(frames[: start + 1], collector)
    for path, its_label in labelled(neutral, frames[start : start + peak], label):
        _add(collector, Record(f"{clip}/{path.rsplit('/', 1)[-1]}", path, its_label), split)


def _exactly(file: Path, count: int) -> tuple[float, ...] | None:
    """Return the numbers of a small annotation file; None if it is missing, malformed or does not have `count`."""
    numbers = tuple(numbers_in(file))
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _add(collector: Collector, record: Record, split: str) -> None:
    """Add a frame with the subject in its name and that subject's split."""
    match = _CLIP.search(record.id)
    if match is None and split == "subject":
        collector.leave_out("frame not named after its subject, S001-001... (accepted with the option split 'all')")
        return
    subject = match["subject"].upper() if match else None
    collector.add(replace(record, subject=subject, split=part_of(subject or "", ONE_IN, split)))


READER = Reader(
    layout="list/list.txt (image code) with images/, or Sessions/1/ ... as downloaded: session.xml, S001-001.xml and "
    "the frames of S001-001.avi next to it (ffmpeg -i S001-001.avi S001-001_%05d.png)",
    parse=parse,
    codes=CODES,
    tree="""\
Sessions/
  1/session.xml, S001-001.xml                as downloaded
    S001-001.avi
    S001-001_00001.png ...                   its frames: ffmpeg -i S001-001.avi S001-001_%05d.png

or a list:
list/list.txt                                rows: image code
images/IMAGE ...""",
    option_help={"peak": f"{PEAK_HELP}; a list names its frames itself", "split": SPLIT_HELP},
    card=DatasetCard(
        title="MMI facial expression database",
        about="posed videos and stills",
        apply="https://mmifacedb.eu/",
        licence="research; agreement signed",
        split="fercli's, by subject",
        split_note="a fifth for testing, frozen",
        paper="Pantic, Valstar, Rademaker and Maat: Web-based database for facial expression analysis. ICME 2005",
    ),
)
