"""Finding images and videos: the one walk through folders, and the endings of names by which files count.

Nothing here looks into a file, and no image library is imported: `fercli.faces.images` decodes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

#: The image formats that are read, by Pillow's name, with their endings. Others that Pillow knows are left out: EPS
#: would run a program that the file brings.
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
#: Endings of the format HEIF, which pillow-heif adds where it is installed: `pip install 'fercli[heif]'`.
_HEIF = (".heic", ".heif", ".hif")
#: The endings of them under which images are written, by OpenCV.
WRITTEN_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))

VIDEO_ENDINGS = frozenset((
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts",
    ".ogv",
))  # fmt: skip

#: Endings of images in formats that are not read: raw photographs, drawings, and what has to be converted.
_UNREAD = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ".ai", ".bpg", ".dds", ".djvu", ".eps", ".exr", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".pct", ".pict", ".psb",
    ".psd", ".qoi", ".ras", ".svg", ".svgz", ".tga", ".wmf", ".xcf",
))  # fmt: skip

#: Folders of systems and file managers, lower case: thumbnails, resource forks, waste bins. What begins with a dot
#: (``.thumbnails``, ``.AppleDouble``, ``._photo.jpg``) is left out too. A Thumbs.db is counted as what is no image.
_LITTER = frozenset((
    "@eadir", "__macosx", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found",
))  # fmt: skip

_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9_]{1,10}")

#: What to do about an image in a format that is not read, and about HEIC.
CONVERT = "convert to JPEG or PNG"
CONVERT_HEIF = f"{CONVERT}, or pip install 'fercli[heif]'"


@lru_cache(maxsize=1)
def reads_heif() -> bool:
    """Tell whether pillow-heif, which reads HEIC, is installed."""
    return find_spec("pillow_heif") is not None


@lru_cache(maxsize=1)
def picture_formats() -> dict[str, tuple[str, ...]]:
    """Return the formats read here and their endings, HEIC among them where pillow-heif is installed."""
    return {**PICTURE_FORMATS, **({"HEIF": _HEIF} if reads_heif() else {})}


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, by which a file counts as an image."""
    return frozenset(ending for endings in picture_formats().values() for ending in endings)


def is_litter(name: str) -> bool:
    """Tell whether a file or folder is hidden, or is not the user's: `walk` passes it over."""
    return name.startswith(".") or name.lower() in _LITTER


def walk(
    folder: str | os.PathLike[str],
    unreadable: Callable[[OSError], object] | None = None,
    closed: Callable[[str], bool] = lambda name: False,
) -> Iterator[str]:
    """Yield the files below a folder, as paths that begin with it: by name, a folder's files where its name stands.

    Links are followed, but each real folder is entered once, and none in which `folder` itself lies: links in a circle
    end. Litter (`is_litter`) is passed over.

    Args:
        folder: where to begin; read whatever its name.
        unreadable: called with the error for a folder that cannot be read; without, the error is raised.
        closed: folders of these names are yielded as if they were files.

    Raises:
        OSError: a folder cannot be read, and there is no `unreadable`.
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
    """Return the paths of the folders in a folder, by name, without litter and links to a folder that holds it."""
    above = _and_all_above(folder)
    return [
        entry.path
        for entry in _entries(os.fspath(folder), None)
        if not is_litter(entry.name)
        and is_folder(entry)
        and not (entry.is_symlink() and os.path.realpath(entry.path) in above)
    ]


def is_folder(entry: os.DirEntry) -> bool:
    """Tell whether an entry is a folder or a link to one. A link to itself and one that leads nowhere are none."""
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
    """What two paths of one folder have in common."""
    try:
        state = os.stat(path)
    except OSError:
        return path
    # Some file systems number nothing.
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; "" where there is none."""
    ending = os.path.splitext(name)[1].lower()
    # A number (scan.0001) or the end of a sentence is none.
    return ending if _ENDING.fullmatch(ending) else ""


def is_picture_name(name: str) -> bool:
    """Tell whether a file name ends as an image's does."""
    return ending_of(name) in picture_endings()


def is_video_name(name: str) -> bool:
    """Tell whether a file name ends as a video's does."""
    return ending_of(name) in VIDEO_ENDINGS


def is_unread_picture(name: str) -> bool:
    """Tell whether a file name ends as an image's does in a format that is not read here."""
    ending = ending_of(name)
    return ending in _UNREAD or (ending in _HEIF and not reads_heif())


def describe_skipped(name: str) -> str:
    """Return what to call the files that are skipped as this one is: by ending, and what to do if it is an image."""
    ending = ending_of(name)
    if not is_unread_picture(name):
        return f"{ending} files" if ending else "files without an ending"
    return f"{ending} files (not read: {CONVERT_HEIF if ending in _HEIF else CONVERT})"


def list_skipped(names: Iterable[str]) -> str:
    """Return what files of these names are, counted: "3 .heic files (not read: ...), 1 .txt file"."""
    counts = Counter(map(describe_skipped, names)).most_common()
    return ", ".join(f"{n} {what if n > 1 else what.replace(' files', ' file', 1)}" for what, n in counts)
