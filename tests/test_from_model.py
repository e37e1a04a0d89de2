"""``adapt --from MODEL --target FOLDER``: any trained model and a folder of photographs. The run needs neither
afterwards.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Bench, lines, merge, run, told
from PIL import Image

from fercli.datasets import read_dataset
from fercli.engine import checkpoint
from fercli.engine.start import find_start, with_start
from fercli.engine.trained import find_trained
from fercli.expressions import EXPRESSIONS, UNLABELLED
from fercli.spec import load
from fercli.store import Store
from fercli.synthetic.render import LAB, render

#: The settings of `conftest.TINY` for adaptations, on top of the packaged spec.
SMALL = ["adapt.batch=8", "adapt.epochs=1", "engine.device=cpu", "engine.threads=1", "prepare.workers=1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen drawn people in folders whose names mean nothing, one of them twice, an image without a face, a note."""
    folder = tmp_path_factory.mktemp("in") / "my photos"
    for number in range(16):
        below = folder / ("happy" if number % 2 else "2019/summer")
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(LAB, number, number % 7, number).image).save(below / f"{number}.png")
    shutil.copy(folder / "happy/1.png", folder / "again.png")
    Image.fromarray(np.full((90, 90, 3), 128, np.uint8)).save(folder / "wall.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def small(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


def adapt(*words: object, **options: Any):
    return run("adapt", *words, **options)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_run_needs_neither_the_model_nor_the_photographs_afterwards(
    trained: Bench, pictures: Path, here: Path
) -> None:
    shutil.copytree(trained.runs / "source", "model")
    shutil.copytree(pictures, "my photos")
    result = adapt("--from", "model", "--target", "my photos/", *small())
    assert result.exit_code == 0, result.stderr
    assert "my-photos: faces found in 17 of 18 images" in result.stderr
    assert "There are only 17 faces" in result.stderr
    assert "1 of 17 faces are copies of others" in result.stderr
    run_folder = Path("runs/from-tiny-model")
    shutil.rmtree("model")
    shutil.rmtree("my photos")
    other = render(LAB, 30, 3, 30).image
    Image.fromarray(other).save("new.png")
    (answer,) = lines(run("predict", "new.png", "--run", run_folder, "--device", "cpu"))
    assert answer["faces"][0]["expression"] in EXPRESSIONS
    document = json.loads(run("evaluate", "-c", run_folder / "spec.yaml", "--report", "--json").stdout)
    folders = {entry["folder"]: entry for entry in document["entries"] if entry["dataset"] == "my-photos"}
    assert set(folders) == {"source", "adapt-my-photos"}
    assert folders["adapt-my-photos"]["drift"]["faces"] == 17
    with (run_folder / "report" / folders["adapt-my-photos"]["predictions"]).open() as file:
        assert len(list(csv.DictReader(file))) == 17
    assert (
        run("weights", "export", run_folder / "adapt-my-photos", "one.safetensors", "--format", "fercli").exit_code == 0
    )
    assert find_trained("one.safetensors").target == "my-photos"


def test_a_run_may_be_moved_and_its_photographs_may_go(trained: Bench, pictures: Path, here: Path) -> None:
    shutil.copytree(pictures, "photos")
    words = ("--from", trained.runs / "source", "--target", "photos", *small("name=mine"))
    assert adapt(*words).exit_code == 0
    before = Path("runs/mine/adapt-photos/best.ckpt").read_bytes()
    shutil.rmtree("photos")
    again = adapt(*words)
    assert again.exit_code == 0, again.stderr
    assert "photos no longer exists; its faces are in runs/mine/prepared/photos" in again.stderr
    assert Path("runs/mine/adapt-photos/best.ckpt").read_bytes() == before
    shutil.copytree("runs/mine", "elsewhere/kept")
    shutil.move("runs/mine", "runs/other")
    document = json.loads(run("evaluate", "-c", "elsewhere/kept/spec.yaml", "--json").stdout)
    assert document["files"]["results"] == "elsewhere/kept/report/results.json"
    assert {entry["checkpoint"].split("/")[0] for entry in document["entries"]} == {"elsewhere"}
    assert not Path("runs/other/report").exists()
    assert find_trained("elsewhere/kept").spec.store_path("photos") == Path("elsewhere/kept/prepared/photos")


def test_the_start_is_the_runs_source_model_weight_for_weight(trained: Bench, pictures: Path, here: Path) -> None:
    adapt("--from", trained.runs / "source", "--target", pictures, *small("name=mine"))
    given, taken = (find_trained(folder) for folder in (trained.runs / "source", Path("runs/mine/source")))
    assert taken.digest == given.digest
    assert (taken.stage, taken.state["start"]["title"]) == ("source", "source-only")
    assert taken.state["start"]["path"] == str(trained.runs / "source/best.ckpt")
    adapted = checkpoint.load(Path("runs/mine/adapt-my-photos/best.ckpt"))
    assert adapted["source_model"] == given.digest
    assert adapted["start"] == taken.state["start"]
    assert adapted["spec"]["model"] == json.loads(given.spec.model.model_dump_json())
    assert adapted["spec"]["data"]["source"] == ["raf-db"]


def test_the_starter_needs_only_images(pictures: Path, here: Path) -> None:
    result = adapt("--from", "starter", "--target", pictures, *small("adapt.steps_per_epoch=1"))
    assert result.exit_code == 0, result.stderr
    assert find_trained("runs/from-starter/source").digest == find_trained("starter").digest
    model = find_trained("runs/from-starter")
    assert (model.target, model.registered, model.spec.adapt.start) == ("my-photos", "aglrls-sf", "starter")
    assert model.spec.model == find_trained("starter").spec.model.model_copy(update={"weights": None})


def test_photographs_are_read_from_any_folder_without_labels(pictures: Path) -> None:
    listing = read_dataset("mine", "folders", pictures, labelled=False)
    assert [record.id for record in listing] == sorted(record.id for record in listing)
    assert {record.id for record in listing} >= {"again.png", "wall.png", "happy/1.png", "2019/summer/0.png"}
    assert len(listing) == 18
    assert {record.label for record in listing} == {UNLABELLED}
    assert listing.adapt_splits == listing.score_splits == ("all",)


def test_the_store_is_in_the_run_and_holds_no_label(trained: Bench, pictures: Path, here: Path) -> None:
    adapt("--from", trained.runs / "source", "--target", pictures, *small("name=mine"))
    assert not Path("prepared").exists()
    store = Store.open("runs/mine/prepared/my-photos")
    assert (store.labels == UNLABELLED).all()
    assert store.copies(np.arange(len(store.ids))) == 1  # again.png is happy/1.png
    assert store.copies(np.arange(3)) == 0


def test_a_dataset_of_the_spec_comes_before_a_folder_of_its_name(trained: Bench, pictures: Path, here: Path) -> None:
    """Its labels score the model."""
    for number in range(7):
        Path(f"mine/{EXPRESSIONS[number]}").mkdir(parents=True)
        Image.fromarray(render(LAB, number, number, 9).image).save(f"mine/{EXPRESSIONS[number]}/a.png")
    known = ("data.datasets.mine.reader=folders", "data.datasets.mine.root=mine", "name=mine")
    settings = [word for setting in known for word in ("--set", setting)]
    assert run("prepare", "-c", "source-free", "--dataset", "mine", "--no-report", "--quiet", *settings).exit_code == 0
    assert (
        adapt("--from", trained.runs / "source", "--target", "mine", "-c", "source-free", *small(*known)).exit_code == 0
    )
    document = json.loads(run("evaluate", "-c", "runs/mine/spec.yaml", "--json").stdout)
    assert {entry["scored"] for entry in document["entries"]} == {7}
    assert not Path("runs/mine/prepared").exists()


def test_more_targets_and_methods_go_into_the_same_run(trained: Bench, pictures: Path, here: Path) -> None:
    shutil.copytree(pictures, "others")
    model = ("--from", trained.runs / "source")
    assert adapt(*model, "--target", pictures, "--target", "others", *small()).exit_code == 0
    assert adapt(*model, "--target", "others", "--method", "tent", *small("adapt.tag=tent")).exit_code == 0
    folder = Path("runs/from-tiny-source")
    assert {path.name for path in folder.glob("adapt-*")} == {"adapt-my-photos", "adapt-others", "adapt-others-tent"}
    document = json.loads(run("evaluate", "-c", folder / "spec.yaml", "--json").stdout)
    assert {entry["dataset"] for entry in document["entries"]} == {"my-photos", "others"}


def test_an_adapted_start_keeps_its_decision_rule(adapted: Bench, pictures: Path, here: Path) -> None:
    assert adapt("--from", adapted.runs, "--target", pictures, *small("name=mine")).exit_code == 0
    given, taken = find_trained(adapted.runs), find_trained("runs/mine/source")
    assert taken.rule.name == given.rule.name == "glpc"
    assert torch.equal(taken.rule.status, given.rule.status)
    assert taken.rule._replace(status=None) == given.rule._replace(status=None)


def test_a_method_with_a_source_uses_the_models_own(trained: Bench, prepared: Path, pictures: Path, here: Path) -> None:
    words = ("--from", trained.runs / "source", "--target", pictures, "--method", "dann", "--quiet")
    line = told(adapt(*words, *small()), 1)
    assert "dann trains on the source too, but raf-db is not prepared in prepared" in line
    assert "--method aglrls-sf" in line
    assert adapt(*words, *small(f"paths.prepared={prepared}")).exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "told_words"),
    [
        (("--from", "nowhere", "--target", "P"), 1, ["no such run folder or checkpoint: nowhere"]),
        (("--from", "starter"), 2, ["no target", "--target"]),
        (("--from", "starter", "--target", "gone/"), 1, ["no such folder: gone/"]),
        (("--from", "starter", "--target", ""), 2, ["cannot be a dataset's name"]),
        (("--from", "starter", "--target", "gone"), 1, ["no such folder or dataset: gone"]),
        (("--from", "starter", "--target", "."), 1, ["contains the run's own images", "paths.runs"]),
        (("--from", "starter", "--target", "P", "--source", "raf-db"), 2, ["the --from model has its own source"]),
        (("--target", "P", "--set", "name=none"), 1, ["no source model at", "such as --from starter"]),
        (("--from", "starter", "--target", "sub/jaffe"), 1, ["sub/jaffe: a dataset is also called jaffe"]),
        (("--from", "starter", "--target", "empty/"), 1, ["no image in", "empty"]),
        (("--from", "starter", "--target", "walls/"), 1, ["walls: no face in 2 records"]),
        (("--from", "starter", "--target", "fer2013"), 2, ["fer2013 is a source of this run"]),
        (("--from", "starter", "--target", "P", "--set", "adapt.select=source-val"), 2, ["aglrls-sf uses no source"]),
        (("--from", "AGRA", "--target", "P"), 2, ["predicts with networks of agra"]),
        (
            ("--from", "OTHER", "--target", "P", "--set", "name=taken"),
            1,
            ["contains a different model from", "--set name=NAME"],
        ),
        (
            ("--from", "starter", "--target", "far/P", "--set", "name=taken"),
            1,
            ["the run already has faces of", "--set name=NAME"],
        ),
    ],
)
def test_impossible_starts_are_refused_in_one_line(
    words: tuple[str, ...], code: int, told_words: list[str], trained: Bench, make_adapting, pictures: Path, here: Path
) -> None:
    for name in ("sub/jaffe", "empty", "walls", "far"):
        Path(name).mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.full((90, 90, 3), 128, np.uint8)).save(f"walls/{number}.png")
    meanings: dict[str, Any] = {"P": pictures, "OTHER": trained.runs / "source"}
    if "AGRA" in words:
        bench = make_adapting("agra", {"adapt.method": "agra", "adapt.epochs": 1, "adapt.steps_per_epoch": 1})
        bench.done("adapt", "--quiet")
        meanings["AGRA"] = bench.runs
    if "name=taken" in words:
        taken = ("--from", "starter", "--target", pictures, *small("name=taken", "adapt.steps_per_epoch=1"))
        assert adapt(*taken).exit_code == 0
    if "far/P" in words:
        shutil.copytree(pictures, Path("far") / pictures.name)
        meanings["far/P"] = Path("far") / pictures.name
    before, given = set(Path().rglob("*")), [meanings.get(word, word) for word in words]
    line = told(adapt(*given, *small("adapt.steps_per_epoch=1"), "--quiet"), code)
    assert all(word in line for word in told_words), line
    left = [path for path in set(Path().rglob("*")) - before if path.is_file() and path.name != ".lock"]
    assert not left, left  # a refusal writes nothing


def test_what_a_start_brings_to_a_spec(trained: Bench) -> None:
    spec = load(None, [f"adapt.start={trained.runs / 'source'}", "prepare.size=64", "prepare.workers=3"])
    model = find_start(spec)
    with_all = with_start(spec, model)
    assert (with_all.model.backbone, with_all.model.width) == ("ir-small", 4)
    assert (with_all.prepare.size, with_all.prepare.workers) == (112, 3)
    assert with_all.data.source == ["raf-db"] and "raf-db" not in with_all.data.targets
    assert with_all.adapt == spec.adapt and with_all.paths == spec.paths


def test_a_sweep_from_a_start_trains_no_source(trained: Bench, prepared: Path, tmp_path: Path) -> None:
    """Its reference is the starting model, for every seed; no source store is needed."""
    shutil.copytree(prepared / "jaffe", tmp_path / "stores/jaffe")
    changes = {
        **{f"paths.{name}": str(tmp_path / folder) for name, folder in (("prepared", "stores"), ("runs", "runs"))},
        "adapt.start": str(trained.runs / "source"),
        "adapt.epochs": 1,
        "sweep.methods": {"shot": None, "adabn": None},
        "sweep.seeds": [0, 1],
    }
    spec = tmp_path / "sweep.yaml"
    spec.write_text(yaml.safe_dump(merge(TINY, changes)))
    document = json.loads(run("sweep", spec, "--json").stdout)
    assert document["missing"] == []
    rows = {(e["method"], e["seed"]): e["heads"]["fused"]["accuracy"] for e in document["entries"]}
    assert set(rows) == {(m, seed) for m in ("source-only", "shot", "adabn") for seed in (0, 1)}
    assert rows["source-only", 0] == rows["source-only", 1]
    assert not (tmp_path / "runs/tiny/seed-0/source/last.ckpt").exists()
    assert run("evaluate", "-c", spec, "--report", "--quiet").exit_code == 0
    assert json.loads(run("sweep", spec, "--cell", 0, "--json").stdout)["missing"] == []
    # Finished cells were made from one starting model, and do not count as cells of another.
    state = checkpoint.load(trained.runs / "source/best.ckpt")
    state["network"] = {name: tensor + 1 for name, tensor in state["network"].items()}
    (tmp_path / "other").mkdir()
    checkpoint.save(tmp_path / "other/best.ckpt", state)
    other = run("sweep", spec, "--quiet", "--set", f"adapt.start={tmp_path / 'other'}")
    assert other.exit_code == 1 and other.stderr.count("contains a different model from") == 2
