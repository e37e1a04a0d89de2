"""File name endings of pictures and videos: the one list that folders are searched by, and that formats come from.

Nothing here looks into a file, and no image library is imported: `fercli.faces.images` decodes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec

#: The picture formats that are read, by Pillow's name, with their endings. Others that Pillow knows are left out: EPS
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
#: What pillow-heif adds where it is installed: `pip install 'fercli[heif]'`.
HEIF_FORMATS: dict[str, tuple[str, ...]] = {"HEIF": (".heic", ".heif", ".hif")}

VIDEO_ENDINGS = frozenset((
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts",
    ".ogv",
))  # fmt: skip

#: Endings of pictures in formats that are not read: raw photographs, drawings, and what has to be converted.
_UNREAD = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ".ai", ".bpg", ".dds", ".djvu", ".eps", ".exr", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".pct", ".pict", ".psb",
    ".psd", ".qoi", ".ras", ".svg", ".svgz", ".tga", ".wmf", ".xcf",
))  # fmt: skip

_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9_]{1,10}")

#: What to do about a picture in a format that is not read, and about HEIC.
CONVERT = "convert to JPEG or PNG"
CONVERT_HEIF = f"{CONVERT}, or pip install 'fercli[heif]'"


@lru_cache(maxsize=1)
def reads_heif() -> bool:
    """Tell whether pillow-heif, which reads HEIC, is installed."""
    return find_spec("pillow_heif") is not None


@lru_cache(maxsize=1)
def picture_formats() -> dict[str, tuple[str, ...]]:
    """Return the formats read here and their endings, HEIC among them where pillow-heif is installed."""
    return {**PICTURE_FORMATS, **(HEIF_FORMATS if reads_heif() else {})}


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, by which a file counts as a picture."""
    return frozenset(ending for endings in picture_formats().values() for ending in endings)


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; "" where there is none."""
    ending = os.path.splitext(name)[1].lower()
    # A number (scan.0001) or the end of a sentence is none.
    return ending if _ENDING.fullmatch(ending) else ""


def is_picture_name(name: str) -> bool:
    """Tell whether a file name ends as a picture's does."""
    return ending_of(name) in picture_endings()


def is_video_name(name: str) -> bool:
    """Tell whether a file name ends as a video's does."""
    return ending_of(name) in VIDEO_ENDINGS


def is_unread_picture(name: str) -> bool:
    """Tell whether a file name ends as a picture's does in a format that is not read here."""
    ending = ending_of(name)
    return ending in _UNREAD or (ending in HEIF_FORMATS["HEIF"] and not reads_heif())


def describe_skipped(name: str) -> str:
    """Return what to call the files that are skipped as this one is: by ending, and what to do if it is a picture."""
    ending = ending_of(name)
    if not is_unread_picture(name):
        return f"{ending} files" if ending else "files without an ending"
    return f"{ending} files (not read: {CONVERT_HEIF if ending in HEIF_FORMATS['HEIF'] else CONVERT})"


def list_skipped(names: Iterable[str]) -> str:
    """Return what files of these names are, counted: "3 .heic files (not read: ...), 1 .txt file"."""
    counts = Counter(map(describe_skipped, names)).most_common()
    return ", ".join(f"{n} {what if n > 1 else what.replace(' files', ' file', 1)}" for what, n in counts)
