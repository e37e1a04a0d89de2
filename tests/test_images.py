"""Reading images: files of every kind, depth, colour and orientation become the same uint8 RGB."""

from __future__ import annotations

import csv
import ctypes
import io
import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin
from trees import encoded

from fercli.datasets import read_dataset
from fercli.faces import images
from fercli.faces.images import Unreadable, decode_pixels, read_image, read_pixels
from fercli.faces.quiet import mute_stderr
from fercli.prepare import prepare
from fercli.spec import Prepare
from fercli.store import Store

HERE = Prepare(workers=1, backend="sequential")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Images of unusual kinds that can be read


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
    """Return a CMYK JPEG as other programs write it: not inverted, without an APP14 segment."""
    inverted = Image.fromarray(255 - np.asarray(Image.fromarray(_four_colours()).convert("CMYK")), "CMYK")
    data = encoded(inverted, "JPEG", quality=98)
    at = data.find(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def _half_clear(mode: str) -> Image.Image:
    """Return the four colours with a transparent lower half."""
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
    "with a video appended.jpg": lambda: encoded(_four_colours(), "JPEG", quality=98) + b"\0\xff\xdaftypmp42" * 99,
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
def test_every_kind_of_image_is_read_as_rgb(name):
    image = read_image(COLOUR_PICTURES[name]())
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
    image = read_image(encoded(_half_clear(mode), form, **options))
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
    image = read_image(GREY_PICTURES[name]())
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3)
    np.testing.assert_allclose(image[20], np.repeat(np.linspace(0, 255, 60)[:, None], 3, 1), atol=2)


_COLOURS = np.dstack([np.random.default_rng(0).integers(0, 256, (9, 13, 3)), np.arange(117).reshape(9, 13) * 2])
_RGBA = Image.fromarray(_COLOURS.astype(np.uint8))
_RGB = _RGBA.convert("RGB")


def _lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(_RGB, ImageCms.buildTransform(*profiles, "RGB", "LAB"))


# Mode -> the image, the format that stores it exactly, and whether its array has the same values (not for palettes).
MODES: dict[str, tuple[Callable[[], Image.Image], str | None, bool]] = {
    "1": (lambda: _RGB.convert("1"), "PNG", True),
    "L": (lambda: _RGB.convert("L"), "PNG", True),
    "P": (lambda: _RGB.quantize(8), "PNG", False),
    "P, transparent": (lambda: _half_clear("P"), "PNG", False),
    "LA": (lambda: _RGBA.convert("LA"), "PNG", True),
    "PA": (lambda: _RGB.quantize(8).convert("PA"), None, False),
    "La": (lambda: _RGBA.convert("LA").convert("La"), None, False),
    "RGB": (lambda: _RGB, "PNG", True),
    "RGBA": (lambda: _RGBA, "PNG", True),
    "RGBa": (lambda: _RGBA.convert("RGBa"), None, False),
    "RGBX": (lambda: _RGB.convert("RGBX"), None, True),
    "CMYK": (lambda: _RGB.convert("CMYK"), "TIFF", False),
    # Pillow 12, the last version for Python 3.10, cannot read the TIFF that it writes for this mode.
    "YCbCr": (lambda: _RGB.convert("YCbCr"), "TIFF" if int(PIL.__version__.split(".")[0]) > 12 else None, False),
    "LAB": (_lab, "TIFF", False),
    "HSV": (lambda: _RGB.convert("HSV"), None, False),
    "I;16": (lambda: Image.fromarray((_RAMP * 65535).astype(np.uint16)), "PNG", True),
    "I;16B": (lambda: Image.fromarray((_RAMP * 65535).astype(">u2")), "TIFF", True),
    "I": (lambda: Image.fromarray((_RAMP * 65535).astype(np.int32)), "TIFF", True),
    "I, own range": (lambda: Image.fromarray((_RAMP * 2e6 - 1e6).astype(np.int32)), "TIFF", True),
    "F": (lambda: Image.fromarray(_RAMP.astype(np.float32)), "TIFF", True),
    "F, own range": (lambda: Image.fromarray((_RAMP * 2e6 - 1e6).astype(np.float32)), "TIFF", True),
}


@pytest.mark.parametrize("mode", MODES)
def test_path_bytes_image_and_array_give_the_same_pixels(tmp_path, mode):
    make, form, array_agrees = MODES[mode]
    image = make()
    before, info = image.tobytes(), dict(image.info)
    pixels = read_image(image)
    assert pixels.shape == (*image.size[::-1], 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert image.tobytes() == before and image.info == info
    if form is not None:
        data = encoded(image, form)
        (tmp_path / "file").write_bytes(data)
        lazy = Image.open(io.BytesIO(data))
        for source in (tmp_path / "file", str(tmp_path / "file"), data, bytearray(data), memoryview(data), lazy):
            np.testing.assert_array_equal(read_image(source), pixels)
        assert np.asarray(lazy).shape[:2] == pixels.shape[:2]  # it can still be used
    if array_agrees:
        np.testing.assert_array_equal(read_image(np.asarray(image)), pixels)
    if mode in ("RGB", "RGBX", "CMYK", "HSV", "YCbCr", "LAB"):
        assert abs(pixels.astype(int) - np.asarray(_RGB)).mean() < 12
    if mode in ("RGBA", "RGBa"):
        share = _COLOURS[..., 3:] / 255
        np.testing.assert_allclose(
            pixels, _COLOURS[..., :3] * share + 255 * (1 - share), atol=16 if mode[3] == "a" else 1
        )
    if mode in ("I;16", "I;16B", "I", "F"):
        np.testing.assert_allclose(pixels[20, :, 0], np.linspace(0, 255, 60), atol=1)


def test_a_plain_cmyk_image_opened_lazily_is_what_its_file_is():
    data = _cmyk_without_adobes_mark()
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), read_image(data))


_SEVEN = np.linspace(0, 1, 7)[None].repeat(5, 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(_SEVEN > 0.5, [0, 0, 0, 0, 255, 255, 255], id="bool"),
        pytest.param((_SEVEN * 255).astype(np.uint8)[..., None], (_SEVEN[0] * 255).astype(int), id="one channel"),
        pytest.param((_SEVEN * 255).astype(np.int64), (_SEVEN[0] * 255).astype(int), id="int64"),
        pytest.param((_SEVEN * 65535).astype(np.uint16), _SEVEN[0] * 255, id="uint16"),
        pytest.param(_SEVEN.astype(np.float16), _SEVEN[0] * 255, id="float16"),
        pytest.param(_SEVEN * 1.02, np.minimum(_SEVEN[0] * 260.1, 255), id="floats a little above 1"),
        pytest.param(_SEVEN * 265.0, np.minimum(_SEVEN[0] * 265, 255), id="floats a little above 255"),
        pytest.param(_SEVEN * 2 - 1, _SEVEN[0] * 255, id="floats -1..1"),
        pytest.param(_SEVEN * 4.7 - 2.1, _SEVEN[0] * 255, id="floats normalised by mean and deviation"),
        pytest.param(np.stack([_SEVEN, _SEVEN > 0.5], 2), [255] * 4 + [170, 212.5, 255], id="grey and alpha"),
    ],
)
def test_arrays_of_every_type(array, expected):
    pixels = read_image(array)
    assert pixels.shape == (5, 7, 3) and (pixels == pixels[:1, :, :1]).all()
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_colours_and_alpha_of_every_type(dtype):
    most = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    array = np.array([[(1, 0.2, 0, 1), (1, 0.2, 0, 0), (0, 0, 1, 0.6)]]) * most
    expected = [[(255, 51, 0), (255, 255, 255), (102, 102, 255)]]
    np.testing.assert_allclose(read_image(array.astype(dtype)), expected, atol=1)
    np.testing.assert_allclose(read_image(array[..., :3].astype(dtype))[0, 0], (255, 51, 0), atol=1)


@pytest.mark.parametrize(
    "source",
    [np.full((9, 9), np.nan), Image.fromarray(np.full((9, 9), np.nan, np.float32)), b"", Image.new("RGB", (0, 9))],
)
def test_an_image_without_content_is_refused_from_any_source(source):
    with pytest.raises(Unreadable, match=r"no pixel is a number|empty file|without pixels"):
        read_image(source)


def test_an_image_that_is_too_large_is_refused_from_any_source(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(_four_colours(), "PNG"))
    for source in (path, path.read_bytes(), Image.open(path), _four_colours()):
        with pytest.raises(Unreadable, match="megapixels: make it smaller, or save it as a JPEG file"):
            read_image(source)


@pytest.mark.parametrize("beginning", [b"IIRO\x08", b"II\x55\0\x88", b"FUJIFILMCCD-RAW 0201", b"\0\0\0\x18ftypcrx "])
def test_raw_photographs_are_named(beginning):
    with pytest.raises(Unreadable, match=r"a raw photograph, .*: convert to JPEG or PNG"):
        read_image(beginning + bytes(100))


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_a_raw_photographs_preview_is_not_taken_for_it(tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    data = encoded(_four_colours(), "TIFF", tiffinfo=info)
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(Unreadable, match="a raw photograph"):
            read_image(source)


def test_canons_raw_photographs_are_tiffs_with_a_mark():
    data = encoded(_four_colours(), "TIFF")
    # The directory moves after the mark.
    at = int.from_bytes(data[4:8], "little")
    entries = data[at : at + 2 + 12 * data[at] + 4]
    marked = data[:4] + len(data).to_bytes(4, "little") + b"CR\2\0" + data[12:] + entries
    with pytest.raises(Unreadable, match="a raw photograph"):
        read_image(marked)


def test_floats_that_are_not_finite_and_single_bits():
    values = _RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert image[0, :3, 0].tolist() == [0, 255, 0]
    np.testing.assert_allclose(image[20, :, 0], np.linspace(0, 255, 60), atol=1)
    bits = np.zeros((16, 16), bool)
    bits[:, 8:] = True
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        assert read_image(encoded(Image.fromarray(bits), form))[3, ::15].tolist() == [[0, 0, 0], [255, 255, 255]]


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
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(stored, form, exif=exif_of(orientation), **options)
    image = read_image(data)
    assert image.shape == (40, 60, 3)
    assert abs(image.astype(int) - np.asarray(upright)).mean() <= (6 if form == "JPEG" else 0)
    # A Pillow image is turned like its file. One that is already turned is not turned again.
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), image)
    done = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read_image(done), image)


def test_faces_in_unusual_files_are_prepared(tmp_path, faces):
    """The same face is found upright in every kind of file."""
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
    root = tmp_path / "data"
    (root / "happy").mkdir(parents=True)
    for name, data in files.items():
        (root / "happy" / name).write_bytes(data)
    summary = prepare(read_dataset("d", "folders", root), tmp_path / "out", HERE)
    assert summary.counts["found"] == len(files)
    store = Store.open(tmp_path / "out")
    reference = store.landmarks[store.ids.tolist().index("happy/plain.png")]
    assert np.abs(store.landmarks - reference).max() < 4
    first = store.faces[store.ids.tolist().index("happy/plain.png")].mean(-1)
    for face in store.faces:
        assert np.corrcoef(face.mean(-1).ravel(), first.ravel())[0, 1] > 0.8


def test_libraries_print_nothing_to_stderr(tmp_path, faces):
    """libjpeg and libtiff report damage on stderr without naming the file, which would also break the progress bar."""
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


def test_stderr_is_restored_when_the_last_block_ends(capfd):
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
        (" ".join(["x"] * 2304), "not numbers"),
        (" ".join(["9" * 40] * 2304), "not numbers"),
    ],
)
def test_bad_pixel_rows_say_why(tmp_path, pixels, reason):
    (tmp_path / "t.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n")
    field = read_pixels(tmp_path / "t.csv", len("emotion,pixels,Usage\n"))
    with pytest.raises(Unreadable, match=reason):
        decode_pixels(field)
    with pytest.raises(Unreadable, match="no such file"):
        read_pixels(tmp_path / "none.csv", 0)


def test_pixel_rows_are_read_at_their_offsets(tmp_path):
    writer_rows = [" ".join(str((i * 7 + k) % 256) for k in range(2304)) for i in range(3)]
    with (tmp_path / "fer2013.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "pixels", "Usage"])
        table.writerows([i, row, "Training"] for i, row in enumerate(writer_rows))
    for record, row in zip(read_dataset("f", "fer2013", tmp_path), writer_rows, strict=True):
        image = decode_pixels(read_pixels(tmp_path / record.path, record.offset))
        assert image[..., 1].ravel().tolist() == [int(v) for v in row.split()]
