"""Renamed keys of the spec: errors about users' files name the new key; specs saved by earlier versions are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Bench, run, told
from safetensors import safe_open

from fercli.engine import checkpoint
from fercli.engine.trained import find_trained
from fercli.errors import SpecError
from fercli.evaluation.runs import find_run
from fercli.models.model_file import read_model
from fercli.spec import load, parse, parse_recorded
from fercli.starter import starter_file
from fercli.sweep.plan import plan

OLD = {"lr": "rate", "head_lr_multiplier": "new_rate", "discriminator_lr": "discriminator_rate"}
#: Old key path -> its new last part.
RENAMED = {
    "train_source.rate": "lr",
    "train_source.new_rate": "head_lr_multiplier",
    "adapt.rate": "lr",
    "adapt.new_rate": "head_lr_multiplier",
    "adapt.discriminator_rate": "discriminator_lr",
}


def as_before(spec: dict[str, Any]) -> dict[str, Any]:
    """A resolved spec with the keys under which fercli 0.2 saved it."""
    stages = ("train_source", "adapt")
    return {**spec, **{name: {OLD.get(key, key): value for key, value in spec[name].items()} for name in stages}}


@pytest.mark.parametrize(("path", "name"), RENAMED.items())
def test_an_error_about_a_users_spec_names_the_new_key(path: str, name: str, tmp_path: Path) -> None:
    section, _, key = path.partition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({section: {key: 0.1}}))
    expected = f"{path}: renamed to {name} in 0.3; write {section}.{name}"
    assert told(run("train-source", "-c", str(file)), 2) == f"error: {file}: {expected}"
    assert expected in told(run("train-source", "--set", f"{path}=0.1"), 2)


def test_the_old_name_is_not_suggested_for_other_sections() -> None:
    with pytest.raises(SpecError, match=r"engine\.rate: unknown key"):
        load(None, ["engine.rate=1"])
    with pytest.raises(SpecError, match=r"train_source\.discriminator_rate: unknown key"):
        load(None, ["train_source.discriminator_rate=1"])


@pytest.mark.parametrize(
    "sweep", [{"methods": {"dann": {"rate": 1}}}, {"methods": ["dann"], "grid": {"adapt.rate": [1]}}]
)
def test_an_error_about_a_sweep_names_the_new_key_too(sweep: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"adapt\.rate: renamed to lr in 0\.3; write adapt\.lr"):
        plan(parse({"sweep": sweep}))


@pytest.fixture
def old(make_adapting) -> Bench:
    """A run whose checkpoints and saved specs have the keys of fercli 0.2."""
    bench = make_adapting("old", {"adapt.method": "source-only"})
    bench.done("adapt", "--quiet")
    for path in bench.runs.glob("*/*.ckpt"):
        state = checkpoint.load(path)
        checkpoint.save(path, {**state, "spec": as_before(state["spec"])})
    for path in bench.runs.rglob("spec.yaml"):
        path.write_text(yaml.safe_dump(as_before(yaml.safe_load(path.read_text()))))
        assert "new_rate" in path.read_text()
    return bench


def test_an_old_run_is_resumed_and_scored(old: Bench, tmp_path: Path) -> None:
    for stage, words in (("train_source", ["train-source"]), ("adapt", ["adapt"])):
        outcome = json.loads(old.done(*words, "--json").stdout)[stage]
        assert (outcome if stage == "train_source" else outcome["jaffe"])["trained_steps"] == 0
    model = find_trained(old.runs)
    assert model.spec.adapt.lr == {1: 0.005} and model.spec.train_source.head_lr_multiplier == 1
    # The way that the advice of `fercli compare` and other commands names it.
    assert run("evaluate", "-c", str(old.runs / "spec.yaml"), "--quiet").exit_code == 0
    assert "lr" in find_run(str(old.runs), tmp_path).spec_of("adapt-jaffe")["adapt"]
    exported = tmp_path / "model.safetensors"
    assert (
        run("weights", "export", str(old.runs / "adapt-jaffe/best.ckpt"), str(exported), "--format", "fercli").exit_code
        == 0
    ), exported
    assert read_model(exported)["spec"]["adapt"]["lr"] == {"1": 0.005}


def test_the_saved_spec_of_an_old_run_is_not_treated_as_a_users_file(old: Bench) -> None:
    for path in (old.runs / "source/spec.yaml", old.runs / "spec.yaml"):
        path.write_text(yaml.safe_dump(as_before(load(str(old.spec)).model_dump(mode="json"))))
        assert load(str(path)) == load(str(old.spec))
        with pytest.raises(SpecError, match="renamed to lr"):
            load(str(path), ["adapt.rate=1"])


def test_an_old_model_file_is_read() -> None:
    with safe_open(starter_file(), framework="pt") as file:
        recorded = json.loads(file.metadata()["fercli.record"])["spec"]
    assert "rate" in recorded["train_source"]  # the starter was trained with fercli 0.1
    assert find_trained("starter").spec == parse_recorded(recorded)
    assert find_trained("starter").spec.train_source.lr == {1: 0.2}
