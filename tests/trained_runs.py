"""Trained runs and sweeps for tests: compared bit for bit, and stopped by signals."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import Bench

from fercli.engine import checkpoint
from fercli.engine.trained import find_trained
from fercli.evaluation.decision import DecisionRule
from fercli.evaluation.outputs import epoch_file, read_outputs
from fercli.loading.batches import Batches
from fercli.scoring.results import ModelRecord, Part, Results
from fercli.store import Store

#: Entries of a checkpoint beside the spec (whose paths differ from bench to bench).
STATE = ("network", "method", "optimizer", "meter", "rng", "best", "step", "epoch", "status", "decision")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}.{i}")
    else:
        yield path, value


def assert_same_state(one: Path, other: Path) -> None:
    """Bit for bit: weights, batch-norm statistics, bank, momentum, meters and random numbers."""
    a, b = (dict(leaves({k: v for k, v in checkpoint.load(p).items() if k in STATE})) for p in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_state(one / name, other / name)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    outputs = {path.name: path.read_bytes() for path in one.glob("outputs/epoch-*")}
    assert outputs == {path.name: path.read_bytes() for path in other.glob("outputs/epoch-*")}


def answers(folder: Path, epoch: int) -> list[int]:
    """Predictions of a stage folder's adapted model on the scored faces after an epoch, by its decision rule."""
    found, _ = read_outputs(epoch_file(folder, epoch))
    rule = find_trained(folder).rule._replace(status=found.get("status"))
    return rule(found["scored"]).answers.tolist()


def record(folder: Path, decision: str = "fused", status: torch.Tensor | None = None, **others: Any) -> ModelRecord:
    """The record that tables use for a model in a folder; a source model unless `others` changes it."""
    found = ModelRecord(
        folder=folder,
        name=folder.name,
        stage="source",
        method="source-only",
        registered="source-only",
        seed=0,
        checkpoint=folder / "best.ckpt",
        epoch=1,
        selection="last",
        rule=DecisionRule(decision, status),
        decision=decision,
        oracle_method=False,
        source="raf-db",
    )
    return replace(found, **others)


def scored(own: ModelRecord, store: Store, indices: np.ndarray, probabilities: torch.Tensor) -> Results:
    """A model's results on these faces of a target, which lists one more; no source face was held out."""
    part, held = Part(["all"], indices, len(indices) + 1), (torch.zeros(0, 7, 7), torch.zeros(0).long())
    return Results(own, store, False, part, probabilities, *held)


def headline(document: dict[str, Any]) -> list[dict[str, Any]]:
    """From a results document: a row for every model on a target, and one for the oracle's epoch after it."""
    rows = []
    for entry in document["entries"]:
        if entry["role"] == "target":
            metrics = entry["heads"][entry["decision"]] or {}
            row = {**entry, **{name: metrics.get(name) for name in ("accuracy", "macro_f1")}}
            rows.append({**row, "oracle": entry["oracle_method"]})
            if entry["oracle"]:
                rows.append({**row, **entry["oracle"], "selection": "oracle", "oracle": True})
    return rows


def results(bench: Bench) -> dict[str, Any]:
    return json.loads((bench.runs / "results.json").read_text(), parse_constant=pytest.fail)


def figures(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries without what differs from run to run."""
    own = ("seconds", "checkpoint")
    return [{key: value for key, value in entry.items() if key not in own} for entry in document["entries"]]


def stages(bench: Bench) -> list[str]:
    return sorted(str(path.parent.relative_to(bench.runs)) for path in bench.runs.rglob("last.ckpt"))


def timeless(bench: Bench) -> bytes:
    """A sweep's ``results.csv``, byte for byte, except for the values of rows whose metric is seconds."""
    return re.sub(rb"(?m)(,seconds,)[^,]*", rb"\1", (bench.runs / "results.csv").read_bytes())


def assert_same_sweep(one: Bench, other: Bench) -> None:
    """Bit for bit, including the results."""
    assert stages(one) == stages(other)
    for stage in stages(one):
        assert_same_run(one.runs / stage, other.runs / stage)
    assert figures(results(one)) == figures(results(other))
    assert results(one)["missing"] == results(other)["missing"]
    assert timeless(one) == timeless(other)


def stopped(bench: Bench, command: str, step: int, number: int = signal.SIGINT, times: int = 1) -> Result:
    """Run a command that receives the signal while the batch of `step` is made, as with a user's Ctrl-C."""
    make = Batches.__call__

    def batch(self: Batches, asked: int, pool: torch.Tensor | None = None) -> Any:
        if asked == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return make(self, asked, pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__call__", batch)
        result = bench(command)
    assert result.exit_code == 130, result.stderr
    return result
