"""The report: every section, everything marked that must be, nothing loaded, nothing unescaped."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pages import Page

from fercli.evaluation.metrics import confusion, scores
from fercli.expressions import EXPRESSIONS
from fercli.report.headline_view import headline, headline_row
from fercli.report.plots import curve, training_curves
from fercli.report.run import render, write_report
from fercli.report.run_view import view

HEADS = ("global", "left-eye", "right-eye", "nose", "left-mouth", "right-mouth", "fused")


def _metrics(rng, count, accuracy, absent=()):
    labels = rng.choice([c for c in range(7) if c not in absent], count)
    matrix = confusion(labels, np.where(rng.random(count) < accuracy, labels, (labels + 1) % 7))
    return {**scores(matrix), "confusion": matrix.tolist()}


def _entry(rng, dataset, model, folder, epoch, accuracy, count, rule, expected=None, absent=()):
    adapted = folder != "source"
    metrics = _metrics(rng, count, accuracy, absent)
    right = sum(row[i] for i, row in enumerate(metrics["confusion"]))
    stages = {
        "fused": {"count": count - 10, "correct": right},
        "global": {"count": 10, "correct": 0},
        "sum": {"count": 0, "correct": 0},
    }
    return {
        "dataset": dataset,
        "role": "source" if dataset == "raf-db" else "target",
        "source": "raf-db",
        "model": model,
        "stage": "adapt" if adapted else "source",
        "folder": folder,
        "oracle": False,
        "intervals": None,
        "calibration": None,
        "checkpoint": f"runs/demo/{folder}/best.ckpt",
        "epoch": epoch,
        "selection": {"rule": rule, "reads": ["source validation labels"]},
        "splits": ["test"],
        "counts": {"expected": expected or count, "found": count, "scored": count},
        "heads": {head: _metrics(rng, count, accuracy, absent) for head in HEADS},
        "decision": {
            "rule": "glpc" if adapted else "fused",
            "metrics": metrics,
            "stages": stages if adapted else None,
        },
    }


@pytest.fixture
def results():
    """A demo-like document: one source, one target with labels, before and after, and an oracle row."""
    rng = np.random.default_rng(0)
    home = _entry(rng, "raf-db", "source-only", "source", 7, 0.9, 400, "source-val")
    before = _entry(rng, "jaffe", "source-only", "source", 7, 0.4, 212, "source-val", expected=213)
    after = _entry(rng, "jaffe", "aglrls", "adapt-jaffe", 2, 0.6, 212, "infomax", expected=213)
    oracle = {**headline_row(after), "selection": "oracle", "oracle": True, "epoch": 3, "accuracy": 0.66}

    def epoch(number, chosen, **selection_scores):
        return {"epoch": number, "losses": {"source": 1 / number}, "scores": selection_scores, "chosen": chosen}

    return {
        "schema": 3,
        "title": "a demo of mine",
        "created": "2026-11-23T10:00:00+00:00",
        "synthetic": True,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            "raf-db": {"synthetic": True, "role": "source"},
            "jaffe": {"synthetic": True, "role": "target"},
        },
        "table": [headline_row(before), oracle, headline_row(after)],
        "entries": [home, before, after],
        "history": {
            "source": [epoch(i, False, **{"source-val": 0.1 * i}) for i in range(1, 9)],
            "adapt-jaffe": [epoch(i, i == 2, **{"source-val": 0.9, "infomax": i / 7}) for i in range(1, 4)],
        },
        "published": [
            {
                "method": "AGRA",
                "backbone": "IR-50",
                "target": "jaffe",
                "accuracy": 61.5,
                "citation": "Chen et al., TPAMI 2022",
                "selection": "oracle",
            }
        ],
        "gaps": [],
        "pseudo_labels": {},
        "failure_cases": [],
        "spec": {"adapt": {"epochs": 3, "parts": {"adversarial": True}}},
        "environment": {"fercli": "0.1.0", "device": "cpu", "time_s": {"adapt": 132.9, "source": 9.0}},
    }


def test_writes_one_small_file_that_loads_nothing(results, tmp_path):
    path = write_report(results, tmp_path / "new" / "report", {})
    assert path == tmp_path / "new" / "report" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no half-written neighbour
    assert path.stat().st_size < 300_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.assert_self_contained(text)
    again = write_report({**results, "title": "another"}, path.parent, {})
    assert again == path and "another" in path.read_text(encoding="utf-8")


def test_every_section_is_there_and_every_link_leads_somewhere(results):
    page = Page(render(results, {}))
    assert [" ".join(heading.split()) for heading in page.headings] == [
        "Headline: source-only beside adapted",
        "jaffe synthetic target",
        "raf-db synthetic source",
        "How GLPC decided",
        "Training curves",
        "Run spec",
        "Environment",
        "How to read it",
    ]
    # a matrix for each head and the decision of each of the three models
    assert sum(attributes.get("class") == "cm" for tag, attributes in page.elements if tag == "table") == 3 * 8


def test_headline_puts_source_only_beside_adapted(results):
    label_free, oracle = headline(view(results, {})["rows"])[:2]
    before, _, after = results["table"]
    assert (label_free["before"]["accuracy"], label_free["after"]["accuracy"]) == (
        before["accuracy"],
        after["accuracy"],
    )
    assert label_free["difference"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert oracle["after"]["oracle"] and oracle["before"]["accuracy"] == before["accuracy"]
    text = Page(render(results, {})).rows
    line = next(content for _, content in text if "jaffe" in content and "infomax" in content)
    right = round(after["accuracy"] * 212)
    for expected in (f"{100 * after['accuracy']:.1f}", f"{right} of 212", "213 / 212 / 212", "epoch 2"):
        assert expected in line
    assert f"{100 * label_free['difference']:+.1f}" in line


def test_source_test_images_have_a_row_of_their_own(results):
    last = view(results, {})["headline"][-1]
    assert last["target"] == "raf-db" and last["after"] is None and last["difference"] is None
    assert last["before"]["correct"] == round(results["entries"][0]["decision"]["metrics"]["accuracy"] * 400)


def test_oracle_rows_are_marked(results):
    page = Page(render(results, {}))
    marked = [content for attributes, content in page.rows if attributes.get("class") == "oracle"]
    assert len(marked) == 2  # the headline and the table of every row
    assert all("oracle: reads target labels" in content for content in marked)
    other = [content for attributes, content in page.rows if attributes.get("class") != "oracle"]
    assert not any("oracle" in content for content in other)


def test_a_checkpoint_chosen_by_an_oracle_is_marked_in_every_table(results):
    oracle = copy.deepcopy(results["entries"][2])
    oracle["oracle"] = True
    results["entries"].append(oracle)
    text = render(results, {})
    section = text[text.index('id="dataset-1"') : text.index('id="dataset-2"')]
    for table in Page(section[section.index(">") + 1 : section.index("</div></details></section>")]).tables:
        if "source-only" in table and "aglrls" in table:
            assert "oracle" in table
    assert section.count("oracle: reads target labels") >= 3


def test_synthetic_faces_are_marked_in_every_table(results):
    text = render(results, {})
    assert "synthetic faces: procedural drawings, not photographs" in text
    for table in Page(text).tables:
        for name in ("jaffe", "raf-db"):
            assert table.count(name) == table.count(f"{name} synthetic") + table.count(f"adapt-{name}")
    assert "Published figures" not in text and "AGRA" not in text


def test_real_data_is_not_marked_and_stands_beside_published_figures(results):
    results["synthetic"] = False
    for about in results["datasets"].values():
        about["synthetic"] = False
    text = render(results, {})
    assert "synthetic" not in text.split("<main>")[1] and "procedural" not in text
    assert "Published figures" in text and "61.50" in text and "Chen et al., TPAMI 2022" in text


def test_hostile_names_are_escaped(results):
    evil = '<script>alert("x")</script>&\'"'
    text = json.dumps(results)
    for name in ("jaffe", "aglrls", "infomax", "surprise", "nose", "a demo of mine", "adversarial", "cpu"):
        text = text.replace(json.dumps(name), json.dumps(f"{evil}{name}"))
    hostile = json.loads(text)
    hostile["entries"][1]["checkpoint"] = f"runs/{evil}/best.ckpt"
    hostile["history"][f"adapt-{evil}"] = hostile["history"].pop("adapt-jaffe")
    hostile["entries"][2]["folder"] = f"adapt-{evil}"
    page = Page(render(hostile, {}))
    assert not any(tag == "script" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "&lt;script&gt;" in render(hostile, {})


def test_a_target_without_labels_says_what_is_left_out(results):
    for entry in results["entries"][1:]:
        entry["heads"] = dict.fromkeys(entry["heads"])
        entry["decision"]["metrics"] = None
        entry["counts"]["scored"] = 0
        if entry["decision"]["stages"]:
            entry["decision"]["stages"] = {
                "fused": {"count": 200, "correct": None},
                "sum": {"count": 12, "correct": None},
            }
    for row in results["table"]:
        row.update(accuracy=None, macro_f1=None, scored=0)
    text = render(results, {})
    Page(text)
    assert "jaffe: its images have no labels" in text and "This data set has no labels" in text
    assert "200 / 212" in text  # what GLPC did is known without labels
    assert "nan" not in text.lower()


def test_undefined_scores_are_dashes_and_never_zero(results):
    rng = np.random.default_rng(1)
    results["entries"] = [_entry(rng, "jaffe", "source-only", "source", 7, 1.0, 60, "source-val", absent=(2,))]
    results["table"] = [headline_row(results["entries"][0])]
    results["history"] = {}
    page = Page(render(results, {}))
    disgust = next(content for _, content in page.rows if content.strip().startswith("disgust") and "/0" in content)
    assert disgust.count("–") == 3  # precision (never predicted), recall, F1
    assert "nan" not in " ".join(content for _, content in page.rows)


def test_images_that_are_not_scored_are_named(results):
    results["entries"][1]["counts"] = {"expected": 213, "found": 210, "scored": 200}
    assert (
        "jaffe (test): 13 of 213 listed images not scored "
        "(3 without a usable face, 10 with a face but no label among the seven)." in render(results, {})
    )


def test_benchmark_size_stays_below_a_megabyte(results, tmp_path):
    for name in ("ck+", "sfew", "fer2013", "expw"):
        results["datasets"][name] = {"synthetic": True, "role": "target"}
        for entry in results["entries"][1:3]:
            results["entries"].append({**entry, "dataset": name})
            results["table"].append(headline_row(results["entries"][-1]))
    assert write_report(results, tmp_path, {}).stat().st_size < 1_000_000


def test_curves_mark_the_chosen_epoch_and_the_score_that_chose_it(results):
    source, adapt = training_curves(results)
    assert (source["chosen"], source["rule"]) == (7, "source-val")
    assert (adapt["chosen"], adapt["rule"]) == (2, "infomax")
    assert [panel["name"] for panel in adapt["scores"] if panel["decides"]] == ["infomax"]
    assert adapt["losses"][0]["at_chosen"] == 0.5


def test_curve_leaves_gaps_and_survives_constants():
    panel = curve("loss", [(1, 2.0), (2, None), (3, None), (4, 1.0), (5, 0.5)], chosen=2, from_zero=True)
    assert (panel["bottom"], panel["top"], panel["final"], panel["at_chosen"]) == (0.0, 2.0, 0.5, None)
    assert panel["svg"].count('class="line"') == 2  # a dot before the gap, a line after it
    assert curve("nothing", [(1, None)], 1, False) is None
    for value in (0.0, -3.0, 7.0):
        flat = curve("flat", [(1, value)], 1, False)
        assert flat["bottom"] < flat["top"] and "nan" not in flat["svg"]
