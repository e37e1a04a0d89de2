"""Outputs that are not plain files or must not be overwritten, and odd inputs, each with its own line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import run
from PIL import Image

from fercli.errors import FercliError
from fercli.faces.images import decode
from fercli.files import replacing
from fercli.output_files import check_output
from fercli.parallel import Workers
from fercli.predict.stream import Picture, recognise
from fercli.starter import FILE as STARTER
from fercli.synthetic.render import STUDIO, render

FACE = render(STUDIO, 1, 3, 1).image


def predict(*arguments: object):
    model = [] if "--run" in arguments else ["--run", "starter"]
    return run("predict", *arguments, *model, "--device", "cpu", "--workers", "1", "-q")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """The working folder, with photo.png and files that an output might overwrite."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(FACE).save("photo.png")
    os.link("photo.png", "hard.png")
    shutil.copy(STARTER, "model.safetensors")
    Path("link.png").symlink_to("photo.png")
    for folder in ("run/source", "store", "in", "outside"):
        Path(folder).mkdir(parents=True)
    for name in ("run/source/best.ckpt", "run/source/metrics.jsonl", "run/spec.yaml", "run/results.json", "old.csv"):
        Path(name).write_text("mine")
    for name in ("store/faces.npy", "store/labels.npy", "store/meta.json"):
        Path(name).write_text("mine")
    Path("to-old.csv").symlink_to("old.csv")
    Path("circle").symlink_to("circle")
    os.mkfifo("fifo")
    return tmp_path


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--csv", "photo.png", "--force"], 2, "--csv would overwrite the input photo.png"),
        (["--csv", "hard.png", "--force"], 2, "--csv would overwrite the input photo.png"),
        (["--jsonl", "./in/../link.png", "--force"], 2, "--jsonl would overwrite the input photo.png"),
        (["--annotate", "photo.png", "--force"], 2, "--annotate would overwrite the input photo.png"),
        (
            ["--run", "model.safetensors", "--csv", "model.safetensors", "--force"],
            2,
            "would overwrite the input model.safetensors",
        ),
        (["--csv", "run/source/best.ckpt", "--force"], 1, "belongs to a run"),
        (["--csv", "run/source/metrics.jsonl", "--force"], 1, "belongs to a run"),
        (["--csv", "run/spec.yaml", "--force"], 1, "belongs to a run"),
        (["--csv", "run/results.json", "--force"], 1, "belongs to a run's results"),
        (["--csv", "store/labels.npy", "--force"], 1, "belongs to a prepared store"),
        (["--csv", "same", "--jsonl", "same"], 2, "--jsonl same and --csv same are the same file"),
        (["--csv", "same", "--jsonl", "in/../same"], 2, "are the same file"),
        (["--csv", "to-old.csv", "--jsonl", "old.csv", "--force"], 2, "are the same file"),
        (["--csv", "x", "--jsonl", "x.part"], 2, "are the same file"),
        (["--jsonl", "drawn/photo.png", "--annotate", "drawn"], 2, "are the same file"),
        (["--csv", "fifo", "--jsonl", "fifo"], 2, "are the same file"),
        (["--csv", "to-old.csv"], 1, "already exists; name another file, or replace it with --force"),
        (["--csv", "circle"], 1, "cannot write circle: "),
        (["--csv", "in"], 1, "it is a folder"),
        (["--csv", "photo.png/x"], 1, "is not a folder; name another folder"),
        (["--csv", "/dev/full"], 1, "the disk is full while writing /dev/full"),
    ],
)
def test_forbidden_outputs_are_refused_before_the_work(there, arguments, code, says):
    before = state(there)
    result = predict("photo.png", *arguments)
    (line,) = result.stderr.strip().splitlines()
    assert (result.exit_code, line[:7]) == (code, "error: ") and says in line
    assert state(there) == before


def test_no_command_overwrites_a_model_or_a_store(there):
    for name in ("photo.png", "hard.png"):
        with pytest.raises(FercliError, match=r"OUT would overwrite the input photo\.png"):
            check_output("OUT", Path(name), True, ["photo.png"])
    with pytest.raises(FercliError, match="belongs to a prepared store"):
        check_output("--csv", Path("store/faces.npy"), True)
    result = run("weights", "export", "starter", there / "store/labels.npy", "--force")
    assert result.exit_code == 1 and "belongs to a prepared store" in result.stderr
    result = run("export", "starter", "--out", there / "store/labels.npy", "--force")
    assert result.exit_code == 1 and "belongs to a prepared store" in result.stderr


def test_links_are_followed_and_devices_and_pipes_are_written_to(there):
    assert predict("photo.png", "--csv", "to-old.csv", "--force").exit_code == 0
    assert Path("to-old.csv").is_symlink() and Path("old.csv").read_text().startswith("input,")
    Path("dangling.csv").symlink_to("outside/new.csv")
    assert predict("photo.png", "--csv", "dangling.csv").exit_code == 0
    assert Path("dangling.csv").is_symlink() and Path("outside/new.csv").read_bytes() == Path("old.csv").read_bytes()
    null = os.devnull
    with suppress(OSError):  # root could overwrite the machine's own device, but may create another
        os.mknod("null", 0o666 | stat.S_IFCHR, os.stat(os.devnull).st_rdev)
        null = "null"
    number = os.stat(null).st_rdev
    assert predict("photo.png", "--csv", null).exit_code == 0
    assert stat.S_ISCHR(os.stat(null).st_mode) and os.stat(null).st_rdev == number
    for write in ("predict", "replacing"):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda got=got: got.append(Path("fifo").read_bytes()))
        reader.start()
        if write == "predict":
            assert predict("photo.png", "--csv", "fifo").exit_code == 0
        else:
            with replacing(Path("fifo")) as file:
                file.write(Path("old.csv").read_bytes())
        reader.join(30)
        assert got == [Path("old.csv").read_bytes()] and Path("fifo").is_fifo()


@pytest.mark.skipif(not Path("/proc/self/fd/1").exists(), reason="needs /proc")
def test_an_open_file_is_written_in_place(there):
    words = "from pathlib import Path\nfrom fercli.files import replacing\n"
    words += "with replacing(Path('/proc/self/fd/1')) as file: file.write(b'more')"
    with Path("old.csv").open("ab") as file:
        inode = os.fstat(file.fileno()).st_ino
        subprocess.run([sys.executable, "-c", words], stdout=file, check=True, timeout=60)
    assert Path("old.csv").read_text() == "minemore" and os.stat("old.csv").st_ino == inode


@pytest.mark.parametrize(
    ("inputs", "made"),
    [
        (["in/d*/../../outside/*.png"], {"drawn/d1/outside/a.png"}),
        (["in/../outside/a.png"], {"drawn/a.png"}),
        (["outside/a.png"] * 3, {"drawn/a.png", "drawn/a-2.png", "drawn/a-3.png"}),
    ],
)
def test_copies_stay_in_their_folder(there, inputs, made):
    Path("in/d1").mkdir()
    Image.fromarray(FACE).save("outside/a.png")
    before = set(state(there))
    assert predict(*inputs, "--annotate", "drawn", "--jsonl", "/dev/null").exit_code == 0
    new = {os.path.relpath(path, there) for path in set(state(there)) - before if Path(path).is_file()}
    assert new == made


def test_no_link_leads_a_copy_outside_its_folder(there):
    Path("drawn").mkdir()
    Path("drawn/sub").symlink_to("../outside")
    Path("in/sub").mkdir()
    Image.fromarray(FACE).save("in/sub/a.png")
    result = predict("in", "--annotate", "drawn", "--jsonl", "/dev/null")
    assert result.exit_code == 1 and "a link in it leads drawn/sub/a.png outside" in result.stderr
    assert not list(Path("outside").iterdir())
    Path("to-drawn").symlink_to("drawn")  # the folder itself may be a link
    assert predict("photo.png", "--annotate", "to-drawn", "--jsonl", "/dev/null").exit_code == 0
    assert Path("drawn/photo.png").is_file()


NAMES = {
    "=1+1.png": "'=1+1.png",
    " @x.png": "' @x.png",
    "a\r\nb.png": "a b.png",
    "esc\x1b]0;x\x07.png": "esc\\x1b]0;x\\x07.png",
    "c1\x9b2J.png": "c1\\x9b2J.png",
    "turned\u202egnp.png": "turned\\u202egnp.png",
}


def test_names_are_harmless_in_a_table_and_unchanged_in_json(there):
    for name in NAMES:
        Image.new("RGB", (40, 40)).save(name)
    assert predict(*NAMES, "--jsonl", "a.jsonl", "--csv", "a.csv").exit_code == 0
    assert [line["input"] for line in lines(Path("a.jsonl"))] == list(NAMES)
    raw = Path("a.csv").read_bytes()
    assert [row["input"] for row in csv.DictReader(raw.decode().split("\n"))] == list(NAMES.values())
    assert not set(raw) & ({*range(32), 127} - {10})


def test_an_odd_input_is_one_line_and_the_others_are_predicted(there):
    Image.fromarray(FACE).save("in/a.png")
    Image.new("L", (70000, 300)).save("in/big.pgm")
    wide = np.full((300, 33000, 3), 110, np.uint8)
    Image.fromarray(wide).save("in/wide.png")
    write_clip(Path("in/one.avi"), [np.zeros((1, 1, 3), np.uint8)] * 2, codec="mjpeg")
    write_clip(Path("in/strip.avi"), [np.zeros((16, 9000, 3), np.uint8)] * 2, codec="mjpeg")
    long = f"{'n' * 251}.gif"
    Image.fromarray(FACE).save(f"in/{long}")
    Image.fromarray(FACE).save("in/z.png")
    result = predict("in", "--jsonl", "a.jsonl", "--csv", "a.csv", "--annotate", "drawn")
    assert result.exit_code == 0, result.stderr
    found = {(Path(line["input"]).name, line["frame"]): line for line in lines(Path("a.jsonl"))}
    errors = {name: line["error"] for (name, _), line in found.items() if "error" in line}
    assert set(errors) == {"strip.avi", long}
    assert "MPEG-4 allows up to 8191 pixels a side, not 9000" in errors["strip.avi"]
    assert errors[long].startswith("no annotated copy") and errors[long].endswith("File name too long")
    for name in ("a.png", "z.png", long):  # predictions exist even where a copy is missing
        assert len(found[name, None]["faces"]) == 1
    assert ("big.pgm", None) in found and ("one.avi", 1) in found and ("strip.avi", 1) in found
    assert {"a.png", "big.pgm.jpg", "one.mp4", "wide.png", "z.png"} <= set(os.listdir("drawn"))


def test_an_image_with_a_side_too_long_for_opencv_is_shrunk(there):
    Image.new("L", (70000, 300)).save("big.pgm")
    decoded = decode(Path("big.pgm"))
    assert decoded.scale == 3 and decoded.pixels.shape == (100, 23333, 3) and decoded.size == (69999, 300)


def test_a_failure_of_the_network_affects_one_image_only():
    def answer(faces):
        if any(face == "bad" for face in faces):
            raise ValueError("not this one")
        return [f"of {face}" for face in faces]

    pictures = [Picture(name, np.zeros((2, 2, 3), np.uint8)) for name in ("good", "bad", "fine")]
    with pytest.MonkeyPatch.context() as patch:
        named = iter(["good", "bad", "fine"])
        patch.setattr("fercli.predict.stream.look", lambda sources, *_: [[next(named)] for _ in sources])
        with Workers(1) as workers:
            answered = {p.name: (p.error, faces) for p, faces in recognise(pictures, answer, None, False, 64, workers)}
    assert answered["good"] == (None, ["of good"]) and answered["fine"] == (None, ["of fine"])
    assert answered["bad"] == ("cannot be processed (ValueError: not this one)", None)


def test_too_little_memory_ends_the_run():
    def answer(faces):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch, Workers(1) as workers:
        patch.setattr("fercli.predict.stream.look", lambda sources, *_: [["face"] for _ in sources])
        with pytest.raises(FercliError, match="too little memory"):
            list(recognise([Picture("a", b"a")], answer, None, False, 64, workers))
