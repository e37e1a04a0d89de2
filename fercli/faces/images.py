"""Read any source image as uint8 RGB, or give the reason why it cannot be read.

Pillow reads the header, so that a decompression bomb is refused before it takes up memory. Pillow also decodes
everything unusual: it handles CMYK, palettes, alpha, 16 bits and truncation. OpenCV decodes plain JPEGs, the great
majority, in half of Pillow's time.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from fercli import media
from fercli.faces.failures import may_pass, memory_left, naming
from fercli.faces.quiet import mute_stderr

#: Longest side in pixels that OpenCV can warp.
_LONGEST_SIDE = 32766
#: Images with more pixels and files with more bytes are refused.
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 29
#: A JPEG may have this many pixels, because it can be decoded at a half or a quarter of its size, to at most
#: `REDUCED_PIXELS`.
MAX_JPEG_PIXELS = 400_000_000
REDUCED_PIXELS = 50_000_000
#: Most bytes of coefficients that libjpeg may hold at a time, which it does if a JPEG consists of several scans. With
#: the reduced image that is 1.2 GB at most. A JPEG of one scan takes 300 MB.
_MAX_COEFFICIENTS = 900_000_000

#: How files begin that are not images, or not readable ones, each with the reason; the first match counts.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftypavi", "an AVIF image, damaged or not supported by this Pillow: convert to JPEG"),
    (rb"....ftypcrx|II(RO|RS|U\x00)|FUJIFILMCCD-RAW|FOVb|\x00MRM", "raw"),
    (rb"....ftyp", "a video, not an image"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", f"a JPEG XL image, which is not supported: {media.CONVERT}"),
    (rb"8BPS", f"a Photoshop document, which is not supported: {media.CONVERT}"),
    (rb"v/1\x01|#\?RADIANCE", f"a high dynamic range image, which is not supported: {media.CONVERT}"),
    (rb"%PDF", "a PDF, not an image"),
    (rb"%!PS", "PostScript, not an image"),
    (rb"PK\x03\x04", "a zip archive, not an image"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the image itself: run git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or other markup, not an image"),
    (rb"\xff\xd8", "damaged image: a JPEG whose header cannot be read"),
    (rb"\x89PNG", "damaged image: a PNG whose header cannot be read"),
    (rb"GIF8", "damaged image: a GIF whose header cannot be read"),
    (rb"RIFF....WEBP", "damaged image: a WebP whose header cannot be read"),
    (rb"II\*\x00|MM\x00\*", "a TIFF that is damaged or of a kind that cannot be read"),
)
_RAW = f"a raw photograph, of which only a preview could be read: {media.CONVERT}"
#: TIFF tags: bit 0 of the first marks a preview of another image; only a DNG has the second.
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_EXIF_ORIENTATION = 0x0112
#: The operation that turns an image upright, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: A marker in the coded data of a JPEG. Stuffing and restart markers belong to the data and do not match.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END, _SCAN = 0xD9, 0xDA

#: An image in any form: a file, the bytes of one, a PIL image, or an array (`decode`).
Source = str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | Image.Image


class Unreadable(Exception):
    """The image cannot be used; the message is the reason given in the manifest."""


@dataclass(frozen=True)
class Decoded:
    """An image, upright.

    Attributes:
        pixels: uint8 [H, W, 3] RGB, C-contiguous.
        scale: how many pixels of the file one pixel covers in width and in height: 1; 2 or 4 for a huge JPEG; more if
            a side is too long for OpenCV.
    """

    pixels: np.ndarray
    scale: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels of the file, to within `scale` - 1."""
        height, width = self.pixels.shape[:2]
        return width * self.scale, height * self.scale


def decode(source: Source, name: str | Path = "the image") -> Decoded:
    """Decode an image from any of four kinds of source; all four give the same pixels.

    Files, their bytes and PIL images are turned according to their EXIF orientation. Of an animation or a file of
    several pages, the first is read (of a PIL image, the page it is at). A JPEG of more than 100 and up to 400
    megapixels is decoded at a half or a quarter of its size (`Decoded.scale`). Any other image of more than 100
    megapixels is refused. An image with a side of more than 32,766 pixels, which OpenCV cannot warp, is also reduced.

    Arrays are [H, W], or [H, W, C] with C = 1 (grey), 2 (grey and alpha), 3 (RGB, in this order) or 4 (RGB and alpha).
    An OpenCV array must be converted from BGR to RGB first.

    Transparent parts are placed on white. 16 bits are scaled to 8. Other integers and floats are scaled from the
    smallest usual range that holds them: 0..1 (floats only), 0..255, 0..65535. Values that resizing has put a little
    above the range are clipped. Values that fit no usual range, or that go below 0 (an image normalised about zero),
    are scaled from their own range.

    Args:
        source: a path, the bytes of an image file, a PIL image (which is not changed), or an array of bool, integers
            or floats.
        name: the name used in messages for an image that is not a path.

    Raises:
        Unreadable: the image cannot be used; the message is the reason.
        ValueError: an array of another shape or type, or an object that is not an image.
        TransientError: the image cannot be read for lack of memory or because of a disk error; names the image.
    """
    if isinstance(source, np.ndarray):
        with naming(name):
            return _within_sides(Decoded(_decode_array(source)))
    if isinstance(source, Image.Image):
        with naming(name):
            _refuse_huge(source.size)
            return _within_sides(Decoded(_rgb(source)))
    if isinstance(source, str | os.PathLike):
        name = Path(source)
        data = read_bytes(name)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if not data:
            raise Unreadable("empty file")
    else:
        raise ValueError(f"a {type(source).__name__} is not an image: give a path, bytes, a PIL image or a NumPy array")
    with naming(name):
        return _within_sides(_decode_bytes(data))


def _within_sides(picture: Decoded) -> Decoded:
    """Return an image that OpenCV can warp, reduced by the smallest integer factor if a side is too long."""
    height, width = picture.pixels.shape[:2]
    by = -(-max(height, width) // _LONGEST_SIDE)
    if by <= 1:
        return picture
    size = max(1, width // by), max(1, height // by)
    return Decoded(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), picture.scale * by)


def read_image(source: Source) -> np.ndarray:
    """Return the pixels that `decode` gives, without the scale: uint8 [H, W, 3] RGB."""
    return decode(source).pixels


def read_bytes(path: Path) -> bytes:
    """Return the content of an image file; raises `Unreadable` if it is empty, too large or not a regular file."""
    try:
        with naming(path):
            state = os.stat(path)
            if stat.S_ISDIR(state.st_mode):
                raise Unreadable("a folder, not an image")
            if not stat.S_ISREG(state.st_mode):
                # Reading a pipe that has no writer would wait for ever.
                raise Unreadable("a pipe, socket or device, not a file")
            if state.st_size > MAX_BYTES:
                raise Unreadable(f"a file of more than {MAX_BYTES >> 20} MiB")
            data = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("a link to a file that does not exist" if path.is_symlink() else "no such file") from None
    except OSError as failure:
        raise Unreadable(f"cannot be read: {failure.strerror}") from None
    except ValueError:
        raise Unreadable("no such file: this is not a valid file name") from None
    if not data:
        raise Unreadable("empty file")
    return data


def read_pixels(path: Path, offset: int) -> bytes:
    """Return the pixel field of the csv row at byte `offset` (FER2013: grey values separated by spaces)."""
    try:
        with naming(path), path.open("rb") as file:
            file.seek(offset)
            row = file.readline()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as failure:
        raise Unreadable(f"cannot be read: {failure.strerror}") from None
    return max(row.split(b","), key=lambda field: field.count(b" ")).strip(b'" \r\n')


def decode_pixels(field: bytes) -> np.ndarray:
    """Return 48 * 48 grey values separated by spaces as uint8 [48, 48, 3]."""
    pixels = field.split()
    if len(pixels) != 48 * 48:
        raise Unreadable(f"{len(pixels)} pixels instead of {48 * 48}")
    try:
        values = np.array(pixels).astype(np.int64)
    except (ValueError, OverflowError):
        raise Unreadable("pixels that are not numbers") from None
    if values.min() < 0 or values.max() > 255:
        raise Unreadable("pixels outside 0..255")
    return np.repeat(values.astype(np.uint8).reshape(48, 48, 1), 3, axis=2)


# Files


def _decode_bytes(data: bytes) -> Decoded:
    # The decoders' own warnings name no file. Serious ones become the reason.
    with mute_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refuse_huge_webp(data)
        header = _open(data)
        scale = _reduction(header, data)
        if header.format == "JPEG" and header.mode in ("L", "RGB"):
            return Decoded(_decode_jpeg(data, header, scale), scale)
        if scale > 1:
            header.draft(None, (header.width // scale, header.height // scale))
        return Decoded(_rgb(header, data), scale)


def _open(data: bytes) -> Image.Image:
    """Read the header."""
    try:
        with _damage(data):
            return Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        _check_memory(data)
        raise Unreadable(_unknown(data)) from None
    except Image.DecompressionBombError:
        # Pillow's own limit is lower than the size of some photographs. It applies to the whole process, so it is kept.
        if not data.startswith(b"\xff\xd8"):
            raise Unreadable(_too_many_pixels()) from None
    with _damage(data):
        return JpegImageFile(io.BytesIO(data))


@contextmanager
def _damage(data: bytes = b"", pixels: int = 0) -> Iterator[None]:
    """Treat whatever a decoder raises as damage, unless the failure is temporary. The block must only call decoders.

    Damaged bytes make them raise OSError, SyntaxError, ValueError, RuntimeError, EOFError, ...

    Args:
        data: the bytes being decoded.
        pixels: number of pixels in the image; 0 if not known yet.
    """
    try:
        yield
    except (Unreadable, UnidentifiedImageError, Image.DecompressionBombError):
        raise
    except Exception as failure:
        if may_pass(failure):
            raise
        _check_memory(data, pixels)
        raise Unreadable(f"damaged image: {_in_a_line(failure, data)}") from None


def _check_memory(data: bytes, pixels: int = 0) -> None:
    """Raise MemoryError if there is too little memory for decoding: the image may then be intact."""
    if not memory_left(24 * pixels + 4 * len(data) + (32 << 20)):
        raise MemoryError("a decoder failed, and there is too little memory")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return the formats of `fercli.media` that this Pillow build supports."""
    Image.init()
    if media.reads_heif():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in media.picture_formats() if name in Image.OPEN)


def _too_many_pixels(kind: str | None = None) -> str:
    if kind in ("JPEG", "MPO"):
        return f"more than {MAX_JPEG_PIXELS // 1_000_000} megapixels: make it smaller"
    return (
        f"more than {MAX_PIXELS // 1_000_000} megapixels: make it smaller, or save it as a JPEG file, which may have "
        f"{MAX_JPEG_PIXELS // 1_000_000}"
    )


def _refuse_huge(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise Unreadable(_too_many_pixels())


def _reduction(header: Image.Image, data: bytes) -> int:
    """Return the factor by which an image is reduced in decoding: 1, 2 or 4; raises `Unreadable` if it is too large."""
    pixels = header.width * header.height
    if pixels <= MAX_PIXELS:
        return 1
    if header.format not in ("JPEG", "MPO") or pixels > MAX_JPEG_PIXELS:
        raise Unreadable(_too_many_pixels(header.format))
    # A block of 8 x 8 pixels takes at least one bit.
    if len(data) * 512 < pixels:
        raise Unreadable("damaged image: truncated")
    if sum(code == _SCAN for code in _markers(data)) > 1:
        most = max(across * down for _, across, down, _ in header.layer)
        coefficients = sum(pixels * across * down // most for _, across, down, _ in header.layer)
        if 2 * coefficients > _MAX_COEFFICIENTS:
            raise Unreadable(
                f"a progressive JPEG of {pixels // 1_000_000} megapixels, which takes too much memory: make it "
                "smaller, or save it as a baseline JPEG"
            )
    return 2 if pixels <= 4 * REDUCED_PIXELS else 4


def _refuse_huge_webp(data: bytes) -> None:
    # WebP's decoder takes the memory when it is opened, before Pillow reports the size.
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


def _refuse_preview(image: Image.Image, data: bytes) -> None:
    """Refuse a raw photograph: a TIFF whose first image is a small copy."""
    with _damage(data):
        preview = image.tag_v2.get(_DNG_VERSION) or int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 1
    if preview or data[8:10] == b"CR":
        raise Unreadable(_RAW)


def _unknown(data: bytes) -> str:
    for beginning, reason in _BEGINNINGS:
        if re.match(beginning, data[:64], re.DOTALL):
            if reason == "HEIC" and not media.reads_heif():
                return f"a HEIC image, which is not supported: {media.CONVERT_HEIF}"
            return {"HEIC": "a HEIC image that is damaged", "raw": _RAW}.get(reason, reason)
    return "not an image"


def _in_a_line(failure: Exception, data: bytes) -> str:
    text = " ".join(str(failure).split()).strip("'\"")
    # WebP's decoder only reports that it could not be created, but the file's header gives its proper length.
    short = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    return "truncated" if short or "truncated" in text.lower() else text or type(failure).__name__


_READ = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}


def _decode_jpeg(data: bytes, header: Image.Image, scale: int) -> np.ndarray:
    # libjpeg fills missing parts with grey and only warns.
    if _END not in _markers(data):
        raise Unreadable("damaged image: truncated")
    with _damage(data, header.width * header.height):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ[scale])
        if image is None:
            raise OSError("cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _markers(data: bytes) -> Iterator[int]:
    """Yield the codes of a JPEG's segments up to its end marker, from one segment to the next.

    Previews in the metadata, and data that phones append (depth, a video), have their own end markers.
    """
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 1:
        code = data[at + 1]
        if code in (0x00, 0x01, 0xFF) or 0xD0 <= code <= 0xD8:
            at = data.find(b"\xff", at + (1 if code == 0xFF else 2))
            continue
        yield code
        if code == _END:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if code == _SCAN:
            marker = _MARKER.search(data, at)
            at = -1 if marker is None else marker.start()
        else:
            at = data.find(b"\xff", at)


# PIL images


def _rgb(image: Image.Image, data: bytes = b"") -> np.ndarray:
    """Return a PIL image of any mode as uint8 RGB, upright; the image itself is not changed."""
    pixels = image.width * image.height
    if not pixels:
        raise Unreadable("an image without pixels")
    if image.format == "TIFF":
        _refuse_preview(image, data)
    with _damage(data, pixels):
        image.load()
    turn = _turn(image)
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow inverts every CMYK JPEG, as Adobe's files need. Files without Adobe's mark do not (libjpeg.txt).
        image = ImageChops.invert(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        grey = _to_8_bits(values)
        clear = image.info.get("transparency")
        return _repeated(grey if clear is None else np.where(values == clear, np.uint8(255), grey))
    with _damage(data, pixels):
        if image.mode == "La":  # Pillow converts this mode only to LA
            image = image.convert("LA")
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
            image = _on_white(image.convert("RGBA"))
        return np.array(image.convert("RGB"))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that turns the image upright, by its EXIF orientation."""
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION))
    except Exception as failure:
        if may_pass(failure):
            raise
        return None  # damaged metadata does not affect the pixels


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


# Arrays


def _decode_array(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or not array.size or array.dtype.kind not in "buif":
        first = array.ndim == 3 and channels > 4 and array.shape[0] <= 4
        raise ValueError(
            "an image array must be [H, W] or [H, W, C] with 1 to 4 channels, of bool, integers or floats, "
            f"not {array.dtype} {list(array.shape)}" + (": move the channels to the last axis" if first else "")
        )
    _refuse_huge((array.shape[1], array.shape[0]))
    if channels == 3:
        return np.ascontiguousarray(_to_8_bits(array))
    if channels == 1:
        return _repeated(_to_8_bits(array.reshape(array.shape[:2])))
    # Alpha may have its own range, such as colours in 0..255 and alpha in 0..1.
    layers = np.dstack([_to_8_bits(array[..., :-1]), _to_8_bits(array[..., -1])])
    return np.array(_on_white(Image.fromarray(layers).convert("RGBA")).convert("RGB"))


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Return bools, integers or floats as uint8 of the same shape; see `decode` for their ranges."""
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if kind == "u" and bits == 8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and bits == 16:
        return (np.arange(65536) * (255 / 65535) + 0.5).astype(np.uint8)[values]
    if kind == "f":
        finite = np.isfinite(values)
        if not finite.any():
            raise Unreadable("no pixel is a number")
        low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    else:
        low, high = values.min(), values.max()
    low, high = float(low), float(high)
    if low >= 0:
        # Values within twice a range belong to it. The next range is about 256 times as wide and would make them black.
        usual = (1.0, 255.0, 65535.0) if kind == "f" else (255.0, 65535.0)
        low, high = 0.0, next((most for most in usual if high <= 2 * most), high)
    shares = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low or 1.0)
    shares = np.nan_to_num(shares, nan=0.0, posinf=1.0, neginf=0.0)
    return (np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
