"""The output of `python -m build`: an sdist and a wheel that are complete and run without a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import pytest

import fercli
from fercli.synthetic.render import STUDIO, render

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    tree.mkdir()
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist")
    for name in ("fercli", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=litter)
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", tree]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


def wheel_of(built: Path) -> Path:
    """Return the only wheel: it is for every Python and system."""
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"fercli-{fercli.__version__}-py3-none-any.whl"
    return wheel


def expected() -> set[str]:
    """Return the paths in the wheel of all files of a checkout that belong in it."""
    found = set()
    for below in (ROOT / "fercli", ROOT / "configs"):
        for path in below.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(path.relative_to(ROOT).as_posix())
    return {re.sub(r"^configs/", "fercli/configs/", name) for name in found}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(wheel_of(built)) as wheel:
        names = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
        about = wheel.read(f"fercli-{fercli.__version__}.dist-info/METADATA").decode()
        entry = wheel.read(f"fercli-{fercli.__version__}.dist-info/entry_points.txt").decode()
    assert names == expected()
    assert {
        *("fercli/py.typed", "fercli/configs/default.yaml", "fercli/configs/methods/mcd.yaml"),
        *("fercli/configs/spec.schema.json", "fercli/starter/starter.safetensors", "fercli/starter/CARD.md"),
        *("fercli/report/templates/report.html.j2", "fercli/prepare/audit/templates/quality.css"),
    } <= names
    assert "fercli = fercli.__main__:run" in entry
    assert re.search(r"^Requires-Python: >=3\.10$", about, re.M)
    # The requirements depend on whether mediapipe has a wheel for the system.
    needs = re.findall(r"^Requires-Dist: (.+)$", about, re.M)
    assert any(need.startswith("mediapipe==0.10.21;") for need in needs)
    assert not any(re.match(r"(nvidia|cuda|triton)", need) for need in needs)


@pytest.mark.slow
def test_the_sdist_is_complete_and_contains_the_licence(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "setup.py", "fercli/py.typed", "configs/default.yaml"} <= names
    # The wheel was built from the sdist: a file missing here would be missing there.
    assert {re.sub(r"^fercli/configs/", "configs/", name) for name in expected()} <= names


@pytest.mark.slow
def test_the_wheel_runs_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*install, wheel_of(built)], check=True, timeout=120)
    picture = tmp_path / "face.png"
    cv2.imwrite(str(picture), render(STUDIO, 0, 3, 0).image[..., ::-1])
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fercli", *arguments],
            **{"cwd": empty, "env": environment, "capture_output": True, "text": True, "timeout": 120},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert fercli.__version__ in run("--version")
    where = subprocess.run(
        [sys.executable, "-c", "import fercli; print(fercli.__file__)"],
        **{"cwd": empty, "env": environment, "capture_output": True, "text": True, "check": True},
    )
    assert where.stdout.startswith(str(site))
    assert f"$schema={(site / 'fercli/configs/spec.schema.json').as_uri()}" in run("init", "-")
    assert '"expression"' in run("predict", picture)
    assert "raf-db" in run("init", "-", "--from", "raf-db-ir18")


def test_the_version_is_the_same_everywhere() -> None:
    version = re.escape(fercli.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (?!Unreleased)(\S+)", changes, re.M)[1] == fercli.__version__
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)


# Types

#: Modules that users import, according to the README and docstrings.
PUBLIC = [
    *("__init__", "predict/recognizer", "spec/__init__", "spec/registry", "errors", "expressions", "methods/__init__"),
    *("methods/base", "methods/joint", "loading/augment"),
    *("datasets/__init__", "datasets/reader", "datasets/protocol"),
    *("predict/faces", "predict/stream", "evaluation/decision", "faces/landmarker", "faces/search"),
    *("faces/network_files", "spec/schema", "spec/load", "spec/json_schema"),
]


def mypy(cache: Path, *arguments: str | Path) -> str:
    """Return mypy's complaints; empty if there are none."""
    command = [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={cache}", "--no-error-summary"]
    # Modules that the named files import are read for their types but not checked.
    command += ["--follow-imports=silent", "--ignore-missing-imports", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
def test_a_users_program_passes_strict_type_checks(tmp_path: Path) -> None:
    program = ROOT / "tests/fixtures/typed_user.py"
    assert mypy(tmp_path, "--strict", program) == ""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(program.read_text().replace("return spec.adapt.epochs", "return spec.adapt.epoch"))
    assert 'has no attribute "epoch"' in mypy(tmp_path, "--strict", wrong)


@pytest.mark.slow
def test_the_modules_that_users_import_have_no_type_errors(tmp_path: Path) -> None:
    assert mypy(tmp_path, *(f"fercli/{name}.py" for name in PUBLIC)) == ""
