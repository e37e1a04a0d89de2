"""Sections of single models and their plots: calibration, domain gap, pseudo labels, failure cases, GLPC, curves."""

from __future__ import annotations

import base64
import copy
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from pages import Page
from PIL import Image
from report_documents import document, pictures, sweep, without_labels

from fercli.report.analysis_view import calibration, failure_cases, gaps, glpc, training_curves
from fercli.report.page import render
from fercli.report.pictures import FACE, Faces, face_uri, heated, landmark_dots
from fercli.report.plots import axis, ceiling, curve, lines, reliability, scatter
from fercli.report.pseudo_view import pseudo_labels

WHOLE = document()
SHOWN = pictures(WHOLE)


@pytest.fixture
def results():
    return copy.deepcopy(WHOLE)


@pytest.fixture
def unlabelled(results):
    """The same run on a target whose faces have no labels."""
    results["entries"][1:] = map(without_labels, results["entries"][1:])
    for model in results["gaps"][0]["models"]:
        one = model["embedding"]
        one["label"] = [-1 if domain else label for label, domain in zip(one["label"], one["domain"], strict=True)]
    results["pseudo_labels"]["adapt-jaffe"]["labelled"] = 0
    for epoch in results["pseudo_labels"]["adapt-jaffe"]["epochs"]:
        epoch.update(correct=None, known=None)
    results["failure_cases"] = [one for one in results["failure_cases"] if one["kind"] == "uncertain"]
    for face in results["failure_cases"][0]["faces"]:
        face["label"] = None
    return results


def section(text: str, name: str) -> str:
    start = text.index(f'<div class="body" id="{name}">')
    return text[start : text.index("</div></details></section>", start)]


def test_calibration_shows_both_sides_and_what_the_temperature_was_fitted_on(results):
    (name, rows), (home, _) = calibration(results)
    assert (name, home) == ("jaffe", "raf-db") and [len(row["sides"]) for row in rows] == [2, 2]
    own = results["entries"][1]["calibration"]
    row = next(content for _, content in Page(section(render(results), "calibration") + "</div>").rows
               if content.startswith("source-only"))  # fmt: skip
    ece, nll = f"{100 * own['before']['ece']:.1f}", f"{own['after']['nll']:#.3g}"
    for value in (f"{own['temperature']:.2f}", "100", ece, nll):
        assert value in row


def test_a_sweep_has_means_over_seeds_and_no_diagrams():
    results = sweep({"source-only": {"near": (60, 62)}, "aglrls": {"near": (70, 75)}})
    ((_, rows),) = calibration(results)
    own = [one["calibration"]["temperature"] for one in results["entries"][2:]]
    assert rows[1]["temperature"].mean == pytest.approx(sum(own) / 2) and rows[1]["temperature"].n == 2
    stages = [one["stages"]["fused"] for one in results["entries"][2:]]
    ((_, (row,)),) = glpc(results)
    assert row["total"] == 200 and row["steps"][0]["count"] == sum(stage["count"] for stage in stages)
    text = render(results)
    assert 'class="square"' not in text and f"{row['steps'][0]['count']} / 200" in text


def test_reliability_draws_each_filled_bin_where_it_belongs():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "count": 5, "confidence": 0.6, "accuracy": 0.25},  # surer than right
        {"low": 0.75, "high": 1.0, "count": 2, "confidence": 0.8, "accuracy": 1.0},  # righter than sure
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


def test_the_gap_is_a_number_and_two_maps_of_each_model(results):
    before, after = results["gaps"][0]["models"]
    by_label, by_domain = (one["svg"] for one in gaps(results)[0]["models"][0]["maps"])
    points = {kind: path.count("M") for kind, path in re.findall(r'class="point ([^"]+)" d="([^"]*)"', by_label)}
    labels, domain = np.array(before["embedding"]["label"]), np.array(before["embedding"]["domain"])
    for label in range(7):
        for side, name in enumerate(("src", "tgt")):
            assert points[f"c{label} {name}"] == int(((labels == label) & (domain == side)).sum())
    assert by_domain.count("h0") == len(domain)
    text = section(render(results), "gaps")
    change = f"{after['a_distance'] - before['a_distance']:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"{before['a_distance']:.2f}" in text and change in text and text.count('class="square map"') == 4


def test_a_map_puts_low_values_left_and_below():
    (d,) = re.findall(r'd="([^"]*)"', scatter([0.0, 1.0], [0.0, 1.0], ["c0 tgt", "c0 tgt"], "t"))
    assert d == "M2.0 98.0h0M98.0 2.0h0"


def test_without_maps_the_gap_is_still_a_number(results):
    for model in results["gaps"][0]["models"]:
        model["embedding"] = None
    results["gaps"][0]["models"][1].update(a_distance=None, error=None)
    text = section(render(results), "gaps")
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
    text = section(render(results), "pseudo_labels")
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
    assert "Epoch 8 (the last)" in render(results)


def test_lines_share_a_scale_and_leave_gaps():
    drawn = lines([("a", [(1, 0), (2, None), (3, 5)]), ("b", [(1, 10), (3, 10)])], 10.0, "t", chosen=3)
    assert (drawn["first"], drawn["last"]) == (1, 3)
    assert re.findall(r'class="line (\w)" d="([^"]*)"', drawn["svg"]) == [
        ("a", "M2.00 56.00h0"), ("a", "M98.00 30.00h0"), ("b", "M2.00 4.00L98.00 4.00"),
    ]  # fmt: skip
    assert lines([], 1.0, "t")["first"] is None
    assert 'd="M2.00 30.00L98.00 4.00"' in lines([("a", [(1, 0.9), (2, 1.0)])], 1.0, "t", bottom=0.8)["svg"]
    assert [ceiling(n) for n in (0, 1, 2, 3, 7, 10, 11, 61, 213)] == [1, 1, 2, 3, 8, 10, 20, 80, 300]


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


def test_curves_mark_the_chosen_epoch_and_the_score_that_chose_it(results):
    source, adapt = training_curves(results)
    assert (source["chosen"], source["rule"]) == (8, "source-val")
    assert (adapt["chosen"], adapt["rule"]) == (6, "infomax")
    assert [panel["name"] for panel in adapt["panels"] if panel["decides"]] == ["infomax"]
    assert adapt["panels"][0]["at_chosen"] == results["history"]["adapt-jaffe"][5]["losses"]["source"]


def test_curve_leaves_gaps_and_survives_constants():
    panel = curve("loss", [(1, 2.0), (2, None), (3, None), (4, 1.0), (5, 0.5)], chosen=2, from_zero=True)
    assert (panel["bottom"], panel["top"], panel["final"], panel["at_chosen"]) == (0.0, 2.0, 0.5, None)
    assert panel["svg"].count('class="line alone"') == 2  # a dot before the gap, a line after it
    assert curve("nothing", [(1, None)], 1, False) is None
    for value in (0.0, -3.0, 7.0):
        flat = curve("flat", [(1, value)], 1, False)
        assert flat["bottom"] < flat["top"] and "nan" not in flat["svg"]


def test_failure_cases_hold_small_pictures_their_votes_and_what_they_show_in_words(results):
    text = section(render(results, SHOWN), "failure_cases")
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
    text = section(render(results), "failure_cases")
    assert "<img" not in text and text.count("no picture kept") == 24 and text.count('class="votes"') == 24


def test_no_failure_cases_of_a_kind_says_why(results):
    for one in results["failure_cases"]:
        one["faces"] = []
    text = section(render(results), "failure_cases")
    assert "No mistakes: every face with a label was answered rightly." in text and "No faces to show." in text


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


def test_a_target_without_labels_says_what_is_left_out(unlabelled):
    text = render(unlabelled, SHOWN)
    page = Page(text)
    page.assert_self_contained(text)
    assert "jaffe: its images have no labels" in text and 'unknown tgt"' in text and "no label</span>" in text
    # What GLPC did is known without labels.
    fused = unlabelled["entries"][2]["stages"]["fused"]["count"]
    assert f"{fused} / 213" in text and 'class="unknown"' in text
    cases = section(text, "failure_cases")
    assert "oracle" not in section(text, "pseudo_labels") and "(no label)" in cases
    assert "Its faces have no labels, so no answer can be called a mistake." in cases
    assert not failure_cases(unlabelled, Faces({}))[0]["labelled"]
    assert "jaffe" not in section(text, "calibration")  # the source has labels, and stays
    assert "nan" not in re.sub(r"data:[^\"]*", "", text).lower()
    unlabelled["entries"][0]["calibration"] = None
    assert "Calibration: it takes labels to score" in render(unlabelled)


@pytest.mark.parametrize(
    ("key", "name", "note"),
    [
        ("gaps", "gaps", "no target was evaluated beside prepared faces of the source"),
        ("pseudo_labels", "pseudo_labels", "no adaptation has left its outputs"),
        ("failure_cases", "failure_cases", "there are no faces to show"),
        ("history", "curves", ""),
    ],
)
def test_what_is_empty_has_no_section(results, key, name, note):
    results[key] = type(results[key])()
    text = render(results)
    Page(text)
    assert f'id="{name}"' not in text and note in text
