"""Adapting without the source: none of its files is opened, rules that cannot choose are refused, and a degraded model
is not kept.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EPOCHS, STEPS, Bench, told
from loops import seven_heads
from trained_runs import assert_same_run, stopped

from fercli.engine import checkpoint
from fercli.engine.log import read_metrics
from fercli.evaluation.drift import collapsed, drift, rules_prefer_start, verdict
from fercli.evaluation.outputs import epoch_file, read_outputs, start_file, write_outputs
from fercli.evaluation.selection import target_scores
from fercli.methods import method_class
from fercli.spec.registry import METHODS

SOURCE_FREE = [name for name in METHODS if not method_class(name).needs_source]

#: Test methods that ruin a model.
SPOILERS = """
from fercli.methods.base import Method, Step


class OneClass(Method):
    name = "one-class"
    needs_source = False
    wants = frozenset({"target"})

    def forward(self, network, batch, progress):
        return Step({"surprise": -network(*batch.target.inputs).logits.log_softmax(-1)[..., 0].mean()}, {})
"""


def test_which_methods_need_no_source() -> None:
    assert SOURCE_FREE == ["shot", "aad", "nrc", "aglrls-sf", "adabn", "tent", "sar"]


@pytest.fixture
def alone(make_adapting, tmp_path: Path, prepared: Path):
    """Give a function (name, changes) -> a bench with the trained model and the target's store, and no source."""

    def make(name: str, changes: dict[str, Any] | None = None) -> Bench:
        shutil.copytree(prepared / "jaffe", tmp_path / f"{name}-stores/jaffe")
        return make_adapting(name, changes, tmp_path / f"{name}-stores")

    return make


def test_a_method_with_a_source_says_that_it_is_missing(alone) -> None:
    assert "raf-db" in told(alone("missing")("adapt", "--quiet"), 1)


@pytest.mark.parametrize(("method", "step"), [("shot", 4), ("aad", 2), ("sar", 1)])
def test_a_stopped_run_resumes_to_the_same_bits(method: str, step: int, make_adapting) -> None:
    whole, bench = (make_adapting(name, {"adapt.method": method}) for name in ("whole", "stopped"))
    whole.done("adapt", "--quiet")
    stopped(bench, "adapt", step, signal.SIGTERM)
    bench.done("adapt", "--quiet")
    assert_same_run(whole.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")
    starts = [start_file(one.runs / "adapt-jaffe").read_bytes() for one in (whole, bench)]
    assert starts[0] == starts[1]


def test_an_epoch_is_one_pass_over_the_target(make_adapting) -> None:
    bench = make_adapting("epoch", {"adapt.method": "tent", "adapt.steps_per_epoch": None, "adapt.epochs": 1})
    assert bench.json("adapt")["adapt"]["jaffe"]["steps"] == 42 // 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapt.select": "source-val"}, ["adapt.select: source-val reads", "shot uses no source", "infomax"]),
        ({"adapt.select": "dev"}, ["adapt.select: dev reads", "source training images", "shot uses no source"]),
        ({"adapt.also_score": "dev"}, ["adapt.also_score: dev reads", "leave it out"]),
    ],
)
def test_a_rule_that_reads_the_source_is_refused_by_name(changes: dict, words: list[str], make_adapting) -> None:
    bench = make_adapting("rules", {"adapt.method": "shot", **changes})
    line = told(bench("adapt", "--quiet"), 2)
    assert all(word in line for word in words), line
    assert not (bench.runs / "adapt-jaffe").exists()


@pytest.mark.parametrize("rule", ["last", "entropy", "infomax", "agreement", "bnm", "snd", "corr-c", "ensv"])
def test_the_other_rules_choose(rule: str, make_adapting) -> None:
    bench = make_adapting("rule", {"adapt.method": "shot", "adapt.select": rule})
    outcome = bench.json("adapt")["adapt"]["jaffe"]
    assert outcome["rule"] == rule
    assert 0 <= outcome["epoch"] <= EPOCHS


def watched(bench: Bench, epoch: int | None) -> torch.Tensor:
    folder = bench.runs / "adapt-jaffe"
    return read_outputs(start_file(folder) if epoch is None else epoch_file(folder, epoch))[0]["scored"]


def test_the_drift_is_from_the_start_to_the_chosen_epoch(make_adapting) -> None:
    bench = make_adapting("drift", {"adapt.method": "shot"})
    outcome = bench.json("adapt")["adapt"]["jaffe"]
    start = checkpoint.load(bench.runs / "source/best.ckpt")["network"]
    expected = drift(watched(bench, None), watched(bench, outcome["epoch"]))
    assert outcome["drift"] == json.loads(json.dumps(expected))
    assert outcome["verdict"] == verdict(expected, 42, 42, 0, start_kept="kept" in outcome)
    again = bench.json("adapt")["adapt"]["jaffe"]  # a finished run reports it once more
    assert (again["drift"], again["verdict"]) == (outcome["drift"], outcome["verdict"])
    assert not all(torch.equal(start[k], v) for k, v in best(bench)["network"].items())


def best(bench: Bench) -> dict[str, Any]:
    return checkpoint.load(bench.runs / "adapt-jaffe/best.ckpt")


@pytest.fixture
def spoiled(make_adapting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a function (method, changes) -> a bench whose model that method has ruined."""
    (tmp_path / "spoilers.py").write_text(SPOILERS)
    monkeypatch.chdir(tmp_path)

    def make(method: str, changes: dict[str, Any]) -> Bench:
        return make_adapting("spoiled", {"adapt.method": f"spoilers:{method}", "adapt.epochs": 4, **changes})

    return make


def test_a_collapse_ends_the_adaptation_and_is_not_chosen(spoiled) -> None:
    bench = spoiled("OneClass", {"adapt.lr": 0.05})
    outcome = bench.json("adapt")["adapt"]["jaffe"]
    histogram = [drift(watched(bench, None), watched(bench, e))["histogram"] for e in range(1, 1 + done(bench))]
    verdicts = [collapsed(h["before"], h["after"]) for h in histogram]
    assert outcome["steps"] == STEPS * done(bench) < STEPS * 4
    assert verdicts[-1] is not None and not any(verdicts[:-1])
    assert outcome["epoch"] < done(bench)
    assert outcome["verdict"]["trust"] == ("not trusted" if outcome["epoch"] == 0 else outcome["verdict"]["trust"])
    again = bench.json("adapt")["adapt"]["jaffe"]  # the same command does not resume it
    assert again["trained_steps"] == 0
    longer = json.loads(bench.done("adapt", "--json", "--set", "adapt.epochs=6").stdout)["adapt"]["jaffe"]
    assert longer["trained_steps"] == 0


def done(bench: Bench) -> int:
    return max(line["epoch"] for line in read_metrics(bench.runs / "adapt-jaffe"))


def test_the_start_is_kept_if_every_rule_prefers_it(make_adapting) -> None:
    bench = make_adapting("kept", {"adapt.method": "shot", "adapt.select": "last"})
    folder = bench.runs / "adapt-jaffe"
    assert bench.json("adapt")["adapt"]["jaffe"]["epoch"] == EPOCHS
    # As if the starting model had been sure of seven groups of faces, and the adapted model of nothing.
    sure = torch.full((42, 7, 7), -3.0)
    sure[torch.arange(42), :, torch.arange(42) % 7] = 3
    said = {start_file(folder): sure.softmax(-1), epoch_file(folder, EPOCHS): seven_heads(42, 0, sharpness=1.5)}
    assert rules_prefer_start(*map(target_scores, said.values()))
    for path, scored in said.items():
        found, about = read_outputs(path)
        write_outputs(path, {**found, "scored": scored}, about)
    outcome = bench.json("adapt")["adapt"]["jaffe"]
    assert (outcome["epoch"], outcome["verdict"]["trust"], outcome["drift"]["agreement"]) == (0, "not trusted", 1)
    assert outcome["kept"] == f"every selection rule prefers it to epoch {EPOCHS}"
    start = checkpoint.load(bench.runs / "source/best.ckpt")["network"]
    assert all(torch.equal(start[k], v) for k, v in best(bench)["network"].items())
    result = bench.done("adapt")
    assert (
        f"the starting model is kept because every selection rule prefers it to epoch {EPOCHS}, already trained"
        in result.stderr
    )
    entries = {e["folder"]: e for e in bench.json("evaluate")["entries"] if e["dataset"] == "jaffe"}
    assert entries["adapt-jaffe"]["heads"]["fused"] == entries["source"]["heads"]["fused"]  # the starting model's score
    assert entries["adapt-jaffe"]["epoch"] == 0


def test_a_target_of_a_few_faces_is_reported(make_adapting) -> None:
    result = make_adapting("few", {"adapt.method": "tent"}).done("adapt")
    assert "There are only 42 faces" in result.stderr
    assert "compared with the starting model: " in result.stderr
