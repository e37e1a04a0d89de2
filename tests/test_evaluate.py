"""`fercli evaluate`: the results document against plain computation, and runs that are damaged."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Bench, merge, told, warned
from stores import with_labels
from trained_runs import answers, headline
from trees import write

from fercli.engine import checkpoint
from fercli.engine.data import open_store, source_faces, view_settings
from fercli.engine.predict import predict
from fercli.engine.trained import adapted_models, source_model
from fercli.evaluation.calibration import calibration
from fercli.evaluation.domain_gap import energy_distance
from fercli.evaluation.intervals import score_intervals
from fercli.evaluation.outputs import EpochOutputs, epoch_file, read_outputs, rounded, watched_fused, write_outputs
from fercli.evaluation.pseudo_labels import pseudo_label_counts
from fercli.loading.face_dataset import FaceDataset
from fercli.scoring.evaluate import evaluate, record_of
from fercli.scoring.explain import grad_cam
from fercli.scoring.results import Results, scored_part
from fercli.scoring.trained_evaluator import GAP_FACES, MAPPED_FACES, TrainedEvaluator, _subsampled
from fercli.spec import load
from fercli.store import Store

CPU = torch.device("cpu")
FUSED = 6


@pytest.fixture(scope="module")
def results(adapted: Bench) -> dict[str, Any]:
    return adapted.json("evaluate")


@pytest.fixture
def copy(adapted: Bench, tmp_path: Path) -> Callable[..., Bench]:
    """Give a function (prepared) -> a separate bench with both models."""

    def make(prepared: Path | None = None) -> Bench:
        bench = Bench(tmp_path / "copy", prepared or adapted.prepared)
        shutil.copytree(adapted.runs, bench.runs, ignore=shutil.ignore_patterns("report"))
        return bench

    return make


def seen_by(bench: Bench, entry: dict[str, Any]) -> tuple[Any, Any, np.ndarray]:
    """An entry's model outputs on its dataset and on the held-out source faces, computed again, with the labels."""
    spec = load(str(bench.spec))
    models = {model.folder.name: model for model in (source_model(spec), *adapted_models(spec))}
    network, store = models[entry["folder"]].network(CPU), open_store(spec, entry["dataset"])
    source, settings = source_faces(spec, CPU), view_settings(spec)
    indices = store.indices(store.score_splits)
    seen = predict(network, FaceDataset([store], [indices], CPU, False), settings, 32)
    held = predict(network, source.held, settings, 32)._replace(labels=torch.from_numpy(source.held_labels))
    return seen, held, store.labels[indices]


# The document


def test_the_document_has_all_its_parts(results: dict[str, Any], adapted: Bench) -> None:
    assert (results["schema"], results["kind"]) == (5, "run")
    folders = [entry["folder"] for entry in results["entries"]]
    assert folders == ["source", "source", "adapt-jaffe"]
    assert [row["folder"] for row in headline(results)] == ["source", "adapt-jaffe", "adapt-jaffe"]
    assert json.loads((adapted.runs / "report/results.json").read_text())["entries"] == results["entries"]
    files = results["files"]
    assert set(files) == {"results", "csv", "predictions"}
    assert all(Path(path).exists() for path in files.values())


def test_intervals_are_of_the_decision_by_subjects(results: dict[str, Any], adapted: Bench) -> None:
    store = Store.open(adapted.prepared / "jaffe")
    for row in headline(results)[1:]:
        answered = np.array(answers(adapted.runs / "adapt-jaffe", row["epoch"]))
        assert row["intervals"] == score_intervals(store.labels, answered, store.subjects.tolist())
        assert (row["intervals"]["by"], row["intervals"]["method"]) == ("subjects", "jackknife t")
        assert row["intervals"]["accuracy"][0] <= row["accuracy"] <= row["intervals"]["accuracy"][1]
    by_images = results["entries"][0]["intervals"]  # RAF-DB names no subjects
    assert (by_images["by"], by_images["units"], by_images["method"]) == ("images", 42, "bootstrap")


def test_the_adapted_model_is_tested_against_source_only_subject_by_subject(results, adapted: Bench) -> None:
    store = Store.open(adapted.prepared / "jaffe")
    home, reference, entry = results["entries"]
    files = [adapted.runs / "report" / one["predictions"] for one in (reference, entry)]
    rows = zip(*(csv.DictReader(file.read_text().splitlines()) for file in files), strict=True)
    gains: dict[str, int] = {}
    for a, b in rows:
        gains[b["subject"]] = gains.get(b["subject"], 0) + (b["answer"] == b["label"]) - (a["answer"] == a["label"])
    own = list(gains.values())
    sums = [abs(sum(np.multiply(signs, own))) for signs in itertools.product((1, -1), repeat=len(own))]
    against = entry["against_reference"]
    assert against["test"]["p"] == sum(one >= abs(sum(own)) for one in sums) / len(sums)
    assert (against["test"]["name"], against["test"]["units"]) == ("sign-flip", len(set(store.subjects)))
    assert (against["folder"], against["fixed"] - against["broken"]) == ("source", sum(own))
    assert home["against_reference"] is reference["against_reference"] is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_temperature_is_fitted_on_held_out_source_faces(number: int, results, adapted: Bench) -> None:
    entry = results["entries"][number]
    seen, held, labels = seen_by(adapted, entry)
    fused, held_fused = (rounded(one.probabilities)[:, FUSED] for one in (seen, held))
    expected = calibration(fused, torch.from_numpy(labels), held_fused, held.labels)
    found = entry["calibration"]
    assert found["fitted_on"] == len(held.labels) > 0
    assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-4)
    for when in ("before", "after"):
        assert found[when]["nll"] == pytest.approx(expected[when]["nll"], rel=1e-4)
        assert sum(each["count"] for each in found[when]["bins"]) == len(labels)


def test_the_gap_is_between_faces_not_used_in_training(results: dict[str, Any], adapted: Bench) -> None:
    (gap,) = results["gaps"]
    assert (gap["target"], gap["source"], gap["source_splits"]) == ("jaffe", "raf-db", ["test"])
    assert [model["folder"] for model in gap["models"]] == ["source", "adapt-jaffe"]
    spec = load(str(adapted.spec))
    store = open_store(spec, "raf-db")
    unseen = FaceDataset([store], [store.indices(["test"])], CPU, False)
    for model, entry in zip(gap["models"], results["entries"][1:], strict=True):
        assert model["embedding"] is None  # maps are made only for the report
        seen, _, labels = seen_by(adapted, entry)
        own = source_model(spec) if model["folder"] == "source" else adapted_models(spec)[0]
        ours = predict(own.network(CPU), unseen, view_settings(spec), 32).features.flatten(1)
        expected = energy_distance(ours.numpy(), seen.features.flatten(1).numpy())
        assert model["faces"] == [len(unseen), len(labels)] == [42, 42]
        for name in ("energy_distance", "no_gap"):
            assert model[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-4)


def test_outputs_with_other_source_faces_are_computed_again(adapted: Bench, tmp_path: Path) -> None:
    """A store with a different test split has other faces to compare, although no face has changed."""
    evaluator, model, scored, outputs = evaluated(adapted, tmp_path)
    assert len(outputs["source_features"]) == 42
    path = tmp_path / "outputs/dataset-jaffe.safetensors"
    before = path.read_bytes()
    evaluator.outputs(model, scored.store, tmp_path)
    assert path.read_bytes() == before
    spec = load(str(adapted.spec))
    source = open_store(spec, "raf-db")
    source.score_splits = source.adapt_splits
    again = TrainedEvaluator(spec, [source])
    assert again.source_splits == ["held out of training"]
    assert len(again.outputs(model, scored.store, tmp_path)["source_features"]) == len(again.held_labels)


def counted(bench: Bench, labels: np.ndarray) -> list[dict[str, Any]]:
    return pseudo_label_counts(watched_fused(EpochOutputs(bench.runs / "adapt-jaffe")), labels, 0.95)


def test_pseudo_labels_come_from_the_epochs_outputs(results: dict[str, Any], adapted: Bench) -> None:
    (found,) = results["pseudo_labels"].values()
    labels = Store.open(adapted.prepared / "jaffe").labels
    assert list(results["pseudo_labels"]) == ["adapt-jaffe"]
    assert (found["target"], found["faces"], found["labelled"]) == ("jaffe", 42, 42)
    assert found["epochs"] == counted(adapted, labels)
    assert [line["epoch"] for line in found["epochs"]] == [1, 2]


def test_pseudo_labels_of_fewer_faces_have_their_own_labels(make_adapting) -> None:
    bench = make_adapting("fewer", {"adapt.select_images": 10, "adapt.epochs": 1})
    bench.done("adapt", "--quiet")
    # A later change has no effect: what counts is what the adaptation watched.
    (found,) = bench.json("evaluate", "--set", "adapt.select_images=20")["pseudo_labels"].values()
    labels = Store.open(bench.prepared / "jaffe").labels[np.linspace(0, 41, 10).round().astype(int)]
    assert (found["faces"], found["labelled"]) == (10, 10)
    assert found["epochs"] == counted(bench, labels)


def test_failure_cases_are_of_the_adapted_model(results: dict[str, Any]) -> None:
    assert {(one["folder"], one["dataset"]) for one in results["failure_cases"]} == {("adapt-jaffe", "jaffe")}
    assert [one["kind"] for one in results["failure_cases"]] == ["mistakes", "uncertain"]
    wrong = round((1 - results["entries"][2]["heads"]["glpc"]["accuracy"]) * 42)
    mistakes, uncertain = (one["faces"] for one in results["failure_cases"])
    assert (len(mistakes), len(uncertain)) == (min(12, wrong), 12)


def test_failure_cases_are_of_the_source_model_where_nothing_is_adapted(make_adapting) -> None:
    found = make_adapting("early").json("evaluate")
    assert {(one["folder"], one["dataset"]) for one in found["failure_cases"]} == {("source", "jaffe")}
    assert found["pseudo_labels"] == {}
    assert [model["folder"] for model in found["gaps"][0]["models"]] == ["source"]


# Parts made for the report


def evaluated(bench: Bench, folder: Path) -> tuple[Any, Any, Results, dict[str, torch.Tensor]]:
    """An evaluator, the adapted model, its results on JAFFE and its outputs."""
    spec = load(str(bench.spec))
    (model,), store = adapted_models(spec), open_store(spec, "jaffe")
    evaluator = TrainedEvaluator(spec, [open_store(spec, "raf-db")])
    outputs = evaluator.outputs(model, store, folder)
    part, held = scored_part(spec, store, False), (outputs["held"], evaluator.held_labels)
    return evaluator, model, Results(record_of(model), store, False, part, outputs["scored"], *held), outputs


def test_pictures_show_the_face_and_its_heat_map(adapted: Bench, tmp_path: Path) -> None:
    evaluator, model, scored, _ = evaluated(adapted, tmp_path)
    pictures = evaluator.pictures(model, scored, {30, 4})
    assert list(pictures) == [("adapt-jaffe", "jaffe", 4), ("adapt-jaffe", "jaffe", 30)]
    assert evaluator.pictures(model, scored, []) == {}
    settings = view_settings(model.spec)
    view = FaceDataset([scored.store], [np.array([4, 30])], CPU, False).plain(np.arange(2), settings)
    heat = grad_cam(model.network(CPU), view.inputs, torch.from_numpy(scored.answers[[4, 30]]))
    for picture, expected in zip(pictures.values(), heat, strict=True):
        np.testing.assert_allclose(picture.heat, expected, atol=1e-5)
        assert picture.face.shape == (settings.size, settings.size, 3)


@pytest.mark.parametrize("method", ["aglrls", "agra"])
def test_the_map_has_one_point_and_label_per_face(method: str, make_adapting, tmp_path: Path) -> None:
    bench = make_adapting("map", {"adapt.method": method, "adapt.epochs": 1, "adapt.options": {}})
    bench.done("adapt", "--quiet")
    evaluator, model, scored, outputs = evaluated(bench, tmp_path)
    gap = evaluator.gap(scored, outputs, mapped=True)
    drawn, count = gap["embedding"], sum(gap["faces"])
    assert all(len(drawn[key]) == count for key in ("x", "y", "domain", "label"))
    source, settings = open_store(model.spec, "raf-db"), view_settings(model.spec)
    unseen = source.labels[source.indices(["test"])]
    assert drawn["label"] == [*unseen.tolist(), *scored.labels.tolist()]
    assert drawn["domain"] == [0] * len(unseen) + [1] * len(scored.labels)
    # The network's own features, even with AGRA, which transforms them before it predicts.
    faces = FaceDataset([scored.store], [scored.part.indices], CPU, False)
    plain = predict(model.network(CPU), faces, settings, 32)
    torch.testing.assert_close(outputs["features"], plain.features.flatten(1), rtol=1e-4, atol=1e-5)
    transformed = predict(model.network(CPU), faces, settings, 32, model.output_transform(CPU))
    torch.testing.assert_close(scored.probabilities, rounded(transformed.probabilities), rtol=2e-2, atol=1e-3)


def test_with_the_report_the_same_numbers_and_a_map(copy, results: dict[str, Any]) -> None:
    bench = copy()
    found = bench.json("evaluate", "--report")
    assert Path(found["files"]["report"]) == bench.runs / "report/report.html"
    assert (bench.runs / "report/report.html").stat().st_size > 10_000
    for one, other in zip(found["gaps"][0]["models"], results["gaps"][0]["models"], strict=True):
        assert len(one["embedding"]["label"]) == sum(one["faces"])
        assert {**one, "embedding": None} == other
    for key in ("pseudo_labels", "failure_cases"):
        assert found[key] == results[key], key


def test_faces_are_sampled_evenly_from_all_sources() -> None:
    parts = [np.arange(0, 3000, 2), np.arange(500), np.arange(0)]
    kept = _subsampled(parts, GAP_FACES)
    assert [len(part) for part in kept] == [750, 250, 0]
    assert all(np.isin(one, part).all() for one, part in zip(kept, parts, strict=True))
    assert _subsampled([np.arange(5), np.arange(3)], GAP_FACES)[1].tolist() == [0, 1, 2]
    assert MAPPED_FACES < GAP_FACES


# Targets without labels


def test_a_target_without_labels_keeps_all_that_needs_no_labels(copy, prepared: Path, tmp_path: Path, results) -> None:
    bench = copy(with_labels(prepared, tmp_path / "blank", lambda labels: np.full_like(labels, -1)))
    found = bench.json("evaluate")
    source, *targets = found["entries"]
    assert all(source["heads"].values())
    for entry, labelled in zip(targets, results["entries"][1:], strict=True):
        assert (entry["expected"], entry["found"], entry["scored"]) == (42, 42, 0)
        assert not any(entry["heads"].values())
        assert (entry["intervals"], entry["calibration"], entry["oracle"]) == (None, None, None)
        assert {epoch["accuracy"] for epoch in entry["rules"].values()} <= {None}
        stages, before = entry["stages"], labelled["stages"]
        if stages is not None:
            assert stages == {name: {"count": stage["count"], "correct": None} for name, stage in before.items()}
    assert found["gaps"] == results["gaps"]
    (pseudo,) = found["pseudo_labels"].values()
    (labelled,) = results["pseudo_labels"].values()
    assert pseudo["labelled"] == 0
    assert [line["counts"] for line in pseudo["epochs"]] == [line["counts"] for line in labelled["epochs"]]
    assert {line["correct"] for line in pseudo["epochs"]} == {None}
    (uncertain,) = found["failure_cases"]
    before = next(one for one in results["failure_cases"] if one["kind"] == "uncertain")
    assert uncertain["faces"] == [{**face, "label": None} for face in before["faces"]]
    assert len((bench.runs / "report/predictions/adapt-jaffe--jaffe.csv").read_text().splitlines()) == 43


def test_a_target_with_some_labels_is_scored_on_those(copy, prepared: Path, tmp_path: Path) -> None:
    stores = with_labels(prepared, tmp_path / "some", lambda labels: np.where(np.arange(42) % 2, -1, labels))
    found = copy(stores).json("evaluate")
    entry = found["entries"][2]
    assert (entry["expected"], entry["found"], entry["scored"]) == (42, 42, 21)
    assert sum(each["count"] for each in entry["calibration"]["before"]["bins"]) == 21
    assert sum(stage["count"] for stage in entry["stages"].values()) == 21
    assert found["pseudo_labels"]["adapt-jaffe"]["labelled"] == 21
    mistakes, uncertain = found["failure_cases"]
    assert all(face["position"] % 2 == 0 for face in mistakes["faces"])
    assert {face["label"] is None for face in uncertain["faces"]} == {True, False}


# Damaged runs: what is done to the folder, and the resulting message

SOURCE, ADAPTED = "source/best.ckpt", "adapt-jaffe/best.ckpt"
FOREIGN = {"fc.weight": torch.zeros(7, 512)}


def rewritten(path: Path, key: str, change: Callable[[Any], Any]) -> None:
    """Rewrite a checkpoint with another value for an entry."""
    state = checkpoint.load(path)
    checkpoint.save(path, {**state, key: change(state[key])})


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no source model": (lambda runs: (runs / SOURCE).unlink(), "no source model in"),
    "a damaged model": (
        lambda runs: (runs / ADAPTED).write_bytes((runs / ADAPTED).read_bytes()[:1000]),
        "adapt-jaffe/best.ckpt is truncated or damaged; train that stage again",
    ),
    "the source model in its place": (
        lambda runs: shutil.copy(runs / SOURCE, runs / ADAPTED),
        "adapt-jaffe/best.ckpt is not an adapted model",
    ),
    "an adapted model in the source's": (
        lambda runs: shutil.copy(runs / ADAPTED, runs / SOURCE),
        "source/best.ckpt is an adapted model, not a source model",
    ),
    "another architecture": (
        lambda runs: rewritten(runs / ADAPTED, "spec", lambda spec: merge(spec, {"model.backbone": "ir18"})),
        "has another architecture (model.backbone ir18 -> ir-small)",
    ),
    "other weights": (
        lambda runs: rewritten(runs / ADAPTED, "network", lambda _: FOREIGN),
        "do not fit the network that its spec describes",
    ),
    "no checkpoint of ours": (
        lambda runs: torch.save({"state_dict": FOREIGN}, runs / ADAPTED),
        "adapt-jaffe/best.ckpt is not a fercli checkpoint",
    ),
    "a file for the report": (lambda runs: write(runs, "report"), "cannot write the report to"),
    "a file for the predictions": (lambda runs: write(runs, "report/predictions"), "cannot write the report to"),
    "a folder for the results": (lambda runs: write(runs, "report/results.json/x"), "cannot write the report to"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_run_that_cannot_be_scored_is_one_line(case: str, copy) -> None:
    bench, (spoil, text) = copy(), SPOILT[case]
    spoil(bench.runs)
    line = told(bench("evaluate"))
    assert text in line
    assert str(bench.runs) in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_report_folder_without_write_permission_is_one_line(copy) -> None:
    bench = copy()
    (bench.runs / "report").mkdir(mode=0o500)
    assert "cannot write the report to" in told(bench("evaluate"))


def test_an_adaptation_without_a_model_is_left_out_and_reported(copy) -> None:
    bench = copy()
    shutil.copytree(bench.runs / "adapt-jaffe", bench.runs / "adapt-jaffe-begun")
    (bench.runs / "adapt-jaffe-begun/best.ckpt").unlink()
    result = bench.done("evaluate", "--quiet")
    (line,) = warned(result)
    assert "adapt-jaffe-begun has no model (best.ckpt) and is left out" in line
    assert "fercli adapt" in line
    found = json.loads((bench.runs / "report/results.json").read_text())
    assert {entry["folder"] for entry in found["entries"]} == {"source", "adapt-jaffe"}


def test_runs_of_older_versions_leave_pseudo_labels_out(copy) -> None:
    bench = copy()
    shutil.rmtree(bench.runs / "adapt-jaffe/outputs")
    assert bench.json("evaluate")["pseudo_labels"] == {}


def test_outputs_of_other_faces_are_counted_without_their_labels(copy) -> None:
    bench = copy()
    folder = bench.runs / "adapt-jaffe"
    for path in EpochOutputs(folder).paths.values():
        found, _ = read_outputs(path)
        write_outputs(path, {**found, "scored": found["scored"][:40]}, {"faces": "others"})
    results = bench.json("evaluate")
    (found,) = results["pseudo_labels"].values()
    assert (found["faces"], found["labelled"], found["epochs"][0]["correct"]) == (40, 0, None)
    assert results["entries"][2]["oracle"] is None and results["entries"][2]["rules"] == {}


def test_epochs_that_may_have_been_pruned_are_not_missed(copy) -> None:
    bench = copy()
    folder = bench.runs / "adapt-jaffe"
    other = 3 - checkpoint.load(folder / "best.ckpt")["best"]["epoch"]
    epoch_file(folder, other).unlink()
    assert "is missing; train that stage again" in bench.done("evaluate", "--quiet").stderr
    assert warned(bench.done("evaluate", "--quiet", "--set", "engine.keep_outputs=1")) == []


# Other rules for the same run


def test_another_decision_rule_uses_the_outputs_and_runs_no_network(copy, results, monkeypatch) -> None:
    bench = copy()
    monkeypatch.setattr("fercli.scoring.trained_evaluator.predict", pytest.fail)
    plain = results["entries"][2]
    for rule in ("fused", "nose", "global+fused"):
        entry = bench.json("evaluate", "--decision", rule)["entries"][2]
        assert (entry["decision"], entry["heads"]) == (rule, plain["heads"])
        assert entry["stages"] is None
    entry = bench.json("evaluate", "--decision", "glpc:0.3")["entries"][2]
    assert set(entry["heads"]) == {*plain["heads"], "glpc:0.3"}
    assert sum(stage["count"] for stage in entry["stages"].values()) == 42
    assert "'best' is not a decision rule" in told(bench("evaluate", "--decision", "best"), 2)


def test_another_selection_rule_uses_the_outputs(copy, results) -> None:
    bench = copy()
    folder = bench.runs / "adapt-jaffe"
    labels = Store.open(bench.prepared / "jaffe").labels
    for rule, at in results["entries"][2]["rules"].items():
        document = bench.json("evaluate", "--select", rule)
        source, _, entry = document["entries"]
        assert (entry["selection"], entry["epoch"]) == (rule, at["epoch"])
        accuracy = np.mean(labels == answers(folder, at["epoch"]))
        assert entry["heads"][entry["decision"]]["accuracy"] == at["accuracy"] == pytest.approx(accuracy)
        assert source["selection"] == results["entries"][0]["selection"]
        # Features are stored only for the chosen epoch.
        as_trained = at["epoch"] == results["entries"][2]["epoch"]
        assert len(document["gaps"][0]["models"]) == (2 if as_trained else 1)
    assert "has no score for dev; adapt again" in told(bench("evaluate", "--select", "dev"))
    assert "no such selection rule; choose one of last, source-val" in told(bench("evaluate", "--select", "best"), 2)


# Sources


def test_a_source_without_a_test_split_is_scored_on_held_out_faces(copy, prepared: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / "jaffe").symlink_to(prepared / "jaffe")
    shutil.copytree(prepared / "raf-db", stores / "raf-db")
    meta = json.loads((stores / "raf-db/meta.json").read_text())
    (stores / "raf-db/meta.json").write_text(json.dumps({**meta, "score_splits": meta["adapt_splits"]}))
    bench = copy(stores)
    document = bench.json("evaluate")
    entry, (gap,) = document["entries"][0], document["gaps"]
    assert entry["splits"] == gap["source_splits"] == ["held out of training"]
    assert gap["models"][0]["faces"] == [entry["found"], 42]
    assert entry["found"] == entry["calibration"]["fitted_on"]
    assert entry["calibration"]["after"]["nll"] <= entry["calibration"]["before"]["nll"] + 1e-6


def test_the_library_call_returns_what_the_command_prints(adapted: Bench, results: dict[str, Any]) -> None:
    found, files = evaluate(load(str(adapted.spec)), ["jaffe"])
    for key in ("entries", "gaps", "pseudo_labels", "failure_cases"):
        assert found[key] == results[key], key
    assert {kind: str(path) for kind, path in files.items()} == results["files"]
