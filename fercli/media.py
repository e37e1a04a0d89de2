"""Find images and videos: walk through folders, and classify files by the endings of their names.

This module opens no file and imports no image library: `fercli.faces.images` decodes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

#: The image formats that fercli reads, by Pillow's name, with their endings. Other Pillow formats are left out: EPS
#: would run a program contained in the file.
PICTURE_FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
}
#: Endings of HEIF, which is read if pillow-heif is installed: `pip install 'fercli[heif]'`.
_HEIF = (".heic", ".heif", ".hif")
#: The endings under which OpenCV writes images.
WRITTEN_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))

VIDEO_ENDINGS = frozenset((
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts",
    ".ogv",
))  # fmt: skip

#: Endings of image formats that are not read: raw photographs, drawings, and formats that must be converted.
_UNREAD = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ".ai", ".bpg", ".dds", ".djvu", ".eps", ".exr", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".pct", ".pict", ".psb",
    ".psd", ".qoi", ".ras", ".svg", ".svgz", ".tga", ".wmf", ".xcf",
))  # fmt: skip

#: Folders of operating systems and file managers, lower case: thumbnails, resource forks, recycle bins. Names that
#: begin with a dot (``.thumbnails``, ``.AppleDouble``, ``._photo.jpg``) are left out too. Thumbs.db counts as a file
#: that is not an image.
_LITTER = frozenset((
    "@eadir", "__macosx", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found",
))  # fmt: skip

_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9_]{1,10}")

#: Advice for an image in a format that is not read, and for HEIC.
CONVERT = "convert to JPEG or PNG"
CONVERT_HEIF = f"{CONVERT}, or pip install 'fercli[heif]'"


@lru_cache(maxsize=1)
def reads_heif() -> bool:
    """Return whether pillow-heif, which reads HEIC, is installed."""
    return find_spec("pillow_heif") is not None


@lru_cache(maxsize=1)
def picture_formats() -> dict[str, tuple[str, ...]]:
    """Return the supported formats and their endings, including HEIC if pillow-heif is installed."""
    return {**PICTURE_FORMATS, **({"HEIF": _HEIF} if reads_heif() else {})}


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, that mark a file as an image."""
    return frozenset(ending for endings in picture_formats().values() for ending in endings)


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden or was not made by the user: `walk` skips it."""
    return name.startswith(".") or name.lower() in _LITTER


def walk(
    folder: str | os.PathLike[str],
    unreadable: Callable[[OSError], object] | None = None,
    closed: Callable[[str], bool] = lambda name: False,
) -> Iterator[str]:
    """Yield the files below a folder, as paths that begin with it, in depth-first order by name.

    Links are followed, but each real folder is entered only once, and never a folder that contains `folder` itself, so
    that circular links end. Litter (`is_litter`) is skipped.

    Args:
        folder: where to begin; read whatever its name.
        unreadable: called with the error for a folder that cannot be read; if None, the error is raised.
        closed: folders whose names satisfy this are yielded as if they were files.

    Raises:
        OSError: a folder cannot be read, and `unreadable` is None.
    """
    entered = set(map(_identity, _and_all_above(folder)))
    pending = [iter(_entries(os.fspath(folder), unreadable))]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif is_litter(entry.name):
            continue
        elif closed(entry.name) or not is_folder(entry):
            yield entry.path
        elif (identity := _identity(entry.path)) not in entered:
            entered.add(identity)
            pending.append(iter(_entries(entry.path, unreadable)))


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the folders in a folder, by name, without litter and links to a folder that contains it."""
    above = _and_all_above(folder)
    return [
        entry.path
        for entry in _entries(os.fspath(folder), None)
        if not is_litter(entry.name)
        and is_folder(entry)
        and not (entry.is_symlink() and os.path.realpath(entry.path) in above)
    ]


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one. A circular or broken link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: str, unreadable: Callable[[OSError], object] | None) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as failure:
        if unreadable is None:
            raise
        failure.filename = failure.filename or folder
        unreadable(failure)
        return []


def _and_all_above(folder: str | os.PathLike[str]) -> list[str]:
    real = Path(os.path.realpath(folder))
    return list(map(str, (real, *real.parents)))


def _identity(path: str) -> object:
    """Return a key that is equal for two paths of the same folder."""
    try:
        state = os.stat(path)
    except OSError:
        return path
    # Some file systems have no inode numbers.
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot; "" if there is none."""
    ending = os.path.splitext(name)[1].lower()
    # A number (scan.0001) or the end of a sentence is not an ending.
    return ending if _ENDING.fullmatch(ending) else ""


def is_picture_name(name: str) -> bool:
    """Return whether a file name has the ending of an image."""
    return ending_of(name) in picture_endings()


def is_video_name(name: str) -> bool:
    """Return whether a file name has the ending of a video."""
    return ending_of(name) in VIDEO_ENDINGS


def is_unread_picture(name: str) -> bool:
    """Return whether a file name has the ending of an image format that is not read here."""
    ending = ending_of(name)
    return ending in _UNREAD or (ending in _HEIF and not reads_heif())


def describe_skipped(name: str) -> str:
    """Return a description of skipped files like this one: the ending, and for an image what to do."""
    ending = ending_of(name)
    if not is_unread_picture(name):
        return f"{ending} files" if ending else "files without an ending"
    return f"{ending} files (not read: {CONVERT_HEIF if ending in _HEIF else CONVERT})"


def list_skipped(names: Iterable[str]) -> str:
    """Return a count of these files by kind: "3 .heic files (not read: ...), 1 .txt file"."""
    counts = Counter(map(describe_skipped, names)).most_common()
    return ", ".join(f"{n} {what if n > 1 else what.replace(' files', ' file', 1)}" for what, n in counts)
