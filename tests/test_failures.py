"""Temporary failures (memory, disk) stop with a line that names the image; damaged images are rejected."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from stores import seal
from trees import encoded

from fercli.datasets import read_dataset
from fercli.errors import TransientError
from fercli.faces.failures import may_pass, naming
from fercli.faces.images import Unreadable, read_image
from fercli.prepare import prepare
from fercli.spec import Prepare
from fercli.store import read_manifest, write_manifest
from fercli.synthetic.render import STUDIO, render

FORMS: dict[str, tuple[str, dict]] = {
    "plain.jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "cmyk.jpg": ("JPEG", {"mode": "CMYK"}),
    "a.png": ("PNG", {}),
    "palette.png": ("PNG", {"mode": "P", "transparency": 2}),
    "16.png": ("PNG", {"mode": "I;16"}),
    "a.gif": ("GIF", {}),
    "a.bmp": ("BMP", {}),
    "lossy.webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "a.ppm": ("PPM", {}),
    "plain.tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "packbits.tif": ("TIFF", {"compression": "packbits"}),
    "floats.tif": ("TIFF", {"mode": "F"}),
    "a.jp2": ("JPEG2000", {}),
    "a.avif": ("AVIF", {"speed": 10}),
    "a.pcx": ("PCX", {}),
    "a.sgi": ("SGI", {}),
}


def made(name: str, side: int) -> bytes:
    """Return a file of that kind, or skip the test if this Pillow cannot write it."""
    form, options = FORMS[name]
    options = dict(options)
    mode = options.pop("mode", "RGB")
    across = np.arange(side) * 255 // max(1, side - 1)
    image = Image.fromarray(np.dstack(np.broadcast_arrays(across, across[:, None], 90)).astype(np.uint8))
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {form}")
    image = (
        Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    )
    return encoded(image, form, **options)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_bytes_give_an_image_or_a_reason(name):
    """An image that is truncated or changed in a few bytes never raises a raw exception or a temporary failure."""
    rng, data, reasons = random.Random(name), made(name, 24), 0
    for _ in range(150):
        changed = bytearray(data[: rng.randrange(1, len(data))] if rng.random() < 0.2 else data)
        first = len(changed) if rng.random() < 0.5 else min(len(changed), 120)
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(first)] = rng.choice((0, 127, 255, rng.randrange(256)))
        try:
            assert read_image(bytes(changed)).dtype == np.uint8
        except Unreadable as why:
            assert str(why) and "\n" not in str(why)
            reasons += 1
    assert reasons


# Decodes each file with an increasing amount of free memory, from almost none, and prints the results.
_SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from fercli.errors import TransientError
from fercli.faces.images import Unreadable, decode
small, large = (sorted(Path(folder).iterdir()) for folder in sys.argv[1:])
for path in small:
    decode(path)
for path in large:
    said = []
    for left in (1, 4, 8, 12, 16, 300):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (left << 20), -1))
        try:
            decode(path)
            said.append("image")
        except TransientError as failure:
            named = str(failure).startswith(f"{path} cannot be processed just now (too little memory)")
            said.append("memory" if named and "--workers 1" in str(failure) else str(failure))
        except Unreadable as why:
            said.append(f"damaged: {why}")
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(path.name, *said, sep="|")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_too_little_memory_is_never_taken_for_damage(tmp_path):
    """Decoders report it differently or not at all: libwebp, OpenJPEG, libaom, libjpeg in OpenCV."""
    names = [name for name in FORMS if name not in ("a.avif",) or "AVIF" in Image.SAVE]
    for folder, side in (("small", 16), ("large", 1000)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(made(name, side))
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    # Otherwise glibc keeps the memory freed by earlier images, and the next image finds enough there.
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True, env=own)
    said = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}
    assert set(said) == set(names)
    for name, outcomes in said.items():
        assert set(outcomes) <= {"memory", "image"}, (name, outcomes)
        # Even the smallest amount may suffice if the previous image has freed enough.
        assert "memory" in outcomes and outcomes[-1] == "image", (name, outcomes)


_PREPARE = """
import resource, sys
from pathlib import Path
from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.prepare import prepare
from fercli.spec import Prepare
here, data, out = Prepare(workers=1, backend="sequential"), sys.argv[1], sys.argv[2]
prepare(read_dataset("d", "folders", data + "/first"), out + "-first", here)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20), -1))
try:
    prepare(read_dataset("d", "folders", data + "/second"), out, here)
except FercliError as failure:
    print(failure)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
summary = prepare(read_dataset("d", "folders", data + "/second"), out, here)
print(summary.counts["found"] + summary.counts["retried"], summary.counts["rejected"])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_prepare_stops_when_memory_runs_out_and_stores_no_rejection(tmp_path, ending):
    face = render(STUDIO, 1, 1, 3).image
    large = cv2.resize(face, (3000, 3200), interpolation=cv2.INTER_CUBIC)
    form = {".jpg": "JPEG", ".webp": "WEBP"}[ending]
    for folder, image in (("first/happy", face), ("second/happy", large)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / f"a{ending}").write_bytes(encoded(image, form))
    command = [sys.executable, "-c", _PREPARE, str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    said, counts = done.stdout.splitlines()
    assert said.startswith(str(tmp_path / f"data/second/happy/a{ending}")) and "(too little memory)" in said
    assert "--set prepare.workers=1" in said and counts == "1 0"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (MemoryError(), "too little memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
        (OSError("out of memory when reading image file"), "too little memory"),
        (RuntimeError("Pixel allocation failed: Out of memory"), "too little memory"),
        (OSError(errno.EIO, "Input/output error"), r"cannot be read just now \(Input/output error\)"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (OSError(errno.EACCES, "Permission denied"), None),
        (OSError("image file is truncated"), None),
        (cv2.error("does not converge"), None),
        (TypeError("ours"), None),
    ],
)
def test_temporary_failures_name_the_image_and_others_pass_unchanged(failure, reason):
    assert (may_pass(failure) is None) == (reason is None)
    with pytest.raises(type(failure) if reason is None else TransientError, match=reason) as raised, naming("a.jpg"):
        raise failure
    assert raised.value is failure if reason is None else str(raised.value).startswith("a.jpg cannot be ")


def test_opencvs_lack_of_memory_is_temporary():
    with pytest.raises(TransientError, match=r"^a.jpg cannot .*memory"), naming("a.jpg"):
        cv2.resize(np.zeros((2, 2, 3), np.uint8), (1 << 20, 1 << 27))


def test_rejections_of_an_earlier_version_are_tried_again(tmp_path, faces):
    """Other versions can read other images; faces that were found are kept."""
    (tmp_path / "data/happy").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"data/happy/{i}.jpg").write_bytes(encoded(faces[i].image, "JPEG"))
    listing, here = read_dataset("d", "folders", tmp_path / "data"), Prepare(workers=1)
    prepare(listing, tmp_path / "out", here)
    assert prepare(listing, tmp_path / "out", here).up_to_date
    # As if the last image had been rejected by an earlier version.
    rows = read_manifest(tmp_path / "out")
    rows[2] |= {"status": "rejected", "reason": "damaged image: Insufficient memory", "box": "", "score": ""}
    write_manifest(tmp_path / "out/manifest.csv", rows)
    for name in ("faces", "landmarks", "crops", "shapes", "digests", "labels", "splits", "ids", "subjects"):
        np.save(tmp_path / f"out/{name}.npy", np.load(tmp_path / f"out/{name}.npy")[:2])
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    del meta["rejections"]
    meta["bytes"] = {name: (tmp_path / "out" / name).stat().st_size for name in meta["bytes"]}
    (tmp_path / "out/meta.json").write_text(json.dumps({**meta, "fingerprint": "of before"}))
    seal(tmp_path / "out")
    summary = prepare(listing, tmp_path / "out", here)
    assert (summary.computed, summary.taken_over, summary.counts["rejected"]) == (1, 2, 0)
