"""A type checker reads the public interface (py.typed): a user's program over it, and the modules that make it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: What users import, by README and docstrings.
PUBLIC = [
    *("__init__", "recognizer", "spec/__init__", "errors", "expressions", "views", "methods/__init__", "methods/base"),
    *("methods/joint", "datasets/__init__", "datasets/base", "datasets/records", "datasets/protocol"),
    *("predict/faces", "predict/stream", "evaluation/decision", "faces/landmarker", "faces/search"),
    *("faces/network_files", "spec/schema", "spec/load", "spec/json_schema"),
]


def mypy(cache: Path, *arguments: str | Path) -> str:
    """What mypy complains of; empty where it has nothing to say."""
    command = [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={cache}", "--no-error-summary"]
    # Whatever lies below the files named is read for its types and not itself checked.
    command += ["--follow-imports=silent", "--ignore-missing-imports", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
def test_a_users_program_is_checked_strictly(tmp_path: Path) -> None:
    program = ROOT / "tests/fixtures/typed_user.py"
    assert mypy(tmp_path, "--strict", program) == ""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(program.read_text().replace("return spec.adapt.epochs", "return spec.adapt.epoch"))
    assert 'has no attribute "epoch"' in mypy(tmp_path, "--strict", wrong)


@pytest.mark.slow
def test_the_modules_that_users_import_are_typed_without_error(tmp_path: Path) -> None:
    assert mypy(tmp_path, *(f"fercli/{name}.py" for name in PUBLIC)) == ""
