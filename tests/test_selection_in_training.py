"""Selection rules in training: post hoc, early stopping, costly rules, NaN, and methods that change the output."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loops
import numpy as np
import pytest
import torch
from conftest import Bench, after_source, merge, told
from stores import cut
from trained_runs import answers, assert_same_run, headline, stopped

from fercli.engine import checkpoint
from fercli.engine.log import read_metrics
from fercli.engine.loop import _choose_afterwards, _is_better
from fercli.evaluation.outputs import EpochOutputs, epoch_file, read_outputs, watched_fused
from fercli.spec.registry import RULES
from fercli.store import Store

#: Rates high enough for epochs to differ.
LIVELY = {"adapt.method": "dann", "adapt.lr": 0.03, "adapt.steps_per_epoch": 2, "adapt.clip_norm": 10}


def adapt(bench: Bench, *arguments: str) -> Path:
    """Adapt a bench to JAFFE; returns the stage folder."""
    bench.done("adapt", "--quiet", *arguments)
    return bench.runs / "adapt-jaffe"


def assert_ended(bench: Bench) -> None:
    """Running the same command again trains nothing and changes no file."""
    before = files(bench.runs / "adapt-jaffe")
    assert bench.json("adapt")["adapt"]["jaffe"]["trained_steps"] == 0
    assert files(bench.runs / "adapt-jaffe") == before


def validated(folder: Path) -> dict[int, dict[str, float]]:
    """Scores of each epoch."""
    return {line["epoch"]: line["scores"] for line in read_metrics(folder) if line["kind"] == "validate"}


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text())["outcome"]


def same_network(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Post hoc


ENSV = {**LIVELY, "adapt.select": "ensv", "adapt.epochs": 4}


def ensemble(folder: Path) -> dict[int, float]:
    """EnsV computed from the saved outputs of the epochs, image by image."""
    outputs = watched_fused(EpochOutputs(folder))
    return dict(zip(outputs, loops.ensemble_agreement([one.tolist() for one in outputs.values()]), strict=True))


@pytest.fixture(scope="module")
def post_hoc(tmp_path_factory: pytest.TempPathFactory, trained: Bench) -> Bench:
    """A bench adapted without a stop, its epoch chosen by EnsV. Read-only except for its report."""
    bench = after_source(tmp_path_factory.mktemp("ensv"), trained, ENSV)
    bench.done("adapt", "--quiet")
    return bench


def test_the_epoch_nearest_to_the_ensemble_of_all_is_chosen(post_hoc: Bench) -> None:
    folder = post_hoc.runs / "adapt-jaffe"
    scores = ensemble(folder)
    assert len(scores) == 4
    assert len(set(scores.values())) > 1, "a choice among equals shows nothing"
    chosen = min(epoch for epoch in scores if scores[epoch] == max(scores.values()))
    assert (outcome(folder)["rule"], outcome(folder)["epoch"]) == ("ensv", chosen)
    assert outcome(folder)["score"] == pytest.approx(scores[chosen])
    best = checkpoint.load(folder / "best.ckpt")
    assert best["epoch"] == best["best"]["epoch"] == chosen
    assert same_network(best, checkpoint.load(folder / f"candidates/epoch-{chosen:04d}.ckpt"))
    assert "ensv" not in validated(folder)[1]


def test_each_epoch_s_candidate_is_the_network_of_that_epoch(post_hoc: Bench, make_adapting) -> None:
    folder = post_hoc.runs / "adapt-jaffe"
    assert [p.name for p in sorted(folder.glob("candidates/*"))] == [f"epoch-{e:04d}.ckpt" for e in (1, 2, 3, 4)]
    for epoch in (1, 3):
        to_epoch = adapt(make_adapting(f"to-{epoch}", {**ENSV, "adapt.select": "last", "adapt.epochs": epoch}))
        candidate = checkpoint.load(folder / f"candidates/epoch-{epoch:04d}.ckpt")
        assert same_network(candidate, checkpoint.load(to_epoch / "last.ckpt"))


def test_what_ensv_chose_is_scored_and_stays_as_it_is(post_hoc: Bench, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "copy", post_hoc.prepared, ENSV)
    shutil.copytree(post_hoc.runs, bench.runs)
    row = headline(bench.json("evaluate"))[1]
    folder = adapt(bench)
    epoch = outcome(folder)["epoch"]
    assert (row["selection"], row["epoch"]) == ("ensv", epoch)
    labels = np.load(bench.prepared / "jaffe/labels.npy")
    assert row["accuracy"] == pytest.approx(np.mean(answers(folder, epoch) == labels))
    assert_ended(bench)


@pytest.mark.parametrize("step", [3, 6])
def test_a_stopped_run_resumes_to_the_same_choice(step: int, post_hoc: Bench, make_adapting) -> None:
    bench = make_adapting("stopped", ENSV)
    stopped(bench, "adapt", step, signal.SIGTERM)
    assert not (bench.runs / "adapt-jaffe/best.ckpt").exists()
    assert_same_run(post_hoc.runs / "adapt-jaffe", adapt(bench))


def test_raised_epochs_are_all_compared_again(post_hoc: Bench, make_adapting) -> None:
    bench = make_adapting("longer", {**ENSV, "adapt.epochs": 2})
    adapt(bench)
    assert_same_run(post_hoc.runs / "adapt-jaffe", adapt(bench, "--set", "adapt.epochs=4"))


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.9}, 2),
        ({1: math.nan, 2: 0.1, 3: math.nan}, 2),
        ({1: math.nan, 2: math.nan}, 1),
    ],
)
def test_the_candidate_with_the_best_number_becomes_the_best(
    scores: dict[int, float], chosen: int, post_hoc: Bench, tmp_path: Path
) -> None:
    shutil.copytree(post_hoc.runs / "adapt-jaffe/candidates", tmp_path / "candidates")
    training = SimpleNamespace(folder=tmp_path, evaluator=SimpleNamespace(afterwards=lambda: scores))
    best = _choose_afterwards(training, {"epoch": 0, "score": -math.inf, "rule": "ensv"})
    kept = checkpoint.load(tmp_path / "best.ckpt")
    assert best["epoch"] == kept["epoch"] == kept["best"]["epoch"] == chosen


# Early stopping


EPOCHS, STEPS = 7, 1
PATIENT = {**LIVELY, "adapt.epochs": EPOCHS, "adapt.steps_per_epoch": STEPS, "adapt.also_score": "dev"}
TELLING = [rule for rule, about in RULES.items() if not about.post_hoc]


def stops(scores: list[float], patience: int) -> tuple[int, int]:
    """The epoch after which patience runs out, and the best epoch up to then."""
    best = 1
    for epoch in range(1, len(scores) + 1):
        if scores[epoch - 1] > scores[best - 1]:
            best = epoch
        if epoch - best >= patience:
            return epoch, best
    return len(scores), best


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, trained: Bench) -> Bench:
    """A bench adapted to the last epoch, whose scores show where patience would have run out. Read-only."""
    bench = after_source(tmp_path_factory.mktemp("patient"), trained, PATIENT)
    bench.done("adapt", "--quiet")
    return bench


def cases(folder: Path) -> list[tuple[str, int, int, int]]:
    """(rule, patience, last epoch, best epoch) of the cases that end early, the longest first."""
    history = validated(folder)
    found = []
    for rule in TELLING:
        for patience in (1, 2, 3):
            end, best = stops([history[epoch][rule] for epoch in sorted(history)], patience)
            if end < EPOCHS:
                found.append((rule, patience, end, best))
    return sorted(found, key=lambda case: (case[2], case[3]), reverse=True)


def test_patience_ends_training_where_the_rule_says(patient: Bench, make_adapting) -> None:
    found = cases(patient.runs / "adapt-jaffe")
    assert len(found) >= 3
    for number, (rule, patience, end, best) in enumerate([found[0], found[len(found) // 2], found[-1]]):
        bench = make_adapting(f"case-{number}", {**PATIENT, "adapt.select": rule, "adapt.patience": patience})
        folder = adapt(bench)
        history = validated(patient.runs / "adapt-jaffe")
        assert validated(folder) == {epoch: history[epoch] for epoch in range(1, end + 1)}
        assert (outcome(folder)["epoch"], outcome(folder)["steps"]) == (best, end * STEPS)
        assert checkpoint.load(folder / "best.ckpt")["epoch"] == best
        assert_ended(bench)


def test_patience_survives_a_stop_and_can_be_raised(patient: Bench, make_adapting) -> None:
    rule, patience, end, best = next(case for case in cases(patient.runs / "adapt-jaffe") if case[2] - case[3] >= 2)
    changes = {**PATIENT, "adapt.select": rule, "adapt.patience": patience}
    whole, bench = make_adapting("whole", changes), make_adapting("stopped", changes)
    for epoch in (best, end - 1):  # in the best epoch itself, and while patience counts
        stopped(bench, "adapt", epoch * STEPS - 1)
    assert_same_run(adapt(whole), adapt(bench))

    raised = adapt(whole, "--set", f"adapt.patience={EPOCHS}")
    assert outcome(raised)["steps"] == EPOCHS * STEPS
    assert_same_run(adapt(make_adapting("unbroken", {**changes, "adapt.patience": EPOCHS})), raised)


def test_of_many_epochs_the_last_outputs_and_the_best_are_kept(patient: Bench, make_adapting) -> None:
    whole = patient.runs / "adapt-jaffe"
    history = validated(whole)
    best, rule = min((max(history, key=lambda e, rule=rule: (history[e][rule], -e)), rule) for rule in TELLING)
    bench = make_adapting("few", {**PATIENT, "adapt.select": rule, "engine.keep_outputs": 2})
    stopped(bench, "adapt", 4 * STEPS)
    kept = files(adapt(bench) / "outputs")
    epochs = (best, EPOCHS - 1, EPOCHS)
    assert best < EPOCHS - 1
    assert kept == {epoch_file(whole, epoch).name: epoch_file(whole, epoch).read_bytes() for epoch in epochs}
    (entry,) = (e for e in bench.json("evaluate")["entries"] if e["stage"] == "adapt")
    assert entry["epoch"] == best and entry["oracle"]["epoch"] in epochs
    assert {at["epoch"] for at in entry["rules"].values()} <= set(epochs)


def test_the_source_stage_has_patience_too(bench: Bench) -> None:
    settings = ("--set", "train_source.epochs=8", "--set", "train_source.steps_per_epoch=1")
    bench.done("train-source", "--quiet", *settings, "--set", "train_source.patience=2")
    folder = bench.runs / "source"
    history = validated(folder)
    end, best = stops([history[epoch]["source-val"] for epoch in sorted(history)], 2)
    assert len(history) == end < 8
    assert outcome(folder)["epoch"] == best


# Costly rules


def test_dev_is_scored_if_requested_and_changes_nothing_else(patient: Bench, make_adapting) -> None:
    folders = (patient.runs / "adapt-jaffe", adapt(make_adapting("plain", {**PATIENT, "adapt.also_score": []})))
    with_dev, without = map(validated, folders)
    assert all(math.isfinite(scores["dev"]) and scores["dev"] <= 0.5 for scores in with_dev.values())
    assert len({scores["dev"] for scores in with_dev.values()}) > 1
    assert without == {e: {r: s for r, s in scores.items() if r != "dev"} for e, scores in with_dev.items()}
    assert same_network(*(checkpoint.load(folder / "last.ckpt") for folder in folders))


def test_dev_may_choose_and_use_few_faces(make_adapting) -> None:
    folder = adapt(make_adapting("dev", {**LIVELY, "adapt.select": "dev", "adapt.select_images": 20}))
    scores = {epoch: scores["dev"] for epoch, scores in validated(folder).items()}
    assert outcome(folder)["epoch"] == max(scores, key=lambda epoch: (scores[epoch], -epoch))
    found, _ = read_outputs(epoch_file(folder, 1))
    assert (len(found["watched"]), len(found["scored"])) == (20, 42)


@pytest.mark.parametrize(
    ("command", "setting", "words"),
    [
        ("train-source", "train_source.select=ensv", "'ensv' is not known"),
        ("adapt", "adapt.patience=0", "adapt.patience: 0"),
        ("adapt", "train_source.patience=0", "train_source.patience: 0"),
        ("adapt", "adapt={select: ensv, patience: 2}", "patience cannot be used with ensv"),
        *(
            ("adapt", f"adapt.also_score={rule}", f"adapt.also_score: {rule!r} is not known.*; choose one of dev$")
            for rule in ("infomax", "last", "ensv", "oracle", "dve")
        ),
    ],
)
def test_impossible_rules_and_patience_are_refused(command: str, setting: str, words: str, bench: Bench) -> None:
    assert re.search(words, told(bench(command, "--set", setting), 2))


def test_watched_faces_are_the_targets_to_adapt_to_and_scored_ones_the_rest(tmp_path: Path, trained: Bench) -> None:
    """A target with its own splits is watched on the faces it is adapted to, and scored on the others."""
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / "raf-db").symlink_to(trained.prepared / "raf-db")
    # A different dataset, judging by names and order.
    cut(trained.prepared / "raf-db", stores / "other", np.arange(126)[::-1], name="other")
    changes = {**LIVELY, "data.targets": ["other"], "adapt.epochs": 1}
    bench = after_source(tmp_path / "splits", trained, changes, stores)
    bench.done("adapt", "--quiet")
    found, _ = read_outputs(epoch_file(bench.runs / "adapt-other", 1))
    assert (len(found["watched"]), len(found["scored"])) == (84, 42)


# NaN


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.3], 1),
        ([math.nan, 0.1, math.nan], 2),
        ([0.1, math.nan], 1),
        ([math.nan, math.nan], 1),
        ([math.nan, -5.0, 0.0], 3),
    ],
)
def test_a_score_that_is_not_a_number_never_wins(scores: list[float], kept: int) -> None:
    best = {"epoch": 0, "score": -math.inf}
    for epoch, score in enumerate(scores, 1):
        if _is_better(score, best):
            best.update(epoch=epoch, score=score)
    assert best["epoch"] == kept


def test_a_rule_that_is_never_defined_keeps_an_epoch(make_adapting) -> None:
    """SND counts neighbours: with a single watched face there are none."""
    bench = make_adapting("alone", {**LIVELY, "adapt.select": "snd", "adapt.select_images": 1})
    ended = bench.json("adapt")["adapt"]["jaffe"]
    folder = bench.runs / "adapt-jaffe"
    assert all(math.isnan(scores["snd"]) for scores in validated(folder).values())
    assert ended["epoch"] == checkpoint.load(folder / "best.ckpt")["epoch"] == 1
    assert ended["score"] is None
    assert bench.json("evaluate", "--report")["history"]["adapt-jaffe"][0]["scores"]["snd"] is None
    json.loads((bench.runs / "report/results.json").read_text(), parse_constant=pytest.fail)


# The method's change to the network's output


def test_a_method_that_refines_is_evaluated_with_what_it_learned(make_adapting) -> None:
    changes = {**LIVELY, "adapt.method": "agra", "adapt.options.warm_steps": 5, "adapt.epochs": 2}
    bench = make_adapting("agra", changes)
    folder = adapt(bench)
    best = checkpoint.load(folder / "best.ckpt")
    assert any(name.startswith("graphs.") for name in best["method"])
    (entry,) = (e for e in bench.json("evaluate")["entries"] if e["stage"] == "adapt")
    labels = Store.open(bench.prepared / "jaffe").labels
    counted = np.zeros((7, 7), int)
    np.add.at(counted, (labels, answers(folder, best["epoch"])), 1)
    assert entry["heads"]["fused"]["confusion"] == counted.tolist()
    # Without the graph the predictions differ: the network alone, as for a method that does not refine.
    state = {**best, "method_name": "source-only", "spec": merge(best["spec"], {"adapt.options": {}})}
    checkpoint.save(folder / "best.ckpt", state)
    (plain,) = (e for e in bench.json("evaluate")["entries"] if e["stage"] == "adapt")
    assert plain["heads"]["fused"]["confusion"] != entry["heads"]["fused"]["confusion"]
    assert plain["heads"]["global"] == entry["heads"]["global"]


def test_a_method_that_does_not_refine_leaves_its_networks_out(post_hoc: Bench) -> None:
    assert "method" not in checkpoint.load(post_hoc.runs / "adapt-jaffe/best.ckpt")
    assert "method" in checkpoint.load(post_hoc.runs / "adapt-jaffe/last.ckpt")


# Several updates per batch


def test_turns_are_separate_steps_and_frozen_parameters_stay_to_the_bit(
    make_adapting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MCD with decay and momentum: parameters that an update freezes are the same after it as before."""
    from fercli.methods.mcd import MCD

    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    forward = MCD.forward

    def look(method: MCD, network: torch.nn.Module, batch: Any, progress: Any) -> Any:
        both = torch.nn.ModuleDict({"network": network, "method": method})
        seen.append((progress.update, {name: value.detach().clone() for name, value in both.named_parameters()}))
        return forward(method, network, batch, progress)

    monkeypatch.setattr(MCD, "forward", look)
    changes = {**LIVELY, "adapt.method": "mcd", "adapt.epochs": 1, "adapt.options.generator_steps": 2}
    folder = adapt(make_adapting("mcd", changes))
    assert [update for update, _ in seen] == [0, 1, 2, 3, 0, 1, 2, 3]  # two batches
    for (update, before), (_, after) in itertools.pairwise(seen):
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        heads = [name for name in moved if "classifiers" in name]
        mine = [name for name in moved if name.startswith("method.")]
        body = [name for name in moved if name not in (*heads, *mine)]
        if update == 0:
            assert heads and mine and body
        elif update == 1:
            assert {name.rsplit(".", 2)[-2] for name in heads} == {heads[0].rsplit(".", 2)[-2]}
            assert heads and mine and not body
        else:
            assert body and not heads and not mine
    lines = [line for line in read_metrics(folder) if line["kind"] == "train"]
    assert {"source", "discrepancy-raised", "discrepancy-lowered"} <= set(lines[-1]["losses"])
