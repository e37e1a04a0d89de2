"""Checkpoints that were damaged, edited, or made to do harm: they are read as data and refused in one line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench, after_source, fercli, run, told

from fercli.engine import checkpoint

SHARED: list[Any] = [0]
for _ in range(40):
    SHARED = [SHARED, SHARED]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, trained: Bench) -> Path:
    """The checkpoint of an adaptation. Read only."""
    bench = after_source(tmp_path_factory.mktemp("adapted"), trained, {"adapt.epochs": 1})
    bench.done("adapt", "--quiet")
    return bench.runs / "adapt-jaffe" / "best.ckpt"


def edited(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    state = torch.load(source, weights_only=True)
    change(state)
    path = folder / "best.ckpt"
    torch.save(state, path)
    return path


def put(*places: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        *parents, last = places
        for name in parents:
            state = state[name]
        state[last] = value

    return change


def spoil(value: float) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        next(weights for name, weights in state["network"].items() if name.endswith("bias"))[-1] = value

    return change


EDITS = {
    "NaN weights": (spoil(float("nan")), "are NaN or infinite at"),
    "infinite weights": (spoil(float("inf")), "are NaN or infinite at"),
    "no numbers": (put("network", "extra", value="text"), "its network has entries that are not tensors: extra"),
    "virtual weights": (put("network", "extra", value=torch.zeros(1).expand(2**38)), "a tensor without its numbers"),
    "network": (put("network", value=[1]), "is not a fercli checkpoint"),
    "spec": (put("spec", value="x"), "is not a fercli checkpoint"),
    "decision": (put("decision", value="guess"), "decision: 'guess' is not allowed"),
    "decision type": (put("decision", value=[1]), "decision: "),
    "stage": (put("stage", value=7), "stage: 7 is not allowed"),
    "rule": (put("best", "rule", value="luck"), "best.rule: 'luck' is not a selection rule"),
    "best": (put("best", value=3), "best: "),
    "epoch": (put("best", "epoch", value="soon"), "best.epoch: 'soon'"),
    "large number": (put("step", value=2**70), "a number of more than 64 bits"),
    "method": (put("method_name", value="aglrl"), "method_name: 'aglrl' is not a method"),
    "method type": (put("method_name", value={"a": 1}), "method_name: "),
    "target": (put("target", value="x/../../pwn"), "target: 'x/../../pwn' cannot be a dataset's name"),
    "target line": (put("target", value="a\nb"), "target: "),
    "status text": (put("status", value="high"), "its status is not a 7 x 7 table of numbers from 0 to 1"),
    "status shape": (put("status", value=torch.ones(7)), "its status is not a 7 x 7 table of numbers from 0 to 1"),
    "status NaN": (put("status", value=torch.full((7, 7), float("nan"))), "its status is not a 7 x 7 table of numbers"),
    "status virtual": (put("status", value=torch.zeros(1).expand(2**38)), "a tensor without its numbers"),
    "lists in lists": (put("meter", value=SHARED), "contains more than 200000 values"),
    "format": (put("format", value=9), "newer than this"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_checkpoint_is_refused_in_one_line(case: str, adapted: Path, tmp_path: Path) -> None:
    change, message = EDITS[case]
    path = edited(adapted, tmp_path, change)
    for command in (("export", path, "--out", tmp_path / "out.onnx"), ("predict", __file__, "--run", path)):
        line = told(run(*command), 1)
        assert message in line and str(path) in line and len(line) < 400
    assert {p.name for p in tmp_path.iterdir()} == {"best.ckpt"}


@pytest.mark.parametrize("case", ["status text", "method type", "virtual weights", "lists in lists", "stage"])
def test_weights_are_read_by_the_same_reader(case: str, adapted: Path, tmp_path: Path) -> None:
    change, message = EDITS[case]
    path = edited(adapted, tmp_path, change)
    for command in (("inspect", path), ("export", path, tmp_path / "out.pkl")):
        assert message in told(run("weights", *command), 1)


def test_bit_rot_is_detected(adapted: Path, tmp_path: Path) -> None:
    whole = adapted.read_bytes()
    with zipfile.ZipFile(adapted) as archive:
        places = [e.header_offset + 200 for e in archive.infolist() if e.file_size > 4096 and "/data/" in e.filename]
    assert len(places) > 10
    path = tmp_path / "best.ckpt"
    for place in places[:: len(places) // 8]:
        path.write_bytes(whole[:place] + bytes(byte ^ 1 for byte in whole[place : place + 64]) + whole[place + 64 :])
        assert "its bytes have changed since it was written" in told(run("export", path), 1)


def test_a_small_archive_does_not_fill_the_memory(adapted: Path, tmp_path: Path) -> None:
    bombs = {"deflated": zipfile.ZIP_DEFLATED, "stored": zipfile.ZIP_STORED}
    for name, kind in bombs.items():
        path = tmp_path / f"{name}.ckpt"
        with zipfile.ZipFile(adapted) as old, zipfile.ZipFile(path, "w", kind) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
            if name == "stored":  # many entries over the same bytes
                for number in range(200):
                    new.filelist.append(zipfile.ZipInfo(f"archive/data/x{number}"))
                    new.filelist[-1].file_size = new.filelist[-1].compress_size = 100_000
                    new.filelist[-1].header_offset = new.filelist[-1].CRC = 0
        assert "unpacks to more than its own size" in told(run("export", path), 1)


def test_a_file_does_not_make_code_run(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "evil_mod.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom fercli.methods.source_only import SourceOnly as X\n"
    )
    path = edited(adapted, tmp_path, put("method_name", value="evil_mod:X"))
    picture = tmp_path / "a.txt"
    picture.write_text("no image")

    def predict(run_: Path, *more: str) -> Any:
        return fercli("predict", picture, "--run", run_, *more, before=tmp_path)

    for command in (("export", path), ("weights", "export", path, tmp_path / "out.safetensors", "--format", "fercli")):
        result = fercli(*command, before=tmp_path)
        assert result.returncode == 1 and "give --method evil_mod:X" in result.stderr
    result = predict(path)
    assert result.returncode == 1 and "give --method evil_mod:X" in result.stderr
    assert not list(Path.cwd().glob("ran")) and not (tmp_path / "ran").exists()
    result = predict(path, "--method", "evil_mod:X")
    assert "not an image" in result.stderr and Path("ran").exists()
    Path("ran").unlink()


def test_checksums_may_be_missing(tmp_path: Path, adapted: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "best.ckpt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(adapted, weights_only=True), buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    path.write_bytes(buffer.getvalue())
    assert checkpoint.load(path)["stage"] == "adapt"
