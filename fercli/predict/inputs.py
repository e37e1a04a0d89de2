"""What `fercli predict INPUT...` names: pictures, folders, globs, videos, a camera, a list on stdin, or one's bytes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fercli import console, media
from fercli.errors import FercliError
from fercli.faces.failures import reason
from fercli.predict.cameras import open_camera
from fercli.predict.stream import Picture
from fercli.predict.videos import open_video

#: How videos begin that are called otherwise: MP4 and its kin, AVI, Matroska.
_VIDEO = re.compile(rb"....ftyp(?!hei|hev|mif1|msf1|avi)|RIFF....AVI |\x1a\x45\xdf\xa3", re.DOTALL)
#: How a picture begins where stdin brings its bytes; a list of paths never does.
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM....\0\0\0\0|II\*\0|MM\0\*|RIFF....WEBP|P[456]\s", re.DOTALL)


@dataclass(frozen=True)
class Input:
    """One picture, video or camera.

    Attributes:
        name: what results call it: the path as it was found, ``camera:N``, or ``-`` for bytes from stdin.
        kind: ``picture``, ``video`` or ``camera``.
        path: the file; None for cameras and bytes.
        below: where its annotated copy goes, relative to the folder of these.
        data: of a picture on stdin.
    """

    name: str
    kind: str
    path: Path | None
    below: Path
    data: bytes | None = None


def find_inputs(names: Sequence[str], stdin: IO[bytes]) -> list[Input]:
    """Return what the names stand for, in their order, a folder's files and a glob's by name.

    Args:
        names: as typed. ``-`` is stdin, a whole number or ``camera:N`` a camera, where no file is called so; a folder
            stands for all pictures and videos below it, hidden ones left out; what holds ``*``, ``?`` or ``[`` and is
            no file, for what it matches (``**`` for folders of any depth).
        stdin: read where ``-`` is given, to its end.

    Raises:
        FercliError: there is no such input, nothing in a folder, no match, or nothing on stdin.

    What is skipped in a folder is told on stderr, counted by ending.
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
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        raise FercliError(f"no such picture, folder or video: {name!r:.200}") from None
    camera = re.fullmatch(r"(?:camera:)?(\d{1,3})", name)
    if camera:
        return [Input(f"camera:{camera[1]}", "camera", None, Path(f"camera-{camera[1]}"))]
    if any(mark in name for mark in "*?["):
        return _matches(name)
    raise FercliError(f"no such picture, folder or video: {name}")


def _folder(folder: Path) -> list[Input]:
    found, skipped = [], []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        here = Path(parent)
        for one in sorted(one for one in files if not one.startswith(".")):
            if media.is_picture_name(one) or media.is_video_name(one):
                found.append(_file(here / one, (here / one).relative_to(folder)))
            else:
                skipped.append(one)
    if not found:
        only = f" that is read, only {media.list_skipped(skipped)}" if skipped else ""
        raise FercliError(f"{folder} holds no picture or video{only}")
    if skipped:
        # That pictures are passed over is told even where remarks are switched off.
        tell = console.warn if any(map(media.is_unread_picture, skipped)) else console.say
        tell(f"skipped in {folder}: {media.list_skipped(skipped)}")
    return found


def _matches(pattern: str) -> list[Input]:
    paths = [Path(one) for one in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(one)]
    if not paths:
        raise FercliError(f"nothing matches {pattern}")
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if any(mark in part for mark in "*?["):
            break
        fixed.append(part)
    return [_file(path, path.relative_to(Path(*fixed))) for path in paths]


def _stdin(stdin: IO[bytes]) -> list[Input]:
    first = stdin.readline()
    if _PICTURE.match(first) or first.startswith(b"\x89PNG"):
        return [Input("-", "picture", None, Path("stdin.jpg"), first + stdin.read())]
    names = [os.fsdecode(line.rstrip(b"\r\n")) for line in [first, *stdin]]
    paths = [Path(name) for name in names if name.strip()]
    if not paths:
        raise FercliError("nothing on stdin: - wants a list of paths, one a line, or a picture's bytes")
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
    """Reads inputs picture by picture and frame by frame.

    Args:
        inputs: what to read.
        every: take every so many-th frame of videos and cameras, from the first.
        start: number of the first input to read; those before it have been answered.
    """

    def __init__(self, inputs: Sequence[Input], every: int = 1, start: int = 0):
        self.inputs, self.every, self.start = inputs, every, start

    def __iter__(self) -> Iterator[Picture]:
        for number, one in enumerate(self.inputs[self.start :], self.start):
            if one.kind == "picture":
                yield Picture(one.name, one.path if one.data is None else one.data, number)
            else:
                yield from self._frames(number, one)

    def count(self) -> int:
        """How many pictures and frames there are to come, as far as files tell it (for progress); opens each video."""
        total = 0
        for one in self.inputs[self.start :]:
            frames = 1
            if one.kind == "video" and one.path is not None:
                try:
                    with open_video(one.path) as video:
                        frames = -(-video.expected // self.every)
                except Exception:  # told when it is read
                    pass
            total += max(1, frames)
        return total

    def _frames(self, number: int, one: Input) -> Iterator[Picture]:
        try:
            opened = open_camera(int(one.name.partition(":")[2])) if one.path is None else open_video(one.path)
        except FercliError as why:
            if one.path is None:
                raise
            yield Picture(one.name, None, number, error=str(why).removeprefix(f"{one.path}: "))
            return
        except Exception as failure:
            yield Picture(one.name, None, number, error=reason(failure, one.name))
            return
        with opened as video:
            problem = None
            try:
                for frame in video.frames(self.every):
                    yield Picture(one.name, frame.image, number, frame.number, frame.time_s, frame.duration_s)
            except Exception as failure:
                problem = reason(failure, one.name)
            problem = problem or video.problem
            if problem:
                yield Picture(one.name, None, number, error=problem)
