"""The packaged model: its files, that it predicts as recorded, and each place where the word starter names it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fercli, run, told
from exporting import make_run, spec_of
from make_starter import ANSWERS, MOST, answers_of, card_of
from PIL import Image
from safetensors.torch import load_file

from fercli import Recognizer, starter
from fercli.engine.trained import find_trained
from fercli.errors import FercliError
from fercli.models import build_network
from fercli.models.model_file import digest_of
from fercli.predict import recognizer
from fercli.spec import load, parse
from fercli.starter import CARD, FACTS, FILE, is_starter, starter_card, starter_facts, starter_file, starter_hash
from fercli.synthetic.render import STUDIO, render

LINE = "see: fercli weights inspect starter"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(render(STUDIO, 3, 3, 5).image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packaged files, used in their place, to be damaged."""
    for name in ("FILE", "CARD", "FACTS"):
        path = tmp_path / "package" / getattr(starter, name).name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(getattr(starter, name), path)
        monkeypatch.setattr(starter, name, path)
    return tmp_path / "package"


# -------------------------------------------------------------------------------------------------- the packaged files


def test_the_file_is_the_one_that_its_card_describes() -> None:
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert f"SHA-256: `{digest}`" in CARD.read_text(encoding="utf-8").splitlines()
    assert starter_file() == FILE and starter_hash() == digest and FILE.stat().st_size <= MOST


def test_the_card_is_made_of_the_facts() -> None:
    assert starter_card() == card_of(starter_facts()), "run: python tests/make_starter.py --card"
    for entry in starter_facts()["entries"]:
        assert f"{100 * entry['heads'][entry['decision']]['accuracy']:.1f}" in starter_card()


def test_its_predictions_for_procedural_faces_are_those_recorded() -> None:
    recorded, found = json.loads(ANSWERS.read_text(encoding="utf-8")), answers_of(find_trained("starter"))
    np.testing.assert_allclose(
        found["cut"], recorded["cut"], atol=1e-4, err_msg="python tests/make_starter.py --answers"
    )
    assert [[f["expression"] for f in faces] for faces in found["pictures"]] == [
        [f["expression"] for f in faces] for faces in recorded["pictures"]
    ]
    assert sum(map(len, found["pictures"])) >= 3
    for faces, due in zip(found["pictures"], recorded["pictures"], strict=True):
        for one, other in zip(faces, due, strict=True):
            # The detector's landmarks differ in the last digits between processors.
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-2)


def test_it_contains_no_path_of_the_machine_that_made_it() -> None:
    data = FILE.read_bytes()
    data = data[: 8 + int.from_bytes(data[:8], "little")] + CARD.read_bytes() + FACTS.read_bytes()
    assert not any(place in data for place in (b"/root", b"/home", b"/Users", b"/tmp", b"\\Users"))


def test_a_wheel_contains_it(tmp_path: Path) -> None:
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "__pycache__", "*.egg-info", "build", "runs", "prepared")
    shutil.copytree(FILE.parents[2], copy, ignore=ignored)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "built/fercli/starter").iterdir()} == {
        *(path.name for path in (FILE, CARD, FACTS)),
        "__init__.py",
    }


def test_checking_it_does_not_import_torch() -> None:
    code = "import sys; from fercli.starter import starter_file; starter_file(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(starter.__file__).parents[2])


def cut(folder: Path) -> None:
    path = folder / FILE.name
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / FILE.name
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")


def no_hash(folder: Path) -> None:
    (folder / CARD.name).write_text("mine")


def gone(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()

    change.__name__ = f"without_{name}"
    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "is damaged: it is not the file that CARD.md next to it describes; reinstall fercli"),
        (flip, "is damaged: it is not the file that CARD.md next to it describes; reinstall fercli"),
        (no_hash, "is damaged: it is not the file that CARD.md next to it describes; reinstall fercli"),
        (gone(FILE.name), "the starter model is incomplete: "),
        (gone(CARD.name), "the starter model is incomplete: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_installation_is_reported_in_one_line_everywhere(change, said, package, here, photo) -> None:
    change(package)
    ways = [
        ["predict", photo],
        ["predict", photo, "--run", "starter"],
        ["export", "starter"],
        ["weights", "inspect", "starter"],
        ["weights", "export", "starter", "out.ckpt", "--format", "fercli"],
        ["evaluate", "--model", "starter", "--target", "jaffe"],
    ]
    for words in ways:
        line = told(run(*words), 1)
        assert said in line and "reinstall fercli" in line and str(package) in line
    with pytest.raises(FercliError, match="reinstall fercli"):
        Recognizer.load()
    assert list(here.iterdir()) == []


# ----------------------------------------------------------------------------------------------- the word and the place


def test_a_folder_of_that_name_is_given_as_dot_slash_starter(here, prepared) -> None:
    make_run(here / "starter", spec_of(prepared))
    assert find_trained("starter").path == FILE and find_trained("starter").is_starter
    for place in ("./starter", str(here / "starter"), Path("starter")):
        found = find_trained(place)
        assert found.path.name == "best.ckpt" and not found.is_starter
    assert is_starter("starter") and not is_starter(Path("starter")) and not is_starter("./starter")
    shutil.copy(here / "starter/adapt-jaffe/best.ckpt", here / "weights.ckpt")
    shutil.rmtree(here / "starter")
    shutil.move(here / "weights.ckpt", here / "starter")
    assert parse({"model": {"weights": "starter"}}).model.weights == Path("starter")
    place = parse({"model": {"weights": "./starter"}}).model.weights
    assert place == here / "starter"
    assert parse(json.loads(load(None, ["model.weights=./starter"]).model_dump_json())).model.weights == place


def test_training_can_start_from_it(bench, here) -> None:
    spec = find_trained("starter").spec
    network = spec.model.model_copy(update={"weights": "starter"})
    mine, theirs = build_network(network).state_dict(), find_trained("starter").state["network"]
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    settings = [f"model.{key}={value}" for key, value in {**spec.model.model_dump(), "weights": "starter"}.items()]
    settings += ["train_source.steps_per_epoch=1", "train_source.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    bench.done("train-source", "--quiet", *words)
    record = find_trained(bench.runs).state["spec"]["model"]["weights"]
    assert record == "starter"
    result = bench("doctor", "--json", *words)
    (found,) = [one for one in json.loads(result.stdout)["doctor"]["findings"] if one["check"] == "weights"]
    assert found["status"] == "ok" and str(FILE) in found["found"]


def test_a_target_that_it_was_not_adapted_to_is_refused(photo) -> None:
    assert find_trained("starter", "source").path == FILE
    assert "is the source model, not a model for jaffe; leave out the target" in told(
        run("predict", photo, "--run", "starter", "--target", "jaffe"), 1
    )


# ------------------------------------------------------------------------------------------------ predict without --run


def expressions(result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [face["expression"] for line in result.stdout.splitlines() for face in json.loads(line)["faces"]]


def test_predict_works_out_of_the_box_and_one_line_names_the_model(here, photo) -> None:
    result = run("predict", photo)
    own = Recognizer.load("starter", device="cpu")(photo)
    assert expressions(result) == [face.expression for face in own] and len(own) == 1
    (line,) = [line for line in result.stderr.splitlines() if "starter" in line]
    sources = "+".join(starter_facts()["sources"])
    assert line == f"starter model (trained on {sources}; {LINE}); use --run for another model"
    assert run("predict", photo, "--quiet").stderr == ""
    assert "starter" not in run("predict", photo, "--run", "starter").stderr
    as_json = run("predict", photo, "--json", "--jsonl", here / "out.jsonl")
    assert as_json.stderr == "" and json.loads(as_json.stdout)["faces"] == 1


@pytest.mark.parametrize(
    ("words", "files", "said"),
    [
        (
            ["-c", "demo"],
            (),
            "no such run folder or checkpoint: runs/demo; train one: fercli train-source -c demo; or use the",
        ),
        (
            ["--set", "engine.device=cpu"],
            (),
            "no such run folder or checkpoint: runs/baseline; train one: fercli train-source",
        ),
        (
            [],
            ("fercli.yaml",),
            "no such run folder or checkpoint: runs/mine; train one: fercli train-source; or use the",
        ),
        (["-c", "demo"], ("runs/demo/source/last.ckpt",), "no trained model; run: fercli train-source -c demo"),
        (["--set", "name=a", "--target", "jaffe"], ("runs/a/source/x",), "no model adapted to jaffe (adapted: none)"),
    ],
)
def test_a_given_spec_means_its_own_run(words, files, said, here, photo) -> None:
    for name in files:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("name: mine\n")
    line = told(run("predict", photo, *words), 1)
    assert said in line and line.endswith("or use the model that comes with fercli: --run starter")


def test_a_run_named_baseline_comes_before_the_starter(here, photo, prepared) -> None:
    (here / "runs/baseline/source").mkdir(parents=True)  # begun, not trained
    assert LINE in run("predict", photo).stderr
    shutil.rmtree(here / "runs")
    make_run(here / "runs/baseline", spec_of(prepared))
    result = run("predict", photo)
    assert "starter" not in result.stderr
    assert expressions(result) == [face.expression for face in Recognizer.load("runs/baseline", device="cpu")(photo)]
    shutil.copytree(here / "runs/baseline/adapt-jaffe", here / "runs/baseline/adapt-ck+")
    assert "has several adapted models" in told(run("predict", photo), 1)


def test_a_fresh_process_predicts_without_lightning(here, photo) -> None:
    done = fercli("predict", photo, flags=("-X", "importtime"))
    assert done.returncode == 0 and len(json.loads(done.stdout)["faces"]) == 1
    assert "torch" in done.stderr and "lightning" not in done.stderr


# ------------------------------------------------------------------------------------------------------------ library


def test_the_library_says_once_that_the_model_is_the_default(caplog, capsys) -> None:
    recognizer._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="fercli"):
        Recognizer.load("starter", device="cpu")
        assert caplog.records == []
        for _ in range(2):
            Recognizer.load(device="cpu")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and LINE in record.getMessage() and "\n" not in record.getMessage()
    assert capsys.readouterr().out == ""


def test_a_program_without_logging_set_up_gets_the_warning_on_stderr() -> None:
    code = "from fercli import Recognizer; Recognizer.load(); Recognizer.load()"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(starter.__file__).parents[2], timeout=120)
    assert done.returncode == 0 and done.stdout == "" and done.stderr.count(LINE) == 1, done.stderr


# -------------------------------------------------------------------------------------------------- inspect and export


def test_inspect_shows_what_it_is_and_the_whole_card() -> None:
    result = run("weights", "inspect", "starter")
    assert result.exit_code == 0 and starter_card().rstrip() in result.stdout and "MFLOP per face" in result.stdout
    (found,) = json.loads(run("weights", "inspect", "starter", "--json").stdout)["weights"]
    own = found["starter"]
    assert own["sha256"] == starter_hash() and own["card"] == starter_card() and own["facts"] == starter_facts()
    assert found["parameters"] > 100_000 and 5 < found["mflop"] < 500 and found["misfits"] == []
    assert own["facts"]["entries"][0]["heads"]["fused"]["accuracy"] > 0.3
    assert "starter" not in json.loads(run("weights", "inspect", FILE, "--json").stdout)["weights"][0]


@pytest.mark.slow
def test_it_can_be_exported_without_a_store(here) -> None:
    result = run("export", "starter", "--format", "torch", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)["export"]
    assert (
        done["agreement"]["dataset"] is None and done["agreement"]["faces"] == 14 and not done["agreement"]["answers"]
    )
    text = Path(done["card"]).read_text()
    assert "fercli weights inspect starter" in text and "procedural faces in batches of" in text
    assert run("export", "starter", "--format", "torch", "--out", "b.pt2").stderr.startswith(
        "no prepared faces for this"
    )


def test_weights_export_copies_it(here) -> None:
    result = run("weights", "export", "starter", "copy.safetensors", "--format", "fercli", "--half")
    assert result.exit_code == 0
    assert digest_of(load_file("copy.safetensors")) == digest_of(load_file(FILE))
    assert find_trained("copy.safetensors").spec == find_trained("starter").spec
    assert "; use --format fercli, which stores every fercli model" in told(
        run("weights", "export", "starter", "copy.pkl"), 1
    )
