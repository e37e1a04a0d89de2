"""Commands under ``python -OO``, started with signals ignored, and with libraries that cannot be loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import Bench, fercli, run
from PIL import Image

from fercli.cli import COMMANDS
from fercli.doctor.software import _requirement
from fercli.spec import Spec
from fercli.spec.template import to_template

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, faces) -> Path:
    """Enough images for several worker processes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, face in enumerate(faces):
        Image.fromarray(face.image).save(folder / f"{number:02d}.png")
    return folder


# python -OO: no docstrings, no asserts


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_the_spec_keeps_its_comments_without_docstrings(flag: str) -> None:
    assert fercli("init", "-", flags=[flag]).stdout == run("init", "-").stdout


def test_the_spec_keeps_its_comments_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (ROOT / "fercli").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT))
    program = "import sys; from fercli.spec.template import Spec, to_template; sys.stdout.write(to_template(Spec()))"
    given = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path / "all.zip")}}
    done = subprocess.run([sys.executable, "-OO", "-c", program], **given, capture_output=True, text=True, timeout=60)
    assert done.stdout == to_template(Spec()), done.stderr


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["datasets", "show"], ["bench", "adapt"]])
def test_help_is_the_same_without_docstrings(command: list[str]) -> None:
    given = {"flags": ["-OO"]}
    assert fercli(*command, "--help", **given).stdout == fercli(*command, "--help").stdout != ""


@pytest.mark.slow
def test_every_step_works_without_docstrings(tmp_path: Path, prepared: Path, pictures: Path) -> None:
    bench = Bench(tmp_path / "bench", prepared)
    for step in (["train-source"], ["adapt"], ["evaluate", "--report"], ["predict", pictures]):
        done = fercli(*step, "-c", bench.spec, flags=["-OO"])
        assert done.returncode == 0 and "Traceback" not in done.stderr, (step, done.stderr)
    assert len(done.stdout.splitlines()) == 14 and all(json.loads(line)["faces"] for line in done.stdout.splitlines())


# Started with SIGINT and SIGTERM ignored, as with & in a script


def test_a_command_started_with_signals_ignored_obeys_them(trained: Bench, pictures: Path, tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i:03d}.png").hardlink_to(pictures / "00.png")
    words = [sys.executable, "-m", "fercli", "predict", tmp_path, "--run", trained.runs, "--batch", "1"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130)):
        ignoring = ["sh", "-c", 'trap "" INT TERM; exec "$@"', "sh", *map(str, words), "--workers", "1"]
        process = subprocess.Popen(ignoring, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        assert json.loads(process.stdout.readline())["faces"]
        started = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == code and time.monotonic() - started < 60 and b"Traceback" not in said


# Libraries that cannot be loaded

LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"
LIBGL_COMES = "apt install libgl1 libglib2.0-0, or: dnf install mesa-libGL glib2"
CUDART = "libcudart.so.12: cannot open shared object file: No such file or directory"
LIBGOMP = "libgomp.so.1: cannot open shared object file: No such file or directory"
AGAIN = "pip install --force-reinstall"
#: If mediapipe is a declared requirement, it pins numpy.
PINNED = " 'numpy<2'" if _requirement("mediapipe") is not None else ""
#: Module, its code, commands that need it, and the error line of each.
BROKEN = [
    (
        *("cv2", f"raise ImportError({LIBGL!r})", ["prepare", "predict", "demo", "bench prepare"]),
        f"opencv cannot be loaded ({LIBGL}); to fix it: {LIBGL_COMES}",
    ),
    (
        # As cv2's own __init__ does.
        *("cv2", f"import os, sys; sys.path.insert(1, os.path.dirname(__file__)); raise ImportError({LIBGL!r})"),
        *(["predict"], f"opencv cannot be loaded ({LIBGL}); to fix it: {LIBGL_COMES}"),
    ),
    (
        *("cv2", "raise ImportError('numpy.core.multiarray failed to import')", ["predict"]),
        "opencv cannot be loaded (numpy.core.multiarray failed to import); to fix it: "
        f"{AGAIN} {'opencv-contrib-python' if PINNED else 'opencv-python-headless'}{PINNED}",
    ),
    (
        *("torch", f"raise OSError({CUDART!r})", ["train-source", "predict"]),
        f"torch cannot be loaded ({CUDART}); to fix it: install it as described on https://pytorch.org",
    ),
    (
        *("lightning_fabric", "raise AttributeError('two\\nlines')", ["train-source"]),
        f"lightning_fabric cannot be loaded (two lines); to fix it: {AGAIN} lightning-fabric",
    ),
    (
        *(
            "ai_edge_litert",
            "raise ImportError('GLIBCXX_3.4.30 not found')",
            ["prepare", "predict", "predict --workers 2"],
        ),
        f"ai_edge_litert cannot be loaded (GLIBCXX_3.4.30 not found); to fix it: {AGAIN} ai-edge-litert",
    ),
    (
        *("torch", f"raise OSError({LIBGOMP!r})", ["train-source"]),
        f"torch cannot be loaded ({LIBGOMP}); to fix it: apt install libgomp1, or: dnf install libgomp",
    ),
    (
        *("yaml", "import a_missing_part", ["prepare"]),
        "a_missing_part cannot be loaded (No module named 'a_missing_part'); to fix it: pip install a_missing_part",
    ),
    (
        *("yaml", "raise ModuleNotFoundError('No module named _lzma', name='_lzma')", ["init"]),
        "python lacks its own module _lzma: it was built without it; to fix it: "
        "create an environment with another Python, 3.10 or newer",
    ),
]


@pytest.mark.parametrize(
    ("module", "code", "command", "line"),
    [(module, code, command, line) for module, code, commands, line in BROKEN for command in commands],
)
def test_a_library_that_cannot_be_loaded_is_one_line(
    module: str, code: str, command: str, line: str, tmp_path: Path, trained: Bench, pictures: Path
) -> None:
    (tmp_path / "first" / module).mkdir(parents=True)
    (tmp_path / "first" / module / "__init__.py").write_text(code)
    bench = Bench(tmp_path / "bench", tmp_path / "prepared" if command == "prepare" else trained.prepared)
    (bench.folder / "data").symlink_to(trained.prepared.parent / "data")
    given = {"predict": (pictures, "--run", trained.runs), "demo": ("--out", tmp_path), "init": ("-",)}
    spec = () if command in ("demo", "init") else ("-c", bench.spec)
    done = fercli(*command.split(), *given.get(command.split()[0], ()), *spec, "--quiet", before=tmp_path / "first")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {line}\n")


@pytest.mark.parametrize("command", ["predict", "prepare"])
def test_a_library_that_a_worker_cannot_load_is_one_line_too(
    command: str, tmp_path: Path, trained: Bench, pictures: Path
) -> None:
    """OpenCV fails to load only in the worker processes: they fail before any work reaches them."""
    (tmp_path / "cv2.py").write_text(
        "import os, sys\n"
        "here, command = os.path.dirname(__file__), ' '.join(sys.orig_argv)\n"
        f"if 'loky' in command or 'fercli.parallel' in command: raise ImportError({LIBGL!r})\n"
        "sys.path.remove(here)\n"
        "del sys.modules['cv2']\n"
        "import cv2\n"
        "sys.path.insert(0, here)\n"
    )
    bench = Bench(tmp_path / "bench", tmp_path / "prepared", {"prepare.backend": "loky", "prepare.workers": 2})
    (bench.folder / "data").symlink_to(trained.prepared.parent / "data")
    given = ("--workers", "2", pictures, "--run", trained.runs) if command == "predict" else ("-c", bench.spec)
    done = fercli(command, *given, "--quiet", before=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {BROKEN[0][3]}\n")


def test_too_little_memory_is_not_reported_as_a_broken_library(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise MemoryError()\n")
    assert fercli("prepare", before=tmp_path).stderr.startswith("error: MemoryError")


def test_an_error_in_the_users_own_module_keeps_its_message(tmp_path: Path, trained: Bench) -> None:
    (tmp_path / "mine.py").write_text("raise ImportError('cannot import name x')\n")
    command = ("adapt", "-c", trained.spec, "--method", "mine:Method")
    done = fercli(*command, before=tmp_path)
    said = "adapt.method: mine:Method: importing mine failed: ImportError: cannot import name x"
    assert done.returncode == 2 and said in done.stderr
