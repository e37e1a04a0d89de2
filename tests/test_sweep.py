"""Sweeps: the planned cells, the files written, resuming after any stop, and results that equal `fercli evaluate`'s."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import EPOCHS, STEPS, TINY, Bench, merge, run, told
from loops import ensemble_agreement
from stores import with_labels
from trained_runs import answers, assert_same_run, assert_same_sweep, figures, results, stages

from fercli.engine import checkpoint
from fercli.engine.log import read_metrics
from fercli.evaluation.drift import drift
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.outputs import EpochOutputs, epoch_file, read_outputs, watched_fused
from fercli.files import LOCK
from fercli.loading.batches import Batches
from fercli.scoring.results_files import RESULT_COLUMNS, result_rows
from fercli.spec import parse
from fercli.spreadsheet import write_csv
from fercli.sweep.aggregate import gather
from fercli.sweep.plan import Cell, plan
from fercli.sweep.run import sweep

#: Two methods, one of them under its own label.
METHODS = {"dann": None, "no-adv": {"method": "aglrls", "options": {"adversarial": False, "threshold": 0.3}}}
SWEEP = {"sweep.methods": METHODS, "sweep.seeds": [0, 1], "adapt.also_score": "dev"}
CELLS = [(seed, method) for seed in (0, 1) for method in ("source-only", "dann", "no-adv")]
STAGES = [f"seed-{seed}/{stage}" for seed in (0, 1) for stage in ("adapt-jaffe-dann", "adapt-jaffe-no-adv", "source")]


def planned(section: dict[str, Any], **changes: Any) -> list[Cell]:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return plan(parse(merge(TINY, {"sweep": {"seeds": [0], **section}, **changes})))


def cells_of(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(row["seed"], row["method"]) for row in rows]


def swept_by(bench: Bench, *arguments: str):
    return run("sweep", str(bench.spec), *arguments)


def done(bench: Bench, *arguments: str) -> dict[str, Any]:
    """Run a sweep that must succeed and return its document."""
    result = swept_by(bench, "--quiet", *arguments)
    assert result.exit_code == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")
    return results(bench)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Bench:
    """A finished sweep, run by one process without a stop. Read only: get a copy with `again`."""
    bench = Bench(tmp_path_factory.mktemp("swept"), prepared, SWEEP)
    done(bench)
    return bench


@pytest.fixture
def again(tmp_path: Path, swept: Bench):
    """A function (name, changes, prepared, parts) -> a bench with these parts of the finished sweep."""

    def make(
        name: str = "again",
        changes: dict[str, Any] | None = None,
        prepared: Path | None = None,
        parts: tuple[str, ...] = tuple(STAGES),
    ) -> Bench:
        bench = Bench(tmp_path / name, prepared or swept.prepared, {**SWEEP, **(changes or {})})
        for part in parts:
            shutil.copytree(swept.runs / part, bench.runs / part)
        return bench

    return make


# Planned cells


def test_cells_are_targets_by_methods_by_seeds_including_source_only() -> None:
    cells = planned({"methods": ["dann", "mcd"], "targets": ["jaffe", "ck+"], "seeds": [3, 0]})
    assert [(c.seed, c.method, c.target) for c in cells] == [
        (seed, method, target)
        for seed in (3, 0)
        for method in ("source-only", "dann", "mcd")
        for target in ("jaffe", "ck+")
    ]
    assert all(cell.spec.engine.seed == cell.seed and cell.keys == {} for cell in cells)
    assert all(cell.spec.adapt.method == cell.spec.adapt.tag == cell.method for cell in cells)
    assert all(cell.spec.sweep is None for cell in cells)
    last = cells[-1]
    assert last.spec.run_folder == Path("runs/tiny/seed-0")
    assert last.spec.adapt_folder(last.target) == Path("runs/tiny/seed-0/adapt-ck+-mcd")
    assert last.title == "seed-0 mcd -> ck+"


def test_targets_are_those_of_the_spec_unless_the_sweep_has_its_own() -> None:
    for section, targets in (
        ({}, ["jaffe"]),
        ({"targets": "expw"}, ["expw"]),
        ({"targets": ["a", "b", "a"]}, ["a", "b"]),
    ):
        cells = planned({"methods": ["dann"], **section})
        assert [cell.target for cell in cells if cell.method == "dann"] == targets


def test_keys_of_adapt_share_a_source_model_and_other_keys_do_not() -> None:
    grid = {"adapt.batch": [4, 8], "model.width": [4, 6]}
    cells = planned({"methods": ["dann"], "grid": grid, "seeds": [0]})
    adapted = [c for c in cells if c.method == "dann"]
    assert [c.keys for c in adapted] == [
        {"adapt.batch": batch, "model.width": width} for batch in (4, 8) for width in (4, 6)
    ]
    for cell in adapted:
        assert (cell.spec.adapt.batch, cell.spec.model.width) == tuple(cell.keys.values())
        assert cell.spec.name == f"seed-0-width-{cell.spec.model.width}"
        assert cell.spec.adapt.tag == f"dann-batch-{cell.spec.adapt.batch}"
    # One reference per source model, compared with every batch size.
    reference = [c for c in cells if c.method == "source-only"]
    assert [c.keys for c in reference] == [{"model.width": 4}, {"model.width": 6}]
    assert {c.spec.adapt.tag for c in reference} == {"source-only"}


def test_options_are_merged_key_by_key_and_everything_else_is_replaced() -> None:
    methods = {
        "aglrls": None,
        "bare": {"method": "aglrls", "options": {"adversarial": False}, "lr": {1: 0.1, 2: 0.01}},
    }
    section = {"methods": methods, "grid": {"adapt.options.threshold": [0.5, 0.9]}}
    cells = planned(section, adapt__options={"hidden": 32}, adapt__lr={1: 0.5, 4: 0.25})
    cells = [cell for cell in cells if cell.method != "source-only"]
    assert [c.spec.adapt.options for c in cells] == [
        {"hidden": 32, "threshold": threshold, **more}
        for threshold in (0.5, 0.9)
        for more in ({}, {"adversarial": False})
    ]
    assert [c.spec.adapt.lr for c in cells[:2]] == [{1: 0.5, 4: 0.25}, {1: 0.1, 2: 0.01}]
    assert [c.spec.adapt.tag for c in cells[:2]] == ["aglrls-threshold-0.5", "bare-threshold-0.5"]


def test_source_only_does_not_get_the_options_of_the_spec_s_method() -> None:
    cells = planned({"methods": ["aglrls"]}, adapt__options={"hidden": 32})
    assert [c.spec.adapt.options for c in cells] == [{}, {"hidden": 32}]


@pytest.mark.parametrize(
    ("key", "value", "folder"),
    [
        ("data.source", ["raf-db", "ck+"], "seed-0-source-raf-db-ck"),
        ("evaluate.title", "a/b c", "seed-0-title-a-b-c"),
        ("evaluate.title", "é", "seed-0-title"),
        ("train_source.lr", 1.5e20, "seed-0-lr-1.5e-20"),
        ("train_source.lr", {1: 0.1, 3: 0.01}, "seed-0-lr-1-0.1-3-0.01"),
        ("model.weights", None, "seed-0-weights-None"),
    ],
)
def test_any_value_of_a_key_makes_a_folder(key: str, value: Any, folder: str) -> None:
    cells = planned({"methods": ["dann"], "grid": {key: [value]}})
    assert {cell.spec.run_folder.name for cell in cells} == {folder}


MISTAKES = {
    "no section": ({"sweep": None}, "the spec has no sweep section"),
    "no method": ({"sweep.methods": {}}, "sweep.methods"),
    "a method with a typo": ({"sweep.methods": ["dan"]}, "'dan' is not known (did you mean dann?)"),
    "a label that is not a method": (
        {"sweep.methods": {"mine": None}},
        "sweep (mine): adapt.method: 'mine' is not known",
    ),
    "a label that cannot be a folder name": ({"sweep.methods": {"a/b": {"method": "dann"}}}, "sweep.methods.a/b"),
    "a method's unknown key": ({"sweep.methods": {"dann": {"bach": 4}}}, "adapt.bach: unknown key (did you mean batch"),
    "another method's option": (
        {"sweep.methods": {"dann": {"options": {"threshold": 0.5}}}},
        "adapt.options.threshold",
    ),
    "an option that only some have": (
        {"sweep.methods": ["aglrls", "dann"], "sweep.grid": {"adapt.options.threshold": [0.5]}},
        "adapt.options.threshold: unknown key",
    ),
    "options that are not a mapping": ({"sweep.methods": {"dann": {"options": 3}}}, "adapt.options"),
    "a value out of range": ({"sweep.methods": {"dann": {"batch": 1}}}, "adapt.batch: 1"),
    "source-only changed": ({"sweep.methods": {"source-only": {"method": "dann"}}}, "sweep.methods.source-only"),
    "an unknown key": ({"sweep.grid": {"adapt.bach": [1]}}, "adapt.bach: unknown key (did you mean batch?)"),
    "an unknown section": ({"sweep.grid": {"adopt.batch": [4]}}, "adopt: unknown key (did you mean adapt?)"),
    "a key below a value": ({"sweep.grid": {"adapt.epochs.first": [1]}}, "unknown key adapt.epochs.first"),
    "no value": ({"sweep.grid": {"adapt.batch": []}}, "sweep.grid.adapt.batch"),
    "a value twice": ({"sweep.grid": {"adapt.batch": [4, 4]}}, "two combinations of values share the folder"),
    "values that give the same folder name": (
        {"sweep.grid": {"evaluate.title": ["a b", "a-b"]}},
        "values share the folder",
    ),
    "a key that a method sets": (
        {"sweep.methods": {"dann": {"batch": 4}}, "sweep.grid": {"adapt.batch": [6, 8]}},
        "sweep.grid: adapt.batch is already set for dann",
    ),
    "an option that a method sets": (
        {"sweep.methods": {"dann": {"options": {"hidden": 8}}}, "sweep.grid": {"adapt.options.hidden": [6, 8]}},
        "sweep.grid: adapt.options.hidden is already set for dann",
    ),
    "the method as a key": ({"sweep.grid": {"adapt.method": ["dann", "mcd"]}}, "grid: adapt.method is already set"),
    "the seed as a key": ({"sweep.grid": {"engine.seed": [5, 6]}}, "sweep.grid: engine.seed is already set"),
    "a seed twice": ({"sweep.seeds": [1, 1]}, "a seed is named twice"),
    "no seed": ({"sweep.seeds": []}, "sweep.seeds"),
    "no target": ({"data.targets": []}, "no target"),
    "the source as a target": ({"sweep.targets": ["raf-db"]}, "raf-db"),
    "a source in the grid as a target": ({"sweep.grid": {"data.source": ["jaffe"]}}, "jaffe"),
    "a typo in the section": ({"sweep.seed": [1]}, "sweep.seed: unknown key"),
    "a target that is not prepared": ({"sweep.targets": ["jaffe", "expw"]}, "expw is not prepared", 1),
    "a source that is not prepared": ({"data.source": ["raf-db", "expw"]}, "expw is not prepared", 1),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_give_one_line_before_anything_is_trained(mistake: str, tmp_path: Path, prepared: Path) -> None:
    changes, text, *code = MISTAKES[mistake]
    bench = Bench(tmp_path / "bench", prepared, {"sweep": {"methods": ["dann"], "seeds": [0]}, **changes})
    assert text in told(swept_by(bench), *(code or [2]))
    assert not (bench.folder / "runs").exists()


def test_dry_run_lists_the_cells_and_trains_nothing(again) -> None:
    bench = again(parts=())
    listed = swept_by(bench, "--dry-run")
    assert listed.exit_code == 0
    assert "seed-1/adapt-jaffe-no-adv" in listed.stdout
    document = json.loads(swept_by(bench, "--dry-run", "--json").stdout)
    assert document["cells"] == [f"seed-{seed} {method} -> jaffe" for seed, method in CELLS]
    assert not (bench.folder / "runs").exists()


# Files it writes


def test_a_sweep_writes_run_folders_and_two_result_files(swept: Bench, tmp_path: Path) -> None:
    assert stages(swept) == sorted(STAGES)
    assert sorted(p.name for p in swept.runs.iterdir()) == [LOCK, "results.csv", "results.json", "seed-0", "seed-1"]
    assert not list(swept.runs.rglob("*.tmp"))
    document = results(swept)
    assert cells_of(document["entries"]) == CELLS
    assert (document["methods"], document["seeds"]) == (["source-only", "dann", "no-adv"], [0, 1])
    assert (document["targets"], document["missing"]) == (["jaffe"], [])
    assert {c["registered"] for c in document["entries"]} == {"source-only", "dann", "aglrls"}
    assert all((c["expected"], c["found"], c["scored"]) == (42, 42, 42) for c in document["entries"])
    write_csv(tmp_path / "results.csv", RESULT_COLUMNS, result_rows(document))
    assert (swept.runs / "results.csv").read_bytes() == (tmp_path / "results.csv").read_bytes()


def test_each_seed_has_one_source_model_of_its_own(swept: Bench) -> None:
    begun = {stage: checkpoint.load(swept.runs / stage / "last.ckpt").get("source_model") for stage in STAGES}
    assert begun["seed-0/adapt-jaffe-dann"] == begun["seed-0/adapt-jaffe-no-adv"]
    assert begun["seed-0/adapt-jaffe-dann"] != begun["seed-1/adapt-jaffe-dann"]


def test_entries_equal_those_of_evaluate(again) -> None:
    bench, names = again(), {"source-only": "source-only", "dann": "dann", "no-adv": "aglrls (no-adv)"}
    document = done(bench)
    for seed in (0, 1):
        spec_file = bench.runs / f"seed-{seed}/spec.yaml"
        told_of = json.loads(run("evaluate", "-c", spec_file, "--json").stdout)["entries"]
        told_of = {f"seed-{seed}/{entry['folder']}": entry for entry in told_of if entry["role"] == "target"}
        for entry in (entry for entry in document["entries"] if entry["seed"] == seed):
            own = {key: entry[key] for key in ("folder", "method", "predictions")}
            other = told_of.pop(entry["folder"])
            assert other["method"] == names[entry["method"]]
            if entry["method"] != "source-only":
                assert other["against_reference"]["folder"] == "source"
                own["against_reference"] = {**other["against_reference"], "folder": f"seed-{seed}/source"}
            assert entry == {**other, **own, "predictions": None}
            assert bool(entry["oracle"]) == bool(entry["rules"]) == (entry["method"] != "source-only")
        assert not told_of


def test_other_rules_can_be_applied_to_trained_cells(again) -> None:
    bench = again()
    plain, before = done(bench)["entries"], remembered(bench)
    for entry, other in zip(plain, bench.json("evaluate", "--decision", "fused")["entries"], strict=True):
        assert entry["decision"] == ("glpc" if entry["method"] == "no-adv" else "fused")
        assert (other["decision"], other["stages"], other["heads"]) == ("fused", None, entry["heads"])
    for entry, other in zip(plain, bench.json("evaluate", "--select", "last")["entries"], strict=True):
        if entry["method"] != "source-only":
            assert (other["epoch"], other["selection"]) == (EPOCHS, "last")
            heads = other["heads"][other["decision"]]
            last = {"epoch": EPOCHS, "accuracy": heads["accuracy"], "macro_f1": heads["macro_f1"]}
            assert entry["rules"]["last"] == last
            assert (other["oracle"], other["rules"]) == (entry["oracle"], entry["rules"])
        else:
            assert other == entry
    assert remembered(bench) == before


def test_rules_match_the_scores_and_outputs_of_each_epoch(swept: Bench) -> None:
    labels = np.load(swept.prepared / "jaffe/labels.npy")
    for entry in results(swept)["entries"]:
        if entry["method"] == "source-only":
            continue
        folder, right = swept.runs / entry["folder"], {}
        for epoch in range(1, EPOCHS + 1):
            told_of = scores(confusion(labels, answers(folder, epoch)))
            right[epoch] = {"epoch": epoch, **{name: told_of[name] for name in ("accuracy", "macro_f1")}}
        history = {m["epoch"]: m["scores"] for m in read_metrics(folder) if m["kind"] == "validate"}
        outputs = watched_fused(EpochOutputs(folder))
        agreements = ensemble_agreement([given.tolist() for given in outputs.values()])
        for epoch, agreement in zip(outputs, agreements, strict=True):
            history[epoch]["ensv"] = agreement
        chosen = {rule: max(history, key=lambda e, rule=rule: (history[e][rule], -e)) for rule in history[1]}
        assert entry["rules"] == {rule: right[epoch] for rule, epoch in chosen.items()}
        assert {"dev", "ensv", "source-val"} <= set(chosen)
        top = max(right, key=lambda epoch: (right[epoch]["accuracy"], -epoch))
        assert {**entry["oracle"], **right[top]} == entry["oracle"]
        assert chosen["infomax"] == entry["epoch"]
        assert entry["rules"]["infomax"]["accuracy"] == entry["heads"][entry["decision"]]["accuracy"]


def test_drift_is_relative_to_the_source_model_of_the_same_seed(again) -> None:
    bench = again()
    swept_by(bench)
    for entry in results(bench)["entries"]:
        if entry["method"] == "source-only":
            assert entry["drift"] is None
            continue
        folder = bench.runs / entry["folder"]
        before, _ = read_outputs(folder.parent / "source/outputs/dataset-jaffe.safetensors")
        after, _ = read_outputs(epoch_file(folder, entry["epoch"]))
        due = drift(before["scored"], after["scored"])
        assert {key: entry["drift"][key] for key in due} == due
    gone = bench.runs / "seed-0/source/outputs/dataset-jaffe.safetensors"
    gone.unlink()
    found = gather(parse(yaml.safe_load(bench.spec.read_text())))["entries"]
    assert {e["seed"]: e["drift"] is None for e in found if e["method"] == "no-adv"} == {0: True, 1: False}


def test_scripts_get_one_document_and_people_a_table(again) -> None:
    bench = again()
    scripted = swept_by(bench, "--json")
    assert scripted.stderr == ""
    document = json.loads(scripted.stdout, parse_constant=pytest.fail)
    assert set(document["files"]) == {"results", "csv"}
    shown = swept_by(bench)
    assert "no-adv" in shown.stdout
    assert "infomax" in shown.stdout
    assert "results.csv" in shown.stderr
    assert shown.stderr.startswith("device: cpu (") and shown.stderr.count("device:") == 1


@pytest.mark.parametrize(
    ("parts", "there"),
    [
        ((), []),
        (("seed-0/adapt-jaffe-dann", "seed-0/source", "seed-1/source"), [*CELLS[:2], CELLS[3]]),
    ],
    ids=["nothing", "half"],
)
def test_evaluate_reports_on_everything_trained_so_far(parts: tuple[str, ...], there: list[Any], again) -> None:
    bench = again(parts=parts)
    bench.done("evaluate", "--report", "--quiet", "--set", "engine.device=cuda")  # trained on another machine
    page, document = (bench.runs / "report.html").read_text(), results(bench)
    assert "<html" in page[:500].lower() and "no-adv" in page
    assert cells_of(document["entries"]) == there
    assert cells_of(document["missing"]) == [cell for cell in CELLS if cell not in there]
    assert {cell["dataset"] for cell in document["missing"]} == {"jaffe"}
    assert stages(bench) == list(parts)


def test_a_cell_whose_outputs_are_damaged_is_missing(again) -> None:
    bench = again("damaged", {"sweep.seeds": [0]})
    path = bench.runs / "seed-0/adapt-jaffe-dann/outputs/epoch-0001.safetensors"
    whole = path.read_bytes()
    for data in (None, b"", whole[:-9], whole[:8] + b"x" * 200):
        path.unlink() if data is None else path.write_bytes(data)
        document = bench.json("evaluate")
        assert [entry["method"] for entry in document["entries"]] == ["source-only", "no-adv"]
        (cell,) = document["missing"]
        assert cell["method"] == "dann" and str(path) in cell["why"] and "--restart" in cell["why"]


# Resuming


def remembered(bench: Bench) -> dict[str, tuple[bytes, int]]:
    """Contents and modification times of all files that training writes."""
    files = [p for stage in stages(bench) for p in (bench.runs / stage).rglob("*") if p.is_file()]
    kept = [p for p in files if p.suffix in (".ckpt", ".safetensors", ".jsonl", ".json")]
    return {str(p.relative_to(bench.runs)): (p.read_bytes(), p.stat().st_mtime_ns) for p in kept}


def test_a_second_run_trains_nothing(again, swept: Bench) -> None:
    bench = again()
    before = {name: content for name, (content, _) in remembered(bench).items()}
    document = done(bench)
    assert {name: content for name, (content, _) in remembered(bench).items()} == before
    assert figures(document) == figures(results(swept))
    took, before = ([entry["seconds"] for entry in one["entries"]] for one in (document, results(swept)))
    assert took == before


def test_only_a_deleted_cell_is_trained_again(again, swept: Bench) -> None:
    gone = "seed-1/adapt-jaffe-dann"
    bench = again(parts=tuple(stage for stage in STAGES if stage != gone))
    before = remembered(bench)
    done(bench)
    kept = {name: content for name, (content, _) in remembered(bench).items() if not name.startswith(gone)}
    assert kept == {name: content for name, (content, _) in before.items()}
    assert_same_sweep(swept, bench)


def test_more_seeds_and_methods_are_added_to_existing_cells(again) -> None:
    bench = again()
    before = remembered(bench)
    document = done(bench, "--set", "sweep.seeds=[0, 2]", "--set", "sweep.methods.safn={}")
    methods = ("source-only", "dann", "no-adv", "safn")
    assert cells_of(document["entries"]) == [(seed, method) for seed in (0, 2) for method in methods]
    assert all(remembered(bench)[name][0] == content for name, (content, _) in before.items())


def test_results_with_other_settings_are_not_used(again) -> None:
    bench = again()
    result = swept_by(bench, "--quiet", "--set", "adapt.batch=4")
    assert result.exit_code == 1
    assert "4 of 6 cells failed" in result.stderr
    assert "adapt.batch 8 -> 4" in result.stderr
    document = results(bench)
    assert {c["method"] for c in document["entries"]} == {"source-only"}
    assert len(document["missing"]) == 4
    assert all("adapt.batch 8 -> 4" in cell["why"] for cell in document["missing"])


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int, number: int = signal.SIGINT) -> None:
    """Send the signal while the sweep's `count`-th batch, from 1, is made."""
    make, made = Batches.__call__, [0]

    def batch(self: Batches, *arguments: Any) -> Any:
        made[0] += 1
        if made[0] == count:
            os.kill(os.getpid(), number)
        return make(self, *arguments)

    monkeypatch.setattr(Batches, "__call__", batch)


#: Batches of a stage.
ALL = EPOCHS * STEPS
SOURCES = ("seed-0/source", "seed-1/source")


@pytest.mark.parametrize(
    ("parts", "count", "left"),
    [
        ((), 2, ["seed-0/source"]),
        pytest.param(
            SOURCES,
            ALL + 4,
            ["seed-0/adapt-jaffe-dann", "seed-0/adapt-jaffe-no-adv", *SOURCES],
            marks=pytest.mark.slow,
        ),
        # In a stage's last step, after which the stage ends anyway: the whole sweep must stop.
        (SOURCES, ALL, ["seed-0/adapt-jaffe-dann", *SOURCES]),
    ],
    ids=["source", "adapt", "last step"],
)
def test_a_stopped_sweep_resumes_to_the_same_bits(
    parts: tuple[str, ...], count: int, left: list[str], swept: Bench, again, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, handler = again("stopped", parts=parts), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at(patch, count)
        assert "run the same command again to resume" in told(swept_by(bench, "--quiet"), 130)
    assert stages(bench) == left
    assert signal.getsignal(signal.SIGINT) is handler
    done(bench)
    assert_same_sweep(swept, bench)


def spawned(bench: Bench, pattern: str, *arguments: str) -> subprocess.Popen:
    """A sweep of two processes in its own session, once it has written a file that matches `pattern`."""
    command = [sys.executable, "-m", "fercli", "sweep", str(bench.spec), "--jobs", "2", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    begun = time.monotonic()
    while not list(bench.runs.rglob(pattern)) and process.poll() is None:
        assert time.monotonic() - begun < 100, f"{pattern} was not written"
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_two_processes_give_the_same_results_as_one(swept: Bench, again) -> None:
    bench = again(parts=())
    done(bench, "--jobs", "2")
    assert_same_sweep(swept, bench)


@pytest.mark.slow
def test_a_killed_sweep_of_two_processes_resumes_to_the_same_bits(swept: Bench, again) -> None:
    bench = again(parts=())
    process = spawned(bench, "adapt-*/last.ckpt", "--set", "engine.save_every_s=0")
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    # Its workers notice within a second that it is gone, and end too.
    time.sleep(3)
    done(bench)
    assert_same_sweep(swept, bench)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["kill", "terminal"])
def test_a_stopped_sweep_of_two_processes_saves(whole_group: bool, again) -> None:
    bench = again(parts=())
    # Long enough that no stage ends before the signal arrives.
    longer = ("--set", "train_source.epochs=500", "--set", "train_source.steps_per_epoch=1")
    process = spawned(bench, "seed-*/source/last.ckpt", *longer)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    told_ = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told_
    assert "Traceback" not in told_
    assert told_.strip().splitlines()[-1].startswith("error: stopped; finished work is saved in")
    saved = {stage: checkpoint.load(bench.runs / stage / "last.ckpt")["step"] for stage in stages(bench)}
    assert saved
    assert all(step < 500 for step in saved.values()), saved
    assert not list(bench.runs.rglob("results.*"))


# Failing cells


RUINED = {"method": "dann", "lr": 1e30, "discriminator_lr": 1e30, "clip_norm": None}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failing_cell_does_not_affect_the_others(jobs: int, again, swept: Bench) -> None:
    changes = {"sweep.methods": {"ruined": RUINED, **METHODS}, "sweep.jobs": jobs}
    bench = again("ruined", changes, parts=(*SOURCES, "seed-1/adapt-jaffe-no-adv"))
    result = swept_by(bench, "--quiet")
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert lines[0] == "error: 2 of 8 cells failed:"
    assert [line.split(":")[0].strip() for line in sorted(lines[1:])] == [f"seed-{s} ruined -> jaffe" for s in (0, 1)]
    assert all("not finite" in line for line in lines[1:])
    document = results(bench)
    assert figures(document) == figures(results(swept))
    assert cells_of(document["missing"]) == [(0, "ruined"), (1, "ruined")]
    # Once they are fixed, the same command trains them.
    bench = Bench(bench.folder, bench.prepared, {**SWEEP, "sweep.methods": {"ruined": {"method": "dann"}, **METHODS}})
    document = done(bench)
    assert document["missing"] == []
    rows = {(c["seed"], c["method"]): c["heads"] for c in document["entries"]}
    assert all(rows[seed, "ruined"] == rows[seed, "dann"] for seed in (0, 1))


def test_a_failing_source_model_affects_only_its_own_cells(again) -> None:
    grid = {"train_source.momentum": [0.9, 0.0]}
    changes = {"sweep.grid": grid, "sweep.seeds": [0], "sweep.methods": ["safn"]}
    bench = again("ruined", changes, parts=())
    shutil.copytree(again("whole").runs / "seed-0/source", bench.runs / "seed-0-momentum-0.9/source")
    (bench.runs / "seed-0-momentum-0.0").mkdir()
    (bench.runs / "seed-0-momentum-0.0/source").write_text("a file in the way")
    result = swept_by(bench, "--quiet")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "seed-0-momentum-0.0: cannot create" in result.stderr
    document = results(bench)
    for key, momentum in (("entries", 0.9), ("missing", 0.0)):
        assert cells_of(document[key]) == [(0, "source-only"), (0, "safn")]
        assert all(cell["keys"] == {"train_source.momentum": momentum} for cell in document[key])


# Target labels are not read


LABELS = {
    "shuffled": np.random.default_rng(0).permutation,
    "constant": np.zeros_like,
    "unknown": lambda labels: np.full_like(labels, -1),
    "deleted": lambda labels: None,
}


def unjudged(entry: dict[str, Any]) -> dict[str, Any]:
    """The parts of an entry that need no target labels."""
    judged = ("heads", "stages", "intervals", "against_reference", "calibration", "oracle", "scored")
    rules = {rule: chosen["epoch"] for rule, chosen in entry["rules"].items()}
    return {**{key: value for key, value in entry.items() if key not in judged}, "rules": rules}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "deleted")) for n in LABELS])
def test_target_labels_affect_only_the_accuracies(name: str, again, swept: Bench, tmp_path: Path) -> None:
    stores = with_labels(swept.prepared, tmp_path / "stores", LABELS[name])
    bench = again(name, {"sweep.seeds": [0]}, stores, parts=("seed-0/source",))
    (bench.runs / "seed-0/source/outputs/dataset-jaffe.safetensors").unlink()
    if name == "deleted":
        assert sweep(parse(yaml.safe_load(bench.spec.read_text()))) == []
    else:
        done(bench)
    assert stages(bench) == [stage for stage in sorted(STAGES) if stage.startswith("seed-0")]
    for stage in stages(bench):
        assert_same_run(swept.runs / stage, bench.runs / stage)
        outputs = [{p.name: p.read_bytes() for p in (b.runs / stage).glob("outputs/*")} for b in (swept, bench)]
        assert outputs[0] == outputs[1]
    if name == "deleted":
        return
    told_, plain = figures(results(bench)), figures(results(swept))[:3]
    assert [unjudged(entry) for entry in told_] == [unjudged(entry) for entry in plain]
    if name == "unknown":
        assert {(cell["oracle"], *cell["heads"].values()) for cell in told_} == {(None,) * 9, (None,) * 10}
    else:
        assert [cell["heads"] for cell in told_] != [cell["heads"] for cell in plain]
    bench.done("evaluate", "--report", "--quiet")
