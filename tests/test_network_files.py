"""The face networks without mediapipe: downloaded once by the real pip, checked, or copied manually.

Each test runs the command where there is no mediapipe, with its own cache: in a new process or, if only its words
matter, in this one. The package index is a folder or a server on this machine. It has a wheel like mediapipe's, with
the real networks in it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import pytest
from click.testing import Result
from conftest import fercli, run

from fercli.faces import landmarker, network_files
from fercli.faces.network_files import NETWORKS, read_network
from fercli.synthetic.render import STUDIO, render

WHEEL = "mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl"
FETCHING = "downloading the face networks once"
BY_HAND = "to get them manually, run on a machine where pip reaches an index: pip download mediapipe==0.10.21 --no-deps"


def write_wheel(folder: Path, networks: dict[str, bytes]) -> Path:
    """Write a wheel that pip accepts, with mediapipe's name and its networks in their places."""
    folder.mkdir(parents=True, exist_ok=True)
    about = "mediapipe-0.10.21.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, data in networks.items():
            below = "face_landmark" if name == "face_landmark.tflite" else "face_detection"
            wheel.writestr(f"mediapipe/modules/{below}/{name}", data)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: cp312-cp312-manylinux_2_28_x86_64\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder / WHEEL


@pytest.fixture(scope="module")
def networks() -> dict[str, bytes]:
    return {name: read_network(name) for name in NETWORKS}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "face.png"
    cv2.imwrite(str(path), render(STUDIO, 0, 3, 0).image[..., ::-1])
    return path


class Place:
    """A machine without mediapipe: `index` is the folder that pip searches, `cache` is the networks' folder."""

    def __init__(self, folder: Path, networks: dict[str, bytes]):
        self.index, self.before = folder / "index", folder / "before"
        self.cache = folder / "cache/fercli/face-networks"
        write_wheel(self.index, networks)
        (self.before / "mediapipe").mkdir(parents=True)
        (self.before / "mediapipe/__init__.py").touch()
        none = {key: "" for key in os.environ if key.startswith("PIP_")}
        self.environment = {
            **{**none, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)},
            **{"PIP_NO_CACHE_DIR": "1", "XDG_CACHE_HOME": str(folder / "cache"), "FERCLI_FACE_MODELS": ""},
        }

    def __call__(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
        return fercli(*arguments, before=self.before, **{**self.environment, **environment})

    def here(self, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path, **environment: str) -> Result:
        """Run the command in this process as if it had not read or built the networks before."""
        network_files._networks.cache_clear()
        monkeypatch.setattr(landmarker, "_built", threading.local())
        monkeypatch.syspath_prepend(self.before)
        monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
        for key, value in {**self.environment, **environment}.items():
            monkeypatch.setenv(key, value)
        try:
            return run(*arguments)
        finally:
            network_files._networks.cache_clear()

    def has_all(self) -> bool:
        """Return whether the cache contains the networks and nothing else except the lock."""
        there = {path.name for path in self.cache.iterdir()}
        return there - {".lock"} == set(NETWORKS)


@pytest.fixture
def place(tmp_path: Path, networks: dict[str, bytes]) -> Place:
    if sys.platform != "linux":
        pytest.skip("the cache is elsewhere")
    return Place(tmp_path, networks)


def test_they_are_downloaded_at_their_first_use_and_not_again(place: Place, picture: Path) -> None:
    first = place("predict", picture)
    assert first.returncode == 0 and '"expression"' in first.stdout, first.stderr
    assert f"{FETCHING}: pip downloads the wheel of mediapipe==0.10.21 (36 MB)" in first.stderr
    assert str(place.cache) in first.stderr and place.has_all()
    shutil.rmtree(place.index)
    again = place("predict", picture)
    assert (again.returncode, again.stdout) == (0, first.stdout) and FETCHING not in again.stderr


def test_a_damaged_file_in_the_cache_is_downloaded_again(place: Place, picture: Path) -> None:
    first = place("predict", picture)
    landmark = place.cache / "face_landmark.tflite"
    landmark.write_bytes(landmark.read_bytes()[:-1] + b"x")
    (place.cache / "fetching-of-a-killed-process").mkdir()
    again = place("predict", picture)
    assert FETCHING in again.stderr and again.stdout == first.stdout and place.has_all()


def test_only_one_of_two_processes_downloads(place: Place, picture: Path) -> None:
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda workers: place("predict", picture, "--workers", workers), ("1", "2")))
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    assert sum(done.stderr.count(FETCHING) for done in both) == 1
    assert both[0].stdout == both[1].stdout and place.has_all()


def _offline(place: Place) -> None:
    (place.index / WHEEL).unlink()


def _cut(place: Place) -> None:
    wheel = place.index / WHEEL
    wheel.write_bytes(wheel.read_bytes()[:-5000])


def _other(place: Place) -> None:
    write_wheel(place.index, {**{name: b"network" for name in NETWORKS}})


def _no_place(place: Place) -> None:
    place.cache.parent.parent.write_text("a file")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_offline, r"cannot be downloaded \(pip: No matching distribution found for mediapipe==0.10.21\); "),
        (_cut, r"(cannot be downloaded \(pip: .*\)|cannot be read \(.*\)); "),
        (_other, r"is not the wheel of mediapipe==0.10.21: .*its SHA-256 differs; "),
        (_no_place, r"cannot write .*face-networks: (File exists|Not a directory); "),
    ],
)
def test_a_failed_download_is_one_line_that_says_how_to_get_them(
    spoil, said, place: Place, picture: Path, monkeypatch
) -> None:
    spoil(place)
    done = place.here(monkeypatch, "predict", picture, "--quiet")
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 1 and line.startswith("error: ")
    assert re.search(said + BY_HAND, line), line
    assert not place.cache.is_dir() or {path.name for path in place.cache.iterdir()} <= {".lock"}


def _wheel(folder: Path, networks: dict[str, bytes]) -> None:
    write_wheel(folder, networks)


def _files(folder: Path, networks: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in networks.items():
        (folder / name).write_bytes(data)


def _unpacked(folder: Path, networks: dict[str, bytes]) -> None:
    with zipfile.ZipFile(write_wheel(folder, networks)) as wheel:
        wheel.extractall(folder)
    (folder / WHEEL).unlink()


@pytest.mark.parametrize("bring", [_wheel, _files, _unpacked])
def test_they_can_be_copied_manually(
    bring, place: Place, networks: dict[str, bytes], picture: Path, monkeypatch
) -> None:
    _offline(place)
    folder = place.index / "by hand"
    bring(folder, networks)
    done = place("predict", picture, FERCLI_FACE_MODELS=str(folder))
    assert done.returncode == 0 and '"expression"' in done.stdout, done.stderr
    assert not place.cache.exists()
    doctor = place.here(monkeypatch, "doctor", FERCLI_FACE_MODELS=str(folder))
    assert re.search(rf"^ok +face networks +of mediapipe==0.10.21, in {re.escape(str(folder))}$", doctor.stdout, re.M)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, "which is not a folder"),
        (lambda folder: (folder / "face_landmark.tflite").unlink(), "which does not contain face_landmark.tflite"),
        (
            lambda folder: (folder / "face_landmark.tflite").write_bytes(b"x"),
            "has a face_landmark.tflite that is not from mediapipe==0.10.21",
        ),
        (lambda folder: [_files_gone(folder), (folder / WHEEL).write_bytes(b"x")], "cannot be read"),
    ],
)
def test_a_folder_that_lacks_them_is_reported(
    change, said: str, place: Place, networks, picture: Path, monkeypatch
) -> None:
    """Nothing is downloaded instead, because the user explicitly named a folder."""
    folder = place.index / "by hand"
    _files(folder, networks)
    change(folder)
    done = place.here(monkeypatch, "predict", picture, "--quiet", FERCLI_FACE_MODELS=str(folder))
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 1 and said in line and str(folder) in line and BY_HAND in line
    assert not place.cache.exists()
    doctor = place.here(monkeypatch, "doctor", FERCLI_FACE_MODELS=str(folder))
    assert doctor.exit_code == 1
    assert re.search(rf"^fail +face networks +.*{said}.*\n +fix: {BY_HAND}", doctor.stdout, re.M), doctor.stdout


def _files_gone(folder: Path) -> None:
    for name in NETWORKS:
        (folder / name).unlink()


def test_doctor_says_that_they_will_be_downloaded_and_downloads_nothing(place: Place, monkeypatch) -> None:
    done = place.here(monkeypatch, "doctor")
    assert re.search(r"^warn +face networks +missing: the first prepare or predict downloads", done.stdout, re.M)
    assert not re.search(r"^fail", done.stdout, re.M) and not place.cache.exists()


@contextmanager
def index(wheel: Path, seconds: float) -> Iterator[tuple[str, threading.Event]]:
    """Run a slow package index on this machine; yield its address, and an event set when it begins to send."""
    data, begun = wheel.read_bytes(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode() if self.path != f"/{WHEEL}" else data
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is not data else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), 1 << 16):
                try:
                    self.wfile.write(body[start : start + (1 << 16)])
                except OSError:
                    return
                if body is data:
                    begun.set()
                    time.sleep(seconds * (1 << 16) / len(data))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple", begun
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_if_stopped_in_the_middle_the_next_run_downloads_them(number: int, place: Place, picture: Path) -> None:
    environment = {key: value for key, value in place.environment.items() if key != "PIP_NO_INDEX"}
    with index(place.index / WHEEL, 30) as (address, begun):
        environment.update(PIP_INDEX_URL=address, PIP_FIND_LINKS="", PIP_NO_PROXY="*", no_proxy="*")
        command = [sys.executable, "-m", "fercli", "predict", picture]
        path = os.pathsep.join((str(place.before), str(Path(__file__).parents[1])))
        process = subprocess.Popen(
            command, env={**os.environ, **environment, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
        )
        assert begun.wait(60)
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert said.splitlines()[-1].startswith("stopped") or "stopped" in said.splitlines()[-1]
        assert {path.name for path in place.cache.iterdir()} == {".lock"}
    done = place("predict", picture)
    assert done.returncode == 0 and FETCHING in done.stderr
    assert set(NETWORKS) <= {path.name for path in place.cache.iterdir()}
