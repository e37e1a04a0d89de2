"""Reading a source image, whatever it is, as uint8 RGB or with the reason why not.

Pillow reads the header, so that a decompression bomb is refused before it
takes the memory, and decodes everything unusual: it knows CMYK, palettes, alpha, 16 bits and truncation. OpenCV decodes
plain JPEGs, the great majority, in half of Pillow's time.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pictures with more pixels are refused.
MAX_PIXELS = 100_000_000

_EXIF_ORIENTATION = 0x0112


class Unreadable(Exception):
    """The image cannot be used; the message is the reason that the manifest gives."""


def read_image(path: Path) -> np.ndarray:
    """Return the image file as uint8 [H, W, 3] RGB, turned as its EXIF orientation says; `Unreadable` where it cannot.

    Of an animation the first frame is read; transparent parts are laid on white; 16 bits are scaled to 8.
    """
    try:
        if path.is_dir():
            raise Unreadable("a folder, not an image")
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as failure:
        raise Unreadable(f"cannot be read: {failure.strerror}") from None
    if not data:
        raise Unreadable("empty file")
    return decode_image(data)


def decode_image(data: bytes) -> np.ndarray:
    """Return the bytes of an image file as `read_image` does."""
    with warnings.catch_warnings():
        # Pillow's own warning against bombs starts below our limit, and damaged metadata does no harm here.
        warnings.simplefilter("ignore")
        try:
            header = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise Unreadable("not an image") from None
        except Image.DecompressionBombError:
            raise Unreadable(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
        except Exception as failure:
            raise Unreadable(f"damaged image: {failure}") from None
        if header.width * header.height > MAX_PIXELS:
            raise Unreadable(f"more than {MAX_PIXELS // 1_000_000} megapixels")
        if header.format == "JPEG" and header.mode in ("L", "RGB"):
            return _decode_jpeg(data)
        try:
            return _convert(header)
        except Exception as failure:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, ... on damaged files.
            raise Unreadable(f"damaged image: {str(failure).splitlines()[0] if str(failure) else failure!r}") from None


def read_pixel_row(path: Path, offset: int, side: int = 48) -> np.ndarray:
    """Return the picture in the csv row at byte `offset` (FER2013: side * side grey values in one field) as RGB."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            row = file.readline()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as failure:
        raise Unreadable(f"cannot be read: {failure.strerror}") from None
    pixels = max(row.split(b","), key=lambda field: field.count(b" ")).strip(b'" \r\n').split()
    if len(pixels) != side * side:
        raise Unreadable(f"{len(pixels)} pixels instead of {side * side}")
    try:
        values = np.array(pixels).astype(np.int64)
    except ValueError:
        raise Unreadable("pixels that are no numbers") from None
    if values.min() < 0 or values.max() > 255:
        raise Unreadable("pixels outside 0..255")
    return np.repeat(values.astype(np.uint8).reshape(side, side, 1), 3, axis=2)


def _decode_jpeg(data: bytes) -> np.ndarray:
    # libjpeg fills what is missing with grey and only warns: a whole file has its end marker after its last scan.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise Unreadable("damaged image: truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Unreadable("damaged image: cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _convert(image: Image.Image) -> np.ndarray:
    image.load()
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, np.float64)
        # 16 bits arrive as I;16 or I; other ranges (float, 32 bits) are stretched over what they hold.
        low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (min(grey.min(), 0.0), max(grey.max(), 1.0))
        if image.mode == "I" and high <= 65535:
            high = 65535.0
        rgb = np.repeat(np.clip((grey - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)[..., None], 3, 2)
        return np.ascontiguousarray(rgb)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
