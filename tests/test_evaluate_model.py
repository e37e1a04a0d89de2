"""`fercli evaluate --model`: one trained model on prepared datasets, without a run of the spec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Bench, after_source, run, told
from exporting import evaluated, make_run, prepared_faces, spec_of
from safetensors.torch import save_file
from stores import cut

from fercli.engine.trained import find_trained
from fercli.evaluation.calibration import reliability
from fercli.evaluation.intervals import score_intervals
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.outputs import epoch_file, write_outputs
from fercli.export.weights import export
from fercli.files import LOCK
from fercli.models.model_file import read_model
from fercli.store import FORMATS, Store


@pytest.fixture
def at(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a function (words) -> the result of ``fercli evaluate`` in a separate folder, with JAFFE's store alone."""
    (tmp_path / "here/stores").mkdir(parents=True)
    (tmp_path / "here/stores/jaffe").symlink_to(prepared / "jaffe")
    monkeypatch.chdir(tmp_path / "here")
    return lambda *words: run("evaluate", "--set", "paths.prepared=stores", *words)


def document(result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)


@pytest.fixture
def with_source(tmp_path: Path, prepared: Path):
    """Give a function (words) -> the document of ``fercli evaluate`` with all stores available."""
    where = ("--set", f"paths.prepared={prepared}", "--set", f"paths.runs={tmp_path / 'other'}")
    return lambda *words: document(run("evaluate", *where, *words, "--json"))


def recut(prepared: Path, name: str, **parameters: Any) -> None:
    """Prepare JAFFE here again, as if it had been cropped differently."""
    own = {**json.loads((prepared / "jaffe/meta.json").read_text())["parameters"], **parameters}
    about = {"name": name, "parameters": own, "format": FORMATS[own["align"]]}
    cut(prepared / "jaffe", Path("stores") / name, np.arange(42), **about)


def test_the_starter_is_scored_without_a_run_and_without_its_source(at, prepared) -> None:
    results = document(at("--model", "starter", "--target", "jaffe", "--json"))
    trained, store = find_trained("starter"), Store.open(prepared / "jaffe")
    faces = prepared_faces(trained.spec.model_copy(update={"paths": spec_of(prepared).paths}), "jaffe")
    answers, _, _, heads = evaluated(trained, faces)
    (entry,) = results["entries"]
    metrics = scores(confusion(store.labels, answers.numpy()))
    assert entry["heads"]["fused"]["accuracy"] == metrics["accuracy"]
    assert entry["heads"]["fused"]["per_expression"] == metrics["per_expression"]
    assert entry["intervals"] == score_intervals(store.labels, answers.numpy(), store.subjects.tolist())
    # Without source faces the temperature stays 1, and the model's own calibration is still reported.
    found, labels = entry["calibration"], torch.from_numpy(store.labels.astype(np.int64))
    assert (found["temperature"], found["fitted_on"]) == (1.0, 0)
    assert found["before"]["ece"] == pytest.approx(found["after"]["ece"], abs=1e-6)
    assert found["before"]["nll"] == pytest.approx(reliability(heads[:, 6], labels)["nll"], abs=1e-4)
    assert results["gaps"] == [] and results["history"] == {"starter.safetensors": []}
    assert (entry["folder"], entry["role"], entry["stage"]) == ("starter.safetensors", "target", "source")
    report = Path("runs/model-starter/report")
    assert sorted(path.name for path in report.iterdir()) == [LOCK, "predictions", "results.csv", "results.json"]
    assert (report / "predictions/starter.safetensors--jaffe.csv").exists() and not Path("runs/baseline").exists()


def test_the_console_has_every_expression_and_says_what_is_left_out(at) -> None:
    result = at("--model", "starter", "--target", "jaffe", "--report")
    assert result.exit_code == 0 and "By expression" in result.stdout and "recall %" in result.stdout
    text = " ".join(result.stdout.split())
    assert "95% intervals, jackknife t over 6 subjects: acc " in text and "model-starter" in text
    assert "no temperature is fitted, and the distance between the domains is not measured" in result.stderr
    page = Path("runs/model-starter/report/report.html").read_text()
    assert "no target was evaluated together with prepared source faces" in page and "starter.safetensors" in page


@pytest.fixture(scope="module")
def made(tmp_path_factory, prepared) -> Path:
    """A run with an adapted and a source model, and a model file of the adapted one. Read only."""
    folder = tmp_path_factory.mktemp("made") / "mine"
    make_run(folder, spec_of(prepared))
    make_run(folder, spec_of(prepared), target=None)
    export(folder / "adapt-jaffe", folder / "packed.safetensors", "fercli")
    return folder


@pytest.mark.parametrize(
    ("model", "name", "folder"),
    [
        ("adapt-jaffe", "model-mine-adapt-jaffe", "adapt-jaffe"),
        ("source/best.ckpt", "model-mine-source", "source"),
        ("packed.safetensors", "model-packed", "packed.safetensors"),
        ("", "model-mine-adapt-jaffe", "adapt-jaffe"),
    ],
)
def test_any_model_is_scored_and_no_run_is_touched(model, name, folder, at, made) -> None:
    before = sorted(made.rglob("*"))
    results = document(at("--model", made / model, "--target", "jaffe", "--json"))
    (entry,) = results["entries"]
    assert (entry["folder"], results["title"]) == (folder, name)
    assert results["files"]["csv"].startswith(f"runs/{name}/")
    assert sorted(made.rglob("*")) == before and [path.name for path in Path("runs").iterdir()] == [name]


def test_with_its_source_it_is_scored_as_its_run_would_be(trained: Bench, tmp_path, with_source) -> None:
    """The numbers equal those of `fercli evaluate` for the run, whatever the current spec."""
    whole = (bench := after_source(tmp_path / "bench", trained)).json("evaluate", "--target", "jaffe")
    alone = with_source("--model", bench.runs, "--target", "jaffe", "--target", "raf-db")
    entries = {entry["dataset"]: entry for entry in alone["entries"]}
    for due in whole["entries"]:
        found = entries[due["dataset"]]
        own = ("predictions", "checkpoint", "folder", "seconds")
        assert {key: found[key] for key in found if key not in own} == {key: due[key] for key in due if key not in own}
    for key in ("gaps", "history", "failure_cases"):
        assert alone[key] == whole[key], key


def test_an_adapted_model_is_scored_on_a_dataset_other_than_its_target(made, with_source, tmp_path) -> None:
    """Its epochs' outputs on the target, whose store is not needed, are left alone."""
    folder = shutil.copytree(made / "adapt-jaffe", tmp_path / "run/adapt-jaffe")
    (folder / "outputs").mkdir()
    left = dict.fromkeys(("scored", "held"), torch.full((4, 7, 7), 1 / 7))
    write_outputs(epoch_file(folder, 1), left, {"faces": "of JAFFE"})
    results = with_source("--model", folder, "--target", "raf-db")
    assert [entry["dataset"] for entry in results["entries"]] == ["raf-db"] and results["pseudo_labels"] == {}


def test_without_target_it_scores_what_is_prepared(at) -> None:
    results = document(at("--model", "starter", "--json"))
    assert [entry["dataset"] for entry in results["entries"]] == ["jaffe"]
    every = document(at("--model", "starter", "--target", "all", "--json"))
    assert every["entries"] == results["entries"]


def test_faces_cropped_differently_are_reported(at, prepared, tmp_path) -> None:
    recut(prepared, "boxed", align="box")
    result = at("--model", "starter", "--target", "boxed", "--quiet")
    assert result.exit_code == 0 and "cropped differently from those" in result.stderr
    assert "align box, not template" in result.stderr


MISTAKES = {
    "nothing prepared": (["--set", "paths.prepared=nowhere"], 2, "no target dataset is prepared in nowhere"),
    "not prepared": (["--target", "sfew"], 1, "stores/sfew"),
    "a source": (["--source", "raf-db"], 2, "--source is not allowed here: the --model has its own source"),
    "another size": (["--target", "small"], 1, "was not prepared with the spec's settings: size 64, not 112"),
    "no such model": (["--model", "nowhere", "--target", "jaffe"], 1, "no such run folder or checkpoint: nowhere"),
    "tensors alone": (["--model", "bare.safetensors"], 1, "contains only tensors, not a whole model"),
    "a name that leads elsewhere": (["--target", "../x"], 2, "'../x' cannot be a dataset's name"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, at, prepared) -> None:
    words, code, said = MISTAKES[case]
    recut(prepared, "small", size=64)
    save_file(read_model(find_trained("starter").path)["network"], "bare.safetensors")
    result = at("--model", "starter", *words)
    assert said in told(result, code) and not Path("runs").exists()
