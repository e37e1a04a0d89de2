"""fercli predict on images: its inputs, its outputs, and its messages for inputs that it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Bench, lines, run
from PIL import Image

import fercli
from fercli.expressions import EXPRESSIONS
from fercli.predict.drawing import draw
from fercli.predict.recognizer import Recognizer
from fercli.predict.results import COLUMNS
from fercli.synthetic.render import STUDIO, render


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """a.png with one face, b.jpg with two, empty.png with none, sub/c.png with one, sub/bad.jpg, and a text file."""
    folder = tmp_path_factory.mktemp("in") / "photos"
    (folder / "sub").mkdir(parents=True)
    faces = [render(STUDIO, i, i, i).image for i in range(4)]
    Image.fromarray(faces[0]).save(folder / "a.png")
    Image.fromarray(np.hstack(faces[1:3])).save(folder / "b.jpg", quality=95)
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(folder / "empty.png")
    Image.fromarray(faces[3]).save(folder / "sub/c.png")
    (folder / "sub/bad.jpg").write_bytes(b"\xff\xd8\xff no")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("left out")
    return folder


@pytest.fixture
def predict(trained: Bench):
    def call(*arguments: object, stdin: bytes | None = None):
        words = ("predict", "-c", trained.spec, "--device", "cpu", "--workers", "1", *arguments)
        return run(*words, stdin=stdin)

    return call


def told(result, code: int = 1) -> str:
    assert result.exit_code == code and result.stdout == "" and "Traceback" not in result.stderr, result.stderr
    (line,) = [line for line in result.stderr.strip().splitlines() if line.startswith("error")]
    return line


# Inputs


def test_a_folder_as_json_lines(predict, photos, trained):
    result = predict(photos)
    found = {Path(line["input"]).relative_to(photos).as_posix(): line for line in lines(result)}
    assert list(found) == ["a.png", "b.jpg", "empty.png", "sub/bad.jpg", "sub/c.png"]
    assert [len(line["faces"]) for line in found.values()] == [1, 2, 0, 0, 1]
    assert found["sub/bad.jpg"]["error"].startswith("damaged image") and "error" not in found["a.png"]
    assert "could not be read" in result.stderr and "4 faces in 4 images" in result.stderr
    face, (own,) = found["a.png"]["faces"][0], Recognizer.load(trained.runs, device="cpu")(photos / "a.png")
    assert face["expression"] == own.expression == max(face["probabilities"], key=face["probabilities"].get)
    assert (
        list(face["probabilities"]) == list(EXPRESSIONS) and face["stage"] == own.stage and face["heads"] == own.heads
    )
    assert face["box"] == pytest.approx(own.box, abs=0.01)
    assert np.abs(np.array(face["landmarks"]) - own.landmarks).max() < 0.01
    assert found["a.png"]["frame"] is None and found["a.png"]["time_s"] is None
    left, right = (face["box"][0] for face in found["b.jpg"]["faces"])
    assert left < right


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "sub/c.png"], ["a.png", "sub/c.png"]),
        (["*.png"], ["a.png", "empty.png"]),
        (["**/c.*"], ["sub/c.png"]),
        (["sub/c.png", "a.png", "a.png"], ["sub/c.png", "a.png", "a.png"]),
    ],
)
def test_files_and_globs_in_the_order_given(predict, photos, names, expected):
    found = lines(predict(*(photos / name for name in names)))
    assert [line["input"] for line in found] == [str(photos / name) for name in expected]


def test_paths_and_an_image_on_stdin(predict, photos):
    paths = f"{photos / 'a.png'}\r\n\n{photos / 'none.png'}\n{photos / 'sub/c.png'}".encode()
    assert [(len(line["faces"]), line.get("error")) for line in lines(predict("-", stdin=paths))] == [
        *[(1, None), (0, "no such file"), (1, None)]
    ]
    for name, count in (("a.png", 1), ("b.jpg", 2)):
        (line,) = lines(predict("-", stdin=(photos / name).read_bytes()))
        assert line["input"] == "-" and len(line["faces"]) == count


# Outputs


def test_a_table(predict, photos, tmp_path):
    result = predict(photos, "--csv", tmp_path / "out.csv")
    assert result.exit_code == 0 and result.stdout == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS and [row["face"] for row in rows] == ["0", "0", "1", "", "", "0"]
    on_stdout = predict(photos, "--csv", "-", "--jsonl", tmp_path / "out.jsonl")
    assert on_stdout.stdout == (tmp_path / "out.csv").read_text()
    faces = [f for line in (tmp_path / "out.jsonl").read_text().splitlines() for f in json.loads(line)["faces"]]
    told_of = [row for row in rows if row["face"]]
    for row, face in zip(told_of, faces, strict=True):
        assert row["expression"] == face["expression"] and float(row["x_nose"]) == face["landmarks"][2][0]
        assert float(row["p_fear"]) == face["probabilities"]["fear"] and row["head_nose"] == face["heads"]["nose"]
        assert [float(row[edge]) for edge in ("left", "top", "right", "bottom")] == face["box"]
    assert rows[4]["error"].startswith("damaged")


def test_json_is_a_summary_if_results_go_to_files(predict, photos, tmp_path):
    result = predict(photos, "--jsonl", tmp_path / "out.jsonl", "--json")
    document = json.loads(result.stdout)
    assert (document["pictures"], document["faces"], document["errors"], document["empty"]) == (4, 4, 1, 1)
    assert document["files"] == {"jsonl": str(tmp_path / "out.jsonl")} and result.stderr == ""


def test_annotated_copies_keep_relative_names(predict, photos, tmp_path):
    before = (photos / "a.png").read_bytes()
    assert predict(photos, photos / "a.png", "--annotate", tmp_path / "drawn").exit_code == 0
    made = sorted(p.relative_to(tmp_path / "drawn").as_posix() for p in (tmp_path / "drawn").rglob("*.*"))
    assert made == ["a-2.png", "a.png", "b.jpg", "empty.png", "sub/c.png"]
    drawn, plain = (np.asarray(Image.open(p / "a.png").convert("RGB")) for p in (tmp_path / "drawn", photos))
    assert drawn.shape == plain.shape and (drawn != plain).any(-1).mean() > 0.02
    assert np.array_equal(Image.open(tmp_path / "drawn/empty.png"), Image.open(photos / "empty.png"))
    assert (photos / "a.png").read_bytes() == before
    assert predict(photos / "a.png", "--annotate", tmp_path / "one.jpg").exit_code == 0
    assert (tmp_path / "one.jpg").stat().st_size > 1000


@pytest.mark.parametrize("shade", [0, 255])
def test_drawings_are_visible_on_dark_and_light_images(trained, shade):
    face = Recognizer.load(trained.runs, device="cpu")(render(STUDIO, 1, 3, 1).image)[0]
    plain = np.full((240, 220, 3), shade, np.uint8)
    drawn = draw(plain, [face])
    assert (np.abs(drawn.astype(int) - shade).max(-1) > 100).mean() > 0.01 and (plain == shade).all()


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{photos}/none.png"], 1, "no such image, folder or video"),
        (["{photos}/*.tiff"], 1, "no file matches"),
        (["{tmp}/empty"], 1, "contains no image or video"),
        (["{photos}/sub/bad.jpg", "--jsonl", "{tmp}/x"], 1, "could not be read"),
        (["camera:93"], 1, "no camera 93"),
        (["93"], 1, "no camera 93"),
        (["-"], 1, "nothing on stdin"),
        (["{photos}/a.png", "--csv", "-", "--jsonl", "-"], 2, "both write to stdout"),
        (["{photos}/a.png", "--csv", "{tmp}/there.csv"], 1, "already exists; name another"),
        (["{photos}/a.png", "--annotate", "{tmp}/there.png"], 1, "already exists; name another"),
        (["{photos}/a.png", "--jsonl", "{tmp}/there.csv/out.jsonl"], 1, "cannot write"),
        (["{photos}/a.png", "--jsonl", "{tmp}/empty"], 1, "it is a folder"),
        (["{photos}/a.png", "--annotate", "{tmp}/there.csv/drawn"], 1, "cannot write"),
        (["{photos}/a.png", "--annotate", "{photos}", "--force"], 2, "--annotate would overwrite"),
        (["{photos}/a.png", "{photos}/b.jpg", "--annotate", "{tmp}/one.png"], 2, "there are 2 inputs"),
        (["{photos}/a.png", "--annotate", "{tmp}/one.mp4"], 2, "a copy of an image must end in .bmp or .jpeg or"),
        (["{photos}/a.png", "--run", "{tmp}/empty"], 1, "contains no trained model"),
        (["{photos}/a.png", "--run", "{tmp}/none"], 1, "no such run folder"),
        (["{photos}/a.png", "--run", "{tmp}/there.csv"], 1, "is not a PyTorch checkpoint, or is damaged"),
        (["{photos}/a.png", "--run", "{tmp}/foreign.ckpt"], 1, "is not a fercli checkpoint and not a released one"),
        (["{photos}/a.png", "--target", "sfew"], 1, "no model adapted to sfew"),
    ],
)
def test_bad_input_is_one_line(predict, photos, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "there.png").write_text("mine")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    result = predict(*(word.format(photos=photos, tmp=tmp_path) for word in arguments), stdin=b"")
    assert says in told(result, code)
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))  # no temporary files


def test_force_replaces(predict, photos, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    assert predict(photos / "a.png", "--csv", tmp_path / "out.csv", "--force").exit_code == 0
    assert (tmp_path / "out.csv").read_text().startswith("input,")


# Ends of a run


def command(trained: Bench, *arguments: object, **more) -> subprocess.Popen:
    words = [sys.executable, "-m", "fercli", "predict", "-c", trained.spec, "--workers", "1", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(fercli.__file__).parent.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([str(word) for word in words], env=environment, **{**pipes, **more})


@pytest.fixture(scope="module")
def long_folder(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for i in range(400):
        shutil.copy(photos / "a.png", folder / f"{i:03d}.png")
    return folder


def test_a_reader_that_closes_stdout_ends_the_run_quietly(trained, long_folder):
    process = command(trained, long_folder, "--quiet", "--batch", 1)
    first = process.stdout.readline()
    process.stdout.close()
    assert json.loads(first)["faces"] and process.stderr.read() == b"" and process.wait(60) == 0


def test_ctrl_c_keeps_the_predictions_so_far(trained, long_folder, tmp_path):
    process = command(trained, long_folder, "--jsonl", tmp_path / "out.jsonl", "--csv", "-", "--batch", 1)
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 30
    assert (
        b"error: stopped" in stderr and b"run the same command with --resume" in stderr and b"Traceback" not in stderr
    )
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl.part").read_text().splitlines()]
    assert 10 <= len(kept) < 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl.part", "out.jsonl.part.log"]


def test_help_ends_in_examples():
    result = run("predict", "--help")
    assert result.exit_code == 0 and "Examples:" in result.stdout and "camera:0" in result.stdout


def test_opencv_reads_annotated_copies(predict, photos, tmp_path):
    assert predict(photos / "b.jpg", "--annotate", tmp_path / "b.webp").exit_code == 0
    assert cv2.imread(str(tmp_path / "b.webp")).shape == cv2.imread(str(photos / "b.jpg")).shape


@pytest.mark.parametrize("name", ["drawn.avi", "drawn.gif", "drawn.MOV"])
def test_a_copy_in_an_unsupported_format_is_refused(predict, photos, tmp_path, name):
    result = predict(photos / "b.jpg", "--annotate", tmp_path / name)
    assert result.exit_code == 2 and f"{name}: copies can only be written as .bmp, .jpeg, " in result.stderr
    assert not list(tmp_path.iterdir())
