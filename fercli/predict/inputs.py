"""The inputs of `fercli predict INPUT...`: images, folders, globs, videos, cameras, and a list or an image on stdin."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fercli import console, media
from fercli.errors import FercliError
from fercli.faces.failures import reason
from fercli.faces.images import MAX_BYTES
from fercli.predict.cameras import open_camera
from fercli.predict.stream import Picture
from fercli.predict.videos import open_video

#: First bytes of videos, for files with another ending: MP4 and related formats, AVI, Matroska.
_VIDEO = re.compile(rb"....ftyp(?!hei|hev|mif1|msf1|avi)|RIFF....AVI |\x1a\x45\xdf\xa3", re.DOTALL)
#: First bytes of an image on stdin, with which a list of paths never begins. The first bytes of most other formats
#: (AVIF, JPEG 2000, TIFF, ...) contain a zero.
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\xff\x4f\xff\x51|\x89PNG|GIF8[79]a|RIFF....WEBP|P[1-6Ff]\s+(#[^\n]*\s+)*\d+\s+\d+\s", re.DOTALL
)


@dataclass(frozen=True)
class Input:
    """One image, video or camera.

    Attributes:
        name: its name in the results: the path as it was found, ``camera:N``, or ``-`` for bytes from stdin.
        kind: ``picture``, ``video`` or ``camera``.
        path: the file; None for cameras and bytes.
        below: path of its annotated copy, relative to the folder of copies.
        data: the bytes of an image from stdin.
        problem: why it cannot be read, if that is already known.
    """

    name: str
    kind: str
    path: Path | None
    below: Path
    data: bytes | None = None
    problem: str | None = None


def find_inputs(names: Sequence[str], stdin: IO[bytes]) -> list[Input]:
    """Return the inputs that the names stand for, in order; the files of a folder or glob are sorted by name.

    Args:
        names: as typed. ``-`` is stdin. An integer or ``camera:N`` is a camera, unless a file has that name. A folder
            stands for all images and videos below it, except hidden ones. A name that contains ``*``, ``?`` or ``[``
            and is not a file stands for its matches (``**`` matches folders of any depth).
        stdin: read to its end if ``-`` is given.

    Raises:
        FercliError: an input does not exist, a folder has no inputs, a pattern has no match, or stdin is empty.

    Files skipped in a folder are reported on stderr, counted by ending. A subfolder that cannot be read becomes an
    input with a `problem`. Links are followed, each real folder once.
    """
    found: list[Input] = []
    for name in names:
        found += _stdin(stdin) if name == "-" else _named(name)
    return found


def _named(name: str) -> list[Input]:
    path = Path(name)
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return [_file(path, Path(path.name))]
    except (OSError, ValueError) as failure:  # a name that is too long or contains a zero; a folder without access
        why = f" ({failure.strerror})" if isinstance(failure, OSError) else ""
        raise FercliError(f"no such image, folder or video: {name!r:.200}{why}") from None
    camera = re.fullmatch(r"(?:camera:)?([0-9]{1,3})", name)
    if camera:
        return [Input(f"camera:{camera[1]}", "camera", None, Path(f"camera-{camera[1]}"))]
    if any(mark in name for mark in "*?["):
        return _matches(name)
    raise FercliError(f"no such image, folder or video: {name}")


def _folder(folder: Path) -> list[Input]:
    found, skipped = [], []
    for one in _below(folder):
        if isinstance(one, Input):
            found.append(one)
        elif media.is_picture_name(one.name) or media.is_video_name(one.name):
            found.append(_file(one, one.relative_to(folder)))
        else:
            skipped.append(one.name)
    if not found:
        only = f" that fercli reads, only {media.list_skipped(skipped)}" if skipped else ""
        raise FercliError(f"{folder} contains no image or video{only}")
    if skipped:
        # Skipped images are reported even with --quiet.
        tell = console.warn if any(map(media.is_unread_picture, skipped)) else console.say
        tell(f"skipped in {folder}: {media.list_skipped(skipped)}")
    return found


def _below(folder: Path) -> list[Path | Input]:
    """Return the files below a folder; a subfolder that cannot be read becomes an input with a `problem`."""
    found: list[Path | Input] = []

    def unreadable(failure: OSError) -> None:
        path, why = Path(os.fspath(failure.filename)), f"the folder cannot be read: {failure.strerror}"
        if path == folder:
            raise FercliError(f"{folder}: {why}")
        found.append(Input(str(path), "picture", path, path.relative_to(folder), problem=why))

    for path in media.walk(folder, unreadable):
        found.append(Path(path))
    return found


def _matches(pattern: str) -> list[Input]:
    parts = Path(pattern).parts
    count = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    fixed, wanted = Path(*parts[:count]), parts[count:]
    if "**" in wanted:
        # glob's own search never ends on cyclic links.
        listed = [path for path in _below(fixed) if isinstance(path, Path)] if fixed.is_dir() else []
        found = [path for path in listed if _fits(path.relative_to(fixed).parts, wanted)]
    else:
        listed = [Path(one) for one in sorted(glob.glob(pattern)) if os.path.isfile(one)]
        found = [path for path in listed if not _is_litter(path.relative_to(fixed).parts, wanted)]
    if not found:
        raise FercliError(f"no file matches {pattern}")
    return [_file(path, path.relative_to(fixed)) for path in found]


def _fits(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a path's folders and file name match a pattern, in which ``**`` is any number of folders."""
    if not wanted or not names:
        return not names and all(one == "**" for one in wanted)
    if wanted[0] == "**":
        return _fits(names, wanted[1:]) or _fits(names[1:], wanted)
    return fnmatch.fnmatch(names[0], wanted[0]) and _fits(names[1:], wanted[1:])


def _is_litter(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a path matches a pattern only by accident: system litter that the pattern does not name."""
    pairs = zip(names, wanted, strict=True)
    return any(media.is_litter(name) and name != one and not one.startswith(".") for name, one in pairs)


def _stdin(stdin: IO[bytes]) -> list[Input]:
    try:
        data = stdin.read(MAX_BYTES + 1)
    except (OSError, ValueError) as failure:
        raise FercliError(f"stdin cannot be read: {getattr(failure, 'strerror', None) or failure}") from None
    if len(data) > MAX_BYTES:
        raise FercliError(
            f"more than {MAX_BYTES >> 20} MiB on stdin: - expects a list of paths or the bytes of one image"
        )
    # A path contains no zero byte, but the beginning of nearly every image and video does.
    if _PICTURE.match(data) or b"\0" in data[:512]:
        return [Input("-", "picture", None, Path("stdin.jpg"), data)]
    lines = (line.rstrip(b"\r") for line in data.split(b"\n"))
    paths = [Path(os.fsdecode(line)) for line in lines if line.strip()]
    if not paths:
        raise FercliError("nothing on stdin: - expects a list of paths, one per line, or an image's bytes")
    plain = [path if not path.is_absolute() and ".." not in path.parts else Path(path.name) for path in paths]
    # A missing file becomes an error among the results: one bad line must not stop a long list.
    return [_file(path, below) for path, below in zip(paths, plain, strict=True)]


def _file(path: Path, below: Path) -> Input:
    return Input(str(path), "video" if _is_video(path) else "picture", path, below)


def _is_video(path: Path) -> bool:
    if media.is_picture_name(path.name) or media.is_video_name(path.name):
        return media.is_video_name(path.name)
    try:
        with path.open("rb") as file:
            return path.is_file() and _VIDEO.match(file.read(16)) is not None
    except (OSError, ValueError):
        return False


class Reader:
    """Reads inputs, image by image and frame by frame.

    Args:
        inputs: the inputs to read.
        every: use every Nth frame of videos and cameras, starting with the first.
        start: number of the first input to read; those before it are already done.
    """

    def __init__(self, inputs: Sequence[Input], every: int = 1, start: int = 0):
        self.inputs, self.every, self.start = inputs, every, start

    def __iter__(self) -> Iterator[Picture]:
        for number, one in enumerate(self.inputs[self.start :], self.start):
            if one.problem is not None:
                yield Picture(one.name, None, number, error=one.problem)
            elif one.kind == "picture":
                yield Picture(one.name, one.path if one.data is None else one.data, number)
            else:
                yield from self._frames(number, one)

    def count(self) -> int:
        """Return how many images and frames remain, as far as the files tell (for progress); opens each video."""
        total = 0
        for one in self.inputs[self.start :]:
            frames = 1
            if one.kind == "video" and one.path is not None:
                with suppress(Exception), open_video(one.path) as video:  # errors are reported when it is read
                    frames = -(-video.expected // self.every)
            total += max(1, frames)
        return total

    def _frames(self, number: int, one: Input) -> Iterator[Picture]:
        opened = open_camera(int(one.name.partition(":")[2])) if one.path is None else open_video(one.path)
        try:
            with opened as video:
                for frame in video.frames(self.every):
                    yield Picture(one.name, frame.image, number, frame.number, frame.time_s, frame.duration_s)
                problem = video.problem
        except FercliError as why:
            if one.path is None:
                raise
            problem = str(why).removeprefix(f"{one.path}: ")
        except Exception as failure:
            problem = reason(failure, one.name)
        if problem:
            yield Picture(one.name, None, number, error=problem)
