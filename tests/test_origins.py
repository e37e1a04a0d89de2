"""A run records its inputs: the faces, their labels, the source model. It refuses replaced inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bench, after_source, run, told
from stores import cut, seal

from fercli.engine import checkpoint
from fercli.engine.log import read_environment
from fercli.store import Store


def with_pixels(store: Path) -> None:
    """Imitate a store prepared with other parameters: the same names, other pixels."""
    digests = np.load(store / "digests.npy")
    np.save(store / "digests.npy", digests ^ 1)


def with_labels(store: Path) -> None:
    labels = np.load(store / "labels.npy")
    np.save(store / "labels.npy", (labels + 1) % 7)


def in_another_order(store: Path) -> None:
    whole = store.rename(store.with_name("whole"))
    cut(whole, store, np.arange(len(np.load(whole / "labels.npy")))[::-1])


@pytest.fixture
def own(tmp_path: Path, trained: Bench) -> Bench:
    """A bench with its own stores and source model, adapted."""
    shutil.copytree(trained.prepared, tmp_path / "prepared")
    bench = after_source(tmp_path / "bench", trained, {"adapt.epochs": 1}, tmp_path / "prepared")
    bench.done("adapt", "--quiet")
    return bench


#: The message of each command; None if it continues.
OTHER_TARGET = {"adapt": "jaffe was prepared again", "evaluate": "adapt-jaffe was trained on", "train-source": None}
OTHER_SOURCE = {
    "train-source": "raf-db was prepared again",
    "adapt": "run: fercli train-source",
    "evaluate": "source was trained on",
}
CHANGES: dict[str, tuple[str, Callable[[Path], None], dict[str, str | None]]] = {
    "target pixels": ("jaffe", with_pixels, OTHER_TARGET),
    "target order": ("jaffe", in_another_order, OTHER_TARGET),
    "target labels": ("jaffe", with_labels, dict.fromkeys(OTHER_TARGET)),
    "source pixels": ("raf-db", with_pixels, OTHER_SOURCE),
    "source labels": ("raf-db", with_labels, OTHER_SOURCE),
}


@pytest.mark.parametrize("case", CHANGES)
def test_stores_prepared_again(case: str, own: Bench) -> None:
    name, change, commands = CHANGES[case]
    change(own.prepared / name)
    seal(own.prepared / name)
    for command, message in commands.items():
        result = own(command, "--quiet")
        if message is None:
            assert result.exit_code == 0, result.stderr
        else:
            line = told(result, 1)
            assert message in line and "--restart" in line


def test_a_source_model_trained_again(own: Bench) -> None:
    own.done("train-source", "--restart", "--quiet", "--set", "train_source.lr=0.02")
    line = told(own("evaluate"), 1)
    assert "adapt-jaffe was not adapted from the current source model" in line
    assert f"run: fercli adapt -c {own.runs / 'adapt-jaffe/spec.yaml'} --target jaffe --restart" in line
    assert "from another source model" in told(own("adapt"), 1)


def test_a_store_under_another_name(own: Bench) -> None:
    shutil.copytree(own.prepared / "raf-db", own.prepared / "other")
    line = told(own("adapt", "--target", "other"), 1)
    assert "contains the faces of raf-db; its folder was copied or renamed" in line
    meta = json.loads((own.prepared / "other/meta.json").read_text())
    (own.prepared / "other/meta.json").write_text(json.dumps({**meta, "name": "other"}))
    assert "contain the same faces" in told(own("adapt", "--target", "other"), 1)
    assert not (own.runs / "adapt-other").exists()


@pytest.mark.parametrize("file", ["labels.npy", "splits.npy", "manifest.csv", "digests.npy"])
def test_small_files_edited_by_hand(file: str, own: Bench) -> None:
    path = own.prepared / "raf-db" / file
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    for command in ("train-source", "adapt", "evaluate"):
        assert f"{file} has changed since it was written" in told(own(command), 1)


def test_the_record_contains_digests(own: Bench) -> None:
    state = checkpoint.load(own.runs / "adapt-jaffe/best.ckpt")
    source, target = (Store.open(own.prepared / name) for name in ("raf-db", "jaffe"))
    assert state["stores"] == {"raf-db": source.content_digest(labels=True), "jaffe": target.content_digest()}
    made = read_environment(own.runs / "adapt-jaffe").made_of
    assert made.source_model == state["source_model"] == read_environment(own.runs / "source").made_of.model
    assert made.stores == state["stores"]


def test_a_sweep_leaves_out_runs_with_other_inputs(tmp_path: Path, trained: Bench) -> None:
    shutil.copytree(trained.prepared, tmp_path / "prepared")
    sweep = {"sweep": {"methods": {"dann": None, "mcd": None}, "seeds": [0]}, "adapt.epochs": 1}
    bench = Bench(tmp_path / "bench", tmp_path / "prepared", sweep)
    assert run("sweep", bench.spec, "--quiet").exit_code == 0
    spec = (bench.runs / "seed-0/spec.yaml").read_text()
    assert "method: aglrls" in spec and "tag: ''" in spec  # what its cells agree on, regardless of the last one
    with_pixels(bench.prepared / "jaffe")
    seal(bench.prepared / "jaffe")
    found = json.loads(bench.done("evaluate", "--json").stdout)
    assert [entry["method"] for entry in found["entries"]] == ["source-only"]
    assert {cell["why"] for cell in found["missing"]} == {"jaffe was prepared again after it was trained"}
