"""The report of a sweep: the table's figures by hand, what may be best, what is marked, every form it is written in."""

from __future__ import annotations

import csv
import json
import math
import re

import pytest
from pages import Page
from report_documents import of_photographs

from fercli.evaluation.statistics import holm, paired_t_test
from fercli.evaluation.sweep_rules import rank_rules
from fercli.evaluation.sweep_table import groups, score, table, table_columns
from fercli.report.plots import axis
from fercli.report.sweep import (
    render_sweep,
    sweep_headline,
    sweep_rule_table,
    write_csv,
    write_sweep_report,
)
from fercli.report.sweep_view import missing, view

TARGETS = ("near", "far")

#: accuracy in percent by seed: near, far
FIGURES = {
    "source-only": ([60, 62, 64], [40, 44, 42]),
    "aglrls": ([80, 81, 85], [60, 61, 68]),
    "dann": ([70, 72, 77], [50, 52, 51]),
    "gated": ([90, 92, 94], [80, 82, 84]),
}


def cell(method, target, seed, accuracy, keys=None, oracle=None, rules=None, **others):
    adapted = method != "source-only"
    accuracy = None if accuracy is None else accuracy / 100
    if adapted and rules is None and accuracy is not None:
        rules = {"infomax": (4, accuracy), "last": (9, accuracy - 0.02)}
        oracle = oracle or (6, accuracy + 0.01)
    return {
        "seed": seed,
        "keys": keys or {},
        "target": target,
        "method": method,
        "registered": method.split(" ")[0],
        "oracle_method": method == "gated",
        "decision": "glpc" if adapted else "fused",
        "accuracy": accuracy,
        "macro_f1": None if accuracy is None else accuracy - 0.05,
        "expected": 300,
        "found": 298,
        "scored": 0 if accuracy is None else 298,
        "selection": "infomax" if adapted else "source-val",
        "epoch": 4,
        "oracle": {"accuracy": oracle[1], "epoch": oracle[0]} if oracle else None,
        "rules": {name: {"epoch": epoch, "accuracy": value} for name, (epoch, value) in (rules or {}).items()},
        "seconds": 30.0 + seed,
        **others,
    }


@pytest.fixture
def document():
    """Four methods, two targets, three seeds, all there."""
    return {
        "schema": 2,
        "kind": "sweep",
        "title": "a sweep of mine",
        "created": "2026-11-23T10:00:00Z",
        "synthetic": True,
        "targets": list(TARGETS),
        "methods": list(FIGURES),
        "seeds": [0, 1, 2],
        "reference": "source-only",
        "datasets": {
            "studio": {"synthetic": True, "role": "source"},
            **{name: {"synthetic": True, "role": "target"} for name in TARGETS},
        },
        "cells": [
            cell(method, target, seed, figures[t][seed])
            for seed in range(3)
            for method, figures in FIGURES.items()
            for t, target in enumerate(TARGETS)
        ],
        "missing": [],
        "published": [
            {
                "method": "AGRA",
                "backbone": "IR-50",
                "target": target,
                "accuracy": accuracy,
                "citation": "Chen et al., TPAMI 2022",
                "selection": "oracle",
            }
            for target, accuracy in (("near", 85.27), ("far", 61.5))
        ],
        "spec": {"sweep": {"seeds": 3}},
        "environment": {"fercli": "0.1.0", "device": "cpu", "time_s": {"sweep": 3921.0}},
    }


def without(document, **parts):
    """Take the cells that have these values out, as not run."""
    gone = [c for c in document["cells"] if all(c[key] == value for key, value in parts.items())]
    assert gone
    document["cells"] = [c for c in document["cells"] if c not in gone]
    document["missing"] += [{**{k: c[k] for k in ("seed", "keys", "target", "method")}, "why": "not run"} for c in gone]
    return document


def rows_of(document, name="accuracy"):
    lines = table(groups(document), table_columns(document), score(name))
    return {line["label"]: dict(zip([c.name for c in table_columns(document)], line["cells"], strict=True))
            for line in lines}  # fmt: skip


def test_figures_by_hand(document):
    rows = rows_of(document)
    near = rows["aglrls"]["near"]
    assert near["mean"] == pytest.approx(0.82) and near["sd"] == pytest.approx(math.sqrt(7) / 100)  # 80, 81, 85
    assert near["n"] == near["pairs"] == 3
    mean = rows["aglrls"]["mean"]  # 70, 71, 76.5 against 50, 53, 53
    assert mean["mean"] == pytest.approx(0.725) and mean["difference"] == pytest.approx(0.205)
    raw = [paired_t_test([0.20, 0.18, 0.235]), paired_t_test([0.10, 0.09, 0.11]), paired_t_test([0.35, 0.34, 0.36])]
    assert [rows[name]["mean"]["p"] for name in ("aglrls", "dann", "gated")] == pytest.approx(holm(raw))
    base = rows["source-only"]["mean"]
    assert (base["difference"], base["p"]) == (None, None)
    f1 = rows_of(document, "macro_f1")["aglrls"]["mean"]
    assert f1["mean"] == pytest.approx(0.675) and f1["difference"] == pytest.approx(0.205)


def test_the_reference_is_on_top_and_oracle_methods_below(document):
    document["methods"] = ["gated", "aglrls", "source-only", "dann"]
    assert list(rows_of(document)) == ["source-only", "aglrls", "dann", "gated"]


def test_the_best_and_what_is_within_its_error(document):
    rows = rows_of(document)
    assert [name for name, cells in rows.items() if cells["mean"]["best"]] == ["aglrls"]
    assert not any(c["tied"] for cells in rows.values() for c in cells.values())
    for seed, accuracy in enumerate((82, 78, 85)):  # aglrls minus dann: -2, 3, 0: mean 0.33, error 1.45
        next(c for c in document["cells"] if (c["method"], c["target"], c["seed"]) == ("dann", "near", seed))[
            "accuracy"
        ] = accuracy / 100
    rows = rows_of(document)
    assert rows["aglrls"]["near"]["best"] and rows["dann"]["near"]["tied"] and not rows["dann"]["far"]["tied"]


def test_an_oracle_method_is_marked_and_never_best(document):
    gated = rows_of(document)["gated"]
    assert gated["mean"]["mean"] > 0.8 and not any(c["best"] or c["tied"] for c in gated.values())
    page = Page(render_sweep(document))
    lines = [(attributes, content) for attributes, content in page.rows if "gated" in content]
    assert len([c for _, c in lines if "oracle: reads target labels" in c]) == 4  # two scores, the bound, the time
    assert "gated ORACLE" in [row[0] for row in sweep_headline(document)[2]]
    assert "gated" not in rank_rules(document)["methods"]


def test_a_row_with_fewer_seeds_is_compared_on_its_own_and_never_best(document):
    without(document, method="aglrls", seed=2, target="far")
    rows = rows_of(document)
    assert rows["aglrls"]["near"]["n"] == 3 and rows["aglrls"]["far"]["n"] == rows["aglrls"]["mean"]["n"] == 2
    assert rows["aglrls"]["mean"]["difference"] == pytest.approx((20 + 18) / 200)  # seeds 0 and 1 only
    assert rows["aglrls"]["near"]["best"] and rows["dann"]["far"]["best"] and not rows["aglrls"]["far"]["best"]
    assert "2 of 3 seeds" in render_sweep(document) and "(2)" in str(sweep_headline(document))


def test_missing_cells_are_listed_plainly(document):
    without(document, method="dann", target="far")
    document["missing"].append({"seed": 0, "keys": {}, "target": "near", "method": "mcd", "why": "stopped: not finite"})
    assert missing(document) == [
        {"label": "dann", "target": "far", "why": "not run", "seeds": [0, 1, 2], "count": 3},
        {"label": "mcd", "target": "near", "why": "stopped: not finite", "seeds": [0], "count": 1},
    ]
    text = render_sweep(document)
    page = Page(text)
    assert "4 of 25 cells are missing" in text
    assert any("dann" in row and "0, 1, 2" in row and "not run" in row for _, row in page.rows)
    assert any("mcd" in row and "stopped: not finite" in row for _, row in page.rows)
    rows = rows_of(document)
    assert rows["dann"]["mean"]["mean"] is None and rows["dann"]["near"]["n"] == 3
    assert set(rows["mcd"]) == {"near", "far", "mean"} and rows["mcd"]["near"]["n"] == 0
    assert "4 of 25 cells are missing" in sweep_headline(document)[3]


def test_nothing_run_yet(document):
    keys = ("seed", "keys", "target", "method")
    document["missing"] = [{**{k: c[k] for k in keys}, "why": "not run"} for c in document["cells"]]
    document["cells"] = []
    text = render_sweep(document)
    Page(text).assert_self_contained(text)
    assert "No scores" in text and "far: no cell was run yet" in text
    assert sweep_headline(document)[2][1] == ["aglrls", "–", "–", "–", "–", "–", "–"]
    assert sweep_rule_table(document)[2] == []


def test_one_seed_has_no_deviation_and_no_p(document):
    document["seeds"] = [0]
    document["cells"] = [c for c in document["cells"] if c["seed"] == 0]
    rows = rows_of(document)
    mean = rows["aglrls"]["mean"]
    assert (mean["sd"], mean["p"], mean["n"]) == (None, None, 1) and mean["difference"] == pytest.approx(0.2)
    assert mean["best"] and not rows["dann"]["mean"]["tied"]
    text = render_sweep(document)
    assert "One seed: no deviation, no test and no tie" in text
    assert not any("±" in drawn for drawn in Page(text).tables[:-1])  # the last is of time, which varies over targets
    assert sweep_headline(document)[2][1] == ["*aglrls", "80.0", "60.0", "70.0", "+20.0", "–", "71.0"]


def test_without_labels_there_are_no_scores(document):
    document["cells"] = [
        cell(c["method"], c["target"], c["seed"], None if c["target"] == "far" else 100 * c["accuracy"])
        for c in document["cells"]
    ]
    rows = rows_of(document)
    assert rows["aglrls"]["far"] == {
        "mean": None, "sd": None, "n": 0, "difference": None, "pairs": 0, "p": None, "best": False, "tied": False,
    }  # fmt: skip
    assert rows["aglrls"]["mean"]["mean"] == rows["aglrls"]["near"]["mean"]  # the mean goes without it, and says so
    assert "far: its images have no labels, so it has no scores, and the mean over targets goes without it" in (
        render_sweep(document)
    )
    document["cells"] = [cell(c["method"], c["target"], c["seed"], None) for c in document["cells"]]
    text = render_sweep(document)
    Page(text).assert_self_contained(text)
    assert "No scores" in text and "nan" not in text.lower() and rank_rules(document)["rows"] == []


def test_one_target_needs_no_mean(document):
    document["targets"] = ["far"]
    document["cells"] = [c for c in document["cells"] if c["target"] == "far"]
    assert sweep_headline(document)[1] == ["method", "far †", "points", "p", "ORACLE epoch"]
    assert "is best on far" in render_sweep(document)


def test_grid_keys_make_rows_and_find_their_reference(document):
    grid = [cell("aglrls", target, seed, 70 + seed, keys={"adapt.batch": batch, "adapt.cut": None})
            for batch in (16, 32) for target in TARGETS for seed in range(3)]  # fmt: skip
    document["cells"] = [c for c in document["cells"] if c["method"] != "aglrls"] + grid
    rows = rows_of(document)
    names = [f"aglrls, adapt.batch {batch}, adapt.cut null" for batch in (16, 32)]
    assert list(rows) == ["source-only", *names, "dann", "gated"]
    assert rows[names[0]]["near"]["difference"] == pytest.approx(0.09)
    own = [cell("source-only", target, seed, 65 + seed, keys={"adapt.batch": 32})
           for target in TARGETS for seed in range(3)]  # fmt: skip
    document["cells"] += own
    rows = rows_of(document)
    assert rows[names[0]]["near"]["difference"] == pytest.approx(0.09)
    assert rows[names[1]]["near"]["difference"] == pytest.approx(0.05)
    document["cells"] = [c for c in document["cells"] if c["method"] != "source-only"] + own
    assert rows_of(document)["dann"]["near"]["difference"] is None  # no reference with its settings


def test_rules_are_ranked_by_what_they_lose(document):
    below = {  # points below the oracle's 90: per (method, target); the oracle's epoch is 5
        ("aglrls", "near"): {"infomax": (5, 90), "last": (9, 86), "entropy": (3, 89)},
        ("aglrls", "far"): {"infomax": (4, 88), "last": (9, 80), "entropy": (5, 90)},
        ("dann", "near"): {"infomax": (4, 89), "last": (9, 89), "entropy": (9, None)},
    }
    document["cells"] = [
        cell("source-only", "near", 9, 50, oracle=(5, 1.0), rules={"last": (1, 0.1)}),
        cell("gated", "near", 0, 50, oracle=(5, 1.0), rules={"last": (1, 0.1)}),
        cell("aglrls", "near", 1, None, rules={"infomax": (5, None)}),
    ]
    for (method, target), found in below.items():
        rules = {name: (epoch, value and value / 100) for name, (epoch, value) in found.items()}
        document["cells"].append(cell(method, target, 0, 88, oracle=(5, 0.90), rules=rules))
    ranked = rank_rules(document)
    assert (ranked["targets"], ranked["methods"], ranked["cells"]) == (["near", "far"], ["aglrls", "dann"], 3)
    entropy, infomax, last = ranked["rows"]
    assert [row["rule"] for row in ranked["rows"]] == ["entropy", "infomax", "last"]
    assert (infomax["mean"], infomax["worst"]) == pytest.approx((0.01, 0.02))
    assert infomax["hits"] == pytest.approx(1 / 3) and infomax["gain"] == pytest.approx((4 + 8 + 0) / 300)
    assert infomax["targets"] == pytest.approx([0.005, 0.02]) and infomax["methods"] == pytest.approx([0.01, 0.01])
    assert (last["mean"], last["worst"], last["gain"], last["hits"]) == pytest.approx((0.05, 0.10, 0.0, 0.0))
    assert entropy["cells"] == 2 and entropy["methods"] == [pytest.approx(0.005), None]
    assert [row["used"] for row in ranked["rows"]] == [False, True, False]
    _, columns, rows, caption = sweep_rule_table(document)
    assert columns == ["rule", "mean below", "worst", "oracle's epoch %", "over last", "near †", "far †", "cells"]
    assert rows[1] == ["*infomax", "1.00", "2.0", "33", "+4.0", "0.50", "2.00", "3"] and "ORACLE" in caption
    text = render_sweep(document)
    assert "rank 2 of 3" in text and any("infomax chose the epochs" in row for _, row in Page(text).rows)


def test_the_page_holds_everything_and_loads_nothing(document, tmp_path):
    path = write_sweep_report(document, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert len(text) < 150_000
    page = Page(text)
    page.assert_self_contained(text)
    assert [" ".join(heading.split()) for heading in page.headings] == [
        "Accuracy: every method beside source-only",
        "Macro F1",
        "At the oracle’s epoch",
        "Choosing the epoch without target labels",
        "Images and time",
        "Run spec",
        "Environment",
        "How to read it",
    ]
    for expected in ("82.0 ± 2.6", "+20.5", "300 / 298 / 298", "1 h 05 min"):
        assert expected in " ".join(row for _, row in page.rows) + text
    assert text.count('class="spread"') == 4


def test_synthetic_faces_are_marked_everywhere_and_stand_beside_nothing_published(document):
    text = render_sweep(document)
    assert "synthetic faces: procedural drawings, not photographs" in text and "AGRA" not in text
    for drawn in Page(text).tables:
        assert drawn.count("near") == drawn.count("near synthetic")
    for shown in (str(sweep_headline(document)), str(sweep_rule_table(document))):
        assert "near †" in shown and "not photographs" in shown


def test_published_rows_stand_beside_the_oracles_on_real_faces(document):
    document = of_photographs(document)
    text = render_sweep(document)
    assert "synthetic" not in text.split("<main>")[1] and "†" not in str(sweep_headline(document))
    line = next(content for attributes, content in Page(text).rows if "AGRA" in content)
    for expected in ("IR-50", "85.27", "61.50", "73.3", "oracle: reads target labels", "Chen et al., TPAMI 2022"):
        assert expected in line
    assert view(document)["published"][0]["cells"][2] == pytest.approx((85.27 + 61.5) / 2)
    document["cells"] = [{**c, "oracle": None} for c in document["cells"]]
    assert "Published figures" in [" ".join(h.split()) for h in Page(render_sweep(document)).headings]


def test_the_oracle_epoch_has_its_own_column_and_table(document):
    shown = view(document)
    assert [line["label"] for line in shown["oracle_rows"]] == ["aglrls", "dann", "gated"]
    bound = shown["oracle_rows"][0]["cells"][-1]
    assert (bound["mean"], bound["gap"], bound["n"]) == pytest.approx((0.735, 0.01, 3))
    assert sweep_headline(document)[2][1][-1] == "73.5" and sweep_headline(document)[2][0][-1] == "–"


def test_hostile_names_are_escaped(document, tmp_path):
    evil = '<script>alert("x")</script>&\'"|`*\n'
    text = json.dumps(document)
    for name in ("near", "aglrls", "infomax", "a sweep of mine", "cpu", "glpc"):
        text = text.replace(json.dumps(name), json.dumps(evil + name))
    hostile = json.loads(text)
    hostile["missing"] = [{"seed": evil, "keys": {evil: evil}, "target": evil, "method": evil, "why": evil}]
    page = Page(render_sweep(hostile))
    assert not any(tag == "script" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    write_csv(hostile, tmp_path / "cells.csv")
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        assert {len(row) for row in csv.reader(file)} == {18}


def test_csv_has_a_flat_row_for_each_cell(document, tmp_path):
    document["cells"][2]["keys"] = {"adapt.batch": 16, "adapt.lr": -0.5, "adapt.parts": ["a"], "seed": True}
    write_csv(document, tmp_path / "cells.csv")
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["cells"]) and list(rows[0]) == [
        *("seed", "adapt.batch", "adapt.lr", "adapt.parts", "key:seed", "target", "method", "decision", "accuracy"),
        *("macro_f1", "expected", "found", "scored", "selection", "epoch", "oracle_accuracy", "oracle_epoch"),
        *("rule:infomax:epoch", "rule:infomax:accuracy", "rule:last:epoch", "rule:last:accuracy", "seconds"),
    ]  # fmt: skip
    assert rows[0]["oracle_accuracy"] == rows[0]["rule:last:epoch"] == rows[0]["adapt.batch"] == ""
    third = rows[2]
    assert (third["adapt.batch"], third["adapt.lr"], third["adapt.parts"]) == ("16", "-0.5", '["a"]')
    assert (third["seed"], third["key:seed"], third["method"], third["target"]) == ("0", "true", "aglrls", "near")
    assert (float(third["accuracy"]), float(third["oracle_accuracy"])) == pytest.approx((0.80, 0.81))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@cmd", "\t=1", "\r=1", " =1", "＝1"])
def test_csv_holds_no_formulas(document, tmp_path, text):
    poisoned = document["cells"][0]
    poisoned.update(method=text, target=text, keys={text: text}, rules={text: {"epoch": 1, "accuracy": 0.5}})
    write_csv(document, tmp_path / "cells.csv")
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        cells = [value for row in csv.reader(file) for value in row]
    assert cells.count("'" + re.sub(r"\s", " ", text)) == 4  # the key's name and value, method, target
    assert not any(value.strip()[:1] in tuple("=+-@＝") for value in cells if value)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([], [0, 100]),
        ([0.7, 0.7], [69, 70, 71]),
        ([0.0], [0, 1]),
        ([1.0], [99, 100]),
        ([0.62, 0.78], [60, 65, 70, 75, 80]),
        ([0.0, 1.0], [0, 20, 40, 60, 80, 100]),
    ],
)
def test_axis_ticks(values, ticks):
    assert axis(values) == pytest.approx([tick / 100 for tick in ticks])
