"""results.csv has the document's numbers, predictions/*.csv each prediction; nothing in them runs as a formula."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from conftest import Bench
from stores import changeable
from trained_runs import record, scored

from fercli.evaluation.decision import DecisionRule
from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS
from fercli.scoring.results_files import PREDICTION_COLUMNS, RESULT_COLUMNS, prediction_rows, result_rows
from fercli.spreadsheet import harmless, write_csv
from fercli.store import Store


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(adapted: Bench) -> tuple[Bench, dict[str, Any]]:
    """An adapted bench, evaluated without a report, and its results document."""
    return adapted, adapted.json("evaluate")


def found(rows: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


# results.csv


def test_each_number_of_the_entries_is_a_row(evaluated) -> None:
    bench, results = evaluated
    rows = read(bench.runs / "report/results.csv")
    assert list(rows[0]) == list(RESULT_COLUMNS)
    keys = ("dataset", "method", "folder", "epoch", "selection", "head", "expression", "metric")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    for entry in results["entries"]:
        own = found(rows, dataset=entry["dataset"], folder=entry["folder"], selection=entry["selection"])
        about = ("role", "method", "source", "epoch", "oracle", "run", "split", "seed", "setting")
        due = (entry["role"], entry["method"], "raf-db", str(entry["epoch"]), "false", "tiny")
        assert {tuple(row[key] for key in about) for row in own} == {(*due, "+".join(entry["splits"]), "0", "")}
        assert {row["head"] for row in own} == {"", *entry["heads"]}
        for head, metrics in entry["heads"].items():
            decides = head == entry["decision"]
            assert {row["decides"] for row in found(own, head=head)} == {"true" if decides else "false"}
            for name in ("accuracy", "macro_f1", "mean_recall"):
                (row,) = found(own, head=head, expression="", metric=name)
                assert float(row["value"]) == metrics[name]
                assert int(row["count"]) == entry["scored"]
                ends = entry["intervals"].get(name) if decides else None
                assert [row["low"], row["high"]] == (["", ""] if ends is None else [repr(end) for end in ends])
            for figures, answered in zip(metrics["per_expression"], metrics["confusion"], strict=True):
                here = found(own, head=head, expression=figures["expression"])
                told = {row["metric"]: row["value"] for row in here}
                for name in ("precision", "recall", "f1"):
                    assert told[name] == ("" if figures[name] is None else repr(figures[name]))
                assert [int(told[f"answered:{name}"]) for name in EXPRESSIONS] == answered
                assert {int(row["count"]) for row in here} == {figures["support"]}
        told = {row["metric"]: row["value"] for row in found(own, head="fused", expression="")}
        for when, suffix in (("before", ""), ("after", ":scaled")):
            for name in ("ece", "nll"):
                assert float(told[name + suffix]) == entry["calibration"][when][name]
        assert float(told["temperature"]) == entry["calibration"]["temperature"]
        chance = [row for row in own if row["metric"].startswith("p:")]
        if entry["against_reference"] is None:
            assert not chance
        else:
            test = entry["against_reference"]["test"]
            (row,) = chance
            assert (row["metric"], float(row["value"])) == ("p:sign-flip", test["p"])
            assert (row["head"], row["decides"], row["expression"]) == (entry["decision"], "true", "")
        counts = {row["metric"]: float(row["value"]) for row in found(own, head="")}
        assert counts == {name: entry[name] for name in ("expected", "found", "scored", "seconds")}


def test_other_epochs_are_distinguished_and_the_gap_is_included(evaluated) -> None:
    bench, results = evaluated
    rows = read(bench.runs / "report/results.csv")
    (entry,) = (entry for entry in results["entries"] if entry["stage"] == "adapt")
    adapted = found(rows, folder="adapt-jaffe", head="glpc", expression="")
    for rule, at in [*entry["rules"].items(), ("oracle", entry["oracle"])]:
        told = {row["metric"]: row for row in found(adapted, selection=rule)}
        for name in ("accuracy", "macro_f1"):
            assert float(told[name]["value"]) == at[name] and int(told[name]["epoch"]) == at["epoch"]
            assert told[name]["oracle"] == ("true" if rule == "oracle" else "false")
    assert set(told) == {"accuracy", "macro_f1"}
    assert [float(told["accuracy"][key]) for key in ("low", "high")] == entry["oracle"]["intervals"]["accuracy"]
    distances = {row["folder"]: float(row["value"]) for row in found(rows, metric="energy_distance")}
    assert distances == {model["folder"]: model["energy_distance"] for model in results["gaps"][0]["models"]}
    without = {row["folder"]: float(row["value"]) for row in found(rows, metric="energy_distance:no_gap")}
    assert without == {model["folder"]: model["no_gap"] for model in results["gaps"][0]["models"]}
    for name, stage in entry["stages"].items():
        (row,) = found(rows, metric=f"stage:{name}")
        assert (int(row["count"]), row["head"]) == (stage["count"], "glpc")
        assert row["value"] == ("" if not stage["count"] else repr(stage["correct"] / stage["count"]))


def test_pandas_reads_the_table_without_options(evaluated) -> None:
    bench, results = evaluated
    table = pandas.read_csv(bench.runs / "report/results.csv")
    kinds = {name: table[name].dtype.kind for name in RESULT_COLUMNS}
    assert (kinds["oracle"], kinds["seed"], kinds["epoch"]) == ("b", "i", "i")
    assert {kinds[name] for name in ("value", "low", "high", "count")} == {"f"}
    rows = table[(table.metric == "accuracy") & (table.decides == True) & (table.dataset == "jaffe")]  # noqa: E712
    by_model = rows[~rows.oracle].drop_duplicates("folder").set_index("folder").value
    for entry in results["entries"][1:]:
        assert by_model[entry["folder"]] == pytest.approx(entry["heads"][entry["decision"]]["accuracy"])


def test_a_dataset_without_labels_has_only_counts(prepared: Path, tmp_path: Path) -> None:
    store = changeable(Store.open(prepared / "jaffe"))
    store.labels[:] = -1
    glpc = record(tmp_path / "adapt-mine", "glpc", torch.ones(7, 7))
    entry = scored(glpc, store, np.arange(8), torch.full((8, 7, 7), 1 / 7)).entry()
    rows = list(result_rows({"title": "t", "entries": [entry], "gaps": []}))
    about = ["t", "jaffe", "target", "all", "raf-db", "source-only", 0, "", "adapt-mine", 1, "last", "false"]
    assert [row[: len(about)] for row in rows] == [about] * len(rows)
    assert [row[len(about) :] for row in rows] == [
        ["", "", "", "expected", 9, None, None, None],
        ["", "", "", "found", 8, None, None, None],
        ["", "", "", "scored", 0, None, None, None],
        ["glpc", "true", "", "stage:fused", None, None, None, 0],
        ["glpc", "true", "", "stage:global", None, None, None, 0],
        ["glpc", "true", "", "stage:sum", None, None, None, 8],
    ]


# predictions/*.csv


def test_predictions_are_what_was_scored(evaluated) -> None:
    bench, results = evaluated
    folder = bench.runs / "report"
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [
        "adapt-jaffe--jaffe.csv",
        "source--jaffe.csv",
        "source--raf-db.csv",
    ]
    for entry in results["entries"]:
        rows = read(folder / entry["predictions"])
        store = Store.open(bench.prepared / entry["dataset"])
        assert list(rows[0]) == list(PREDICTION_COLUMNS)
        positions = [int(row["position"]) for row in rows]
        assert positions == store.indices(store.score_splits).tolist()
        for key, values in (("id", store.ids), ("subject", store.subjects), ("split", store.splits)):
            assert [row[key] for row in rows] == values[positions].tolist()
        assert [row["label"] for row in rows] == [EXPRESSIONS[label] for label in store.labels[positions]]
        for head, column in [(entry["decision"], "answer"), *((head, f"head_{head}") for head in HEADS)]:
            metrics = entry["heads"][head]
            counted = np.zeros((7, 7), int)
            for row in rows:
                counted[EXPRESSIONS.index(row["label"]), EXPRESSIONS.index(row[column])] += 1
            assert counted.tolist() == metrics["confusion"]
        said = np.array([[float(row[f"p_{name}"]) for name in EXPRESSIONS] for row in rows])
        np.testing.assert_allclose(said.sum(1), 1, atol=5e-6)
        assert all(len(row["p_fear"]) == len("0.123456") for row in rows)
        stages = entry["stages"]
        if stages is None:
            assert {row["stage"] for row in rows} == {entry["decision"]}
        else:
            counts = {name: sum(row["stage"] == name for row in rows) for name in stages}
            assert counts == {name: stage["count"] for name, stage in stages.items()}


def test_predictions_of_removed_models_are_removed(evaluated, tmp_path: Path) -> None:
    bench, _ = evaluated
    own = Bench(tmp_path / "gone", bench.prepared)
    shutil.copytree(bench.runs, own.runs)
    folder = own.runs / "report/predictions"
    (folder / "notes.txt").write_text("of mine")
    shutil.rmtree(own.runs / "adapt-jaffe")
    own.done("evaluate", "--quiet")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["notes.txt", "source--jaffe.csv", "source--raf-db.csv"]


def test_names_that_are_formulas_or_not_utf8(prepared: Path, tmp_path: Path) -> None:
    store = changeable(Store.open(prepared / "jaffe"))
    names = ["=1+1", "\udcff.png", 'a,"b"\r\nc', "plain", "@x", "-2"]
    indices = np.arange(len(names))
    store.ids[indices], store.subjects[indices] = names, [*"abcd", "+e", ""]
    store.labels[0] = -1
    probabilities = torch.rand(len(names), 7, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    one = scored(record(tmp_path / "source"), store, indices, probabilities)
    write_csv(tmp_path / "p.csv", PREDICTION_COLUMNS, prediction_rows(one))
    rows = read(tmp_path / "p.csv")
    assert [row["id"] for row in rows] == ["'=1+1", "\udcff.png", 'a,"b" c', "plain", "'@x", "'-2"]
    assert [row["subject"] for row in rows] == [*"abcd", "'+e", ""]
    assert (rows[0]["label"], rows[1]["label"]) == ("", EXPRESSIONS[store.labels[1]])
    said = DecisionRule("fused")(probabilities).probabilities
    assert rows[3]["p_anger"] == f"{said[3, EXPRESSIONS.index('anger')].item():.6f}"
    assert b"\xff.png" in (tmp_path / "p.csv").read_bytes()


# What all CSV files share


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("=SUM(A1)", "'=SUM(A1)"),
        ("+1", "'+1"),
        ("-x", "'-x"),
        ("@x", "'@x"),
        (" =x", "' =x"),
        ("＝x", "'＝x"),
        ("a=b", "a=b"),
        ("two\r\nlines\tand a tab", "two lines and a tab"),
        ("", ""),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_text_is_escaped_and_numbers_are_unchanged(value: Any, kept: Any) -> None:
    assert harmless(value) == kept


def test_a_table_is_read_back_as_written(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a", "=b"], [[1, None], [0.1 + 0.2, 'x"y,z']])
    text = (tmp_path / "t.csv").read_text()
    assert text == 'a,\'=b\n1,\n0.30000000000000004,"x""y,z"\n'
    assert list(csv.reader(io.StringIO(text)))[2] == ["0.30000000000000004", 'x"y,z']
