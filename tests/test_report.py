"""The page, of runs and of sweeps: every section, everything marked that must be, nothing loaded, nothing unescaped."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from pages import Page
from report_documents import FIGURES, document, entry, of_photographs, pictures, sweep, without, without_labels

from fercli.evaluation.metrics import scores
from fercli.report.page import render, view, write_report

WHOLE = {"run": document(60), "sweep": sweep()}
SECTIONS = {
    "run": ["headline", "macro_f1", "heads", "rules", "images", "dataset-1", "dataset-2", "glpc", "calibration", "gaps",
            "pseudo_labels", "failure_cases", "curves", "spec", "environment", "reading"],
    "sweep": ["headline", "macro_f1", "bound", "heads", "rules", "images", "glpc", "calibration", "spec", "environment",
              "reading"],
}  # fmt: skip
EVIL = '<script>alert("x")</script>&\'"|`*<img src=x onerror=y>'


@pytest.fixture(params=["run", "sweep"])
def any_kind(request):
    return copy.deepcopy(WHOLE[request.param])


@pytest.fixture
def run():
    return copy.deepcopy(WHOLE["run"])


@pytest.fixture
def swept():
    return copy.deepcopy(WHOLE["sweep"])


def words(text):
    return " ".join(text.split())


def said(results, pictures=None):
    """The page's text, and its rows, a space between cells."""
    page = Page(re.sub("<(td|th|tr|small|br)", r" <\1", render(results, pictures)))
    return words(page.text), [words(content) for _, content in page.rows]


def test_one_small_file_that_loads_nothing_and_holds_every_section(any_kind, tmp_path):
    path = write_report(any_kind, tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no half-written neighbour
    assert path.stat().st_size < 400_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.assert_self_contained(text)
    sections = SECTIONS[any_kind["kind"]]
    assert [a["id"] for tag, a in page.elements if tag == "div" and a.get("class") == "body"] == sections
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert len(folds) == len(sections) and all("open" in a for a in folds)
    linked = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert linked == ["headline", *sections]  # the link that skips to the results, then the contents
    assert write_report({**any_kind, "title": "another"}, path.parent) == path
    assert "another" in path.read_text(encoding="utf-8")


def test_the_headline_of_a_run(run):
    text, rows = said(run)
    for expected in (
        "aglrls is best on jaffe: 60.0% (",
        "+20.0 points against source-only. One seed tells nothing of chance.",
        "At home, on the test images of its source raf-db synthetic, source-only reaches 90.0% (",
        "360 of 400), macro F1 ",
        "One seed: no deviation, no test and no tie can be computed.",
    ):
        assert expected in text
    low, high = run["entries"][2]["intervals"]["accuracy"]
    line = next(row for row in rows if row.startswith("aglrls best 60.0"))
    for expected in (f"{100 * low:.1f} to {100 * high:.1f}", "36/60", "+20.0, epoch 6", "61.0", "+1.0, epoch 7"):
        assert expected in line
    full = next(row for row in rows if "infomax" in row and "61 / 60 / 60" in row)
    for expected in (
        "decides by glpc",
        "from raf-db",
        "runs/demo/adapt-jaffe/best.ckpt",
        "epoch 6 by infomax",
        "36 / 60",
    ):
        assert expected in full
    assert "bootstrap over 10 subjects" in full and "target images" in full


def test_the_headline_of_a_sweep(swept):
    text, rows = said(swept)
    assert "aglrls is best on the mean over targets: 72.5% ± 3.5, +20.5 points against source-only (p 0.00" in text
    assert "No other is within its error." in text and "At home" not in text and "One seed" not in text
    line = next(row for row in rows if row.startswith("aglrls best 82.0 ± 2.6"))
    assert "best 72.5 ± 3.5 +20.5, p 0.00" in line and line.endswith("73.5 ± 3.5 +1.0")
    assert (
        sum("seed 2" in row and "decides by" in row for row in rows) == 8 + 6
    )  # with the oracle's of what was adapted
    assert render(swept).count('class="lane"') == 4 * 3
    assert any(row.startswith("near synthetic target 101 / 100 / 100 12 0") for row in rows)
    assert any(row.startswith("aglrls 31.0 ± 0.894 6 3 min 06 s") for row in rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source-only": {"near": (90, 91, 92)}}, "is the reference: nothing that adapts beats it"),
        ({"dann": {"near": (81, 80, 85)}}, "Within the error of the best: dann."),
        ({"aglrls": None, "dann": None, "gated": None}, "source-only reaches 62.0% ± 2.0 on near."),
        ({"source-only": None, "dann": None}, "aglrls is best on near: 82.0% ± 2.6. No"),
    ],
)
def test_the_verdict_in_words(change, sentence):
    methods = {name: {"near": of["near"]} for name, of in FIGURES.items()} | change
    methods = {name: of for name, of in methods.items() if of}
    if "source-only" not in methods:
        methods["mcd"] = {"near": (10, 20, 30)}
    assert sentence in said(sweep(methods))[0]


def test_every_oracle_is_marked_and_nothing_else(any_kind):
    page = Page(render(any_kind))
    for attributes, content in page.rows:
        tinted = attributes.get("class") == "oracle"
        assert tinted <= ("oracle: reads target labels" in words(content)), content
        if "gated" in content and "gated: " not in content:
            assert tinted
    tinted = sum(attributes.get("class") == "oracle" for attributes, _ in page.rows)
    # headline, macro F1, oracle's epoch, heads, every row, time, calibration
    assert tinted == {"run": 1, "sweep": 1 + 1 + 3 + 3 + (6 + 18) + 1 + 2}[any_kind["kind"]]


def test_a_method_that_trains_with_target_labels_is_marked_in_every_table_of_a_run(run):
    run["entries"][2]["oracle_method"] = True
    text = render(run)
    start = text.index('id="dataset-1"')
    for table in Page("<div>" + text[text.index(">", start) + 1 : text.index("</details></section>", start)]).tables:
        if "source-only" in table and "aglrls" in table:
            assert "oracle" in table
    assert "trained: oracle: reads target labels" in said(run)[0]


def test_synthetic_faces_are_marked_in_every_table_and_stand_beside_nothing_published(any_kind):
    text = render(any_kind)
    assert "synthetic faces: procedural drawings, not photographs" in text and "AGRA" not in text
    for table in Page(text).tables:
        for name in ("jaffe", "raf-db", "near"):
            assert table.count(name) == words(table).count(f"{name} synthetic") + table.count(f"adapt-{name}")


def test_real_faces_are_not_marked_and_stand_beside_published_figures(any_kind):
    text = render(of_photographs(any_kind))
    assert "synthetic" not in text.split("<main>")[1] and "procedural" not in text
    rows = said(any_kind)[1]
    line = next(row for row in rows if "AGRA" in row)
    for expected in ("IR-50", "61.50", "oracle: reads target labels", "Chen et al., TPAMI 2022"):
        assert expected in line
    assert ("73.38" in line) == (any_kind["kind"] == "sweep")  # the mean of 61.50 and 85.27 is computed here
    any_kind["entries"] = [{**one, "oracle": None} for one in any_kind["entries"]]
    assert "AGRA" in render(any_kind)
    any_kind["published"] = any_kind["published"][:1]
    assert any(row.endswith("61.50 – –" if any_kind["kind"] == "sweep" else "61.50") for row in said(any_kind)[1])


def test_missing_cells_are_told_plainly(swept):
    without(swept, method="dann", dataset="far")
    without(swept, method="aglrls", seed=2, dataset="near")
    swept["missing"].append({"seed": 0, "keys": {"a.b": 1}, "dataset": "near", "method": "mcd", "why": "stopped"})
    text, rows = said(swept)
    assert "5 of 25 cells are missing" in text and "2 of 3 seeds" in text
    assert any(row.startswith("dann far synthetic 0, 1, 2 not run") for row in rows)
    assert any(row.startswith("mcd, a.b 1 near synthetic 0 stopped") for row in rows)


def test_nothing_run_yet(swept):
    for seed in range(3):
        without(swept, seed=seed)
    text = render(swept)
    Page(text).assert_self_contained(text)
    assert "No scores" in text and "far: no cell was run yet; the mean over targets waits for it" in text


def test_images_without_labels_or_without_a_score_are_told(any_kind):
    blank = any_kind["targets"][-1]
    any_kind["entries"] = [without_labels(e) if e["dataset"] == blank else e for e in any_kind["entries"]]
    any_kind["entries"][0].update(expected=213, found=210, scored=200)
    text, _ = said(any_kind)
    assert f"{blank}: its images have no labels, so it has no scores" in text and "nan" not in text.lower()
    first = any_kind["entries"][0]["dataset"]
    assert (
        f"{first} (test): 13 of 213 listed images not scored "
        "(3 without a usable face, 10 with a face but no label among the seven)." in text
    )
    more = "models differ in how many images" in text, "and the mean over targets goes without it" in text
    assert more == (any_kind["kind"] == "sweep",) * 2
    any_kind["entries"] = [without_labels(e) for e in any_kind["entries"]]
    assert "No scores: no target was scored on images with labels." in said(any_kind)[0]


def test_a_model_alone_scored_at_home_has_its_page():
    alone = document(60, (), kind="model")
    text, _ = said(alone)
    assert "No scores on other datasets" in text and "At home" in text and "raf-db synthetic source" in text
    assert "Domain gap: no target was evaluated" in text and "best 9" not in text


def test_undefined_scores_are_dashes_and_never_zero(run):
    for one in run["entries"]:
        for head in one["heads"].values():
            for row in head["confusion"]:
                row[2] = 0
            head["confusion"][2] = [0] * 7
            head.update(scores(np.array(head["confusion"])))
    rows = said(run)[1]
    disgust = next(row for row in rows if row.startswith("disgust") and "/0" in row)
    assert disgust.count("–") == 2 * 3 and "nan" not in " ".join(rows)  # precision (never predicted), recall, F1


def test_hostile_names_are_escaped_everywhere(any_kind):
    drawn = pictures(any_kind)
    for one in any_kind["failure_cases"]:
        for face in one["faces"]:
            face.update(id=EVIL + face["id"], stage=EVIL)
    any_kind["environment"][EVIL] = EVIL
    any_kind["missing"] = [{"seed": EVIL, "keys": {EVIL: EVIL}, "dataset": EVIL, "method": EVIL, "why": EVIL}]
    text = json.dumps(any_kind)
    names = (
        "aglrls|infomax|surprise|nose|adversarial|cpu, 2 threads|glpc|near|fused|0.8|target images|a demo of mine|test"
    )
    for name in names.split("|"):
        text = text.replace(json.dumps(name), json.dumps(f"{EVIL}{name}"))
    text = render(json.loads(text), drawn)
    page = Page(text)
    page.assert_self_contained(text)
    assert text.count("&lt;script&gt;") > 100
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any_kind["kind"] == "sweep" or (len(alts) == 48 and EVIL in alts[0])


def test_names_that_are_no_text_do_not_stop_the_page(run, tmp_path):
    run["failure_cases"][0]["faces"][0]["id"] = "face-\udcff\ud800.png"
    assert "face-??.png" in write_report(run, tmp_path).read_text(encoding="utf-8")


def test_large_documents_stay_small(tmp_path):
    targets = tuple(f"target-{i}" for i in range(6))
    whole = document(100, targets)
    assert write_report(whole, tmp_path, pictures(whole)).stat().st_size < 4_000_000
    assert not any("so that the page stays small" in note for note in view(whole, pictures(whole))["left_out"])
    one = entry("aglrls", "near")
    many = [{**one, "method": f"m{m}", "dataset": t, "seed": s} for m in range(12) for t in targets for s in range(5)]
    swept = sweep({"aglrls": {name: (1,) for name in targets}})
    swept.update(entries=many, methods=[f"m{m}" for m in range(12)], seeds=list(range(5)))
    assert write_report(swept, tmp_path).stat().st_size < 1_500_000
