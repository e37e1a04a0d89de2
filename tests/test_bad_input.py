"""Bad input: files that are not images are listed in the manifest with a reason, and the good images are kept.

The end of the file tests targets and sources that are too small or too one-sided to learn from, with every registered
method.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bench, told
from PIL import Image
from stores import cut
from trained_runs import answers
from trees import encoded

from fercli import media
from fercli.datasets import read_dataset
from fercli.engine import checkpoint
from fercli.engine.log import read_metrics
from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.faces.images import MAX_BYTES, Unreadable, read_image
from fercli.methods import method_class
from fercli.prepare import prepare
from fercli.spec import Prepare
from fercli.spec.registry import METHODS
from fercli.store import Store, read_manifest

HERE = Prepare(workers=1, backend="sequential")


@pytest.fixture
def alarm() -> Iterator[None]:
    """Stop a test that waits forever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited forever"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def prepare_files(tmp_path: Path, files: dict[str | bytes, bytes]) -> dict[str, dict[str, str]]:
    """Prepare class folders with these files and return the manifest's rows by id."""
    root = tmp_path / "data"
    for name, data in files.items():
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    summary = prepare(read_dataset("d", "folders", root), tmp_path / "out", HERE)
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    store = Store.open(tmp_path / "out")
    kept = sum(row["status"] != "rejected" for row in rows.values())
    assert summary.counts["expected"] - summary.counts["rejected"] == len(store) == kept
    assert summary.counts["expected"] == len(rows) == store.counts()["expected"]
    return rows


# Files that are not images, or not usable ones


def test_bad_images_are_rejected_with_a_reason_and_the_rest_is_kept(tmp_path, faces):
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
        "pointer.jpg": (lfs, "a Git LFS pointer, not the image itself: run git lfs pull"),
        "phone.jpg": (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
            "a HEIC image that is damaged"
            if media.reads_heif()
            else "a HEIC image, which is not supported: convert to JPEG or PNG, or pip install 'fercli[heif]'",
        ),
        "film.jpg": (b"\0\0\0\x18ftypisom" + bytes(100), "a video, not an image"),
        "paper.jpg": (b"%PDF-1.4", "a PDF, not an image"),
        "program.jpg": (encoded(image, "EPS"), "PostScript, not an image"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "a zip archive, not an image"),
        "noise.png": (encoded(noise, "PNG"), "no face found"),
        "dot.png": (encoded(image[:1, :1], "PNG"), "no face found"),
        "line.png": (encoded(image[:1], "PNG"), "no face found"),
        "sliver.png": (encoded(np.zeros((3, 9000), np.uint8), "PNG"), "no face found"),
        "nothing but NaN.tif": (encoded(np.full((9, 9), np.nan, np.float32), "TIFF"), "no pixel is a number"),
    }
    files = {"happy/first.jpg": good, **{f"happy/{name}": data for name, (data, _) in bad.items()}}
    rows = prepare_files(tmp_path, {**files, "sad/last.jpg": good})
    reasons = {name.split("/")[1]: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert reasons == {name: reason for name, (_, reason) in bad.items()}
    assert [name for name, row in rows.items() if row["status"] != "rejected"] == ["happy/first.jpg", "sad/last.jpg"]


def test_special_files_are_rejected_without_waiting(tmp_path, faces, alarm, monkeypatch):
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
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
    with (root / "enormous.jpg").open("wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    rows = prepare_files(tmp_path, {})
    assert {name.split("/")[1]: row["reason"] or "kept" for name, row in rows.items()} == {
        "a.jpg": "kept",
        "dangling.jpg": "a link to a file that does not exist",
        "device.jpg": "a pipe, socket or device, not a file",
        "enormous.jpg": "a file of more than 512 MiB",
        "folder.jpg": "a folder, not an image",
        "link.jpg": "kept",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "pipe.jpg": "a pipe, socket or device, not a file",
        "socket.jpg": "a pipe, socket or device, not a file",
        "z.jpg": "kept",
    }


def test_a_file_without_read_permission_is_rejected(faces):
    """Permissions do not apply to root, so the test reads as the user nobody."""
    good = encoded(faces[0].image, "JPEG")
    folder = Path(tempfile.mkdtemp(prefix="fercli-test-"))  # tmp_path is in a folder that only root can read
    try:
        (folder / "data/happy").mkdir(parents=True)
        for name in ("a", "closed", "z"):
            (folder / f"data/happy/{name}.jpg").write_bytes(good)
        listing = read_dataset("d", "folders", folder / "data")
        prepare(listing, folder / "before", HERE)  # import everything before switching to the user nobody
        (folder / "data/happy/closed.jpg").chmod(0)
        folder.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            try:
                os.seteuid(65534)
            except PermissionError:
                pytest.skip("this root may not become another user")
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
    "[link=x]y[/link].jpg",
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


def test_strange_names_are_kept_unchanged(tmp_path, faces):
    """Good images are kept in the store under their names, and bad ones are rejected under them."""
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
    with pytest.raises(Unreadable, match="this is not a valid file name"):
        read_image(tmp_path / "nul\0.jpg")


def test_a_dataset_without_a_face_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "d/happy").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"d/happy/{i}.png").write_bytes(encoded(Image.new("RGB", (80, 80), (i, 90, 30)), "PNG"))
    with pytest.raises(FercliError, match=r"no face in 3 records .*no face found"):
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
    """Return 20,000 rows of `row` zeros, deflated."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(row)) for _ in range(20_000)) + deflate.flush()


def _bomb_jpeg(height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, 20_000)
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
    side = 16_383  # the largest that WebP allows
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
    "bomb.jpg": lambda: _bomb_jpeg(20_000),
    "larger.jpg": lambda: _bomb_jpeg(20_001),
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
from fercli.prepare import prepare
from fercli.spec import Prepare
peaks = []
for root in sys.argv[1:]:
    prepare(read_dataset("d", "folders", root), root + "-out", Prepare(workers=1, backend="sequential"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_decompression_bombs_use_no_memory(tmp_path, faces):
    """Measure what eleven bombs add to the peak of a process that prepares a good face. Each has 0.3 to 1.2 GB."""
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
    large = "more than 100 megapixels: make it smaller, or save it as a JPEG file, which may have 400"
    jpegs = {"bomb.jpg": "damaged image: truncated", "larger.jpg": "more than 400 megapixels: make it smaller"}
    assert rows == {**dict.fromkeys(BOMBS, large), **jpegs, "good.jpg": ""}
    assert int(done.stdout) < 40_000, "KiB more at the peak"


# Very small targets and sources


def cut_bench(
    tmp_path: Path,
    trained: Bench,
    chosen: Callable[[np.ndarray], np.ndarray],
    which: str = "jaffe",
    changes: dict[str, object] | None = None,
    **meta: object,
) -> Bench:
    """Return a bench with the trained source model and one store cut to the faces that `chosen` picks by label."""
    stores = tmp_path / "stores"
    for name in ("raf-db", "jaffe"):
        if name == which:
            cut(trained.prepared / name, stores / name, chosen(np.load(trained.prepared / name / "labels.npy")), **meta)
        else:
            stores.mkdir(exist_ok=True)
            (stores / name).symlink_to(trained.prepared / name)
    bench = Bench(tmp_path / "bench", stores, {**QUICK, **(changes or {})})
    if which == "jaffe":
        shutil.copytree(trained.runs / "source", bench.runs / "source")
    return bench


QUICK = {"adapt.batch": 4, "adapt.epochs": 1, "adapt.steps_per_epoch": 2, "adapt.also_score": "dev"}
#: Options with which self-labelling methods do label the target, and AGRA's first fit is short.
EAGER = {
    "aglrls": {"threshold": 0.01},
    "cglrl": {"entropy_limit": 3.0},
    "cglrl-oracle": {"entropy_limit": 3.0, "min_accuracy": 0.0},
    "fixmatch": {"threshold": 0.01},
    "agra": {"warm_steps": 3},
    "aglrls-sf": {"threshold": 0.01},
    "sar": {"margin": 1.0},
}


def by(method: str) -> dict[str, Any]:
    """Return the changes for a method. A method without a source gets no selection rule that reads the source."""
    alone = {} if method_class(method).needs_source else {"adapt.also_score": []}
    return {"adapt.method": method, "adapt.options": EAGER.get(method, {}), **alone}


#: Methods that look for neighbours, centroids or clusters among the target's faces, and the published one.
AMONG_FACES = ("aad", "nrc", "shot", "agra", "aglrls")


@pytest.mark.parametrize(
    ("method", "count"),
    [
        *((method, 1) for method in METHODS),
        *(pytest.param(method, 3, marks=[pytest.mark.slow] * (method not in AMONG_FACES)) for method in METHODS),
    ],
)
def test_a_target_of_a_few_faces_trains_with_every_method(
    method: str, count: int, tmp_path: Path, trained: Bench
) -> None:
    bench = cut_bench(tmp_path, trained, lambda labels: np.arange(count), changes={**by(method), "adapt.tag": "few"})
    result = bench.done("adapt", "--quiet")
    line, *doubts = result.stderr.strip().splitlines()
    assert line == f"warning: jaffe has {count} face(s), fewer than a batch of 4: faces repeat in a batch"
    few = "There is only 1 face" if count == 1 else f"There are only {count} faces"
    assert [few in doubt for doubt in doubts] == [True] * (not method_class(method).needs_source)
    folder = bench.runs / "adapt-jaffe-few"
    lines = read_metrics(folder)
    assert all(np.isfinite(list(entry["losses"].values())).all() for entry in lines if entry["kind"] == "train")
    state = checkpoint.load(folder / "best.ckpt")
    assert all(value.isfinite().all() for value in state["network"].values())
    assert len(answers(folder, 1)) == count
    document = json.loads(bench.done("evaluate", "--report", "--json").stdout, parse_constant=pytest.fail)
    row = next(row for row in document["entries"] if row["method"].endswith("(few)"))
    assert (row["expected"], row["found"], row["scored"]) == (count, count, count)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_of_one_class_trains_with_every_method(method: str, tmp_path: Path, trained: Bench) -> None:
    bench = cut_bench(tmp_path, trained, lambda labels: np.flatnonzero(labels == 3), changes=by(method))
    doubts = bench.done("adapt", "--quiet").stderr.splitlines()
    assert ["There are only 6 faces" in doubt for doubt in doubts] == [True] * (not method_class(method).needs_source)
    state = checkpoint.load(bench.runs / "adapt-jaffe/best.ckpt")
    assert all(value.isfinite().all() for value in state["network"].values())
    document = json.loads(bench.done("evaluate", "--report", "--json").stdout, parse_constant=pytest.fail)
    (entry,) = (e for e in document["entries"] if e["stage"] == "adapt")
    metrics = entry["heads"][entry["decision"]]
    for figures in metrics["per_expression"]:
        if figures["expression"] == EXPRESSIONS[3]:
            assert figures["support"] == 6
            assert figures["recall"] == metrics["accuracy"]
        else:
            assert (figures["support"], figures["recall"], figures["f1"]) == (0, None, None)
    assert 'title="not defined"' in (bench.runs / "report/report.html").read_text()


@pytest.mark.parametrize(
    ("meta", "chosen"),
    [({"adapt_splits": ["train"]}, slice(None)), ({}, slice(0))],
    ids=["none to adapt to", "none at all"],
)
def test_a_target_without_a_face_is_a_one_line_error(
    meta: dict[str, object], chosen: slice, tmp_path: Path, trained: Bench
) -> None:
    bench = cut_bench(tmp_path, trained, lambda labels: np.arange(len(labels))[chosen], **meta)
    line = told(bench("adapt"), 1)
    assert "jaffe" in line
    assert not list(bench.runs.glob("adapt-*"))


@pytest.mark.parametrize("absent", [[1], [0, 5]])
def test_a_class_that_the_source_lacks_is_named_and_the_rest_is_learned(
    absent: list[int], tmp_path: Path, trained: Bench
) -> None:
    def chosen(labels: np.ndarray) -> np.ndarray:
        return np.flatnonzero(~np.isin(labels, absent))

    bench = cut_bench(tmp_path, trained, chosen, which="raf-db", changes={"adapt.method": "agra", **QUICK})
    names = ", ".join(EXPRESSIONS[number] for number in absent)
    text = f"warning: raf-db has no training face for {names}: an expression without examples cannot be learned"
    assert bench.done("train-source", "--quiet").stderr.strip() == text
    for method, options in (("agra", {"warm_steps": 3}), ("agra", {"warm_steps": 3, "means": "classes"}), ("mcd", {})):
        settings = [
            f"adapt.method={method}",
            f"adapt.options={json.dumps(options)}",
            f"adapt.tag={method}{len(options)}",
        ]
        arguments = [part for setting in settings for part in ("--set", setting)]
        assert bench.done("adapt", "--quiet", *arguments).stderr.strip() == text
        folder = bench.runs / f"adapt-jaffe-{method}{len(options)}"
        assert all(value.isfinite().all() for value in checkpoint.load(folder / "best.ckpt")["network"].values())
    bench.done("evaluate", "--report", "--quiet")


def test_a_source_of_one_face_is_a_one_line_error(tmp_path: Path, trained: Bench) -> None:
    bench = cut_bench(tmp_path, trained, lambda labels: np.arange(1), which="raf-db")
    assert "raf-db has 1 labelled training face(s); at least 2 are needed" in told(bench("train-source"), 1)
