"""The list of file endings: which files are found in folders, in any case, and how the others are reported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from PIL import Image
from trees import encoded, touch

from fercli import console, media
from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.faces.images import Unreadable, read_image
from fercli.predict.inputs import find_inputs

_HEIC = "(not read: convert to JPEG or PNG, or pip install 'fercli[heif]')"


@pytest.fixture
def without_heif(monkeypatch):
    """Simulate a system where pillow-heif is not installed."""
    caches = media.reads_heif, media.picture_formats, media.picture_endings
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("form", media.PICTURE_FORMATS)
def test_every_ending_is_found_and_read_in_any_case(tmp_path, form):
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    (tmp_path / "happy").mkdir()
    names = {f"happy/{i}{e}" for i, end in enumerate(media.PICTURE_FORMATS[form]) for e in (end, end.upper())}
    for name in names:
        (tmp_path / name).write_bytes(encoded(np.full((16, 16, 3), 90, np.uint8), form))
    assert {record.path for record in read_dataset("d", "folders", tmp_path)} == names
    found = find_inputs([str(tmp_path)], None)
    assert {one.below.as_posix() for one in found} == names and {one.kind for one in found} == {"picture"}
    assert all(read_image(tmp_path / name).shape == (16, 16, 3) for name in names)


def test_videos_are_found_in_any_case(tmp_path):
    touch(tmp_path, "a.MP4", "b.Mov", "c.webm")
    assert [one.kind for one in find_inputs([str(tmp_path)], None)] == ["video"] * 3


def test_datasets_count_what_they_skip_by_ending(tmp_path, without_heif):
    touch(tmp_path, "happy/a.jpg", "happy/b.HEIC", "happy/c.heic", "happy/d.CR2", "happy/e.svg", "happy/notes.txt")
    touch(tmp_path, "happy/README", "happy/scan.0001", "happy/scan.0002", "happy/.hidden.txt", "happy/f.mp4")
    assert read_dataset("d", "folders", tmp_path).left_out == {
        f".heic files {_HEIC}": 2,
        ".cr2 files (not read: convert to JPEG or PNG)": 1,
        ".svg files (not read: convert to JPEG or PNG)": 1,
        ".txt files": 1,
        "files without an ending": 3,
        ".mp4 files": 1,
    }
    result = run("datasets", "check", "folders", tmp_path)
    assert f"2 .heic files {_HEIC}" in " ".join(result.stdout.split())


def test_a_dataset_of_nothing_but_heic_says_what_to_do(tmp_path, without_heif):
    touch(tmp_path, "happy/a.heic", "sad/b.heic")
    with pytest.raises(FercliError, match=r"nothing usable .*left out: 2 \.heic files \(not read: convert to JPEG"):
        read_dataset("d", "folders", tmp_path)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    ("names", "remark", "told_when_quiet"),
    [
        (("notes.txt", "b.txt"), "skipped in {}: 2 .txt files", False),
        (("b.HEIC", "n.txt"), "warning: skipped in {}: 1 .heic file " + _HEIC + ", 1 .txt file", True),
        ((), None, False),
    ],
)
def test_predict_reports_what_it_skips_in_a_folder(
    tmp_path, capsys, without_heif, names, remark, told_when_quiet, quiet
):
    touch(tmp_path, "a.JPG", "sub/c.png", ".hidden.txt", *names)
    console.configure(quiet=quiet)
    assert [one.below for one in find_inputs([str(tmp_path)], None)] == [Path("a.JPG"), Path("sub/c.png")]
    said = capsys.readouterr().err.splitlines()
    assert said == ([remark.format(tmp_path)] if remark and (told_when_quiet or not quiet) else [])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a.heic", "b.HEIC"), f" contains no image or video that fercli reads, only 2 .heic files {_HEIC}"),
        (
            ("a.nef",),
            " contains no image or video that fercli reads, only 1 .nef file (not read: convert to JPEG or PNG)",
        ),
        ((".hidden.png",), " contains no image or video"),
    ],
)
def test_a_folder_without_a_readable_image(tmp_path, without_heif, names, told):
    touch(tmp_path, *names)
    with pytest.raises(FercliError) as failure:
        find_inputs([str(tmp_path)], None)
    assert str(failure.value) == f"{tmp_path}{told}"


def test_heic_named_itself_says_what_to_do(tmp_path, without_heif):
    reason = r"a HEIC image, which is not supported: convert to JPEG or PNG, or pip install"
    with pytest.raises(Unreadable, match=reason):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_heic_is_read_upright_if_pillow_heif_is_installed(tmp_path, orientation):
    pytest.importorskip("pillow_heif").register_heif_opener()
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[20:, 30:] = (200, 30, 30), (30, 30, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(upright, {1: 0, 6: 1, 3: 2}[orientation])
    for name in ("happy/a.HEIC", "happy/b.heif"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(encoded(np.ascontiguousarray(stored), "HEIF", quality=95, exif=exif.tobytes()))
    assert len(read_dataset("d", "folders", tmp_path)) == len(find_inputs([str(tmp_path)], None)) == 2
    pixels = read_image(tmp_path / "happy/a.HEIC")
    assert pixels.shape == upright.shape and abs(pixels[8::24].astype(int) - upright[8::24]).mean() < 6
    np.testing.assert_array_equal(read_image(Image.open(tmp_path / "happy/a.HEIC")), pixels)
