"""Files of runs and stores that are empty, truncated or of another kind: each is reported in one line that names it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bench, told, warned
from safetensors.numpy import load, save
from trained_runs import figures


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def finished(adapted: Bench) -> Bench:
    """Stores, a source model, an adaptation and a report. Read only."""
    adapted.done("evaluate", "--quiet")
    return adapted


@pytest.fixture
def own(finished: Bench, tmp_path: Path) -> Bench:
    shutil.copytree(finished.prepared, tmp_path / "prepared")
    shutil.copytree(finished.runs, tmp_path / "runs/tiny")
    return Bench(tmp_path, tmp_path / "prepared")


def results(own: Bench) -> dict[str, Any]:
    return json.loads((own.folder / REPORT / "results.json").read_text())


ADAPTED, REPORT, STORE = "runs/tiny/adapt-jaffe", "runs/tiny/report", "prepared/jaffe"
#: Damage that leaves the scores valid and makes `fercli evaluate` print a warning.
LEFT_OUT = {
    "environment.json": [b"[]", b'{"outcome": {"seconds": "long"}}', "{}".encode("utf-16")],
    "metrics.jsonl": [b"null\n{}\n", b'{"kind": "train", "step": 1, "epoch": null}\n\n', b"%d\n\n" % 10**4000],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_files_left_out_of_the_scores_are_reported(name: str, own: Bench) -> None:
    path = own.folder / ADAPTED / name
    for data in LEFT_OUT[name]:
        path.write_bytes(data)
        result = own.done("evaluate", "--quiet")
        assert result.stderr.startswith("warning: ") and str(path) in result.stderr, data[:50]
        assert len(warned(result)) == 1 and len(warned(result)[0]) < 500
        entry = results(own)["entries"][-1]
        assert entry["oracle"] and bool(entry["rules"]) == (name != "metrics.jsonl")
        if not entry["rules"]:
            assert str(path) in told(own("evaluate", "--select", "last"), 1)


def marked(data: bytes, change) -> bytes:
    """Return an outputs file with the same metadata and changed arrays."""
    mark = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return save(change(load(data)), mark)


#: Kind of damage to outputs -> function from the file's bytes to the damaged bytes.
RUINED = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[:-100],
    "foreign": lambda data: save(load(data)),
    "of another version": lambda data: data.replace(b'format\\": 1', b'format\\": 9'),
    "without the held-out faces": lambda data: marked(data, lambda found: {"scored": found["scored"]}),
    "of one head": lambda data: marked(data, lambda found: {**found, "scored": found["scored"][:, 0]}),
    "no numbers": lambda data: marked(data, lambda found: {**found, "held": found["held"] * np.float16(np.nan)}),
}


#: The same for the outputs of an evaluation, which also hold features.
RUINED_TOO = RUINED | {
    "without features": lambda data: marked(data, lambda found: {name: found[name] for name in ("scored", "held")}),
    "features no numbers": lambda data: marked(data, lambda found: found | {"features": found["features"] * np.nan}),
    "of another model": lambda data: re.sub(rb'(model\\": \\").', rb"\1x", data),
}


def ruin(path: Path, how: str) -> bytes:
    """Damage a file; return its original bytes."""
    whole = path.read_bytes()
    data = RUINED_TOO[how](whole)
    assert data != whole
    path.unlink() if data is None else path.write_bytes(data)
    return whole


@pytest.mark.parametrize("how", RUINED)
def test_damaged_outputs_of_an_epoch_are_reported_and_the_oracle_left_out(how: str, own: Bench) -> None:
    path = own.folder / ADAPTED / "outputs/epoch-0001.safetensors"
    ruin(path, how)
    (line,) = warned(own.done("evaluate", "--quiet"))
    assert line.startswith(f"warning: {path} ") and "--restart" in line and "no oracle" in line and len(line) < 500
    entry, pseudo_labels = results(own)["entries"][-1], results(own)["pseudo_labels"]
    assert (entry["stage"], entry["oracle"], entry["rules"], pseudo_labels) == ("adapt", None, {}, {})
    line = told(own("evaluate", "--select", "corr-c"), 1)
    assert str(path) in line and "--restart" in line


@pytest.mark.parametrize("how", RUINED_TOO)
def test_damaged_outputs_of_an_evaluation_are_computed_again(how: str, own: Bench) -> None:
    path = own.folder / ADAPTED / "outputs/dataset-jaffe.safetensors"
    whole, before = ruin(path, how), figures(results(own))
    assert warned(own.done("evaluate", "--quiet")) == []
    assert path.read_bytes() == whole and figures(results(own)) == before


def test_training_does_not_resume_from_a_damaged_log(own: Bench) -> None:
    path = own.folder / ADAPTED / "metrics.jsonl"
    path.write_bytes(b"[]\n" + path.read_bytes())
    line = told(own("adapt", "--set", "adapt.epochs=3"), 1)
    assert f"line 1 of {path} is damaged; remove that file" in line


def test_training_does_not_resume_from_another_kind_of_checkpoint(own: Bench) -> None:
    best, last = (own.folder / ADAPTED / name for name in ("best.ckpt", "last.ckpt"))
    shutil.copyfile(best, last)
    line = told(own("adapt", "--set", "adapt.epochs=3"), 1)
    assert str(last) in line and "train that stage again with --restart" in line


#: File -> damaged contents, and the commands that need the file.
NEEDED = {
    f"{STORE}/meta.json": ([b"", b"[]", b"{}", b"[" * 5000], "adapt evaluate"),
    f"{STORE}/labels.npy": ([b"", npy(np.zeros(3))], "evaluate"),
    f"{STORE}/splits.npy": ([b""], "adapt"),
    f"{STORE}/faces.npy": ([b"", b"\x93NUMPY\x01\x00\x04\x00[[[[", npy(np.zeros((42, 3)))], "adapt"),
    f"{STORE}/landmarks.npy": ([npy(np.zeros((42, 5, 3), "float32"))], "adapt evaluate"),
    f"{STORE}/digests.npy": ([b""], "adapt"),
    f"{REPORT}/results.json": ([b"", b"[]", b'{"schema": 5}', b"1" * 5000, b"[" * 5000], "compare"),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_file_that_is_needed_stops_the_command(name: str, own: Bench) -> None:
    contents, commands = NEEDED[name]
    for data in contents:
        (own.folder / name).write_bytes(data)
        for command in commands.split():
            more = [str(own.runs)] if command == "compare" else []
            line = told(own(command, *more, "--quiet"), 1)
            assert str((own.folder / name).parent) in line and "fercli " in line and len(line) < 500, data[:50]


@pytest.mark.parametrize("name", ["labels.npy", "faces.npy", "digests.npy", "shapes.npy"])
def test_verify_reports_an_empty_array(name: str, own: Bench) -> None:
    (own.folder / STORE / name).write_bytes(b"")
    result = own("prepare", "--dataset", "jaffe", "--verify")
    assert result.exit_code == 1 and "stopped" not in result.stderr and "prepare" in result.stderr
    assert "Traceback" not in result.stderr
