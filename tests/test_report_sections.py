"""Sections of the run's report beyond its tables: intervals, calibration, domain gap, pseudo labels, failure cases."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from pages import Page
from PIL import Image
from report_documents import document, of_photographs, pictures

from fercli.report.analysis_view import calibration, failure_cases, gaps
from fercli.report.charts import ceiling, lines, reliability, scatter
from fercli.report.headline_view import all_rows, benchmark, variant
from fercli.report.pictures import FACE, Faces, face_uri, heated, landmark_dots
from fercli.report.pseudo_view import pseudo_labels
from fercli.report.run import render, write_report
from fercli.report.run_view import view

SECTIONS = ["headline", "dataset-1", "dataset-2", "glpc", "calibration", "gap", "pseudo-labels", "failure-cases",
            "curves", "spec", "environment", "reading"]  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return document()


@pytest.fixture
def results(whole):
    return copy.deepcopy(whole)


@pytest.fixture(scope="module")
def shown(whole):
    return pictures(whole)


def section(text: str, name: str) -> str:
    start = text.index(f'<div class="body" id="{name}">')
    return text[start : text.index("</div></details></section>", start)]


def without_labels(results):
    """The same run on a target whose faces have no labels."""
    for entry in results["entries"][1:]:
        entry.update(heads=dict.fromkeys(entry["heads"]), calibration=None, intervals=None)
        entry["decision"]["metrics"] = None
        for stage in (entry["decision"]["stages"] or {}).values():
            stage["correct"] = None
        entry["counts"]["scored"] = 0
    for row in results["table"]:
        row.update(accuracy=None, macro_f1=None, scored=0, intervals=None)
    results["table"] = [row for row in results["table"] if not row["oracle"]]
    for gap in results["gaps"]:
        for model in gap["models"]:
            model["embedding"]["label"] = [-1 if d else c for c, d in zip(model["embedding"]["label"],
                                           model["embedding"]["domain"], strict=True)]  # fmt: skip
    for one in results["pseudo_labels"].values():
        one["labelled"] = 0
        for epoch in one["epochs"]:
            epoch.update(correct=None, known=None)
    results["failure_cases"] = [one for one in results["failure_cases"] if one["kind"] == "uncertain"]
    for one in results["failure_cases"]:
        for face in one["faces"]:
            face["label"] = None
    return results


def test_every_section_folds_is_open_and_is_linked(results, shown):
    text = render(results, shown)
    page = Page(text)
    page.assert_self_contained(text)
    bodies = [a["id"] for tag, a in page.elements if tag == "div" and a.get("class") == "body"]
    assert bodies == SECTIONS
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert len(folds) == len(SECTIONS) and all("open" in a for a in folds)
    linked = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert linked == ["headline", *SECTIONS]  # the link that skips to the results, then the contents
    assert len(text) < 500_000


@pytest.mark.parametrize(
    ("interval", "kept"),
    [
        ({"accuracy": [0.5, 0.7], "macro_f1": [0.4, 0.6], "by": "subjects", "units": 10}, True),
        (
            {"accuracy": [1.0, 1.0], "macro_f1": [1.0, 1.0], "by": "images", "units": 10},
            False,
        ),  # no width: nothing seen
        (None, False),
    ],
)
def test_intervals_are_the_bootstraps_where_it_says_anything(results, interval, kept):
    results["table"][0].update(intervals=interval, accuracy=0.6)
    row = all_rows(results)[0]
    low, high = row["interval"]
    if kept:
        assert (low, high, row["by"], row["f1_interval"]) == (0.5, 0.7, "bootstrap over 10 subjects", [0.4, 0.6])
        assert "bootstrap over 10 subjects for jaffe" in render(results, {})
    else:
        assert low < 0.6 < high and row["by"] == "Wilson’s"


def test_rows_of_before_have_the_folders_tag():
    assert variant("adapt-jaffe", "jaffe") == variant("source", "jaffe") == ""
    assert variant("adapt-jaffe-no-glpc", "jaffe") == "no-glpc"


def test_methods_stand_against_targets_and_beside_published_figures():
    results = document(60, ("jaffe", "ck+"))
    tagged = [{**row, "folder": f"adapt-{row['target']}-no-glpc", "accuracy": 0.5} for row in results["table"]
              if row["target"] == "jaffe" and row["folder"] != "source" and not row["oracle"]]  # fmt: skip
    results["table"] += tagged
    laid = benchmark(results, all_rows(results), results["published"])
    who = [(line["method"], line["variant"], line["oracle"]) for line in laid["lines"]]
    assert laid["targets"] == ["jaffe", "ck+"]
    assert who[:2] == [("source-only", "", False), ("aglrls", "", False)]
    assert who[2:] == [("aglrls", "no-glpc", False), ("aglrls", "", True)]
    first, _, ablation, _ = laid["lines"]
    own = [row["accuracy"] for row in results["table"] if row["method"] == "source-only"]
    assert first["cells"] == pytest.approx([*own, sum(own) / 2])
    assert ablation["cells"] == [0.5, None, None]  # a mean of some targets is no mean
    assert laid["published"][0]["cells"] == [61.5, None, None]
    page = Page(render(of_photographs(results), {}))
    line = next(content for attributes, content in page.rows if "AGRA" in content)
    assert all(what in line for what in ("IR-50", "61.50", "Chen et al., TPAMI 2022", "oracle: reads target labels"))


def test_one_target_one_method_needs_no_second_table(results):
    assert benchmark(results, all_rows(results), []) is None and "Methods and targets" not in render(results, {})


def test_calibration_shows_both_sides_and_what_the_temperature_was_fitted_on(results):
    target, home = calibration(results)
    assert (target["name"], home["name"]) == ("jaffe", "raf-db") and len(target["models"]) == 2
    own = results["entries"][1]["calibration"]
    row = next(content for _, content in Page(section(render(results, {}), "calibration") + "</div>").rows
               if content.startswith("source-only"))  # fmt: skip
    for value in (
        f"{own['temperature']:.2f}",
        "100",
        f"{100 * own['before']['ece']:.1f}",
        f"{own['after']['nll']:#.3g}",
    ):
        assert value in row


def test_reliability_draws_each_filled_bin_where_it_belongs():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "count": 5, "confidence": 0.6, "accuracy": 0.25},  # surer than right
        {"low": 0.75, "high": 1.0, "count": 2, "confidence": 0.8, "accuracy": 1.0},  # righter than sure
    ]
    paths = dict(re.findall(r'class="fill ([^"]+)" d="([^"]*)"', reliability(bins, "t")))
    assert paths == {
        "right": "M50.40 100.00V75.00h24.20V100.00z",
        "over": "M50.40 75.00V40.00h24.20V75.00z",
        "right few": "M75.40 100.00V20.00h24.20V100.00z",
        "under few": "M75.40 20.00V0.00h24.20V20.00z",
    }
    assert "nan" not in reliability([], "nothing") and "&lt;b&gt;" in reliability([], "<b>")


def test_the_gap_is_a_number_and_two_maps_of_each_model(results):
    before, after = results["gaps"][0]["models"]
    (gap,) = gaps(results)
    assert [m["a_distance"] for m in gap["models"]] == [before["a_distance"], after["a_distance"]]
    assert gap["models"][1]["change"] == pytest.approx(after["a_distance"] - before["a_distance"])
    by_label, by_domain = (one["svg"] for one in gap["models"][0]["maps"])
    points = {kind: path.count("M") for kind, path in re.findall(r'class="point ([^"]+)" d="([^"]*)"', by_label)}
    labels, domain = np.array(before["embedding"]["label"]), np.array(before["embedding"]["domain"])
    for label in range(7):
        for side, name in enumerate(("src", "tgt")):
            assert points[f"c{label} {name}"] == int(((labels == label) & (domain == side)).sum())
    assert by_domain.count("h0") == len(domain)
    text = section(render(results, {}), "gap")
    assert f"{before['a_distance']:.2f}" in text and text.count('class="square map"') == 4


def test_a_map_puts_low_values_left_and_below():
    (d,) = re.findall(r'd="([^"]*)"', scatter([0.0, 1.0], [0.0, 1.0], ["c0 tgt", "c0 tgt"], "t"))
    assert d == "M2.0 98.0h0M98.0 2.0h0"


def test_without_maps_the_gap_is_still_a_number(results):
    for model in results["gaps"][0]["models"]:
        model["embedding"] = None
    results["gaps"][0]["models"][1].update(a_distance=None, error=None)
    text = section(render(results, {}), "gap")
    assert 'class="square map"' not in text and "No maps" in text and "too few faces to divide" in text


def test_pseudo_labels_are_those_of_the_kept_epoch(results):
    (one,) = pseudo_labels(results)
    own = results["pseudo_labels"]["adapt-jaffe"]
    epoch = own["epochs"][5]
    assert (one["kept"], one["marked"], epoch["epoch"]) == (6, 6, 6)
    for threshold in one["thresholds"]:
        counts, correct = epoch["counts"][threshold["name"]], epoch["correct"][threshold["name"]]
        assert [count for count, _ in threshold["cells"]] == counts and threshold["total"] == sum(counts)
        assert threshold["share"] == pytest.approx(sum(counts) / own["faces"])
        assert threshold["accuracy"] == (pytest.approx(sum(correct) / sum(counts)) if sum(counts) else None)
    assert [panel["count"] for panel in one["panels"]] == epoch["counts"]["class-aware"]
    text = section(render(results, {}), "pseudo-labels")
    assert "Epoch 6 (kept)" in text and "oracle: reads target labels" in text


def test_pseudo_label_accuracy_is_over_faces_with_a_label(results):
    own = results["pseudo_labels"]["adapt-jaffe"]["epochs"][5]
    own["known"] = {key: [n // 2 for n in counts] for key, counts in own["counts"].items()}
    own["correct"] = {key: [n // 4 for n in counts] for key, counts in own["counts"].items()}
    (one,) = pseudo_labels(results)
    known, correct = own["known"]["0.5"], own["correct"]["0.5"]
    assert one["thresholds"][0]["accuracy"] == pytest.approx(sum(correct) / sum(known))


def test_an_epoch_that_left_no_outputs_is_not_said_to_be_kept(results):
    del results["pseudo_labels"]["adapt-jaffe"]["epochs"][5]
    assert pseudo_labels(results)[0]["marked"] is None
    assert "Epoch 8 (the last)" in render(results, {})


def test_lines_share_a_scale_and_leave_gaps():
    drawn = lines([("a", [(1, 0), (2, None), (3, 5)]), ("b", [(1, 10), (3, 10)])], 10.0, "t", chosen=3)
    assert (drawn["first"], drawn["last"]) == (1, 3)
    assert re.findall(r'class="line (\w)" d="([^"]*)"', drawn["svg"]) == [
        ("a", "M2.00 56.00h0"), ("a", "M98.00 30.00h0"), ("b", "M2.00 4.00L98.00 4.00"),
    ]  # fmt: skip
    assert lines([], 1.0, "t")["first"] is None
    assert 'd="M2.00 30.00L98.00 4.00"' in lines([("a", [(1, 0.9), (2, 1.0)])], 1.0, "t", bottom=0.8)["svg"]
    assert [ceiling(n) for n in (0, 1, 2, 3, 7, 10, 11, 61, 213)] == [1, 1, 2, 3, 8, 10, 20, 80, 300]


def test_failure_cases_hold_small_pictures_their_votes_and_what_they_show_in_words(results, shown):
    text = section(render(results, shown), "failure-cases")
    page = Page(text + "</div>")
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 2 * 24 and all(len(a["src"]) < 6_000 for a in images)
    with Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1]))) as file:
        assert (file.format, file.size) == ("JPEG", (112, 112))
    face = results["failure_cases"][0]["faces"][0]
    assert images[0]["alt"] == (
        f"face {face['id']} with its five landmarks: labelled {face['label']}, answered {face['answer']}"
    )
    assert f"heat map of what spoke for {face['answer']}" in images[1]["alt"]
    assert text.count('class="votes"') == 24 and len(page.rows) == 24 * 7
    for value in (f"{100 * face['confidence']:.0f}% sure", f"stage {face['stage']}", face["id"]):
        assert value in text


def test_a_face_without_its_picture_keeps_its_numbers(results):
    text = section(render(results, {}), "failure-cases")
    assert "<img" not in text and text.count("no picture kept") == 24 and text.count('class="votes"') == 24


@pytest.mark.parametrize("labelled", [True, False])
def test_no_failure_cases_of_a_kind_says_why(results, labelled):
    if not labelled:
        results = without_labels(results)
    results["failure_cases"] = [{**one, "faces": []} for one in results["failure_cases"]]
    mistakes, uncertain = failure_cases(results, Faces({}))[0]["kinds"]
    assert mistakes["empty"].startswith("No mistakes" if labelled else "Its faces have no labels")
    text = section(render(results, {}), "failure-cases")
    assert mistakes["empty"] in text and uncertain["empty"] in text


def test_pictures_stop_where_the_page_would_swell():
    picture = SimpleNamespace(face=np.zeros((112, 112, 3), np.uint8), landmarks=np.ones((5, 2)), heat=np.zeros((7, 7)))
    size = sum(len(value) for value in list(Faces({1: picture}).show(1).values())[:2])
    faces = Faces({1: picture, 2: picture, 3: picture}, most=2 * size)
    assert [faces.show(key) is not None for key in (1, 2, 3, 4)] == [True, True, False, False] and faces.refused == 1


def test_heat_leaves_the_cold_grey_and_shows_the_hot():
    face = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    grey = round(200 * 0.299 + 100 * 0.587 + 50 * 0.114)
    assert np.abs(heated(face, np.zeros((7, 7))).astype(int) - grey).max() <= 1
    red, green, blue = heated(face, np.ones((3, 3)))[4, 4].astype(int)
    assert red > 200 and green > 180 and blue < grey
    half = heated(face, np.array([[0.0, 1.0], [0.0, np.nan]]))
    assert half.dtype == np.uint8 and half[0, 7, 0] > half[0, 0, 0]


@pytest.mark.parametrize("side", [1, 48, 112, 160])
def test_faces_of_any_size_become_at_most_a_small_picture(side):
    uri = face_uri(np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as file:
        assert file.size == (min(side, FACE),) * 2


def test_landmarks_are_dots_in_the_middle_of_their_pixels():
    assert 'viewBox="0 0 112 112"' in landmark_dots(np.array([[0, 1], [2.25, 111]]), 112)
    assert 'd="M0.5 1.5h0M2.8 111.5h0"' in landmark_dots(np.array([[0, 1], [2.3, 111]]), 112)


def test_a_target_without_labels_says_what_is_left_out(results, shown):
    results = without_labels(results)
    text = render(results, shown)
    page = Page(text)
    page.assert_self_contained(text)
    assert "jaffe: its images have no labels" in text and 'unknown tgt"' in text and "no label</span>" in text
    # What GLPC did is known without labels.
    fused = results["entries"][2]["decision"]["stages"]["fused"]["count"]
    assert "This data set has no labels" in text and f"{fused} / 213" in text
    assert "oracle" not in section(text, "pseudo-labels") and "(no label)" in section(text, "failure-cases")
    assert "jaffe" not in section(text, "calibration")  # the source has labels, and stays
    assert "nan" not in re.sub(r"data:[^\"]*", "", text).lower()
    for entry in results["entries"]:
        entry["calibration"] = None
    assert "Calibration: it takes labels to score" in render(results, {})


@pytest.mark.parametrize(
    ("key", "name", "note"),
    [
        ("gaps", "gap", "no target was evaluated beside prepared faces of the source"),
        ("pseudo_labels", "pseudo-labels", "no adaptation has left its outputs"),
        ("failure_cases", "failure-cases", "there are no faces to show"),
        ("history", "curves", ""),
    ],
)
def test_what_is_empty_has_no_section(results, key, name, note):
    results[key] = type(results[key])()
    text = render(results, {})
    Page(text)
    assert f'id="{name}"' not in text and note in text


EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>'


def test_hostile_names_are_escaped_everywhere():
    evil = document(60, (EVIL,))
    evil["title"] = EVIL
    for one in evil["failure_cases"]:
        for face in one["faces"]:
            face.update(id=EVIL + face["id"], stage=EVIL)
            face["votes"][0]["head"] = EVIL
    for one in evil["pseudo_labels"].values():
        for epoch in one["epochs"]:
            for key in ("counts", "known", "correct"):
                epoch[key] = {(EVIL if name == "0.8" else name): row for name, row in epoch[key].items()}
    evil["datasets"]["raf-db"]["role"] = EVIL
    evil["environment"][EVIL] = EVIL
    evil["entries"][1]["checkpoint"] = f"runs/{EVIL}/best.ckpt"
    drawn, text = pictures(evil), json.dumps(evil)
    for name in ("aglrls", "infomax", "surprise", "nose", "adversarial", "cpu", "fused"):
        text = text.replace(json.dumps(name), json.dumps(f"{EVIL}{name}"))
    text = render(json.loads(text), drawn)
    page = Page(text)
    assert "&lt;script&gt;" in text
    page.assert_self_contained(text)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert len(alts) == 48 and EVIL in alts[0]


def test_names_that_are_no_text_do_not_stop_the_page(results, tmp_path):
    results["failure_cases"][0]["faces"][0]["id"] = "face-\udcff\ud800.png"
    assert "face-??.png" in write_report(results, tmp_path, {}).read_text(encoding="utf-8")


def test_six_targets_stay_small(tmp_path):
    results = document(400, tuple(f"target-{i}" for i in range(6)))
    size = write_report(results, tmp_path, pictures(results)).stat().st_size
    assert size < 4_000_000 and view(results, pictures(results))["refused"] == 0
