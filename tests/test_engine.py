"""Training end to end: the files of a run, stopping and resuming, unread target labels, and failures."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EPOCHS, STEPS, Bench
from stores import with_labels
from trained_runs import answers, assert_same_run, headline, stopped

from fercli.engine import checkpoint
from fercli.engine.log import Log, Meter, read_metrics
from fercli.engine.schedule import rate_in
from fercli.errors import FercliError
from fercli.evaluation.outputs import EpochOutputs, read_outputs
from fercli.methods import method_class
from fercli.spec.registry import METHODS


@pytest.fixture(scope="module")
def adapted(adapted: Bench) -> Bench:
    """The session's adapted bench, evaluated with a report."""
    adapted.done("evaluate", "--report", "--quiet")
    return adapted


# End to end


def test_a_run_writes_all_its_files(adapted: Bench) -> None:
    for stage in ("source", "adapt-jaffe"):
        folder = adapted.runs / stage
        for name in ("best.ckpt", "last.ckpt", "metrics.jsonl", "environment.json", "spec.yaml"):
            assert (folder / name).stat().st_size, f"{stage}/{name}"
        outcome = json.loads((folder / "environment.json").read_text())["outcome"]
        assert outcome["steps"] == EPOCHS * STEPS
        last = checkpoint.load(folder / "last.ckpt")
        assert (last["step"], last["epoch"]) == (EPOCHS * STEPS, EPOCHS)
        assert 1 <= outcome["epoch"] <= EPOCHS
        assert checkpoint.load(folder / "best.ckpt")["epoch"] == outcome["epoch"]
    outputs = EpochOutputs(adapted.runs / "adapt-jaffe").paths
    assert list(outputs) == list(range(1, EPOCHS + 1))
    for path in outputs.values():
        found, about = read_outputs(path)
        assert {name: tuple(one.shape) for name, one in found.items()} == {
            "scored": (42, 7, 7),
            "held": (len(found["held"]), 7, 7),
            "status": (7, 7),
        }
        assert set(about) == {"faces"}
    report = adapted.runs / "report"
    assert "<html" in (report / "report.html").read_text()[:500].lower()
    document = json.loads((report / "results.json").read_text())
    assert [(row["method"], row["oracle"]) for row in headline(document)] == [
        ("source-only", False),
        ("aglrls", False),
        ("aglrls", True),
    ]
    assert not list(adapted.runs.rglob("*.tmp"))


def test_metrics_count_every_epoch_and_log_between(adapted: Bench) -> None:
    for stage, names in (("source", {"source"}), ("adapt-jaffe", {"source", "adversarial", "pseudo"})):
        lines = read_metrics(adapted.runs / stage)
        validated = [line for line in lines if line["kind"] == "validate"]
        assert [(line["epoch"], line["step"]) for line in validated] == [(1, STEPS), (2, 2 * STEPS)]
        trained_ = [line for line in lines if line["kind"] == "train"]
        assert [line["step"] for line in trained_] == [2, 3, 4, 6]  # log_every is 2; and the end of each epoch
        assert all(set(line["losses"]) == names for line in trained_)


def test_the_chosen_epoch_has_the_best_score(adapted: Bench) -> None:
    for stage, rule in (("source", "source-val"), ("adapt-jaffe", "infomax")):
        scores = [m["scores"][rule] for m in read_metrics(adapted.runs / stage) if m["kind"] == "validate"]
        best = checkpoint.load(adapted.runs / stage / "best.ckpt")["best"]
        assert (best["rule"], best["score"]) == (rule, max(scores))
        assert best["epoch"] == 1 + int(np.argmax(scores))


def test_the_same_spec_gives_the_same_bits(adapted: Bench, bench: Bench) -> None:
    bench.done("train-source", "--quiet")
    bench.done("adapt", "--quiet")
    assert_same_run(adapted.runs / "source", bench.runs / "source")
    assert_same_run(adapted.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")


def test_another_seed_gives_other_bits(trained: Bench, bench: Bench) -> None:
    bench.done("train-source", "--quiet", "--set", "engine.seed=1")
    one, other = (checkpoint.load(b.runs / "source/last.ckpt")["network"] for b in (trained, bench))
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_finished_stage_is_not_trained_again(make_adapting) -> None:
    bench = make_adapting("again")
    before = (bench.runs / "source/last.ckpt").read_bytes()
    outcome = json.loads(bench.done("train-source", "--json").stdout)["train_source"]
    assert outcome["trained_steps"] == 0
    assert (bench.runs / "source/last.ckpt").read_bytes() == before


def test_raised_epochs_resume_where_the_run_ended(make_adapting, bench: Bench) -> None:
    longer = make_adapting("longer")
    longer.done("train-source", "--quiet", "--set", "train_source.epochs=3")
    bench.done("train-source", "--quiet", "--set", "train_source.epochs=3")
    assert_same_run(bench.runs / "source", longer.runs / "source")


# Stopping and resuming


@pytest.mark.parametrize(("step", "number"), [(0, signal.SIGINT), (2, signal.SIGINT), (4, signal.SIGTERM)])
def test_a_stopped_train_source_resumes_to_the_same_bits(trained: Bench, bench: Bench, step: int, number: int) -> None:
    result = stopped(bench, "train-source", step, number)
    assert f"stopped at step {step + 1} of {EPOCHS * STEPS}" in result.stderr
    assert checkpoint.load(bench.runs / "source/last.ckpt")["step"] == step + 1
    outcome = json.loads(bench.done("train-source", "--json").stdout)["train_source"]
    assert outcome["trained_steps"] == EPOCHS * STEPS - step - 1
    assert_same_run(trained.runs / "source", bench.runs / "source")


@pytest.mark.parametrize("steps", [(1,), (2, 4)])
def test_a_stopped_adapt_resumes_to_the_same_bits(adapted: Bench, make_adapting, steps: tuple[int, ...]) -> None:
    bench = make_adapting("stopped")
    for step in steps:
        stopped(bench, "adapt", step, signal.SIGTERM)
    bench.done("adapt", "--quiet")
    assert_same_run(adapted.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")


def test_a_bank_that_is_filling_survives_a_stop(make_adapting) -> None:
    whole, bench = (make_adapting(name, {"adapt.options.threshold": 0.3}) for name in ("whole", "stopped"))
    whole.done("adapt", "--quiet")
    stopped(bench, "adapt", 4)
    bank = checkpoint.load(bench.runs / "adapt-jaffe/last.ckpt")["method"]["bank"]
    assert 0 < (bank >= 0).sum() < bank.numel()
    bench.done("adapt", "--quiet")
    assert_same_run(whole.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")


def test_a_second_signal_exits_at_once_and_loses_little(trained: Bench, bench: Bench) -> None:
    stopped(bench, "train-source", 4, times=2)
    assert checkpoint.load(bench.runs / "source/last.ckpt")["step"] == STEPS
    bench.done("train-source", "--quiet")
    assert_same_run(trained.runs / "source", bench.runs / "source")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(adapted: Bench, make_adapting) -> None:
    bench = make_adapting("killed")
    command = [sys.executable, "-m", "fercli", "adapt", "-c", str(bench.spec), "--set", "engine.save_every_s=0"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    begun = time.monotonic()
    while not (bench.runs / "adapt-jaffe/last.ckpt").exists() and run.poll() is None:
        assert time.monotonic() - begun < 100, "no checkpoint came"
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.5))
    run.kill()
    run.communicate()
    bench.done("adapt", "--quiet")
    assert_same_run(adapted.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")


# No target label is read


HONEST = sorted(name for name in METHODS if not method_class(name).oracle)


def test_only_methods_named_oracle_are_oracles() -> None:
    assert [name for name in METHODS if method_class(name).oracle] == [name for name in METHODS if "oracle" in name]


@pytest.fixture
def adapting(adapted: Bench, make_adapting):
    """Return a function (method, name, prepared) -> an adapted bench; without a name, one with the plain stores."""

    def make(method: str, name: str = "plain", prepared: Path | None = None) -> Bench:
        if method == "aglrls" and prepared is None:
            return adapted
        options = {"warm_steps": 20} if method == "agra" else {}
        bench = make_adapting(name, {"adapt.method": method, "adapt.options": options}, prepared)
        bench.done("adapt", "--quiet")
        return bench

    return make


@pytest.mark.parametrize("method", HONEST)
def test_a_target_without_labels_gives_the_same_weights_and_the_same_choice(
    method: str, prepared: Path, adapting, tmp_path: Path
) -> None:
    """A method that needs no source has none either: its images do not exist."""
    stores = with_labels(prepared, tmp_path / "stores", lambda labels: None)
    if not method_class(method).needs_source:
        (stores / "raf-db").unlink()
    assert_same_run(adapting(method).runs / "adapt-jaffe", adapting(method, "unlabelled", stores).runs / "adapt-jaffe")


@pytest.mark.parametrize("change", [np.random.default_rng(0).permutation, np.zeros_like], ids=["shuffled", "constant"])
@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m != "aglrls")) for m in HONEST])
def test_other_target_labels_change_the_score_and_nothing_else(
    method: str, change, prepared: Path, adapting, tmp_path: Path
) -> None:
    plain = adapting(method)
    other = adapting(method, "other", with_labels(prepared, tmp_path / "stores", change))
    assert_same_run(plain.runs / "adapt-jaffe", other.runs / "adapt-jaffe")
    for bench in (plain, other):
        bench.done("evaluate", "--report", "--quiet")  # other tests read this report of the session's bench
    assert confusion(other) != confusion(plain)


def confusion(bench: Bench) -> list[list[int]]:
    results = json.loads((bench.runs / "report/results.json").read_text())
    (entry,) = (e for e in results["entries"] if e["stage"] == "adapt")
    return entry["heads"][entry["decision"]]["confusion"]


def test_the_score_is_that_of_the_chosen_epochs_outputs(adapted: Bench) -> None:
    folder = adapted.runs / "adapt-jaffe"
    epoch = checkpoint.load(folder / "best.ckpt")["best"]["epoch"]
    labels = np.load(adapted.prepared / "jaffe/labels.npy")
    counted = np.zeros((7, 7), int)
    np.add.at(counted, (labels, answers(folder, epoch)), 1)
    assert confusion(adapted) in (counted.tolist(), counted.T.tolist())


# The parts of AGLRLS


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ({"adversarial": False}, {"source", "pseudo"}),
        ({"pseudo_labels": False}, {"source", "adversarial"}),
        ({"glpc": False}, {"source", "adversarial", "pseudo"}),
        ({"passes": "shared"}, {"source", "adversarial", "pseudo"}),
        ({"discriminators": "separate"}, {"source", "adversarial", "pseudo"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_part_runs_when_switched(options: dict[str, Any], losses: set[str], make_adapting) -> None:
    changes = {"adapt.options": options, "adapt.tag": "part", "adapt.epochs": 1, "adapt.steps_per_epoch": 2}
    bench = make_adapting("part", changes)
    bench.done("adapt", "--quiet")
    bench.done("evaluate", "--quiet")
    folder = bench.runs / "adapt-jaffe-part"
    assert set(read_metrics(folder)[0]["losses"]) == losses
    state = checkpoint.load(folder / "last.ckpt")
    assert state["decision"] == ("fused" if {"pseudo_labels", "glpc"} & set(options) else "glpc")
    names = {name.split(".")[1] for name in state["method"] if name.startswith("discriminators.")}
    separate = options.get("discriminators") == "separate"
    assert len(names) == (7 if separate else 0 if "adversarial" in options else 3)


@pytest.mark.parametrize("model", [{"classifiers": "separate"}, {"local": "image-crop"}])
def test_each_network_runs(model: dict[str, str], tmp_path: Path, prepared: Path) -> None:
    changes = {f"model.{key}": value for key, value in model.items()}
    for stage in ("train_source", "adapt"):
        changes.update({f"{stage}.epochs": 1, f"{stage}.steps_per_epoch": 2})
    bench = Bench(tmp_path / "network", prepared, changes)
    for command in ("train-source", "adapt", "evaluate"):
        bench.done(command, "--quiet")
    assert set(read_metrics(bench.runs / "adapt-jaffe")[0]["losses"]) == {"source", "adversarial", "pseudo"}


# Failures


def test_a_loss_that_is_not_finite_is_reported_and_the_last_good_checkpoint_kept(bench: Bench) -> None:
    options = ("--set", "train_source.lr={1: 0.01, 2: 0.005, 3: 1e30}", "--set", "train_source.clip_norm=null")
    bench.done("train-source", "--quiet", *options)
    kept = (bench.runs / "source/last.ckpt").read_bytes()
    result = bench("train-source", "--quiet", *options, "--set", "train_source.epochs=3")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "the loss is not finite at step 8 (source)" in result.stderr
    assert (bench.runs / "source/last.ckpt").read_bytes() == kept
    best = checkpoint.load(bench.runs / "source/best.ckpt")
    assert all(torch.isfinite(v).all() for v in best["network"].values())


def test_a_timed_save_never_holds_ruined_weights(bench: Bench) -> None:
    settings = ("engine.save_every_s=0", "train_source.lr=1e30", "train_source.clip_norm=null")
    options = [word for setting in settings for word in ("--set", setting)]
    assert bench("train-source", "--quiet", *options).exit_code == 1
    last = bench.runs / "source/last.ckpt"
    assert not last.exists() or all(v.abs().max() < 1e6 for v in checkpoint.load(last)["network"].values())


def test_a_run_that_ends_with_ruined_weights_fails(make_adapting) -> None:
    changes = {"adapt.lr": 1e30, "adapt.discriminator_lr": 1e30, "adapt.clip_norm": None}
    bench = make_adapting("ruined", {**changes, "adapt.epochs": 1, "adapt.steps_per_epoch": 1})
    result = bench("adapt", "--quiet")
    assert result.exit_code == 1
    assert "not finite" in result.stderr


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 0.1}, [0.1] * 5),
        ({1: 0.1, 3: 0.01}, [0.1, 0.1, 0.01, 0.01, 0.01]),
        ({4: 0.01, 1: 0.1, 2: 0.05}, [0.1, 0.05, 0.05, 0.01, 0.01]),
        ({3: 0.01}, [0.01] * 5),
        ({1: 0.1, 5: 0.0}, [0.1, 0.1, 0.1, 0.1, 0.0]),
    ],
)
def test_rate_in(rates: dict[int, float], expected: list[float]) -> None:
    assert [rate_in(rates, epoch) for epoch in range(1, 6)] == expected


def test_rates_reach_the_optimizer_by_group(adapted: Bench) -> None:
    def rates(stage: str) -> list[float]:
        return [
            group["lr"] for group in checkpoint.load(adapted.runs / stage / "last.ckpt")["optimizer"]["param_groups"]
        ]

    assert rates("source") == [0.005, 0.005]  # the rate of epoch 2; head_lr_multiplier is 1 here
    assert rates("adapt-jaffe") == [0.005, 0.005, 0.01]


# Checkpoints


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_foreign_and_broken_checkpoints_are_refused(
    tmp_path: Path, trained: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (trained.runs / "source/last.ckpt").read_bytes()
    file = tmp_path / "x.ckpt"

    def saved(value: Any) -> bytes:
        torch.save(value, file)
        return file.read_bytes()

    damaged, code, foreign = "is truncated or damaged", "asks to run code", "is not a fercli checkpoint"
    cases = [(whole[: len(whole) * k // 8], damaged) for k in range(8)]
    cases += [
        (b"garbage " * 100, "is not a PyTorch checkpoint, or is damaged"),
        (pickle.dumps(Hostile()), "is not a PyTorch checkpoint, or is damaged"),
        (saved(Hostile()), code),
        (saved({"network": {}, "spec": {}, "extra": Hostile()}), code),
        (saved({"state_dict": {"a": torch.zeros(2)}}), foreign),
        (saved([torch.zeros(2)]), foreign),
        (saved(torch.zeros(2)), foreign),
        (
            saved({"format": 99, "fercli": "9.9", "network": {}, "spec": {}}),
            "by fercli 9.9, newer than this",
        ),
    ]
    for content, told in cases:
        file.write_bytes(content)
        with pytest.raises(FercliError) as caught:
            checkpoint.load(file)
        assert told in str(caught.value)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile-was-here").exists()
    with pytest.raises(FercliError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.ckpt")
    with pytest.raises(FercliError):
        checkpoint.load(tmp_path)


def test_a_write_that_fails_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.ckpt"
    checkpoint.save(file, {"network": {"a": torch.ones(3)}, "spec": {}})
    before = file.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FercliError, match=r"cannot write .*No space left.*kept"):
            checkpoint.save(file, {"network": {"a": torch.zeros(3)}, "spec": {}})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_leftover_of_a_killed_write_is_not_a_checkpoint(make_adapting) -> None:
    bench = make_adapting("leftover")
    (bench.runs / "source/last.ckpt.tmp").write_bytes(b"half")
    half = bench.runs / ".spec.yaml.host-1.tmp"
    half.write_bytes(b"half")
    assert json.loads(bench.done("train-source", "--json").stdout)["train_source"]["trained_steps"] == 0
    assert not half.exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.width=8", "model.width 4 -> 8"),
        ("model.classifiers=separate", "model.classifiers shared -> separate"),
        ("model.backbone=mobilenet-v2", "model.backbone ir-small -> mobilenet-v2"),
    ],
)
@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_another_architecture_is_named_by_its_key(setting: str, told: str, command: str, make_adapting) -> None:
    result = make_adapting("other")(command, "--set", setting)
    assert result.exit_code == 1
    assert "has another architecture" in result.stderr
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# Logs


def test_a_meter_is_the_mean_and_survives_a_stop() -> None:
    cpu = torch.device("cpu")
    values = [0.1, 0.7, 0.4]

    def add(meter: Meter, step: int) -> None:
        meter.begin_step(step)
        meter.add(0, {"a": torch.tensor(values[step])}, {"b": torch.tensor(step)})

    meters = whole, full, first = Meter(cpu, 20), Meter(cpu, 1), Meter(cpu, 20)
    for meter, steps in zip(meters, (3, 3, 2), strict=True):
        for step in range(steps):
            add(meter, step)
    second = Meter(cpu, 20)
    second.load_state_dict(first.state_dict(), 2)
    add(second, 2)
    expected = sum(torch.tensor(values).double().tolist()) / 3
    assert second.flush() == whole.flush() == full.flush() == ({"a": pytest.approx(expected, rel=1e-15)}, {"b": 1.0})
    assert second.flush() == ({}, {})


def test_a_meter_adds_what_several_updates_give_under_one_name() -> None:
    meter = Meter(torch.device("cpu"), 20)
    meter.begin_step(0)
    sums = [
        meter.add(u, {"a": torch.tensor(float(u)), **more}, {}) for u, more in ((1, {}), (2, {"b": torch.ones(())}))
    ]
    assert [s.item() for s in sums] == [1, 3]
    assert meter.add(3, {}, {}) == 0
    assert meter.flush() == ({"a": 1.5, "b": 1.0}, {})


def test_a_meter_finds_the_first_loss_that_is_not_finite() -> None:
    meter, bad = Meter(torch.device("cpu"), 3), float("nan")
    rows = [(0, 0, 1.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, bad), (2, 0, float("inf")), (5, 0, 1.0)]
    for step, number, value in rows:
        meter.begin_step(step)
        meter.add(number, {"a": torch.tensor(2.0), "b": torch.tensor(value)}, {"c": torch.tensor(bad)})
    step, number, losses = meter.not_finite()
    assert (step, number, str(losses)) == (1, 1, "{'a': 2.0, 'b': nan}")
    meter.flush()
    assert meter.not_finite() is None


def test_metrics_of_a_killed_run_are_truncated(tmp_path: Path) -> None:
    log = Log(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        log.write("train", step, 1, losses={"source": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    Log(tmp_path, 2, tensorboard=False).write("train", 3, 1, losses={"source": 2.0})
    assert [(m["step"], m["losses"]["source"]) for m in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_tensorboard_is_written_if_requested(make_adapting) -> None:
    bench = make_adapting("board")
    bench.done("train-source", "--restart", "--quiet", "--set", "engine.tensorboard=true")
    assert list((bench.runs / "source").glob("events.out.tfevents*"))
