"""fercli predict, stopped anywhere: it ends at once, keeps its predictions, and --resume gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from conftest import run
from PIL import Image

import fercli
from fercli.parallel import Workers
from fercli.synthetic.render import STUDIO, render

#: Seconds within which a stopped run must have ended, including its workers.
AT_ONCE = 5


def start(*arguments: object, **more) -> subprocess.Popen:
    words = [sys.executable, "-m", "fercli", "predict", *arguments, "--run", "starter", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(fercli.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    return subprocess.Popen([str(word) for word in words], **{**pipes, **more})


def done(*arguments: object) -> subprocess.CompletedProcess:
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=150)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout.decode(), stderr.decode())


def workers_of(pid: int) -> set[int]:
    """The child processes of a run, from /proc."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def living(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """400 identical images of one face each, except a damaged one and one without a face."""
    folder = tmp_path_factory.mktemp("faces")
    Image.fromarray(render(STUDIO, 1, 3, 1).image).save(folder / "000.jpg")
    for i in range(1, 400):
        shutil.copy(folder / "000.jpg", folder / f"{i:03d}.jpg")
    (folder / "021.jpg").write_bytes((folder / "000.jpg").read_bytes()[:2000])
    Image.new("RGB", (40, 30)).save(folder / "033.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux to count processes")
@pytest.mark.parametrize("way", ["reader gone", "Ctrl-C", "SIGTERM", "kill -9", "full disk"])
def test_a_stopped_run_ends_at_once_with_its_workers(faces, tmp_path, way):
    draw, before = random.Random(way), set(os.listdir("/dev/shm"))
    for number in range(5):
        to = "/dev/full" if way == "full disk" else "-"
        process = start(faces, "--csv", to, "--workers", 2, "--batch", 16)
        if way == "full disk":
            children = set()
            began = time.monotonic()  # for the whole run: nothing is predicted
            limit = 30
        else:
            until(lambda p=process: len(workers_of(p.pid)) >= 2)
            children = workers_of(process.pid)
            # Some runs are stopped while the workers start up.
            if number % 2:
                process.stdout.readline()
                process.stdout.readline()
            else:
                time.sleep(draw.uniform(0, 0.5))
            began, limit = time.monotonic(), AT_ONCE
            if way == "reader gone":
                process.stdout.read(1)
                began = time.monotonic()
                process.stdout.close()
            else:
                number_of = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}
                process.send_signal(number_of[way])
        # A pipe without a reader fills up: it must not delay the end.
        code = process.wait(limit)
        stderr = process.stderr.read().decode()
        until(lambda c=children: not living(c), max(0.0, began + limit - time.monotonic()))
        expected = {"reader gone": 0, "Ctrl-C": 130, "SIGTERM": 130, "kill -9": -9, "full disk": 1}
        assert code == expected[way] and "Traceback" not in stderr, stderr
        if way == "full disk":
            assert "error: the disk is full while writing /dev/full" in stderr
    assert not {name for name in set(os.listdir("/dev/shm")) - before if f"-{process.pid}" in name}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, faces, number):
    inputs = tmp_path / "in"
    shutil.copytree(faces, inputs)
    for name in sorted(os.listdir(inputs))[60:]:
        (inputs / name).unlink()
    still = np.asarray(Image.open(inputs / "000.jpg"))
    write_clip(inputs / "030.mp4", [still[:224, :208]] * 12)
    common = (inputs, "--workers", 2, "--batch", 8, "--smooth", 0.5)

    def outputs(name: str) -> tuple[object, ...]:
        folder = tmp_path / name
        return "--jsonl", folder / "a.jsonl", "--csv", folder / "a.csv", "--annotate", folder / "drawn"

    assert done(*common, *outputs("whole")).returncode == 0
    part = tmp_path / "stopped/a.jsonl.part"
    for lines in (10, 36, 50):  # within the images, within the video, after it
        process = start(*common, *outputs("stopped"), *(["--resume"] if part.exists() else []))
        until(lambda least=lines: part.exists() and part.read_bytes().count(b"\n") >= least)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=AT_ONCE)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130), stderr
        for line in part.read_text().splitlines():
            assert json.loads(line)["input"]
        left = sorted(path.name for path in part.parent.rglob("*") if path.is_file() and path.suffix != ".jpg")
        assert {"a.csv.part", "a.jsonl.part", "a.jsonl.part.log"} <= set(left) and not any(n[0] == "." for n in left)
    # A torn line, as after a power cut, is dropped.
    for torn in (part, part.with_name("a.csv.part"), part.with_name("a.jsonl.part.log")):
        with torn.open("a") as file:
            file.write('{"input": "to')
    refused = done(*common, *outputs("stopped"))
    assert refused.returncode == 1 and "a.jsonl.part contains the predictions of a stopped run" in refused.stderr
    resumed = done(*common, *outputs("stopped"), "--resume")
    assert resumed.returncode == 0 and "resuming after" in resumed.stderr
    assert "could not be read or drawn" in resumed.stderr
    for path in (tmp_path / "whole").rglob("*"):
        other = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
        assert path.is_dir() or path.read_bytes() == other.read_bytes(), path
    assert len(list((tmp_path / "whole").rglob("*"))) == len(list((tmp_path / "stopped").rglob("*")))


@pytest.mark.slow
def test_a_part_of_another_run_is_refused(tmp_path, faces):
    inputs, out = tmp_path / "in", tmp_path / "a.jsonl"
    inputs.mkdir()
    for i in range(40):
        shutil.copy(faces / "000.jpg", inputs / f"{i:02d}.jpg")
    process = start(inputs, "--jsonl", out, "--batch", 8, "--workers", 1)
    until(lambda: Path(f"{out}.part").exists() and Path(f"{out}.part").stat().st_size > 10_000)
    process.kill()
    process.communicate()
    kept = Path(f"{out}.part").read_bytes()

    def refused(*arguments: object) -> str:
        result = done(*arguments)
        assert result.returncode in (1, 2) and Path(f"{out}.part").read_bytes() == kept
        (line,) = result.stderr.strip().splitlines()
        return line

    again = (inputs, "--jsonl", out, "--workers", 1)
    assert "started with another --smooth, --every, --batch, --device or --adapt" in refused(*again, "--resume")
    assert "use only one of them" in refused(*again, "--batch", 8, "--resume", "--force")
    assert "cannot be resumed: " in refused(inputs, "--csv", out, "--jsonl", f"{out}2", "--resume")
    os.utime(inputs / "03.jpg", (1, 1))
    assert "started with other inputs (names, sizes or modification times)" in refused(*again, "--batch", 8, "--resume")
    assert "name one with --jsonl or --csv" in refused(inputs, "--resume")
    assert done(*again, "--force").returncode == 0 and sorted(os.listdir(tmp_path)) == ["a.jsonl", "in"]


@pytest.mark.parametrize("moved", [0, 1])
def test_stopped_while_the_files_are_moved_into_place(tmp_path, faces, monkeypatch, moved):
    replace = os.replace

    def stop(source, target):
        if Path(target).name == ("a.jsonl", "a.csv")[moved]:
            raise KeyboardInterrupt
        replace(source, target)

    words = ["predict", faces / "000.jpg", faces / "021.jpg", "--run", "starter", "--device", "cpu", "-q"]
    outputs = ["--jsonl", tmp_path / "a.jsonl", "--csv", tmp_path / "a.csv"]
    with monkeypatch.context() as patch:
        patch.setattr("fercli.predict.writing.os.replace", stop)
        assert run(*words, *outputs).exit_code == 130
    kept = {
        path.name.removesuffix(".part"): path.read_bytes() for path in tmp_path.glob("a.*") if path.suffix != ".log"
    }
    assert run(*words, *outputs, "--resume").exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept and len(kept) == 2


def test_a_worker_that_dies_is_one_line_and_is_replaced():
    with Workers(2) as workers:
        assert list(workers.in_order(divmod, [1, 2, 3], lambda item: (item, 2), 2)) == [
            (1, (0, 1)),
            (2, (1, 0)),
            (3, (1, 1)),
        ]
        with pytest.raises(ZeroDivisionError):
            list(workers.in_order(divmod, [1], lambda item: (item, 0), 2))
        with pytest.raises(
            Exception, match=r"a worker process ended with code 3 .*; run without worker processes: --workers 1"
        ):
            list(workers.in_order(os._exit, [3], lambda item: (item,), 2))
        assert [n for n, _ in workers.in_order(divmod, range(9), lambda item: (item, 2), 4)] == list(range(9))
