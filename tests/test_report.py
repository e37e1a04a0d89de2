"""The page for runs and sweeps: every section and plot, required marks, nothing loaded, everything escaped."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pages import Page
from PIL import Image
from report_documents import FIGURES, document, entry, of_photographs, pictures, sweep, unlabelled, without

from fercli.evaluation.drift import drift
from fercli.evaluation.metrics import scores
from fercli.report.analysis_view import calibration, gaps, glpc, training_curves
from fercli.report.drift_view import drifts
from fercli.report.page import render, view, write_report
from fercli.report.pictures import Faces, face_uri, heated, landmark_dots
from fercli.report.plots import axis, ceiling, curve, lines, reliability, scatter
from fercli.report.pseudo_view import pseudo_labels

WHOLE = {"run": document(60), "sweep": sweep()}
SHOWN = pictures(WHOLE["run"])
SECTIONS = {
    "run": ["headline", "macro_f1", "drift", "heads", "rules", "images", "dataset-1", "dataset-2", "glpc",
            "calibration", "gaps", "pseudo_labels", "failure_cases", "curves", "spec", "environment", "reading"],
    "sweep": ["headline", "macro_f1", "bound", "drift", "heads", "rules", "images", "glpc", "calibration", "spec",
              "environment", "reading"],
}  # fmt: skip
EVIL = '<script>alert("x")</script>&\'"|`*<img src=x onerror=y>'


@pytest.fixture(params=["run", "sweep"])
def any_kind(request):
    return copy.deepcopy(WHOLE[request.param])


@pytest.fixture
def run():
    return copy.deepcopy(WHOLE["run"])


def holds(text, *expected):
    return [one for one in expected if one not in text] == []


def words(text):
    return " ".join(text.split())


def said(results):
    """The page's text, and its rows with a space between cells."""
    page = Page(re.sub("<(td|th|tr|small|br)", r" <\1", render(results)))
    return words(page.text), [words(content) for _, content in page.rows]


def test_one_small_file_that_loads_nothing_and_has_every_section(any_kind, tmp_path):
    path = write_report(any_kind, tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no half-written file
    assert path.stat().st_size < 400_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.assert_self_contained(text)
    sections = SECTIONS[any_kind["kind"]]
    assert [a["id"] for tag, a in page.elements if tag == "div" and a.get("class") == "body"] == sections
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert len(folds) == len(sections) and all("open" in a for a in folds)
    linked = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert linked == ["headline", *sections]  # the link that skips to the results, then the table of contents
    # Bytes in a name that are not text do not stop it.
    assert write_report({**any_kind, "title": "face-\udcff\ud800.png"}, path.parent) == path
    assert "face-??.png" in path.read_text(encoding="utf-8")


def test_the_headline_of_a_run(run):
    text, rows = said(run)
    p = run["entries"][2]["against_reference"]["test"]["p"]
    verdict = (
        "aglrls is best on jaffe: 60.0% (",
        f"+20.0 points compared with source-only (p {p:.3f}, sign-flip test over 10 subjects). One seed says nothing",
        "and the p value of that difference: sign-flip test over 10 subjects. Target labels",
    )
    home = "On the test images of its source raf-db synthetic, source-only reaches 90.0% (", "360 of 400), macro F1 "
    assert holds(text, *verdict, *home, "One seed: no deviation, no test over seeds and no ties can be computed.")
    low, high = run["entries"][2]["intervals"]["accuracy"]
    line = next(row for row in rows if row.startswith("aglrls best 60.0"))
    assert holds(
        line, f"{100 * low:.1f} to {100 * high:.1f}", "36/60", f"+20.0, p {p:.3f}, epoch 6", "61.7", "+1.7, epoch 7"
    )
    full = next(row for row in rows if "infomax" in row and "61 / 60 / 60" in row)
    assert holds(full, "decides by glpc", "from raf-db", "runs/demo/adapt-jaffe/best.ckpt", "epoch 6 by infomax")
    assert holds(full, "36 / 60", "jackknife t over 10 subjects", "target images")


def test_the_headline_of_a_sweep():
    text, rows = said(WHOLE["sweep"])
    best = "aglrls is best on the mean over targets: 72.5% ± 3.5"
    assert f"{best}, +20.5 points compared with source-only (p 0.00" in text
    assert ", paired t-test over 3 seeds)" in text
    assert "the p value of that difference: paired t-test over 3 seeds (near, far, mean). Target labels" in text
    assert "No other row is within its error." in text
    assert "test images of its source" not in text and "One seed" not in text
    line = next(row for row in rows if row.startswith("aglrls best 82.0 ± 2.6"))
    assert "best 72.5 ± 3.5 +20.5, p 0.00" in line and line.endswith("73.5 ± 3.5 +1.0")
    assert sum(holds(row, "seed 2", "decides by") for row in rows) == 8 + 6  # plus the oracle's rows of adapted models
    assert render(WHOLE["sweep"]).count('class="lane"') == 4 * 3
    assert holds("".join(rows), "near synthetic target 101 / 100 / 100 12 0", "aglrls 31.0 ± 0.894 6 3 min 06 s")


def test_the_verdict_in_words():
    for change, sentence in (
        ({"source-only": (90, 91, 92)}, "source-only is best on near: 91.0% ± 1.0. No adapted model beats it."),
        ({"dann": (82, 79, 85)}, "aglrls and dann are equally good on near: 82.0%, +20.0 points compared with"),
        ({"source-only": (79, 82, 85)}, "source-only and aglrls are equally good on near: 82.0%. No adapted"),
        ({"dann": (81, 80, 84)}, "Within the error of the best: dann."),
        ({"aglrls": None, "dann": None, "gated": None}, "source-only reaches 62.0% ± 2.0 on near."),
        ({"source-only": None, "dann": None, "mcd": (10, 20, 30)}, "aglrls is best on near: 82.0% ± 2.6. No"),
    ):
        methods = {name: of["near"] for name, of in FIGURES.items()} | change
        assert sentence in said(sweep({name: {"near": of} for name, of in methods.items() if of}))[0]


def test_the_drift_of_a_run(run):
    moved = run["entries"][2]["drift"]
    text, rows = said(run)
    told = f"the same expression as the starting model on {100 * moved['agreement']:.1f}% of the faces"
    assert holds(text, "jaffe synthetic aglrls, adapt-jaffe, 60 faces", "doubtful The adapted model predicts", told)
    assert "There are only 60 faces: with fewer than 100, a histogram" in text
    for rule, one in moved["rules"].items():
        (row,) = [row for row in rows if row.startswith(f"{rule} ") and row.endswith(f" {one['prefers']}")]
        assert f"{one['before']:.3f} {one['after']:.3f}".replace("-", "\N{MINUS SIGN}") in row
    (one,) = drifts(run)["models"]
    assert [e["name"] for e in one["expressions"]] == run["expressions"] and drifts(run)["rows"] == []
    top = one["ticks"][-1]
    for number, drawn in enumerate(one["expressions"]):
        for when, y in (("before", 3), ("after", 11)):
            share = moved["histogram"][when][number]
            assert drawn[when] == share <= top
            assert f'<path class="fill {when}" d="M2 {y}h{96 * share / top:.2f}v6' in drawn["plot"]
            assert f"{100 * share:.1f}%" in drawn["plot"]
    moved["verdict"] = {"trust": "trusted", "reasons": []}
    assert "The checks that need no labels found no problem." in said(run)[0]
    moved |= drift(torch.zeros(0, 7, 7), torch.zeros(0, 7, 7))
    moved["verdict"] = {"trust": "not trusted", "reasons": [EVIL]}
    text = render(run)
    assert (
        EVIL not in text and 'class="tag not-trusted">not trusted<' in text and drifts(run)["models"][0]["ticks"] == []
    )


def test_the_drift_of_a_sweep():
    results, found = sweep(), drifts(sweep())
    assert found["models"] == [] and [dataset for dataset, _ in found["rows"]] == ["near", "far"]
    for dataset, shown in found["rows"]:
        assert [line["label"] for line in shown] == ["aglrls", "dann", "gated"]
        for line in shown:
            own = [e["drift"] for e in results["entries"] if (e["dataset"], e["method"]) == (dataset, line["label"])]
            assert line["agreement"] == pytest.approx(sum(one["agreement"] for one in own) / 3)
            trusts = [one["verdict"]["trust"] for one in own]
            assert line["trusts"] == {name: trusts.count(name) for name in ("trusted", "doubtful", "not trusted")}
    said_of = [row for row in said(results)[1] if row.startswith("dann ")]
    counts = " ".join(str(count) for count in found["rows"][0][1][1]["trusts"].values())
    assert any(row.endswith(f" {counts}") for row in said_of)


def test_a_target_without_labels_leads_to_its_drift_and_older_documents_have_none(any_kind):
    results = document(60, labelled=False)
    text = said(results)[0]
    assert "no target was scored on images with labels. What adaptation has changed can be seen without labels." in text
    assert '<a href="#drift">' in render(results)
    for one in any_kind["entries"]:
        del one["drift"]
    text = render(any_kind)
    assert drifts(any_kind) is None and "Can the adaptation be trusted?" not in text


def test_every_oracle_is_marked_and_nothing_else(any_kind):
    page = Page(render(any_kind))
    for attributes, content in page.rows:
        tinted = attributes.get("class") == "oracle"
        assert tinted <= ("oracle: reads target labels" in words(content)), content
        if "gated" in content and "gated: " not in content:
            assert tinted
    tinted = sum(attributes.get("class") == "oracle" for attributes, _ in page.rows)
    # headline, macro F1, oracle's epoch, drift, heads, every row, time, calibration
    assert tinted == {"run": 1, "sweep": 1 + 1 + 3 + 2 + 3 + (6 + 18) + 1 + 2}[any_kind["kind"]]
    any_kind["entries"][2]["oracle_method"] = True
    for table in Page(render(any_kind)).tables:
        if "source-only" in table and "aglrls" in table and "energy distance" not in table:
            assert "oracle" in table


def test_synthetic_faces_are_marked_in_every_table_without_published_figures(any_kind):
    text = render(any_kind)
    drawn = ", ".join(any_kind["datasets"])
    assert f"{drawn}: synthetic faces, procedural drawings, not photographs" in text and "AGRA" not in text
    for table in Page(text).tables:
        for name in ("jaffe", "raf-db", "near"):
            assert table.count(name) == words(table).count(f"{name} synthetic") + table.count(f"adapt-{name}")


def test_the_banner_names_the_drawn_datasets_alone(any_kind):
    real, *drawn = any_kind["datasets"]
    any_kind["datasets"][real]["synthetic"] = False
    assert f"{', '.join(drawn)}: synthetic faces, procedural drawings" in render(any_kind)


def test_real_faces_are_not_marked_and_have_published_figures(any_kind):
    text = render(of_photographs(any_kind))
    assert "synthetic" not in text.split("<main>")[1] and "procedural" not in text
    line = next(row for row in said(any_kind)[1] if "AGRA" in row)
    assert holds(line, "IR-50", "61.50", "oracle: reads target labels", "Chen et al., TPAMI 2022")
    assert ("73.38" in line) == (any_kind["kind"] == "sweep")  # the mean of 61.50 and 85.27 is computed here
    any_kind["entries"] = [{**one, "oracle": None} for one in any_kind["entries"]]
    assert "AGRA" in render(any_kind)
    any_kind["published"] = any_kind["published"][:1]
    assert any(row.endswith("61.50 – –" if any_kind["kind"] == "sweep" else "61.50") for row in said(any_kind)[1])


def test_missing_cells_are_reported():
    swept = copy.deepcopy(WHOLE["sweep"])
    without(swept, method="dann", dataset="far")
    without(swept, method="aglrls", seed=2, dataset="near")
    swept["missing"].append({"seed": 0, "keys": {"a.b": 1}, "dataset": "near", "method": "mcd", "why": "stopped"})
    text, rows = said(swept)
    assert "5 of 25 cells are missing" in text and "2 of 3 seeds" in text
    assert holds("".join(rows), "dann far synthetic 0, 1, 2 not run", "mcd, a.b 1 near synthetic 0 stopped")
    for seed in range(3):
        without(swept, seed=seed)
    text, _ = said(swept)
    assert "No scores" in text and "far: no cell has been run yet, so there is no mean over targets" in text


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_images_without_labels_or_without_a_score_are_reported(kind):
    is_sweep, blank = kind == "sweep", {"run": "jaffe", "sweep": "far"}[kind]
    results = sweep(unlabelled(blank)) if is_sweep else document(60, labelled=False)
    results["entries"][0].update(expected=213, found=210, scored=200)
    text, _ = said(results)
    assert f"{blank}: its images have no labels, so it has no scores" in text and "nan" not in text.lower()
    reasons = "(3 without a usable face, 10 with a face but none of the seven labels)."
    assert f"{results['entries'][0]['dataset']} (test): 13 of 213 listed images not scored {reasons}" in text
    assert ("and the mean over targets leaves it out" in text) == is_sweep
    assert ("models were scored on different numbers of images" in text) == is_sweep
    results["entries"] = [one for one in results["entries"] if one["dataset"] == blank]
    assert "No scores: no target was scored on images with labels." in said(results)[0]


def test_a_single_model_scored_on_its_source_has_a_page():
    alone = document(60, (), kind="model")
    text, _ = said(alone)
    assert "No scores on other datasets" in text and "On the test images of its source" in text
    assert "raf-db synthetic source" in text
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
    for one in any_kind["failure_cases"]:
        for face in one["faces"]:
            face.update(id=EVIL + face["id"], stage=EVIL)
    any_kind["environment"][EVIL] = EVIL
    any_kind["missing"] = [{"seed": EVIL, "keys": {EVIL: EVIL}, "dataset": EVIL, "method": EVIL, "why": EVIL}]
    text = json.dumps(any_kind)
    names = "aglrls|infomax|surprise|nose|adversarial|glpc|near|fused|0.8|target images|a demo of mine"
    for name in names.split("|"):
        text = text.replace(json.dumps(name), json.dumps(f"{EVIL}{name}"))
    text = render(json.loads(text), SHOWN if any_kind["kind"] == "run" else None)
    page = Page(text)
    page.assert_self_contained(text)
    assert text.count("&lt;script&gt;") > 100
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any_kind["kind"] == "sweep" or (len(alts) == 48 and EVIL in alts[0])


def test_large_documents_stay_small(tmp_path):
    targets = tuple(f"target-{i}" for i in range(6))
    whole = document(100, targets)
    assert write_report(whole, tmp_path, pictures(whole)).stat().st_size < 4_000_000
    assert not any("to keep the page small" in note for note in view(whole, pictures(whole))["left_out"])
    one = entry("aglrls", "near")
    many = [{**one, "method": f"m{m}", "dataset": t, "seed": s} for m in range(12) for t in targets for s in range(5)]
    swept = sweep({"aglrls": {name: (1,) for name in targets}})
    swept.update(entries=many, methods=[f"m{m}" for m in range(12)], seeds=list(range(5)))
    assert write_report(swept, tmp_path).stat().st_size < 1_500_000


def section(text: str, name: str) -> str:
    start = text.index(f'<div class="body" id="{name}">')
    return text[start : text.index("</div></details></section>", start)]


def test_calibration_shows_before_and_after_and_the_faces_of_the_fit(run):
    (name, rows), (home, _) = calibration(run)
    assert (name, home) == ("jaffe", "raf-db") and [len(row["sides"]) for row in rows] == [2, 2]
    own = run["entries"][1]["calibration"]
    rows_shown = Page(section(render(run), "calibration") + "</div>").rows
    row = next(content for _, content in rows_shown if content.startswith("source-only"))
    ece, nll = f"{100 * own['before']['ece']:.1f}", f"{own['after']['nll']:#.3g}"
    assert holds(row, f"{own['temperature']:.2f}", "100", ece, nll)
    # A sweep has means over seeds and no diagrams.
    results = sweep({"source-only": {"near": (60, 62)}, "aglrls": {"near": (70, 75)}})
    ((_, rows),) = calibration(results)
    own = [one["calibration"]["temperature"] for one in results["entries"][2:]]
    assert rows[1]["temperature"].mean == pytest.approx(sum(own) / 2) and rows[1]["temperature"].n == 2
    stages = [one["stages"]["fused"] for one in results["entries"][2:]]
    ((_, (row,)),) = glpc(results)
    assert row["total"] == 200 and row["steps"][0]["count"] == sum(stage["count"] for stage in stages)
    text = render(results)
    assert 'class="square"' not in text and f"{row['steps'][0]['count']} / 200" in text


def test_reliability_draws_each_filled_bin_in_its_place():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "count": 5, "confidence": 0.6, "accuracy": 0.25},  # overconfident
        {"low": 0.75, "high": 1.0, "count": 2, "confidence": 0.8, "accuracy": 1.0},  # underconfident
    ]
    plot, strip = reliability(bins, "t")
    assert dict(re.findall(r'class="fill ([^"]+)" d="([^"]*)"', plot)) == {
        "right": "M50.40 100.00V75.00h24.20V100.00z",
        "over": "M50.40 75.00V40.00h24.20V75.00z",
        "right few": "M75.40 100.00V20.00h24.20V100.00z",
        "under few": "M75.40 20.00V0.00h24.20V20.00z",
    }
    assert 'd="M50.40 20.00V0.00h24.20V20.00zM75.40 20.00V12.00h24.20V20.00z"' in strip
    assert "nan" not in "".join(reliability([], "nothing")) and "&lt;b&gt;" in reliability([], "<b>")[0]


def test_the_gap_is_a_number_and_two_maps_per_model(run):
    before, after = run["gaps"][0]["models"]
    by_label, by_domain = (one["svg"] for one in gaps(run)[0]["models"][0]["maps"])
    points = {kind: path.count("M") for kind, path in re.findall(r'class="point ([^"]+)" d="([^"]*)"', by_label)}
    labels, domain = np.array(before["embedding"]["label"]), np.array(before["embedding"]["domain"])
    for label in range(7):
        for side, name in enumerate(("src", "tgt")):
            assert points[f"c{label} {name}"] == int(((labels == label) & (domain == side)).sum())
    assert by_domain.count("h0") == len(domain)
    text = section(render(run), "gaps")
    change = f"{after['energy_distance'] - before['energy_distance']:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert f"{before['energy_distance']:.3f}" in text and change in text and text.count('class="square map"') == 4
    assert text.count("&lt;&nbsp;0.004") == 2 and "(test)" in text
    assert "<dt>energy distance</dt>" in render(run) and "A-distance" not in render(run)
    assert re.findall(r"width:([\d.]+)%", text) == ["100.0", f"{100 * 0.058 / 0.162:.1f}"]
    # low values are at the left and bottom
    assert 'd="M2.0 98.0h0M98.0 2.0h0"' in scatter([0.0, 1.0], [0.0, 1.0], ["c0 tgt", "c0 tgt"], "t")
    # Without maps the number remains.
    for model in run["gaps"][0]["models"]:
        model["embedding"] = None
    text = section(render(run), "gaps")
    assert 'class="square map"' not in text and "No maps" in text and "Not measured" not in text
    for model in run["gaps"][0]["models"]:
        model.update(energy_distance=None, no_gap=None, faces=[9, 213])
    text = section(render(run), "gaps")
    assert "Not measured: too few faces to compare (9 of the source; at least 10 are needed)." in text
    assert "0.162" not in text


def test_pseudo_labels_are_those_of_the_kept_epoch(run):
    (one,) = pseudo_labels(run)
    own = run["pseudo_labels"]["adapt-jaffe"]
    epoch = own["epochs"][5]
    assert (one["kept"], one["marked"], epoch["epoch"]) == (6, 6, 6)
    for threshold in one["thresholds"]:
        counts, correct = epoch["counts"][threshold["name"]], epoch["correct"][threshold["name"]]
        assert [count for count, _ in threshold["cells"]] == counts and threshold["total"] == sum(counts)
        assert threshold["share"] == pytest.approx(sum(counts) / own["faces"])
        assert threshold["accuracy"] == (pytest.approx(sum(correct) / sum(counts)) if sum(counts) else None)
    assert [panel["count"] for panel in one["panels"]] == epoch["counts"]["class-aware"]
    text = section(render(run), "pseudo_labels")
    assert "Epoch 6 (kept)" in text and "oracle: reads target labels" in text
    # The accuracy is over faces with a label. An epoch without outputs is not marked as kept.
    for key, part in (("known", 2), ("correct", 4)):
        epoch[key] = {name: [n // part for n in counts] for name, counts in epoch["counts"].items()}
    right = pseudo_labels(run)[0]["thresholds"][0]["accuracy"]
    assert right == pytest.approx(sum(epoch["correct"]["0.5"]) / sum(epoch["known"]["0.5"]))
    del own["epochs"][5]
    assert pseudo_labels(run)[0]["marked"] is None and "Epoch 8 (the last)" in render(run)


def test_lines_share_a_scale_and_leave_gaps():
    drawn = lines([("a", [(1, 0), (2, None), (3, 5)]), ("b", [(1, 10), (3, 10)])], 10.0, "t", chosen=3)
    assert (drawn["first"], drawn["last"]) == (1, 3)
    assert re.findall(r'class="line (\w)" d="([^"]*)"', drawn["svg"]) == [
        ("a", "M2.00 56.00h0"), ("a", "M98.00 30.00h0"), ("b", "M2.00 4.00L98.00 4.00"),
    ]  # fmt: skip
    assert lines([], 1.0, "t")["first"] is None
    assert 'd="M2.00 30.00L98.00 4.00"' in lines([("a", [(1, 0.9), (2, 1.0)])], 1.0, "t", bottom=0.8)["svg"]
    assert [ceiling(n) for n in (0, 1, 2, 3, 7, 10, 11, 61, 213)] == [1, 1, 2, 3, 8, 10, 20, 80, 300]
    values = [], [0.7, 0.7], [0.0], [1.0], [0.62, 0.78], [0.0, 1.0]
    ticks = [[round(100 * tick) for tick in axis(one)] for one in values]
    assert ticks[:4] == [[0, 100], [69, 70, 71], [0, 1], [99, 100]]
    assert ticks[4:] == [[60, 65, 70, 75, 80], [0, 20, 40, 60, 80, 100]]


def test_curves_mark_the_chosen_epoch_and_the_score_that_chose_it(run):
    source, adapt = training_curves(run)
    assert (source["chosen"], source["rule"]) == (8, "source-val")
    assert (adapt["chosen"], adapt["rule"]) == (6, "infomax")
    assert [panel["name"] for panel in adapt["panels"] if panel["decides"]] == ["infomax"]
    assert adapt["panels"][0]["at_chosen"] == run["history"]["adapt-jaffe"][5]["losses"]["source"]
    # A curve leaves gaps and works with constants.
    panel = curve("loss", [(1, 2.0), (2, None), (3, None), (4, 1.0), (5, 0.5)], chosen=2, from_zero=True)
    assert (panel["bottom"], panel["top"], panel["final"], panel["at_chosen"]) == (0.0, 2.0, 0.5, None)
    assert panel["svg"].count('class="line alone"') == 2  # a dot before the gap, a line after it
    assert curve("nothing", [(1, None)], 1, False) is None
    for value in (0.0, -3.0, 7.0):
        flat = curve("flat", [(1, value)], 1, False)
        assert flat["bottom"] < flat["top"] and "nan" not in flat["svg"]


def test_failure_cases_have_small_images_votes_and_alternative_texts(run):
    for shown in (SHOWN, {}):
        text = section(render(run, shown), "failure_cases")
        page = Page(text + "</div>")
        assert text.count('class="votes"') == 24 and len(page.rows) == 24 * 7
        images = [attributes for tag, attributes in page.elements if tag == "img"]
        assert len(images) == (2 * 24 if shown else 0) and text.count("no image stored") == (0 if shown else 24)
        face = run["failure_cases"][0]["faces"][0]
        assert holds(text, f"{100 * face['confidence']:.0f}% confident", f"stage {face['stage']}", face["id"])
        if shown:
            label = f"labelled {face['label']}, predicted {face['answer']}"
            assert images[0]["alt"] == f"face {face['id']} with its five landmarks: {label}"
            assert f"heat map for {face['answer']}" in images[1]["alt"]
            assert all(len(image["src"]) < 6_000 for image in images)
    for one in run["failure_cases"]:
        one["faces"] = []
    text = section(render(run), "failure_cases")
    assert "No mistakes: every labelled face was predicted correctly." in text and "No faces to show." in text


def test_faces_in_a_page():
    for side, kept in ((1, 1), (48, 48), (112, 112), (160, 112)):
        uri = face_uri(np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8))
        with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as file:
            assert (file.format, file.size) == ("JPEG", (kept, kept))
    drawn = landmark_dots(np.array([[0, 1], [2.3, 111]]), 112)
    assert 'viewBox="0 0 112 112"' in drawn and 'd="M0.5 1.5h0M2.8 111.5h0"' in drawn
    # They stop where the page would become too large.
    picture = SimpleNamespace(face=np.zeros((112, 112, 3), np.uint8), landmarks=np.ones((5, 2)), heat=np.zeros((7, 7)))
    size = sum(len(value) for value in list(Faces({1: picture}).show(1).values())[:2])
    faces = Faces({1: picture, 2: picture, 3: picture}, most=2 * size)
    assert [faces.show(key) is not None for key in (1, 2, 3, 4)] == [True, True, False, False] and faces.refused == 1
    # Cold regions stay grey and hot ones are coloured.
    face = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    grey = round(200 * 0.299 + 100 * 0.587 + 50 * 0.114)
    assert np.abs(heated(face, np.zeros((7, 7))).astype(int) - grey).max() <= 1
    red, green, blue = heated(face, np.ones((3, 3)))[4, 4].astype(int)
    assert red > 200 and green > 180 and blue < grey
    half = heated(face, np.array([[0.0, 1.0], [0.0, np.nan]]))
    assert half.dtype == np.uint8 and half[0, 7, 0] > half[0, 0, 0]


def test_a_target_without_labels_lists_what_is_left_out():
    run = document(60, labelled=False)
    text = render(run, pictures(run))
    Page(text).assert_self_contained(text)
    assert "jaffe: its images have no labels" in text and 'unknown tgt"' in text and "no label</span>" in text
    # The stages of GLPC are known without labels.
    fused = run["entries"][2]["stages"]["fused"]["count"]
    assert f"{fused} / 60" in text and 'class="unknown"' in text
    cases = section(text, "failure_cases")
    assert "oracle" not in section(text, "pseudo_labels") and "(no label)" in cases
    assert "The faces have no labels, so mistakes cannot be found." in cases
    assert "jaffe" not in section(text, "calibration")  # the source has labels and is shown
    assert "nan" not in re.sub(r"data:[^\"]*", "", text).lower()
    run["entries"][0]["calibration"] = None
    assert "Calibration: it needs labels" in render(run)


def test_an_empty_section_is_left_out_with_a_reason(run):
    without_gaps, no_outputs = "no target was evaluated together with prepared source faces", "has stored outputs"
    notes = {"gaps": without_gaps, "pseudo_labels": no_outputs, "failure_cases": "no faces to show", "history": ""}
    for key, note in notes.items():
        run[key] = type(run[key])()
        text = render(run)
        assert f'id="{"curves" if key == "history" else key}"' not in text and note in text
