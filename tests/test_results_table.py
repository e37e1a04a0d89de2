"""The tables of a results document: figures by hand, which row can be best, selection rules ranked, the console."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import click
import pytest
from report_documents import FIGURES, answered, document, entry, of_photographs, sweep, unlabelled, without

from fercli.cli import main
from fercli.cli.hints import remember, with_options
from fercli.cli.results_view import doubts, drift, expressions, headline, rule_ranks, show
from fercli.evaluation.results_table import figures, groups, heads_table, metrics, table, table_columns
from fercli.evaluation.rule_ranking import rank_rules
from fercli.evaluation.significance import compare_right, mcnemar
from fercli.evaluation.statistics import holm, paired_t_test
from fercli.report.coverage_view import missing, times
from fercli.scoring.results import Part, with_reference

WHOLE, RUN = sweep(), document(60)


@pytest.fixture
def results():
    """Four methods, two targets, three seeds; nothing missing."""
    return copy.deepcopy(WHOLE)


def rows_of(results, name="accuracy"):
    columns = table_columns(results)
    lines = table(groups(results), columns, name)
    return {line["label"]: dict(zip([c.name for c in columns], line["cells"], strict=True)) for line in lines}


def found(results, method, dataset, seed):
    return next(e for e in results["entries"] if (e["method"], e["dataset"], e["seed"]) == (method, dataset, seed))


def test_figures_by_hand(results):
    rows = rows_of(results)
    near = rows["aglrls"]["near"]
    assert near["mean"] == pytest.approx(0.82) and near["sd"] == pytest.approx(math.sqrt(7) / 100)  # 80, 81, 85
    assert near["n"] == near["pairs"] == 3 and near["one"] is None
    assert headline(results)[2][1][1] == "82.0 ± 2.6"
    mean = rows["aglrls"]["mean"]  # 70, 71, 76.5 against 50, 53, 53
    assert mean["mean"] == pytest.approx(0.725) and mean["difference"] == pytest.approx(0.205)
    raw = [paired_t_test([0.20, 0.18, 0.235]), paired_t_test([0.10, 0.09, 0.11]), paired_t_test([0.35, 0.34, 0.36])]
    assert [rows[name]["mean"]["p"] for name in ("aglrls", "dann", "gated")] == pytest.approx(holm(raw))
    base, (_, bound, *_) = rows["source-only"]["mean"], table(groups(results), table_columns(results), "accuracy")
    assert (base["difference"], base["p"]) == (None, None)
    assert [cell["mean"] for cell in bound["bound"]] == pytest.approx([0.83, 0.64, 0.735])  # at the oracle's epoch
    assert all(cell["difference"] == pytest.approx(0.01) and cell["p"] is None for cell in bound["bound"])
    f1 = [metrics(found(results, "aglrls", "near", seed))["macro_f1"] for seed in range(3)]
    assert rows_of(results, "macro_f1")["aglrls"]["near"]["mean"] == pytest.approx(sum(f1) / 3)


def test_the_best_and_what_is_within_its_error(results):
    rows = rows_of(results)
    assert [name for name, cells in rows.items() if cells["mean"]["best"]] == ["aglrls"]
    assert not any(c["tied"] for cells in rows.values() for c in cells.values())
    for seed, accuracy in enumerate((82, 78, 85)):  # aglrls minus dann: -2, 3, 0: mean 0.33, error 1.45
        metrics(found(results, "dann", "near", seed))["accuracy"] = accuracy / 100
    rows = rows_of(results)
    assert rows["aglrls"]["near"]["best"] and rows["dann"]["near"]["tied"] and not rows["dann"]["far"]["tied"]
    for seed, accuracy in enumerate((85, 82, 79)):  # the same mean
        metrics(found(results, "dann", "near", seed))["accuracy"] = accuracy / 100
    rows = rows_of(results)
    assert [name for name, cells in rows.items() if cells["near"]["best"]] == ["aglrls", "dann"]
    assert not any(cells["near"]["tied"] for cells in rows.values())
    # The reference is at the top; oracle methods are at the bottom and never best.
    results["methods"] = ["gated", "aglrls", "source-only", "dann"]
    rows = rows_of(results)
    assert list(rows) == ["source-only", "aglrls", "dann", "gated"]
    assert rows["gated"]["mean"]["mean"] > 0.8 and not any(c["best"] or c["tied"] for c in rows["gated"].values())
    assert "gated ORACLE" in [row[0] for row in headline(results)[2]] and "gated" not in rank_rules(results)["methods"]


def test_a_row_with_fewer_seeds_is_compared_on_its_own_and_never_best(results):
    rows = rows_of(without(results, method="aglrls", seed=2, dataset="far"))
    assert rows["aglrls"]["near"]["n"] == 3 and rows["aglrls"]["far"]["n"] == rows["aglrls"]["mean"]["n"] == 2
    assert rows["aglrls"]["mean"]["difference"] == pytest.approx((20 + 18) / 200)  # seeds 0 and 1 only
    assert rows["aglrls"]["near"]["best"] and rows["dann"]["far"]["best"] and not rows["aglrls"]["far"]["best"]
    assert "(2)" in str(headline(results)) and "1 of 24 cells are missing" in headline(results)[3]


def test_the_console_shows_the_gap_and_its_value_without_a_gap():
    run = copy.deepcopy(RUN)
    line = "Domain gap to jaffe (energy distance, 0 to 1; below 0.004 without a gap): source-only 0.162, aglrls 0.058."
    assert line in headline(run)[3].splitlines()
    for model in run["gaps"][0]["models"]:
        model.update(energy_distance=None, no_gap=None, faces=[0, 60])
    line = "Domain gap to jaffe is not measured: the source has no test faces, and none were held out of training"
    assert line in headline(run)[3] and "energy distance" not in headline(run)[3]
    assert "Domain gap" not in headline(WHOLE)[3]


def test_missing_cells_are_rows_without_figures(results):
    without(results, method="dann", dataset="far")
    results["missing"].append({"seed": 0, "keys": {}, "dataset": "near", "method": "mcd", "why": "not finite"})
    assert missing(results) == [
        {"label": "dann", "dataset": "far", "why": "not run", "seeds": [0, 1, 2], "count": 3},
        {"label": "mcd", "dataset": "near", "why": "not finite", "seeds": [0], "count": 1},
    ]
    rows, first = rows_of(results), times(results)[0]
    assert (first["n"], first["total"]) == (3, 93)  # a source model counts once, however many targets it has
    assert rows["dann"]["mean"]["mean"] is None and rows["dann"]["near"]["n"] == 3
    assert set(rows["mcd"]) == {"near", "far", "mean"} and rows["mcd"]["near"]["n"] == 0


def test_one_seed_has_no_deviation_and_no_p_but_an_interval(results):
    for seed in (1, 2):
        without(results, seed=seed)
    results["seeds"], results["missing"] = [0], []
    rows = rows_of(results)
    mean, near = rows["aglrls"]["mean"], rows["aglrls"]["near"]
    assert (mean["sd"], mean["p"], mean["n"], mean["one"]) == (None, None, 1, None)
    assert mean["best"] and mean["difference"] == pytest.approx(0.2) and not rows["dann"]["mean"]["tied"]
    low, high = near["one"]["intervals"]["accuracy"]
    assert low < 0.8 < high and (near["one"]["correct"], near["one"]["scored"]) == (80, 100)
    assert headline(results)[2][1] == ["*aglrls", "80.0", "60.0", "70.0", "+20.0", "–", "71.0"]
    one = sweep({name: {"far": own["far"]} for name, own in FIGURES.items()})  # one target needs no mean
    assert headline(one)[1] == ["method", "far †", "points", "p", "ORACLE epoch"]


def test_without_labels_there_are_no_scores():
    rows = rows_of(sweep(unlabelled("far")))
    assert (rows["aglrls"]["far"]["mean"], rows["aglrls"]["far"]["difference"]) == (None, None)
    assert rows["aglrls"]["mean"]["mean"] == rows["aglrls"]["near"]["mean"]  # the mean leaves it out
    results = sweep(unlabelled("near", "far"))
    assert rank_rules(results)["rows"] == [] and "nan" not in str(rows_of(results))
    assert headline(results)[2][1] == ["aglrls", *["–"] * 5]  # no labelled target, no mean


def test_grid_keys_make_rows_and_find_their_reference(results):
    def cells(method, first, **keys):
        keys = {f"adapt.{key}": value for key, value in keys.items()}
        return [entry(method, t, seed, first + seed, keys=keys) for t in ("near", "far") for seed in range(3)]

    others = [e for e in results["entries"] if e["method"] != "aglrls"]
    grid = [one for batch in (16, 32) for one in cells("aglrls", 70, batch=batch, cut=None)]
    results["entries"] = [*others, *grid]
    rows = rows_of(results)
    names = [f"aglrls, adapt.batch {batch}, adapt.cut null" for batch in (16, 32)]
    assert list(rows) == ["source-only", *names, "dann", "gated"]
    assert rows[names[0]]["near"]["difference"] == pytest.approx(0.09)
    results["entries"] += cells("source-only", 65, batch=32)
    rows = rows_of(results)
    assert [rows[name]["near"]["difference"] for name in names] == pytest.approx([0.09, 0.05])
    results["entries"] = [e for e in results["entries"] if e["keys"] or e["method"] != "source-only"]
    assert rows_of(results)["dann"]["near"]["difference"] is None  # no reference with its settings


def test_computed_intervals_are_used_where_they_have_a_width():
    wide = {"accuracy": [0.5, 0.7], "macro_f1": [0.4, 0.6], "method": "jackknife t", "by": "subjects", "units": 10}
    flat = {**wide, "accuracy": [1.0, 1.0], "macro_f1": [1.0, 1.0]}  # no width: no variation
    wilson = "Wilson’s, images taken as independent"
    for drawn, by in ((wide, "jackknife t over 10 subjects"), (flat, wilson), (None, wilson)):
        one = figures(entry("aglrls", "near", percent=60, intervals=drawn))
        low, high = one["intervals"]["accuracy"]
        assert one["by"] == by and low < 0.6 < high and ((low, high) == (0.5, 0.7)) == (drawn is wide)
        assert one["intervals"]["macro_f1"] == (wide["macro_f1"] if drawn is wide else None)


# Tests with one seed and with several


def test_one_seed_is_tested_over_faces_and_several_over_seeds(results):
    by_seed = rows_of(results)["aglrls"]["near"]
    assert by_seed["test"] == "paired t-test over 3 seeds"
    assert by_seed["p"] == pytest.approx(holm([paired_t_test([0.20, 0.19, 0.21]), *dann_and_gated(results)])[0])
    for seed in (1, 2):
        without(results, seed=seed)
    rows, faces = rows_of(results), {}
    for method in ("aglrls", "dann", "gated"):
        against = found(results, method, "near", 0)["against_reference"]
        assert against["folder"] == found(results, "source-only", "near", 0)["folder"]
        assert against["fixed"] - against["broken"] == {"aglrls": 20, "dann": 10, "gated": 30}[method]
        assert against["test"]["p"] == mcnemar(against["fixed"], against["broken"]).p
        faces[method] = against["test"]["p"]
    assert [rows[method]["near"]["p"] for method in faces] == pytest.approx(holm(list(faces.values())))
    assert rows["aglrls"]["near"]["test"] == "McNemar’s test, faces taken as independent"
    # The mean over targets, F1 and the oracle's epoch are not tested.
    assert rows["aglrls"]["mean"]["p"] is rows["aglrls"]["mean"]["test"] is None
    assert {cell["p"] for cells in rows_of(results, "macro_f1").values() for cell in cells.values()} == {None}
    assert {
        cell["test"] for line in table(groups(results), table_columns(results), "accuracy") for cell in line["bound"]
    } == {None}


def dann_and_gated(results):
    own = [
        [metrics(found(results, name, "near", s))["accuracy"] for s in range(3)]
        for name in ("dann", "gated", "source-only")
    ]
    return [paired_t_test([a - b for a, b in zip(one, own[2], strict=True)]) for one in own[:2]]


def test_a_column_with_seeds_has_no_test_of_faces(results):
    without(results, method="aglrls", seed=1)
    without(results, method="aglrls", seed=2)
    rows = rows_of(results)
    assert rows["aglrls"]["near"]["n"] == 1 and rows["aglrls"]["near"]["p"] is rows["aglrls"]["near"]["test"] is None
    assert rows["dann"]["near"]["test"] == "paired t-test over 3 seeds"
    caption = headline(results)[3]
    general = "Holm over the rows. It generalises to other seeds, not to other faces."
    assert f"p: paired t-test over 3 seeds, {general}" in caption


def test_known_subjects_are_the_units(run):
    entry, reference = (
        next(e for e in run["entries"] if e["method"] == m and e["dataset"] == "jaffe")
        for m in ("aglrls", "source-only")
    )
    against = entry["against_reference"]
    assert reference["against_reference"] is None and against["folder"] == reference["folder"] == "source"
    assert {key: against["test"][key] for key in ("name", "by", "units", "subjects")} == {
        "name": "sign-flip", "by": "subjects", "units": 10, "subjects": 10,
    }  # fmt: skip
    cell = rows_of(run)["aglrls"]["jaffe"]
    assert (cell["p"], cell["test"]) == (against["test"]["p"], "sign-flip test over 10 subjects")
    note = f"on jaffe compared with source-only: aglrls {cell['p']:.3f} (sign-flip test over 10 subjects; Holm)."
    assert f"p of the accuracy {note}" in headline(run)[3] and "not to other seeds" in headline(run)[3]


def test_the_caption_for_one_seed_names_the_test():
    one = sweep({name: {"far": own["far"][:1]} for name, own in FIGURES.items()})
    _, _, rows, caption, _ = headline(one)
    general = "Holm over the rows. It generalises to other faces, not to other seeds."
    assert f"p: McNemar’s test, faces taken as independent, {general}" in caption
    assert rows[1][0] == "*aglrls" and 0 < float(rows[1][3]) < 1
    both = sweep({name: {target: of[:1] for target, of in own.items()} for name, own in FIGURES.items()})
    caption = headline(both)[3]
    assert "With one seed, the mean over targets has no p." in caption
    cells = rows_of(both)
    for target in ("near", "far"):
        p = cells["dann"][target]["p"]
        assert f"p of the accuracy on {target} compared with source-only: aglrls" in caption
        assert f"dann {p:.3f}" in caption


def test_the_reference_is_source_only_on_the_same_faces_with_fitting_keys():
    def result(method, keys, percent):
        one = answered("jaffe", method, percent, 40, seed=0)
        return replace(one, record=replace(one.record, keys=keys, name=f"{method} {keys}"))

    plain, narrow = result("source-only", {}, 40), result("source-only", {"width": 8}, 50)
    rows = [plain, narrow, result("dann", {"width": 8, "batch": 4}, 60), result("dann", {"width": 16}, 60)]
    told = compared(rows)
    assert [one and one["folder"] for one in told] == [None, None, "source-only {'width': 8}", "source-only {}"]
    assert told[2]["test"] == compare_right(narrow.right.right, rows[2].right.right, rows[2].right.subjects)
    assert compared(rows[2:]) == [None, None]  # without a reference
    fewer = replace(plain, part=Part(["test"], plain.part.indices[1:], 40), probabilities=plain.probabilities[1:])
    assert compared([fewer, rows[3]]) == [None, None]  # on other faces


def compared(results):
    entries = [one.entry() for one in results]
    return [one["against_reference"] for one in with_reference(entries, [one.right for one in results])]


def test_heads_and_rules_are_columns(results):
    names, lines = heads_table(groups(results), table_columns(results)[-1])
    assert names[6:] == ["fused", "global+fused", "glpc"]
    cells = {line["label"]: dict(zip(names, line["cells"], strict=True)) for line in lines}
    assert [name for name in names if cells["aglrls"][name]["own"]] == ["glpc"]
    assert cells["dann"]["fused"]["own"] and cells["dann"]["glpc"]["mean"] is None
    own = [found(results, "dann", t, s)["heads"]["nose"]["accuracy"] for t in ("near", "far") for s in range(3)]
    assert cells["dann"]["nose"]["mean"] == pytest.approx(sum(own) / 6) and cells["dann"]["nose"]["n"] == 3


def test_rules_are_ranked_by_their_loss(results):
    below = {  # points below the oracle's 90: per (method, target); the oracle's epoch is 5
        ("aglrls", "near"): {"infomax": (5, 90), "last": (9, 86), "entropy": (3, 89)},
        ("aglrls", "far"): {"infomax": (4, 88), "last": (9, 80), "entropy": (5, 90)},
        ("dann", "near"): {"infomax": (4, 89), "last": (9, 89), "entropy": (9, None)},
    }
    bad = {"oracle": {"epoch": 5, "accuracy": 1.0}, "rules": {"last": {"epoch": 1, "accuracy": 0.1}}}
    results["entries"] = [
        entry("source-only", "near", 9, **bad),
        entry("gated", "near", **bad),
        entry("aglrls", "raf-db", **bad),  # on the source
        entry("aglrls", "near", 1, None),
    ]
    for (method, target), of in below.items():
        rules = {name: {"epoch": epoch, "accuracy": value and value / 100} for name, (epoch, value) in of.items()}
        results["entries"].append(entry(method, target, oracle={"epoch": 5, "accuracy": 0.9}, rules=rules))
    ranked = rank_rules(results)
    assert (ranked["targets"], ranked["methods"], ranked["cells"]) == (["near", "far"], ["aglrls", "dann"], 3)
    entropy, infomax, last = ranked["rows"]
    assert [row["rule"] for row in ranked["rows"]] == ["entropy", "infomax", "last"]
    assert (infomax["mean"], infomax["worst"]) == pytest.approx((0.01, 0.02))
    assert infomax["hits"] == pytest.approx(1 / 3) and infomax["gain"] == pytest.approx((4 + 8 + 0) / 300)
    assert infomax["targets"] == pytest.approx([0.005, 0.02]) and infomax["methods"] == pytest.approx([0.01, 0.01])
    assert (last["mean"], last["worst"], last["gain"], last["hits"]) == pytest.approx((0.05, 0.10, 0.0, 0.0))
    assert entropy["cells"] == 2 and entropy["methods"] == [pytest.approx(0.005), None]
    assert [row["used"] for row in ranked["rows"]] == [False, True, False]
    _, columns, rows, caption, _ = rule_ranks(results)
    assert columns == ["rule", "mean below", "worst", "oracle's epoch %", "over last", "near †", "far †", "cells"]
    assert rows[1] == ["*infomax", "1.00", "2.0", "33", "+4.0", "0.50", "2.00", "3"] and "ORACLE" in caption


@pytest.fixture
def run():
    return copy.deepcopy(RUN)


def test_a_run_is_shown_row_by_row(run):
    title, columns, rows, caption, words = headline(run)
    assert title == "a demo of mine: source-only and adapted" and words == 3
    assert columns == ["tested on", "method", "decision", "acc %", "F1 %", "images", "epoch, chosen by"]
    assert [row[:3] for row in rows] == [
        ["raf-db † (source)", "source-only", "fused"],
        ["jaffe †", "source-only", "fused"],
        ["*jaffe †", "aglrls", "glpc"],
        ["jaffe †", "aglrls", "glpc"],
    ]
    assert [row[3] for row in rows] == ["90.00", "40.00", "60.00", "61.67"] and rows[2][5] == "60/61"
    assert [row[-1] for row in rows] == ["8, source-val", "8, source-val", "6, infomax", "7, ORACLE"]
    assert "upper bound" in caption and "not photographs" in caption
    _, _, rows, caption, _ = expressions(run)
    first = metrics(run["entries"][0])["per_expression"][0]
    assert len(rows) == 3 * 7 and "over 10 subjects: acc" in caption
    assert rows[0][:3] == ["raf-db †", "surprise", f"{100 * first['recall']:.2f}"]


def test_tables_of_each_kind_fit_a_terminal(run, results, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for shown, there, gone in (
        (run, "source-only fused", "Choosing the epoch"),
        ({**run, "kind": "model"}, "By expression", "Choosing the epoch"),
        (results, "Choosing the epoch", "By expression"),
    ):
        show(shown, {})
        said = capsys.readouterr().out
        assert there in said and gone not in said and max(map(len, said.splitlines())) <= 80
        assert "†" in said and "†" not in str((headline(of_photographs(shown)), rule_ranks(shown)))


def test_the_console_shows_drift_without_labels_and_warns_of_untrusted_models(results):
    assert drift(RUN)[2] == [] and drift(results)[2] == []  # labels say more; a sweep's table is in the report
    blank = document(60, labelled=False)
    moved = blank["entries"][2]["drift"]
    (row,) = drift(blank)[2]
    trust = moved["verdict"]["trust"]
    assert row[:5] == ["jaffe †", "aglrls", trust, "60", f"{100 * moved['agreement']:.1f}"]
    assert row[5] == " to ".join(f"{moved['entropy'][when]:.2f}" for when in ("before", "after"))
    assert doubts(blank) == [f"jaffe, aglrls: {trust}. {' '.join(moved['verdict']['reasons'])}"]
    moved["verdict"] = {"trust": "trusted", "reasons": []}
    assert doubts(blank) == []
    adapted = [entry["drift"]["verdict"] for entry in results["entries"] if entry["drift"]]
    for told in adapted:
        told["trust"] = "doubtful"
    assert doubts(results) == []
    for told in adapted[:2]:
        told["trust"] = "not trusted"
    (line,) = doubts(results)
    assert line == f"2 of {len(adapted)} adaptations are not trusted; to see which, run: fercli evaluate --report"
    with click.Context(main):
        remember("shifts", (), ())
        assert with_options(line).endswith("run: fercli evaluate -c shifts --report")
