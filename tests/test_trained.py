"""Finding the model that a user names, and the errors where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Bench

from fercli.engine import checkpoint
from fercli.engine.trained import adapted_models, find_trained, source_model, unfinished
from fercli.errors import FercliError
from fercli.spec import load


def put(folder: Path, trained: Bench, **changes: object) -> Path:
    """A stage folder whose model is the trained bench's, its record changed."""
    state = checkpoint.load(trained.runs / "source/best.ckpt")
    adapt = {**state["spec"]["adapt"], "tag": changes.pop("tag", "")}
    folder.mkdir(parents=True)
    checkpoint.save(folder / "best.ckpt", {**state, "spec": {**state["spec"], "adapt": adapt}, **changes})
    return folder


def adapted(folder: Path, trained: Bench, target: str, tag: str = "") -> Path:
    name = f"adapt-{target}" + (f"-{tag}" if tag else "")
    return put(folder / name, trained, stage="adapt", target=target, method_name="aglrls", tag=tag)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, trained: Bench) -> Path:
    """Run folders: with only the source model, with one adaptation, with several, and empty."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("source-only", "one", "several", "unfinished"):
        shutil.copytree(trained.runs / "source", folder / name / "source")
    adapted(folder / "one", trained, "jaffe")
    adapted(folder / "several", trained, "jaffe")
    adapted(folder / "several", trained, "jaffe", "no-glpc")
    adapted(folder / "several", trained, "ck+")
    adapted(folder / "adapted-only", trained, "jaffe")
    (folder / "unfinished/adapt-jaffe").mkdir()
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("run", "target", "found"),
    [
        ("source-only", None, "source-only/source"),
        ("source-only", "source", "source-only/source"),
        ("one", None, "one/adapt-jaffe"),
        ("one", "jaffe", "one/adapt-jaffe"),
        ("one", "source", "one/source"),
        ("several", "ck+", "several/adapt-ck+"),
        ("several", "adapt-jaffe-no-glpc", "several/adapt-jaffe-no-glpc"),
        ("several", "source", "several/source"),
        ("several/source", None, "several/source"),
        ("several/source", "source", "several/source"),
        ("several/adapt-ck+", None, "several/adapt-ck+"),
        ("several/adapt-ck+", "ck+", "several/adapt-ck+"),
        ("several/adapt-ck+/best.ckpt", None, "several/adapt-ck+"),
        ("one/source/last.ckpt", None, "one/source"),
        ("adapted-only", None, "adapted-only/adapt-jaffe"),
        ("unfinished", None, "unfinished/source"),
    ],
)
def test_the_model_that_the_user_names(run: str, target: str | None, found: str, runs: Path) -> None:
    model = find_trained(runs / run, target)
    assert model.folder == runs / found
    assert model.path.name == (run.rsplit("/", 1)[-1] if run.endswith(".ckpt") else "best.ckpt")
    assert find_trained(str(runs / run), target).path == model.path


@pytest.mark.parametrize(
    ("run", "target", "told"),
    [
        ("nowhere", None, "no such run folder or checkpoint"),
        ("empty", None, "contains no trained model; run: fercli train-source"),
        ("empty", "source", "no source model in"),
        ("empty", "jaffe", "no model adapted to jaffe (adapted: none); run: fercli adapt --target jaffe"),
        ("adapted-only", "source", "no source model in"),
        ("one", "ck+", "no model adapted to ck+ (adapted: adapt-jaffe); run: fercli adapt --target ck+"),
        ("several", None, "several adapted models (adapt-ck+, adapt-jaffe, adapt-jaffe-no-glpc); name one: "),
        ("several/adapt-ck+", "jaffe", "is adapted to ck+, not a model for jaffe"),
        ("several/source", "jaffe", "is the source model, not a model for jaffe"),
        ("unfinished/adapt-jaffe", None, "contains no trained model"),
    ],
)
def test_mistakes_are_one_line(run: str, target: str | None, told: str, runs: Path) -> None:
    with pytest.raises(FercliError) as failure:
        find_trained(runs / run, target)
    assert told in str(failure.value)
    assert "\n" not in str(failure.value)


def test_two_adaptations_to_one_target_are_distinguished_by_folder(runs: Path) -> None:
    with pytest.raises(FercliError) as failure:
        find_trained(runs / "several", "jaffe")
    told = str(failure.value)
    assert "several models adapted to jaffe (adapt-jaffe, adapt-jaffe-no-glpc); name one: " in told
    assert find_trained(told.rsplit("name one: ", 1)[1]).target == "jaffe"  # the advice works


def test_a_model_describes_itself(runs: Path) -> None:
    source = find_trained(runs / "several", "source")
    assert (source.stage, source.target, source.method, source.registered) == (
        "source",
        None,
        "source-only",
        "source-only",
    )
    tagged = find_trained(runs / "several", "adapt-jaffe-no-glpc")
    assert (tagged.stage, tagged.target, tagged.method) == ("adapt", "jaffe", "aglrls (no-glpc)")
    assert (tagged.registered, tagged.spec.adapt.tag) == ("aglrls", "no-glpc")
    network = source.network(torch.device("cpu"))
    assert not network.training
    weights = network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in source.state["network"].items())
    assert source.output_transform(torch.device("cpu")) is None


# Files that are not checkpoints, or hold other models


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def take(*names: str):
    def change(path: Path) -> None:
        state = checkpoint.load(path)
        torch.save({key: value for key, value in state.items() if key not in names}, path)

    return change


def plain_weights(path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(7, 512)}}, path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damage, "is truncated or damaged; train that stage again with --restart"),
        (plain_weights, "is not a fercli checkpoint"),
        (take("stage"), "is not a model of train-source or adapt (missing: stage)"),
        (take("best", "status"), "is not a model of train-source or adapt (missing: best, status)"),
    ],
)
def test_a_file_that_is_not_a_model(change, told: str, trained: Bench, tmp_path: Path) -> None:
    folder = adapted(tmp_path / "run", trained, "jaffe")
    change(folder / "best.ckpt")
    for run in (tmp_path / "run", folder, folder / "best.ckpt"):
        with pytest.raises(FercliError) as failure:
            find_trained(run)
        assert told in str(failure.value)
        assert str(folder / "best.ckpt") in str(failure.value)


def test_weights_of_another_network_are_reported(trained: Bench, tmp_path: Path) -> None:
    folder = adapted(tmp_path / "run", trained, "jaffe")
    state = checkpoint.load(folder / "best.ckpt")
    network = {**state["network"], "global_head.conv.bias": torch.zeros(3)}
    checkpoint.save(folder / "best.ckpt", {**state, "network": network})
    with pytest.raises(FercliError, match="do not fit the network that its spec describes"):
        find_trained(folder).network(torch.device("cpu"))


def test_models_of_a_run_by_its_spec(trained: Bench, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", trained.prepared)
    spec = load(str(bench.spec))
    with pytest.raises(FercliError, match="no source model in"):
        source_model(spec)
    assert (adapted_models(spec), unfinished(spec)) == ([], [])
    shutil.copytree(trained.runs / "source", bench.runs / "source")
    adapted(bench.runs, trained, "jaffe")
    (bench.runs / "adapt-ck+").mkdir()
    (bench.runs / "adapt-notes.txt").write_text("of mine")
    assert source_model(spec).folder == bench.runs / "source"
    assert [model.target for model in adapted_models(spec)] == ["jaffe"]
    assert unfinished(spec) == [bench.runs / "adapt-ck+"]
    shutil.copy(bench.runs / "source/best.ckpt", bench.runs / "adapt-ck+")
    with pytest.raises(FercliError, match="is not an adapted model"):
        adapted_models(spec)
    shutil.copy(bench.runs / "adapt-jaffe/best.ckpt", bench.runs / "source")
    with pytest.raises(FercliError, match="is an adapted model, not a source model"):
        source_model(spec)
