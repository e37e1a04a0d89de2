"""The report: every section, everything marked that must be, nothing loaded, nothing unescaped."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pages import Page
from report_documents import document, of_photographs, row_of

from fercli.evaluation.metrics import confusion, scores
from fercli.expressions import EXPRESSIONS
from fercli.report.headline_view import headline
from fercli.report.plots import curve, training_curves
from fercli.report.run import render, write_report
from fercli.report.run_view import view


@pytest.fixture(scope="module")
def whole():
    return document()


@pytest.fixture
def results(whole):
    """One source, one target with labels, before and after, and an oracle row."""
    return copy.deepcopy(whole)


def test_writes_one_small_file_that_loads_nothing(results, tmp_path):
    path = write_report(results, tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no half-written neighbour
    assert path.stat().st_size < 300_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.assert_self_contained(text)
    again = write_report({**results, "title": "another"}, path.parent)
    assert again == path and "another" in path.read_text(encoding="utf-8")


def test_every_section_is_there_and_every_link_leads_somewhere(results):
    page = Page(render(results))
    assert [" ".join(heading.split()) for heading in page.headings] == [
        "Headline: source-only beside adapted",
        "jaffe synthetic target",
        "raf-db synthetic source",
        "How GLPC decided",
        "Calibration",
        "Domain gap",
        "Pseudo labels",
        "Failure cases: faces worth a look",
        "Training curves",
        "Run spec",
        "Environment",
        "How to read it",
    ]
    # a matrix for each head and the decision of each of the three models
    assert sum(attributes.get("class") == "cm" for tag, attributes in page.elements if tag == "table") == 3 * 8


def test_headline_puts_source_only_beside_adapted(results):
    label_free, oracle = headline(view(results)["rows"])[:2]
    before, after, _ = results["table"]
    assert (label_free["before"]["accuracy"], label_free["after"]["accuracy"]) == (
        before["accuracy"],
        after["accuracy"],
    )
    assert label_free["difference"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert oracle["after"]["oracle"] and oracle["before"]["accuracy"] == before["accuracy"]
    text = Page(render(results)).rows
    line = next(content for _, content in text if "jaffe" in content and "infomax" in content)
    right = round(after["accuracy"] * 213)
    for expected in (f"{100 * after['accuracy']:.1f}", f"{right} of 213", "214 / 213 / 213", "epoch 6"):
        assert expected in line
    assert f"{100 * label_free['difference']:+.1f}" in line


def test_source_test_images_have_a_row_of_their_own(results):
    last = view(results)["headline"][-1]
    assert last["target"] == "raf-db" and last["after"] is None and last["difference"] is None
    assert last["before"]["correct"] == round(results["entries"][0]["decision"]["metrics"]["accuracy"] * 400)


def test_oracle_rows_are_marked(results):
    del results["pseudo_labels"]  # whose accuracy is an oracle's, as its own section says
    page = Page(render(results))
    marked = [content for attributes, content in page.rows if attributes.get("class") == "oracle"]
    assert len(marked) == 2  # the headline and the table of every row
    assert all("oracle: reads target labels" in content for content in marked)
    other = [content for attributes, content in page.rows if attributes.get("class") != "oracle"]
    assert not any("oracle" in content for content in other)


def test_a_checkpoint_chosen_by_an_oracle_is_marked_in_every_table(results):
    oracle = copy.deepcopy(results["entries"][2])
    oracle["selection"] = {"rule": "oracle", "reads": ["target labels"]}
    results["entries"].append(oracle)
    text = render(results)
    section = text[text.index('id="dataset-1"') : text.index('id="dataset-2"')]
    for table in Page(section[section.index(">") + 1 : section.index("</div></details></section>")]).tables:
        if "source-only" in table and "aglrls" in table:
            assert "oracle" in table
    assert section.count("oracle: reads target labels") >= 3


def test_synthetic_faces_are_marked_in_every_table(results):
    text = render(results)
    assert "synthetic faces: procedural drawings, not photographs" in text
    for table in Page(text).tables:
        for name in ("jaffe", "raf-db"):
            assert table.count(name) == table.count(f"{name} synthetic") + table.count(f"adapt-{name}")
    assert "Published figures" not in text and "AGRA" not in text


def test_real_data_is_not_marked_and_stands_beside_published_figures(results):
    results["published"].append({**results["published"][0], "target": "sfew", "citation": "of no use here"})
    text = render(of_photographs(results))
    assert "synthetic" not in text.split("<main>")[1] and "procedural" not in text
    assert "Published figures" in text and "61.50" in text and "Chen et al., TPAMI 2022" in text
    assert "of no use here" not in text


def test_only_decision_or_only_some_heads(results):
    entry = results["entries"][2]
    entry["decision"] = None
    entry["heads"]["nose"] = None
    entry["selection"] = None
    entry["epoch"] = None
    text = render(results)
    Page(text)
    assert '<span class="none" title="not defined">–</span>' in text


def test_undefined_scores_are_dashes_and_never_zero(results):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 3, 4, 5, 6], 60)
    matrix = confusion(labels, labels)
    metrics = {**scores(matrix), "confusion": matrix.tolist()}
    entry = results["entries"][1]
    entry.update(heads=dict.fromkeys(entry["heads"], metrics), decision={**entry["decision"], "metrics": metrics})
    results["entries"] = [entry]
    results["table"] = [{**row_of(entry), "macro_f1": float("nan")}]
    page = Page(render(results))
    disgust = next(content for _, content in page.rows if content.strip().startswith("disgust") and "/0" in content)
    assert disgust.count("–") == 3  # precision (never predicted), recall, F1
    assert "nan" not in " ".join(content for _, content in page.rows)


def test_images_that_are_not_scored_are_named(results):
    results["entries"][1]["counts"] = {"expected": 213, "found": 210, "scored": 200}
    assert (
        "jaffe (test): 13 of 213 listed images not scored "
        "(3 without a usable face, 10 with a face but no label among the seven)." in render(results)
    )


def test_the_bare_minimum_renders():
    text = render({"schema": 1, "expressions": list(EXPRESSIONS)})
    page = Page(text)
    assert len(page.headings) == 3 and "No scores" in text


def test_benchmark_size_stays_below_a_megabyte(results, tmp_path):
    for name in ("ck+", "sfew", "fer2013", "expw"):
        results["datasets"][name] = {"synthetic": True, "role": "target"}
        for entry in results["entries"][1:3]:
            results["entries"].append({**entry, "dataset": name})
            results["table"].append(row_of(results["entries"][-1]))
    assert write_report(results, tmp_path).stat().st_size < 1_000_000


def test_curves_mark_the_chosen_epoch_and_the_score_that_chose_it(results):
    for entry in results["entries"][:2]:
        entry["epoch"] = 7
    for line in results["history"]["source"]:
        line["chosen"] = False
    source, adapt = training_curves(results)
    assert (source["chosen"], source["rule"]) == (7, "source-val")  # from the checkpoint that was evaluated
    assert (adapt["chosen"], adapt["rule"]) == (6, "infomax")  # marked in the history
    assert [panel["name"] for panel in adapt["scores"] if panel["decides"]] == ["infomax"]
    assert adapt["losses"][0]["at_chosen"] == results["history"]["adapt-jaffe"][5]["losses"]["source"]


def test_curve_leaves_gaps_and_survives_constants():
    panel = curve("loss", [(1, 2.0), (2, None), (3, float("nan")), (4, 1.0), (5, 0.5)], chosen=2, from_zero=True)
    assert (panel["bottom"], panel["top"], panel["final"], panel["at_chosen"]) == (0.0, 2.0, 0.5, None)
    assert panel["svg"].count('class="line"') == 2  # a dot before the gap, a line after it
    assert curve("nothing", [(1, None)]) is None
    for value in (0.0, -3.0, 7.0):
        flat = curve("flat", [(1, value)])
        assert flat["bottom"] < flat["top"] and "nan" not in flat["svg"]
