"""Reading a source image, whatever it is, as uint8 RGB or with the reason why not.

Pillow reads the header, so that a decompression bomb is refused before it takes the memory, and decodes everything
unusual: it knows CMYK, palettes, alpha, 16 bits and truncation. OpenCV decodes plain JPEGs, the great majority, in half
of Pillow's time.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import warnings
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from fercli.errors import FercliError
from fercli.faces.quiet import mute_stderr

#: Pictures with more pixels are refused, and so are larger files.
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 29

#: What photographs are stored in. Others that Pillow knows are left out: EPS would run a program that the file brings.
_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "DIB", "WEBP", "PPM", "JPEG2000", "AVIF", "PCX", "SGI")
#: How files begin that are no image, or none that can be read; the first that fits says why.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC image, which cannot be read: convert it to JPEG"),
    (rb"....ftypavi", "an AVIF image, damaged or not supported by this Pillow: convert it to JPEG"),
    (rb"....ftyp", "a video, not an image"),
    (rb"%PDF", "a PDF, not an image"),
    (rb"%!PS", "PostScript, not an image"),
    (rb"PK\x03\x04", "a zip archive, not an image"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the image it stands for: run git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or other markup, not an image"),
    (rb"\xff\xd8", "damaged image: a JPEG whose header cannot be read"),
    (rb"\x89PNG", "damaged image: a PNG whose header cannot be read"),
    (rb"GIF8", "damaged image: a GIF whose header cannot be read"),
    (rb"RIFF....WEBP", "damaged image: a WebP whose header cannot be read"),
    (rb"II\*\x00|MM\x00\*", "a TIFF that is damaged or of a kind that cannot be read"),
)
#: What is wrong with a file for as long as it is not changed; other failures (a disk that stutters) may pass.
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_EXIF_ORIENTATION = 0x0112
#: In the coded data of a JPEG: a marker, other than the stuffing and restarts that belong to the data.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Unreadable(Exception):
    """The image cannot be used; the message is the reason that the manifest gives."""


def read_image(path: Path) -> np.ndarray:
    """Return the image file as uint8 [H, W, 3] RGB, turned as its EXIF orientation says; `Unreadable` where it cannot.

    Of an animation or a file of several pages the first is read; transparent parts are laid on white; 16 bits are
    scaled to 8, and numbers of other ranges from the least usual one that holds them (0..1, 0..255, 0..65535).
    """
    return decode_image(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return what is in an image file; `Unreadable` where that is nothing, no file at all, or no reasonable one."""
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise Unreadable("a folder, not an image")
        if not stat.S_ISREG(state.st_mode):
            # A pipe that nobody writes to would be waited on for ever.
            raise Unreadable("a pipe, socket or device, not a file")
        if state.st_size > MAX_BYTES:
            raise Unreadable(f"a file of more than {MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("a link to a file that is not there" if path.is_symlink() else "no such file") from None
    except OSError as failure:
        raise _why(failure, path) from None
    except ValueError:
        raise Unreadable("no such file: no file can have this name") from None
    if not data:
        raise Unreadable("empty file")
    return data


def _why(failure: OSError, path: Path) -> Exception:
    """Return `Unreadable` for a fault of the file itself, FercliError for one that may pass: no store may keep it."""
    if failure.errno in _OF_THE_FILE:
        return Unreadable(f"cannot be read: {failure.strerror}")
    return FercliError(f"{path} cannot be read just now ({failure.strerror}); run the same command again to go on")


def decode_image(data: bytes) -> np.ndarray:
    """Return the bytes of an image file as `read_image` does."""
    # The decoders' own warnings name no file: what matters of them becomes the reason.
    with mute_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _refuse_huge_webp(data)
            header = Image.open(io.BytesIO(data), formats=_formats())
            _refuse_huge(header.size)
            if header.format == "JPEG" and header.mode in ("L", "RGB"):
                return _decode_jpeg(data)
            return _convert(header)
        except UnidentifiedImageError:
            raise Unreadable(_unknown(data)) from None
        except Image.DecompressionBombError:
            raise Unreadable(_too_many_pixels()) from None
        except MemoryError:
            raise FercliError(
                "too little memory to decode a picture; run the same command again to go on, with fewer workers "
                "(--set prepare.workers=1)"
            ) from None
        except Unreadable:
            raise
        except Exception as failure:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, ... on damaged files.
            raise Unreadable(f"damaged image: {_in_a_line(failure, data)}") from None


def read_pixels(path: Path, offset: int) -> bytes:
    """Return the field of pixels in the csv row at byte `offset` (FER2013: grey values parted by blanks)."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            row = file.readline()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as failure:
        raise _why(failure, path) from None
    return max(row.split(b","), key=lambda field: field.count(b" ")).strip(b'" \r\n')


def decode_pixels(field: bytes, side: int = 48) -> np.ndarray:
    """Return side * side grey values parted by blanks as uint8 [side, side, 3]."""
    pixels = field.split()
    if len(pixels) != side * side:
        raise Unreadable(f"{len(pixels)} pixels instead of {side * side}")
    try:
        values = np.array(pixels).astype(np.int64)
    except (ValueError, OverflowError):
        raise Unreadable("pixels that are no numbers") from None
    if values.min() < 0 or values.max() > 255:
        raise Unreadable("pixels outside 0..255")
    return np.repeat(values.astype(np.uint8).reshape(side, side, 1), 3, axis=2)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _too_many_pixels() -> str:
    return f"more than {MAX_PIXELS // 1_000_000} megapixels"


def _refuse_huge(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise Unreadable(_too_many_pixels())


def _refuse_huge_webp(data: bytes) -> None:
    # WebP's decoder takes the memory when it is opened, before Pillow gives the size.
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    kind = data[12:16]
    if kind == b"VP8X":
        _refuse_huge((1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        _refuse_huge((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        _refuse_huge((width, height))


def _unknown(data: bytes) -> str:
    for beginning, reason in _BEGINNINGS:
        if re.match(beginning, data[:64], re.DOTALL):
            return reason
    return "not an image"


def _in_a_line(failure: Exception, data: bytes) -> str:
    text = " ".join(str(failure).split()).strip("'\"")
    # WebP's decoder only says that it could not be made; its file says how long it should be.
    short = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    return "truncated" if short or "truncated" in text.lower() else text or type(failure).__name__


def _decode_jpeg(data: bytes) -> np.ndarray:
    # libjpeg fills what is missing with grey and only warns.
    if not _has_its_end(data):
        raise Unreadable("damaged image: truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Unreadable("damaged image: cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _has_its_end(data: bytes) -> bool:
    """Tell whether a JPEG's end marker is there, going from segment to segment.

    The previews in metadata, and what phones append (depth, a film), have ends of their own.
    """
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 1:
        code = data[at + 1]
        if code == 0xD9:
            return True
        if code in (0x00, 0x01, 0xFF) or 0xD0 <= code <= 0xD8:
            at = data.find(b"\xff", at + (1 if code == 0xFF else 2))
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if code == 0xDA:
            marker = _MARKER.search(data, at)
            at = -1 if marker is None else marker.start()
        else:
            at = data.find(b"\xff", at)
    return False


def _convert(image: Image.Image) -> np.ndarray:
    image.load()
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, which are inverted; without Adobe's mark they are not (libjpeg.txt).
        image = _with_exif_of(image, ImageChops.invert(image))
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_grey_to_8_bits(image)[..., None], 3, 2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _with_exif_of(image: Image.Image, other: Image.Image) -> Image.Image:
    other.info = dict(image.info)
    return other


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return image if orientation == 1 else ImageOps.exif_transpose(image)
    except Exception:
        # Damaged metadata does the pixels no harm.
        return image


def _grey_to_8_bits(image: Image.Image) -> np.ndarray:
    """Return a picture of 16 or 32 bits or floats as uint8 [H, W]."""
    grey = np.asarray(image)
    if image.mode.startswith("I;16"):
        table = (np.arange(65536) * (255 / 65535) + 0.5).astype(np.uint8)
        return table[grey]
    finite = np.isfinite(grey)
    if not finite.any():
        raise Unreadable("no pixel that is a number")
    low = min(float(grey.min(where=finite, initial=0)), 0.0)
    high = float(grey.max(where=finite, initial=low))
    ranges = (255.0, 65535.0) if image.mode.startswith("I") else (1.0, 255.0, 65535.0)
    high = next((usual for usual in ranges if high <= usual), high)
    shares = np.nan_to_num((grey.astype(np.float32) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return (np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
