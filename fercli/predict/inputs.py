"""What `fercli predict INPUT...` names: images, folders, globs, videos, a camera, a list on stdin, or one's bytes."""

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

#: How videos begin that are called otherwise: MP4 and its kin, AVI, Matroska.
_VIDEO = re.compile(rb"....ftyp(?!hei|hev|mif1|msf1|avi)|RIFF....AVI |\x1a\x45\xdf\xa3", re.DOTALL)
#: How an image begins where stdin brings its bytes, and a list of paths never does. The first bytes of most other
#: formats (AVIF, JPEG 2000, TIFF, ...) hold a zero.
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\xff\x4f\xff\x51|\x89PNG|GIF8[79]a|RIFF....WEBP|P[1-6Ff]\s+(#[^\n]*\s+)*\d+\s+\d+\s", re.DOTALL
)


@dataclass(frozen=True)
class Input:
    """One image, video or camera.

    Attributes:
        name: what results call it: the path as it was found, ``camera:N``, or ``-`` for bytes from stdin.
        kind: ``picture``, ``video`` or ``camera``.
        path: the file; None for cameras and bytes.
        below: where its annotated copy goes, relative to the folder of these.
        data: of an image on stdin.
        problem: why it is known already that it cannot be read.
    """

    name: str
    kind: str
    path: Path | None
    below: Path
    data: bytes | None = None
    problem: str | None = None


def find_inputs(names: Sequence[str], stdin: IO[bytes]) -> list[Input]:
    """Return what the names stand for, in their order, a folder's files and a glob's by name.

    Args:
        names: as typed. ``-`` is stdin, a whole number or ``camera:N`` a camera, where no file is called so; a folder
            stands for all images and videos below it, hidden ones left out; what holds ``*``, ``?`` or ``[`` and is
            no file, for what it matches (``**`` for folders of any depth).
        stdin: read where ``-`` is given, to its end.

    Raises:
        FercliError: there is no such input, nothing in a folder, no match, or nothing on stdin.

    What is skipped in a folder is told on stderr, counted by ending. A folder in it that cannot be read becomes an
    input with a `problem`; links are followed, each real folder once.
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
    except (OSError, ValueError) as failure:  # a name that is too long, or holds a zero; a folder that is closed to us
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
        only = f" that is read, only {media.list_skipped(skipped)}" if skipped else ""
        raise FercliError(f"{folder} holds no image or video{only}")
    if skipped:
        # That images are passed over is told even where remarks are switched off.
        tell = console.warn if any(map(media.is_unread_picture, skipped)) else console.say
        tell(f"skipped in {folder}: {media.list_skipped(skipped)}")
    return found


def _below(folder: Path) -> list[Path | Input]:
    """Return the files below a folder; a folder that cannot be read becomes an input with an error."""
    found: list[Path | Input] = []

    def unreadable(failure: OSError) -> None:
        path, why = Path(os.fspath(failure.filename)), f"a folder that cannot be read: {failure.strerror}"
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
        # The library's own search goes through circles of links for ever.
        listed = [path for path in _below(fixed) if isinstance(path, Path)] if fixed.is_dir() else []
        found = [path for path in listed if _fits(path.relative_to(fixed).parts, wanted)]
    else:
        listed = [Path(one) for one in sorted(glob.glob(pattern)) if os.path.isfile(one)]
        found = [path for path in listed if not _is_litter(path.relative_to(fixed).parts, wanted)]
    if not found:
        raise FercliError(f"nothing matches {pattern}")
    return [_file(path, path.relative_to(fixed)) for path in found]


def _fits(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether the folders and the file of a path match a pattern, in which ``**`` is any number of folders."""
    if not wanted or not names:
        return not names and all(one == "**" for one in wanted)
    if wanted[0] == "**":
        return _fits(names, wanted[1:]) or _fits(names[1:], wanted)
    return fnmatch.fnmatch(names[0], wanted[0]) and _fits(names[1:], wanted[1:])


def _is_litter(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether a path that matches a pattern is nothing that was meant by it."""
    pairs = zip(names, wanted, strict=True)
    return any(media.is_litter(name) and name != one and not one.startswith(".") for name, one in pairs)


def _stdin(stdin: IO[bytes]) -> list[Input]:
    try:
        data = stdin.read(MAX_BYTES + 1)
    except (OSError, ValueError) as failure:
        raise FercliError(f"stdin cannot be read: {getattr(failure, 'strerror', None) or failure}") from None
    if len(data) > MAX_BYTES:
        raise FercliError(f"more than {MAX_BYTES >> 20} MiB on stdin: - wants a list of paths or an image's bytes")
    # No path holds a zero, as the first bytes of nearly all images and videos do.
    if _PICTURE.match(data) or b"\0" in data[:512]:
        return [Input("-", "picture", None, Path("stdin.jpg"), data)]
    lines = (line.rstrip(b"\r") for line in data.split(b"\n"))
    paths = [Path(os.fsdecode(line)) for line in lines if line.strip()]
    if not paths:
        raise FercliError("nothing on stdin: - wants a list of paths, one a line, or an image's bytes")
    plain = [path if not path.is_absolute() and ".." not in path.parts else Path(path.name) for path in paths]
    # What is not there becomes an error among the results: a long list must not fail for one line.
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
    """Reads inputs image by image and frame by frame.

    Args:
        inputs: what to read.
        every: take every so many-th frame of videos and cameras, from the first.
        start: number of the first input to read; those before it have been answered.
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
        """How many images and frames there are to come, as far as files tell it (for progress); opens each video."""
        total = 0
        for one in self.inputs[self.start :]:
            frames = 1
            if one.kind == "video" and one.path is not None:
                with suppress(Exception), open_video(one.path) as video:  # what is wrong is told when it is read
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
