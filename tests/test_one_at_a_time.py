"""Two commands at once: while one works in a folder, the other is refused, and no files are mixed or lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import Bench, run, told

from fercli import files
from fercli.files import LOCK, only_one

#: A folder below the bench, and the commands that are refused while another works there.
HELD = {
    "runs/tiny/source": [("train-source",), ("train-source", "--restart")],
    "runs/tiny/adapt-jaffe": [("adapt",), ("adapt", "--method", "mcd"), ("adapt", "--restart")],
    "runs/tiny/report": [("evaluate",), ("evaluate", "--report")],
}


@pytest.fixture
def begun(make_adapting) -> Bench:
    return make_adapting("bench", {"adapt.epochs": 1, "adapt.steps_per_epoch": 1})


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below a folder except locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize("folder", HELD)
def test_a_second_command_is_refused_and_changes_nothing(folder: str, begun: Bench) -> None:
    if folder.endswith("adapt-jaffe"):
        begun.done("adapt", "--quiet")
    held = begun.folder / folder
    held.mkdir(parents=True, exist_ok=True)
    before = contents(begun.runs)
    with only_one(held, "train-source"):
        for command in HELD[folder]:
            line = told(begun(*command, "--quiet"), 1)
            assert f"another fercli {command[0]} is running in {held}; wait for it, or stop it" in line
    assert contents(begun.runs) == before


def test_other_targets_of_a_run_can_be_adapted_to_at_the_same_time(begun: Bench) -> None:
    (begun.runs / "adapt-sfew").mkdir()
    with only_one(begun.runs / "adapt-sfew", "adapt"), only_one(begun.runs / "source", "train-source"):
        begun.done("adapt", "--quiet")
        begun.done("evaluate", "--quiet")


def test_prepare_and_demo_are_exclusive_too(tmp_path: Path, raf: Path) -> None:
    store, demo = tmp_path / "prepared/raf-db", tmp_path / "demo/seed-0"
    for folder in (store, demo):
        folder.mkdir(parents=True)
    where = ("--set", f"paths.prepared={tmp_path / 'prepared'}", "--root", raf)
    with only_one(store, "prepare"), only_one(demo, "demo"):
        assert "another fercli prepare is running" in told(run("prepare", "--dataset", "raf-db", *where, "--quiet"), 1)
        assert "another fercli demo is running" in told(run("demo", "--out", tmp_path / "demo", "--quiet"), 1)
    assert [path.name for path in demo.iterdir()] == [LOCK]


def test_the_run_keeps_the_spec_of_its_source_and_each_adaptation_its_own(begun: Bench) -> None:
    begun.done("train-source", "--quiet")
    spec = (begun.runs / "spec.yaml").read_text()
    begun.done("adapt", "--method", "mcd", "--set", "adapt.tag=mcd", "--quiet")
    assert (begun.runs / "spec.yaml").read_text() == spec
    assert "method: mcd" in (begun.runs / "adapt-jaffe-mcd/spec.yaml").read_text()


@pytest.mark.parametrize("name", [".last.ckpt.host-1.tmp", "outputs/.epoch-0001.safetensors.host-1.tmp"])
def test_half_written_files_of_a_killed_process_are_removed(name: str, begun: Bench) -> None:
    left = begun.runs / "source" / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    begun.done("train-source", "--quiet")
    assert not left.exists()


def test_restart_keeps_the_lock_and_nothing_else(begun: Bench) -> None:
    source = begun.runs / "source"
    (source / "outputs").mkdir()
    (source / "outputs/dataset-jaffe.safetensors").write_bytes(b"0")
    begun.done("train-source", "--restart", "--quiet")
    assert not (source / "outputs").exists() and (source / "best.ckpt").exists() and (source / LOCK).exists()


def test_a_file_system_without_locks_is_reported(begun: Bench, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    import fcntl

    monkeypatch.setattr(fcntl, "flock", none)
    shutil.rmtree(begun.runs / "source")
    result = begun.done("train-source", "--quiet")
    assert "cannot lock" in result.stderr and "make sure that no other fercli runs there" in result.stderr
    assert os.path.exists(begun.runs / "source/best.ckpt") and files.LOCK == ".lock"
