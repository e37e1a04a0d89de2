"""Bad input: what is no picture ends in the manifest with its reason, and the good ones around it are kept."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from conftest import TINY, merge, run
from PIL import Image

from fercli.datasets import read_dataset, writers
from fercli.errors import FercliError
from fercli.faces import synthetic
from fercli.faces.images import MAX_BYTES, Unreadable, decode_image, decode_pixels, read_image, read_pixels
from fercli.faces.quiet import mute_stderr
from fercli.prepare import Options, prepare
from fercli.store import Store, read_manifest

HERE = Options(workers=1, backend="sequential")


@pytest.fixture(scope="module")
def faces() -> list[synthetic.Face]:
    return [synthetic.render(synthetic.STUDIO, 1, label, 3) for label in range(7)]


@pytest.fixture
def alarm() -> Iterator[None]:
    """Stop a test that waits for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited for ever"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def encoded(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def prepare_files(tmp_path: Path, files: dict[str | bytes, bytes]) -> dict[str, dict[str, str]]:
    """Prepare a folder per class holding these files; return the manifest's rows by id."""
    root = tmp_path / "data"
    for name, data in files.items():
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    summary = prepare(read_dataset("d", "folders", root), tmp_path / "out", HERE)
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    store = Store.open(tmp_path / "out")
    assert summary.kept == len(store) == sum(row["status"] != "rejected" for row in rows.values())
    assert summary.expected == len(rows) == store.counts()["expected"]
    return rows


# Files that are no picture, or none that can be used


def test_bad_pictures_are_rejected_with_their_reason_and_the_rest_is_kept(tmp_path, faces):
    image = faces[0].image
    good, png = encoded(image, "JPEG", quality=95), encoded(image, "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    bad = {
        "empty.jpg": (b"", "empty file"),
        "truncated.jpg": (good[: len(good) // 2], "damaged image: truncated"),
        "almost.jpg": (good[:-2], "damaged image: truncated"),
        "header only.jpg": (good[:30], "damaged image: truncated"),
        "progressive.jpg": (encoded(image, "JPEG", progressive=True)[:-500], "damaged image: truncated"),
        "zeros at the end.jpg": (good[:2000] + bytes(len(good) - 2000), "damaged image: truncated"),
        "truncated.png": (png[: len(png) // 2], "damaged image: truncated"),
        "truncated.tif": (encoded(image, "TIFF")[:5000], "damaged image: truncated"),
        "lzw.tif": (
            encoded(image, "TIFF", compression="tiff_lzw")[:5000],
            "a TIFF that is damaged or of a kind that cannot be read",
        ),
        "truncated.gif": (encoded(image, "GIF")[:5000], "damaged image: truncated"),
        "truncated.webp": (encoded(image, "WEBP")[:1000], "damaged image: truncated"),
        "truncated.bmp": (encoded(image, "BMP")[:5000], "damaged image: truncated"),
        "soi.jpg": (b"\xff\xd8", "damaged image: a JPEG whose header cannot be read"),
        "text.jpg": (b"this is no image", "not an image"),
        "zeros.png": (bytes(1000), "not an image"),
        "page.jpg": (page, "a web page or other markup, not an image"),
        "drawing.png": (b'<?xml version="1.0"?><svg/>', "a web page or other markup, not an image"),
        "pointer.jpg": (lfs, "a Git LFS pointer, not the image it stands for: run git lfs pull"),
        "phone.jpg": (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
            "a HEIC image, which cannot be read: convert it to JPEG",
        ),
        "film.jpg": (b"\0\0\0\x18ftypisom" + bytes(100), "a video, not an image"),
        "paper.jpg": (b"%PDF-1.4", "a PDF, not an image"),
        "program.jpg": (encoded(image, "EPS"), "PostScript, not an image"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "a zip archive, not an image"),
        "noise.png": (encoded(noise, "PNG"), "no face found"),
        "dot.png": (encoded(image[:1, :1], "PNG"), "no face found"),
        "line.png": (encoded(image[:1], "PNG"), "no face found"),
        "sliver.png": (encoded(np.zeros((3, 9000), np.uint8), "PNG"), "no face found"),
        "nothing but NaN.tif": (encoded(np.full((9, 9), np.nan, np.float32), "TIFF"), "no pixel that is a number"),
    }
    files = {"happy/first.jpg": good, **{f"happy/{name}": data for name, (data, _) in bad.items()}}
    rows = prepare_files(tmp_path, {**files, "sad/last.jpg": good})
    reasons = {name.split("/")[1]: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert reasons == {name: reason for name, (_, reason) in bad.items()}
    assert [name for name, row in rows.items() if row["status"] != "rejected"] == ["happy/first.jpg", "sad/last.jpg"]


def test_what_is_no_file_is_rejected_and_never_waited_for(tmp_path, faces, alarm, monkeypatch):
    root = tmp_path / "data/happy"
    root.mkdir(parents=True)
    good = encoded(faces[0].image, "JPEG")
    for name in ("a.jpg", "z.jpg"):
        (root / name).write_bytes(good)
    (root / "folder.jpg").mkdir()
    (root / "folder.jpg/inner.jpg").write_bytes(good)
    (root / "dangling.jpg").symlink_to("nowhere")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.jpg")
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
    with (root / "enormous.jpg").open("wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    rows = prepare_files(tmp_path, {})
    assert {name.split("/")[1]: row["reason"] or "kept" for name, row in rows.items()} == {
        "a.jpg": "kept",
        "dangling.jpg": "a link to a file that is not there",
        "device.jpg": "a pipe, socket or device, not a file",
        "enormous.jpg": "a file of more than 512 MiB",
        "folder.jpg": "a folder, not an image",
        "link.jpg": "kept",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "pipe.jpg": "a pipe, socket or device, not a file",
        "socket.jpg": "a pipe, socket or device, not a file",
        "z.jpg": "kept",
    }


def test_a_file_that_may_not_be_read_says_so(faces):
    """As root, permissions do not bind: the test reads as nobody."""
    good = encoded(faces[0].image, "JPEG")
    folder = Path(tempfile.mkdtemp(prefix="fercli-test-"))  # tmp_path lies in a folder that is root's alone
    try:
        (folder / "data/happy").mkdir(parents=True)
        for name in ("a", "closed", "z"):
            (folder / f"data/happy/{name}.jpg").write_bytes(good)
        listing = read_dataset("d", "folders", folder / "data")
        prepare(listing, folder / "before", HERE)  # all is imported before nobody may import it
        (folder / "data/happy/closed.jpg").chmod(0)
        folder.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            try:
                os.seteuid(65534)
            except PermissionError:
                pytest.skip("root that may not become another user")
        try:
            prepare(listing, folder / "out", HERE)
        finally:
            if root:
                os.seteuid(0)
        reasons = [row["reason"] for row in read_manifest(folder / "out")]
        assert reasons == ["", "cannot be read: Permission denied", ""]
    finally:
        shutil.rmtree(folder)


STRANGE_NAMES: list[str | bytes] = [
    "two words.jpg",
    " leading and trailing .jpg",
    "two\nlines.jpg",
    "carriage\rreturn.jpg",
    "tab\tand\x0bother\x1b[31m control.jpg",
    "quo\"te's.jpg",
    "com,ma;semi.jpg",
    "-rf.jpg",
    "--help.jpg",
    "#1 $HOME `x` %s {x}.jpg",
    "[red]x[/].jpg",
    "[/]closed.jpg",
    "[link=file:///x]y[/link].jpg",
    "back\\slash.jpg",
    "=1+1.jpg",
    "naïve 笑顔 😀.jpg",
    "e\u0301 and \u202e backwards.jpg",
    "l\u2028ine.jpg",
    b"latin-1 \xe9.jpg",
    b"no \xff\xfe UTF-8.jpg",
    "x" * 251 + ".jpg",
    "UPPER.JPG",
    "dots.in.name.jpeg",
]


def test_names_of_every_kind_are_kept_as_they_are(tmp_path, faces):
    """Good ones and bad ones: kept in the store under their names, or rejected under them."""
    good = encoded(faces[0].image, "JPEG")
    files: dict[str | bytes, bytes] = {}
    for i, name in enumerate(STRANGE_NAMES):
        files[os.fsencode("happy/") + os.fsencode(name)] = good if i % 3 else b"not an image"
    rows = prepare_files(tmp_path, files)
    names = {f"happy/{os.fsdecode(name)}" for name in STRANGE_NAMES}
    assert set(rows) == names and {row["path"] for row in rows.values()} == names
    for i, name in enumerate(STRANGE_NAMES):
        row = rows[f"happy/{os.fsdecode(name)}"]
        assert (row["status"], row["reason"]) in ([("found", "")] if i % 3 else [("rejected", "not an image")])
    kept = {f"happy/{os.fsdecode(name)}" for i, name in enumerate(STRANGE_NAMES) if i % 3}
    assert set(Store.open(tmp_path / "out").ids.tolist()) == kept


def test_names_that_no_file_can_have_are_rejected(tmp_path, faces):
    (tmp_path / "good.jpg").write_bytes(encoded(faces[0].image, "JPEG"))
    paths = ["good.jpg", "x" * 1000 + ".jpg", "good.jpg/inside.jpg", "../nowhere.jpg"]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},happy\n" for path in paths))
    prepare(read_dataset("d", "csv", tmp_path), tmp_path / "out", HERE)
    reasons = [row["reason"] for row in read_manifest(tmp_path / "out")]
    assert reasons == ["", "cannot be read: File name too long", "cannot be read: Not a directory", "no such file"]
    with pytest.raises(Unreadable, match="no file can have this name"):
        read_image(tmp_path / "nul\0.jpg")


def test_a_dataset_without_a_face_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "d/happy").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"d/happy/{i}.png").write_bytes(encoded(Image.new("RGB", (80, 80), (i, 90, 30)), "PNG"))
    with pytest.raises(FercliError, match=r"not one face in 3 records .*no face found"):
        prepare(read_dataset("d", "folders", tmp_path / "d"), tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()


# Decompression bombs


def _bomb_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", _zeros(60_001)) + chunk(b"IEND", b"")


def _bomb_tiff() -> bytes:
    data = _zeros(20_000)
    numbers = {256: 20_000, 257: 20_000, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: 20_000, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + bytes(4)


def _zeros(row: int) -> bytes:
    """Return 20,000 rows of so many zeros, deflated."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(row)) for _ in range(20_000)) + deflate.flush()


def _bomb_jpeg() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 20_000, 20_000)
    return bytes(data)


def _bomb_gif(frame_only: bool) -> bytes:
    data = bytearray(encoded(Image.new("P", (16, 16)), "GIF"))
    size = struct.pack("<HH", 20_000, 20_000)
    if not frame_only:
        data[6:10] = size
    at = data.find(b"\x2c\0\0\0\0\x10\0\x10\0")
    data[at + 5 : at + 9] = size
    return bytes(data)


def _bomb_webp(kind: bytes) -> bytes:
    side = 16_383  # the most that WebP knows
    body = {
        b"VP8L": b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", side, side),
        b"VP8X": bytes(4) + 2 * (side - 1).to_bytes(3, "little"),
    }[kind] + bytes(30)
    chunk = kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


BOMBS: dict[str, Callable[[], bytes]] = {
    "bomb.png": _bomb_png,
    "bomb.tif": _bomb_tiff,
    "bomb.jpg": _bomb_jpeg,
    "bomb.gif": lambda: _bomb_gif(False),
    "frame.gif": lambda: _bomb_gif(True),
    "lossless.webp": lambda: _bomb_webp(b"VP8L"),
    "lossy.webp": lambda: _bomb_webp(b"VP8 "),
    "extended.webp": lambda: _bomb_webp(b"VP8X"),
    "bomb.ppm": lambda: b"P6 20000 20000 255\n" + bytes(999),
    "bomb.bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 20_000, 20_000, 1, 24, *[0] * 6),
}

_MEASURE = """
import resource, sys
from fercli.datasets import read_dataset
from fercli.prepare import Options, prepare
peaks = []
for root in sys.argv[1:]:
    prepare(read_dataset("d", "folders", root), root + "-out", Options(workers=1, backend="sequential"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_decompression_bombs_take_no_memory(tmp_path, faces):
    """What ten bombs add to the peak of a process that prepares a good face: a single one holds 0.3 to 1.2 GB."""
    good = encoded(faces[0].image, "JPEG")
    for root in ("plain", "bombs"):
        (tmp_path / root / "happy").mkdir(parents=True)
        (tmp_path / root / "happy/good.jpg").write_bytes(good)
    for name, make in BOMBS.items():
        (tmp_path / "bombs/happy" / name).write_bytes(make())
        assert (tmp_path / "bombs/happy" / name).stat().st_size < 2_000_000
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "plain"), str(tmp_path / "bombs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows = {row["id"].split("/")[1]: row["reason"] for row in read_manifest(tmp_path / "bombs-out")}
    assert rows == {**{name: "more than 100 megapixels" for name in BOMBS}, "good.jpg": ""}
    assert int(done.stdout) < 40_000, "KiB more at the peak"


# Pictures of unusual kinds, which are read


def _four_colours() -> np.ndarray:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30], image[20:, 30:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
        128,
    )
    return image


def _other_frames(count: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (60, 40), (9 + i, 0, 0)) for i in range(count)]


def _cmyk_without_adobes_mark() -> bytes:
    """A CMYK JPEG of another program: nothing inverted, no APP14 segment."""
    inverted = Image.fromarray(255 - np.asarray(Image.fromarray(_four_colours()).convert("CMYK")), "CMYK")
    data = encoded(inverted, "JPEG", quality=98)
    at = data.find(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def _half_clear(mode: str) -> Image.Image:
    """The four colours, their lower half transparent in the picture."""
    image = Image.fromarray(_four_colours()).convert("RGBA")
    image.paste((255, 0, 255, 0), (0, 20, 60, 40))
    if mode == "P":
        quantised = image.convert("RGB").quantize(8)
        magenta = quantised.getpixel((5, 30))
        quantised.info["transparency"] = magenta
        return quantised
    return image.convert(mode)


COLOUR_PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb.jpg": lambda: encoded(_four_colours(), "JPEG", quality=98, subsampling=0),
    "progressive.jpg": lambda: encoded(_four_colours(), "JPEG", quality=98, subsampling=0, progressive=True),
    "png named.jpg": lambda: encoded(_four_colours(), "PNG"),
    "jpeg named.png": lambda: encoded(_four_colours(), "JPEG", quality=98, subsampling=0),
    "cmyk of adobe.jpg": lambda: encoded(Image.fromarray(_four_colours()).convert("CMYK"), "JPEG", quality=98),
    "plain cmyk.jpg": _cmyk_without_adobes_mark,
    "cmyk.tif": lambda: encoded(Image.fromarray(_four_colours()).convert("CMYK"), "TIFF"),
    "followed by others.jpg": lambda: encoded(_four_colours(), "MPO", save_all=True, append_images=_other_frames()),
    "with a film behind.jpg": lambda: encoded(_four_colours(), "JPEG", quality=98) + b"\0\xff\xdaftypmp42" * 99,
    "rgb.png": lambda: encoded(_four_colours(), "PNG"),
    "palette.png": lambda: encoded(Image.fromarray(_four_colours()).quantize(8), "PNG"),
    "opaque.png": lambda: encoded(Image.fromarray(_four_colours()).convert("RGBA"), "PNG"),
    "16 bits.png": lambda: _by_opencv(".png", _four_colours().astype(np.uint16) * 257),
    "16 bits.tif": lambda: _by_opencv(".tiff", _four_colours().astype(np.uint16) * 257),
    "lzw.tif": lambda: encoded(_four_colours(), "TIFF", compression="tiff_lzw"),
    "pages.tif": lambda: encoded(_four_colours(), "TIFF", save_all=True, append_images=_other_frames()),
    "animated.gif": lambda: encoded(_four_colours(), "GIF", save_all=True, append_images=_other_frames()),
    "animated.webp": lambda: encoded(
        _four_colours(), "WEBP", lossless=True, save_all=True, append_images=_other_frames()
    ),
    "animated.png": lambda: encoded(_four_colours(), "PNG", save_all=True, append_images=_other_frames()),
    "cut after the first frame.gif": lambda: encoded(
        _four_colours(), "GIF", save_all=True, append_images=_other_frames(3)
    )[:-40],
    "rgb.webp": lambda: encoded(_four_colours(), "WEBP", lossless=True),
    "rgb.bmp": lambda: encoded(_four_colours(), "BMP"),
    "rgb.ppm": lambda: encoded(_four_colours(), "PPM"),
    "damaged exif.png": lambda: encoded(_four_colours(), "PNG", exif=b"Exif\0\0no exif at all"),
    "damaged exif.webp": lambda: encoded(_four_colours(), "WEBP", lossless=True, exif=b"no exif at all"),
    "damaged exif.jpg": lambda: encoded(_four_colours(), "JPEG", quality=98, exif=b"Exif\0\0no exif at all"),
}


def _by_opencv(ending: str, image: np.ndarray) -> bytes:
    return cv2.imencode(ending, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


@pytest.mark.parametrize("name", COLOUR_PICTURES)
def test_every_kind_of_picture_is_read_as_rgb(name):
    image = decode_image(COLOUR_PICTURES[name]())
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3) and image.flags.c_contiguous
    for rows in (slice(4, 16), slice(24, 36)):
        for columns in (slice(4, 26), slice(34, 56)):
            inner = np.s_[rows, columns]
            assert abs(image[inner].astype(int) - _four_colours()[inner]).mean() < 4


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("LA", "PNG")]
)
def test_transparent_parts_are_white(mode, form):
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode_image(encoded(_half_clear(mode), form, **options))
    assert (image[24:] == 255).all() and image[:16].mean() < 130


_RAMP = np.tile(np.linspace(0, 1, 60), (40, 1))

GREY_PICTURES: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: encoded(Image.fromarray((_RAMP * 255).astype(np.uint8)), "PNG"),
    "8 bits jpeg": lambda: encoded(Image.fromarray((_RAMP * 255).astype(np.uint8)), "JPEG", quality=100),
    "grey and alpha": lambda: encoded(Image.fromarray((_RAMP * 255).astype(np.uint8)).convert("LA"), "PNG"),
    "16 bits png": lambda: encoded(Image.fromarray((_RAMP * 65535).astype(np.uint16)), "PNG"),
    "16 bits tiff": lambda: encoded(Image.fromarray((_RAMP * 65535).astype(np.uint16)), "TIFF"),
    "32 bits, range of 8": lambda: encoded(Image.fromarray((_RAMP * 255).astype(np.int32)), "TIFF"),
    "32 bits, range of 16": lambda: encoded(Image.fromarray((_RAMP * 65535).astype(np.int32)), "TIFF"),
    "floats to 1": lambda: encoded(Image.fromarray(_RAMP.astype(np.float32)), "TIFF"),
    "floats to 255": lambda: encoded(Image.fromarray((_RAMP * 255).astype(np.float32)), "TIFF"),
    "floats of their own range": lambda: encoded(Image.fromarray((_RAMP * 2e6 - 1e6).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", GREY_PICTURES)
def test_grey_values_of_every_depth_become_8_bits(name):
    image = decode_image(GREY_PICTURES[name]())
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3)
    np.testing.assert_allclose(image[20], np.repeat(np.linspace(0, 255, 60)[:, None], 3, 1), atol=2)


def test_floats_that_are_no_numbers_and_single_bits():
    values = _RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert image[0, :3, 0].tolist() == [0, 255, 0]
    np.testing.assert_allclose(image[20, :, 0], np.linspace(0, 255, 60), atol=1)
    bits = np.zeros((16, 16), bool)
    bits[:, 8:] = True
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        assert decode_image(encoded(Image.fromarray(bits), form))[3, ::15].tolist() == [[0, 0, 0], [255, 255, 255]]


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_exif_orientation_is_honoured(form, orientation):
    upright = Image.fromarray(_four_colours())
    stored = upright.transpose(TURNS[orientation]) if orientation in TURNS else upright
    image = decode_image(encoded(stored, form, exif=exif_of(orientation)))
    assert image.shape == (40, 60, 3)
    assert abs(image.astype(int) - np.asarray(upright)).mean() < 6


def test_faces_in_unusual_files_are_prepared(tmp_path, faces):
    """The same face in each kind of file is found in all of them, upright."""
    plain = Image.fromarray(faces[0].image)
    grey = plain.convert("L")
    dark = Image.new("RGB", plain.size)
    clear = plain.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    deep = np.asarray(grey).astype(np.uint16) * 257
    files = {
        "plain.png": encoded(plain, "PNG"),
        "png named.jpg": encoded(plain, "PNG"),
        "animated.gif": encoded(plain, "GIF", save_all=True, append_images=[dark]),
        "animated.webp": encoded(plain, "WEBP", quality=95, save_all=True, append_images=[dark]),
        "animated.png": encoded(plain, "PNG", save_all=True, append_images=[dark]),
        "grey 16.png": encoded(Image.fromarray(deep), "PNG"),
        "rgb 16.png": _by_opencv(".png", np.asarray(plain).astype(np.uint16) * 257),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG", quality=95),
        "palette with alpha.png": encoded(clear.quantize(200), "PNG"),
        "grey and alpha.png": encoded(grey.convert("LA"), "PNG"),
        "float.tif": encoded(Image.fromarray(np.asarray(grey, np.float32) / 255), "TIFF"),
        "pages.tif": encoded(plain, "TIFF", save_all=True, append_images=[dark]),
    }
    forms = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "webp": "WEBP"}
    for orientation, turn in TURNS.items():
        for ending, form in forms.items():
            turned = plain.transpose(turn)
            files[f"turned {orientation}.{ending}"] = encoded(turned, form, exif=exif_of(orientation))
    rows = prepare_files(tmp_path, {f"happy/{name}": data for name, data in files.items()})
    assert {row["status"] for row in rows.values()} == {"found"}
    store = Store.open(tmp_path / "out")
    reference = store.landmarks[store.ids.tolist().index("happy/plain.png")]
    assert np.abs(store.landmarks - reference).max() < 4
    first = store.faces[store.ids.tolist().index("happy/plain.png")].mean(-1)
    for face in store.faces:
        assert np.corrcoef(face.mean(-1).ravel(), first.ravel())[0, 1] > 0.8


def test_libraries_leave_no_word_on_stderr(tmp_path, faces):
    """libjpeg and libtiff complain of damage on stderr, where it names no file and spoils the progress bar."""
    damaged = bytearray(encoded(faces[0].image, "JPEG", quality=95))
    damaged[3000:3200] = bytes(200)
    lzw = bytearray(encoded(faces[0].image, "TIFF", compression="tiff_lzw"))
    lzw[3000:3200] = bytes(200)
    for i, data in enumerate((damaged, lzw)):
        (tmp_path / f"{i}.bin").write_bytes(data)
    code = (
        "import sys, pathlib\nfrom fercli.faces.images import Unreadable, read_image\n"
        "for name in sys.argv[1:]:\n    try: read_image(pathlib.Path(name))\n    except Unreadable: pass\n"
        "print('still heard', file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "0.bin"), str(tmp_path / "1.bin")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b"still heard\n"


def test_stderr_comes_back_when_the_last_has_left(capfd):
    libc = ctypes.CDLL(None)
    with mute_stderr():
        with mute_stderr():
            libc.write(2, b"inner", 5)
        libc.write(2, b"outer", 5)
    libc.write(2, b"after", 5)
    assert capfd.readouterr().err == "after"


# Rows of pixels


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        ("1 2 3", "3 pixels instead of 2304"),
        ("", "pixels instead of 2304"),
        (" ".join(["300"] * 2304), "outside"),
        (" ".join(["-1"] * 2304), "outside"),
        (" ".join(["x"] * 2304), "no numbers"),
        (" ".join(["9" * 40] * 2304), "no numbers"),
    ],
)
def test_bad_pixel_rows_say_why(tmp_path, pixels, reason):
    (tmp_path / "t.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n")
    field = read_pixels(tmp_path / "t.csv", len("emotion,pixels,Usage\n"))
    with pytest.raises(Unreadable, match=reason):
        decode_pixels(field)
    with pytest.raises(Unreadable, match="no such file"):
        read_pixels(tmp_path / "none.csv", 0)


# Label files, through the command line


@dataclass(frozen=True)
class Case:
    """A tree with something amiss, and what must come of it.

    `spoil` changes the text of the label file (bytes to bytes) or, taking the root, the tree. `reasons` are of rejected
    records by id (the beginning of the reason), `left_out` what the reader counts.
    """

    dataset: str
    what: str
    spoil: Callable[[Any], Any]
    kept: int
    reasons: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


LABELS = {
    "raf-db": "EmoLabel/list_patition_label.txt",
    "expw": "label/label.lst",
    "fer2013": "fer2013.csv",
    "list": "labels.csv",
}
READERS = {"list": "csv"}

#: Faces in each tree before it is spoilt.
WHOLE = {"raf-db": 5, "expw": 4, "fer2013": 5, "list": 4}


@pytest.fixture(scope="module")
def trees(tmp_path_factory, faces) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    writers.write_raf_db(folder / "raf-db", faces[:3], faces[3:5])
    writers.write_expw(folder / "expw", faces[:4])
    tight = [replace(f, image=f.image[slice(*_edges(f, 1)), slice(*_edges(f, 0))]) for f in faces[:5]]
    writers.write_fer2013(folder / "fer2013", tight[:3], tight[3:4], tight[4:])
    (folder / "list/images").mkdir(parents=True)
    lines = ["path,label,split"]
    for i, face in enumerate(faces[:4]):
        (folder / f"list/images/{i}.png").write_bytes(encoded(face.image, "PNG"))
        lines.append(f"{i}.png,{('happy', 'Sadness', 'neutral', 'anger')[i]},{'train' if i else 'test'}")
    (folder / "list/labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def _edges(face: synthetic.Face, axis: int) -> tuple[int, int]:
    return max(0, int(face.box[axis]) - 12), int(face.box[axis + 2]) + 12


def _command(tmp_path: Path, dataset: str, root: Path, **changes: object):
    spec = tmp_path / "spec.yaml"
    paths = {f"paths.{name}": str(tmp_path / name) for name in ("data", "prepared", "runs")}
    reader = {f"data.datasets.{dataset}.reader": READERS[dataset]} if dataset in READERS else {}
    spec.write_text(yaml.safe_dump(merge(TINY, {**paths, **reader, **changes})))
    return run("prepare", "-c", str(spec), "--dataset", dataset, "--root", str(root), "--json")


def _crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def _marked(text: bytes) -> bytes:
    return b"\xef\xbb\xbf" + text


def _blank_lines(text: bytes) -> bytes:
    return b"\n" + text.replace(b"\n", b"\n\n  \n")


def _blank_lines_below(text: bytes) -> bytes:
    return text.replace(b"\n", b"\n\n") + b"\n"


def _more(*rows: str) -> Callable[[bytes], bytes]:
    return lambda text: text.rstrip(b"\n") + b"\n" + "\n".join(rows).encode("utf-8", "surrogateescape") + b"\n"


def _repeated(text: bytes) -> bytes:
    return text + text.splitlines(keepends=True)[-1]


def _no_final_newline(text: bytes) -> bytes:
    return text.rstrip(b"\n")


def _removed(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _copied(name: str, other: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / name, root / other) and None


def _first_box(box: str) -> Callable[[bytes], bytes]:
    """Give ExpW's first row another box: top left right bottom."""

    def spoil(text: bytes) -> bytes:
        first, rest = text.split(b"\n", 1)
        words = first.split()
        return b" ".join([*words[:2], box.encode(), *words[6:]]) + b"\n" + rest

    return spoil


FIRST = "procedural_face_1.jpg#0"
UNREAD = {"unreadable row": 1, "file without row": 1}
IMAGES = "data/image/origin"

CASES = [
    *(Case(d, "CRLF", _crlf, n) for d, n in WHOLE.items()),
    *(Case(d, "a byte order mark", _marked, n) for d, n in WHOLE.items()),
    *(Case(d, "both", lambda text: _marked(_crlf(text)), n) for d, n in WHOLE.items()),
    *(Case(d, "no newline at the end", _no_final_newline, n) for d, n in WHOLE.items()),
    Case("raf-db", "blank lines", _blank_lines, 5),
    Case("expw", "blank lines", _blank_lines, 4),
    Case("fer2013", "blank lines", _blank_lines_below, 5),
    Case("list", "blank lines", _blank_lines_below, 4),
    Case("raf-db", "an unknown code", _more("train_00001.jpg 8"), 5, left_out={"unknown code '8'": 1}),
    Case("raf-db", "no code", _more("train_00009.jpg"), 5, left_out={"unreadable row": 1}),
    Case("raf-db", "another split", _more("extra_00001.jpg 3"), 5, left_out={"unreadable row": 1}),
    Case("raf-db", "a row twice", _repeated, 5, left_out={"listed twice": 1}),
    Case(
        "raf-db",
        "a row twice, differing",
        lambda text: text + b"test_0001.jpg 1\ntest_0001.jpg 2\n",
        5,
        left_out={"listed twice": 0, "listed twice with different labels": 2},
    ),
    Case("raf-db", "a row without file", _more("train_00099.jpg 3"), 5, {"train_00099.jpg": "no such file"}),
    Case(
        "raf-db",
        "a file without row",
        _copied("Image/original/train_00001.jpg", "Image/original/train_00077.jpg"),
        5,
        left_out={"file without row": 1},
    ),
    Case(
        "raf-db",
        "a name that is no UTF-8",
        _more(os.fsdecode(b"train_\xe9 x.jpg 3")),
        5,
        {os.fsdecode(b"train_\xe9 x.jpg"): "no such file"},
    ),
    Case("raf-db", "annotations missing", lambda root: shutil.rmtree(root / "Annotation"), 5),
    Case("expw", "an unknown code", _more("gone.jpg 7 1 1 90 90 50 9"), 4, left_out={"unknown code '9'": 1}),
    Case("expw", "too few columns", _more("procedural_face_1.jpg 7 1 1"), 4, left_out={"unreadable row": 1}),
    Case("expw", "a row twice", _repeated, 4, left_out={"listed twice": 1}),
    Case(
        "expw",
        "a row without file",
        _more("gone with a blank.jpg 0 1 1 90 90 50 3"),
        4,
        {"gone with a blank.jpg#0": "no such file"},
    ),
    Case(
        "expw",
        "a file without row",
        _copied(f"{IMAGES}/procedural_face_1.jpg", f"{IMAGES}/unlisted.jpg"),
        4,
        left_out={"file without row": 1},
    ),
    Case(
        "expw",
        "a file gone",
        _removed(f"{IMAGES}/procedural_face_3.jpg"),
        2,
        {"procedural_face_3.jpg#0": "no such file", "procedural_face_3.jpg#1": "no such file"},
    ),
    Case("expw", "a box outside the picture", _first_box("900 900 990 990"), 3, {FIRST: "the given box lies outside"}),
    Case("expw", "a box left of it", _first_box("20 -90 -10 90"), 3, {FIRST: "the given box lies outside"}),
    Case("expw", "a box partly outside", _first_box("-40 -30 260 300"), 4),
    Case("expw", "a box that reaches far out", _first_box("-1e9 -1e9 1e9 1e9"), 4),
    Case("expw", "a box of right before left", _first_box("64 162 48 193"), 3, {FIRST: "the given box "}),
    Case("expw", "a box without height", _first_box("64 48 162 64"), 3, {FIRST: "the given box "}),
    Case("expw", "a box beside the face", _first_box("0 0 30 30"), 3, {FIRST: "no face found in the given box"}),
    Case("expw", "a box that is no number", _first_box("nan nan nan nan"), 3, {FIRST: "the given box "}),
    Case("expw", "a corner that is no number", _first_box("64 48 nan 193"), 3, {FIRST: "the given box "}),
    Case("expw", "an infinite box", _first_box("64 48 inf 193"), 3, {FIRST: "the given box "}),
    Case("expw", "a box in words", _first_box("top left right bottom"), 3, left_out=UNREAD),
    Case("fer2013", "an unknown code", _more("7,1 2 3,Training"), 5, left_out={"unknown code '7'": 1}),
    Case("fer2013", "another Usage", _more("3,1 2 3,Spare"), 5, left_out={"row of an unknown Usage": 1}),
    Case("fer2013", "too few columns", _more("3,1 2 3"), 5, left_out={"unreadable row": 1}),
    Case("fer2013", "too few pixels", _more("3,1 2 3,Training"), 5, {"train-00005": "3 pixels instead of 2304"}),
    Case("fer2013", "a pixel beyond 255", _more(f"3,{'256 ' * 2304},Training"), 5, {"train-00005": "pixels outside"}),
    Case("fer2013", "words for pixels", _more(f"3,{'x ' * 2304},Training"), 5, {"train-00005": "pixels that are no"}),
    Case("list", "an unknown label", _more("0.png,bored,train"), 4, left_out={"unknown label 'bored'": 1}),
    Case("list", "contempt", _more("0.png,Contempt,train"), 4, left_out={"contempt (outside the seven)": 1}),
    Case("list", "too few columns", _more("9.png"), 4, {"9.png": "no such file"}),
    Case("list", "too many columns", lambda text: text.replace(b"\n", b",more,and,more\n", 2), 4),
    Case("list", "a row without a path", _more(",happy,train"), 4, left_out={"row without a path": 1}),
    Case("list", "a row twice", _repeated, 4, left_out={"listed twice": 1}),
    Case(
        "list",
        "a row twice, differing",
        _more("0.png,fear,train"),
        4,
        left_out={"listed twice with different labels": 1},
    ),
    Case("list", "a row without file", _more("gone.png,happy,train"), 4, {"gone.png": "no such file"}),
    Case("list", "a first row without file", lambda text: text.replace(b"\n", b"\ngone.png,happy,train\n", 1), 4,
         {"gone.png": "no such file"}),
    Case("list", "a path that is too long", _more("x" * 1000 + ".png,happy,train"), 4,
         {"x" * 1000 + ".png": "cannot be read: File name too long"}),
    Case("list", "markup in a name", _more("[red]x[/].png,happy,train"), 4, {"[red]x[/].png": "no such file"}),
    Case("list", "a folder", lambda root: (root / "images/0.png").unlink() or (root / "images/0.png").mkdir(), 3,
         {"0.png": "a folder, not an image"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{c.dataset}: {c.what}" for c in CASES])
def test_what_is_amiss_in_a_label_file_is_counted_or_rejected(tmp_path, trees, case):
    root = _spoilt(tmp_path, trees, case.dataset, case.spoil)
    result = _command(tmp_path, case.dataset, root)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)["prepared"][case.dataset]
    rows = {row["id"]: row for row in read_manifest(tmp_path / "prepared" / case.dataset)}
    rejected = {name: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert set(rejected) == set(case.reasons)
    for name, reason in case.reasons.items():
        assert rejected[name].startswith(reason)
    assert summary["left_out_reasons"] == {reason: n for reason, n in case.left_out.items() if n}
    assert summary["expected"] == len(rows) == case.kept + len(case.reasons)
    assert Counter(row["status"] != "rejected" for row in rows.values())[True] == case.kept


def _spoilt(tmp_path: Path, trees: Path, dataset: str, spoil: Callable[[Any], Any]) -> Path:
    """Return a copy of a tree, spoilt: by its root where the function takes a Path, else by its label file's bytes."""
    root = tmp_path / "tree" / dataset
    shutil.copytree(trees / dataset, root)
    labels = root / LABELS[dataset]
    try:
        changed = spoil(labels.read_bytes())
    except TypeError:
        changed = spoil(root)
    if isinstance(changed, bytes):
        labels.write_bytes(changed)
    return root


#: (dataset, what happens to its tree, what the one line says)
FAILURES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("raf-db", lambda r: (r / LABELS["raf-db"]).unlink(), "no EmoLabel/list_patition_label.txt"),
    ("raf-db", lambda r: shutil.rmtree(r / "Image"), "no Image/aligned"),
    ("raf-db", lambda r: (r / LABELS["raf-db"]).write_text(""), "nothing usable"),
    ("raf-db", lambda r: (r / LABELS["raf-db"]).write_bytes(bytes(range(256)) * 9), "list_patition_label.txt"),
    ("raf-db", lambda r: (r / LABELS["raf-db"]).write_text("train_00001.jpg 9\n"), "nothing usable"),
    ("expw", lambda r: (r / LABELS["expw"]).unlink(), "no label/label.lst"),
    ("expw", lambda r: shutil.rmtree(r / "data"), "no data/image/origin"),
    ("expw", lambda r: (r / LABELS["expw"]).write_text("a.jpg 3\nb.jpg 4\n"), "label.lst lacks a column"),
    (
        "fer2013",
        lambda r: (r / LABELS["fer2013"]).write_text("pixels,Usage\n1 2,Training\n"),
        "lacks the column emotion",
    ),
    ("fer2013", lambda r: (r / LABELS["fer2013"]).write_text("emotion,pixels\n1,1 2\n"), "lacks the column Usage"),
    ("fer2013", lambda r: (r / LABELS["fer2013"]).write_text(""), "lacks the column"),
    ("fer2013", lambda r: (r / LABELS["fer2013"]).write_text("emotion,pixels,Usage\n"), "nothing usable"),
    ("fer2013", lambda r: (r / LABELS["fer2013"]).unlink(), "no fer2013.csv"),
    ("list", lambda r: (r / LABELS["list"]).write_text("picture of,label\na.png,happy\n"), "no column of paths"),
    ("list", lambda r: (r / LABELS["list"]).write_text("path,label\n0.png,3\n"), "labels are numbers"),
    ("list", lambda r: (r / LABELS["list"]).write_text(""), "no column of paths"),
    ("list", lambda r: (r / LABELS["list"]).unlink(), "not exactly one csv"),
    ("list", lambda r: (r / LABELS["list"]).write_bytes(b"path,label\n\0\0\0,happy\n"), ""),
    ("list", lambda r: (r / LABELS["list"]).write_text("path,label\n" + "x" * 200_000 + ",happy\n"), ""),
    ("list", shutil.rmtree, "is missing"),
    ("list", lambda r: [p.unlink() for p in (r / "images").iterdir()], "not one face in 4 records"),
]


@pytest.mark.parametrize(
    ("dataset", "spoil", "line"), FAILURES, ids=[f"{f[0]}: {f[2] or 'odd bytes'}" for f in FAILURES]
)
def test_a_tree_that_cannot_be_used_leaves_one_line_and_exit_code_1(tmp_path, trees, dataset, spoil, line):
    root = tmp_path / "tree" / dataset
    shutil.copytree(trees / dataset, root)
    spoil(root)
    result = _command(tmp_path, dataset, root)
    assert result.exit_code == 1
    assert result.stdout == "" and result.stderr.startswith("error: ") and line in result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 1000
    assert not (tmp_path / "prepared" / dataset).exists()


def test_a_missing_dataset_is_told_before_the_first_is_prepared(tmp_path, trees):
    spec = tmp_path / "spec.yaml"
    tree = {
        "paths.data": str(trees),
        "paths.prepared": str(tmp_path / "prepared"),
        "paths.runs": str(tmp_path / "runs"),
    }
    spec.write_text(yaml.safe_dump(merge(TINY, {**tree, "data.targets": ["expw", "jaffe"]})))
    result = run("prepare", "-c", str(spec))
    assert result.exit_code == 1 and "jaffe" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_folders_whose_names_look_like_markup_are_printed_as_they_are(tmp_path, faces, quiet):
    root = tmp_path / "[red]in[" / "]"
    (root / "data/happy/sub[").mkdir(parents=True)
    for name in ("[bold]x.jpg", "sub[/] y.jpg"):
        (root / "data/happy" / name).write_bytes(encoded(faces[0].image, "JPEG"))
    (root / "data/happy/[link]z.jpg").write_bytes(b"")
    spec = tmp_path / "spec.yaml"
    paths = {f"paths.{name}": str(root / name) for name in ("data", "prepared", "runs")}
    spec.write_text(yaml.safe_dump(merge(TINY, {**paths, "data.datasets": {"[b]odd": {"reader": "folders"}}})))
    command = ["prepare", "-c", str(spec), "--dataset", "[b]odd", "--root", str(root / "data")]
    for _ in range(2):  # the second run says that all is there
        result = run(*command, *(["--quiet"] if quiet else []))
        assert result.exit_code == 0, result.stderr
        if not quiet:
            assert "[red]in[/]/prepared/[b]odd" in result.stderr and "[b]odd" in result.stdout
    ids = [row["id"] for row in read_manifest(root / "prepared/[b]odd")]
    assert ids == ["happy/[bold]x.jpg", "happy/[link]z.jpg", "happy/sub[/] y.jpg"]
    for path in (root / "data/happy").glob("**/*.jpg"):
        path.write_bytes(b"")
    result = run(*command)
    assert result.exit_code == 1 and "[red]in[/]/data" in result.stderr
