"""What an adaptation has changed, measured without labels, against plain loops; and the verdict on it."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import Bench, merge
from loops import seven_heads
from stores import seal, with_labels
from torch import Tensor

from fercli.engine import checkpoint
from fercli.evaluation.drift import RULE_FACES, VERDICTS, collapsed, drift, rules_prefer_start, verdict
from fercli.evaluation.outputs import read_outputs
from fercli.evaluation.selection import target_scores
from fercli.expressions import EXPRESSIONS

FUSED = 6
EVEN = [1 / 7] * 7


def outputs(faces: int = 150, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(faces, 7, 7).mul(2).softmax(-1)


def answering(*answers: int, sure: float = 8.0) -> Tensor:
    """Outputs in which all heads make these predictions, one per face."""
    logits = torch.zeros(len(answers), 7, 7)
    for face, answer in enumerate(answers):
        logits[face, :, answer] = sure
    return logits.softmax(-1)


def shares(**named: float) -> list[float]:
    """The given shares, with the rest in equal shares."""
    rest = (1 - sum(named.values())) / (7 - len(named))
    return [named.get(name, rest) for name in EXPRESSIONS]


# drift


def test_every_figure_equals_a_plain_loop() -> None:
    before, after = outputs(seed=1), outputs(seed=2)
    found = drift(before, after)
    count = {"before": [0] * 7, "after": [0] * 7}
    entropy, agreeing, same = {"before": 0.0, "after": 0.0}, {"before": 0, "after": 0}, 0
    for face in range(150):
        said = {}
        for when, own in (("before", before), ("after", after)):
            fused = own[face, FUSED].tolist()
            said[when] = max(range(7), key=fused.__getitem__)
            count[when][said[when]] += 1
            entropy[when] -= sum(p * math.log(p) for p in fused) / 150
            agreeing[when] += sum(int(own[face, head].argmax()) == said[when] for head in range(FUSED))
        same += said["before"] == said["after"]
    assert found["faces"] == 150 and found["agreement"] == pytest.approx(same / 150)
    for when in ("before", "after"):
        assert found["histogram"][when] == pytest.approx([one / 150 for one in count[when]])
        assert found["entropy"][when] == pytest.approx(entropy[when], abs=1e-4)
        assert found["heads_agreement"][when] == pytest.approx(agreeing[when] / 900)
        top = max(range(7), key=count[when].__getitem__)
        assert found["largest"][when] == {
            "expression": EXPRESSIONS[top],
            "share": pytest.approx(count[when][top] / 150),
        }
    moved = sum(abs(a - b) for a, b in zip(count["before"], count["after"], strict=True)) / 2 / 150
    assert found["total_variation"] == pytest.approx(moved)
    old, new = target_scores(before), target_scores(after)
    assert found["rules"].keys() == old.keys()
    for rule, one in found["rules"].items():
        prefers = "start" if old[rule] > new[rule] else "adapted"
        assert one == {"before": old[rule], "after": new[rule], "prefers": prefers}


def test_the_same_model_prefers_neither() -> None:
    found = drift(outputs(), outputs())
    assert (found["agreement"], found["total_variation"]) == (1, 0)
    assert {one["prefers"] for one in found["rules"].values()} == {"neither"}


def test_rules_use_evenly_spaced_faces_and_all_else_uses_every_face() -> None:
    before, after = outputs(2 * RULE_FACES, 1), outputs(2 * RULE_FACES, 2)
    found = drift(before, after)
    snd = target_scores(before[::2])["snd"]
    assert found["rules"]["snd"]["before"] == pytest.approx(snd, rel=0.01)
    assert found["rules"]["snd"]["before"] < math.log(RULE_FACES)
    assert found["histogram"]["after"][0] == int((after[:, FUSED].argmax(-1) == 0).sum()) / (2 * RULE_FACES)


@pytest.mark.parametrize("faces", [0, 1, 5])
def test_few_or_no_faces_and_broken_outputs_still_give_a_document(faces: int) -> None:
    sound = outputs(faces)
    for before, after in ((sound, sound), (sound, sound * math.nan), (sound * math.inf, sound)):
        found = drift(before, after)
        json.dumps(found, allow_nan=False)
        assert found["faces"] == faces
        told = verdict(found)
        assert told["trust"] != "trusted" and told["reasons"]
    assert (found["agreement"], found["total_variation"], found["histogram"]["before"]) == (None, None, None)
    assert "not finite" in verdict(found)["reasons"][0] if faces else "No face" in verdict(found)["reasons"][0]


def test_outputs_of_other_faces_are_refused() -> None:
    with pytest.raises(ValueError, match="different faces"):
        drift(outputs(4), outputs(5))


# collapse


@pytest.mark.parametrize(
    ("before", "after", "who"),
    [
        (EVEN, shares(anger=1.0), "anger"),
        (EVEN, shares(anger=0.85), "anger"),
        (shares(neutral=0.45), shares(neutral=0.95), "neutral"),
        (shares(happiness=0.6), shares(fear=0.97), "fear"),  # not the expression that led
        (
            shares(happiness=0.83, anger=0.05),
            shares(anger=1.0),
            "anger",
        ),  # the number cannot halve
        (EVEN, EVEN, None),
        (EVEN, shares(anger=0.66), None),
        (EVEN, shares(anger=0.57, fear=0.43), None),  # 2 of 7, but half the faces may be angry
        (shares(happiness=0.8), shares(happiness=1.0), None),  # a target of one expression, already predicted before
        (shares(happiness=0.95), EVEN, None),
        (shares(happiness=0.5, neutral=0.5), shares(happiness=0.8, neutral=0.2), None),  # two before, nearly two after
        (shares(happiness=1.0), shares(happiness=1.0), None),
    ],
)
def test_one_expression_that_takes_over(before: list[float], after: list[float], who: str | None) -> None:
    said = collapsed(before, after)
    assert said is None if who is None else said.startswith(f"{who} has taken over: {100 * max(after):.0f} %")


# the rules


def test_rules_prefer_the_start_only_if_all_do() -> None:
    nan = math.nan
    for before, after, due in (
        ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.5}, True),
        ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.5}, False),
        ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, False),  # not strictly
        ({"a": 2.0, "b": nan}, {"a": 1.0, "b": 1.0}, True),
        ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": nan}, True),
        ({"a": nan}, {"a": 1.0}, False),
        ({"a": 2.0}, {}, False),
        ({}, {}, False),
    ):
        assert rules_prefer_start(before, after) is due, (before, after)


# the verdict

MIXED = answering(*[face % 7 for face in range(140)], sure=3.0)
SURER = answering(*[face % 7 for face in range(140)], sure=6.0)


def test_a_more_confident_model_with_the_same_predictions_is_trusted() -> None:
    assert verdict(drift(MIXED, SURER), 140, 150, 0) == {"trust": "trusted", "reasons": []}


def told(before: Tensor, after: Tensor, **about: object) -> str:
    found = verdict(drift(before, after), **about)
    assert found["trust"] in VERDICTS[1:]
    return f"{found['trust']}: {' '.join(found['reasons'])}"


def test_each_reason_has_its_figure() -> None:
    def all_but(change: dict[int, int]) -> Tensor:
        return answering(*[change.get(face % 7, face % 7) for face in range(140)], sure=6.0)

    angry = answering(*[5] * 140)
    assert "not trusted: Anger has taken over: 100 % of the predictions, 14 % before" in told(MIXED, angry)
    assert "not trusted: The adaptation was discarded" in told(MIXED, MIXED, start_kept=True)
    assert told(MIXED[:20], SURER[:20]).startswith("doubtful: There are only 20 faces")
    smiling = answering(*[3] * 100, *[face % 7 for face in range(40)], sure=3.0)
    spread = answering(*[face % 2 * 3 for face in range(100)], *[face % 7 for face in range(40)], sure=6.0)
    many = "doubtful: The starting model predicts happiness on 76 % of the faces, the adapted model on 40 %"
    assert many in told(smiling, spread)
    assert verdict(drift(smiling, smiling))["trust"] == "trusted"  # a target of one expression that stays so
    assert "No longer predicted on any face: surprise (14 % before)" in told(MIXED, all_but({0: 1}))
    leading = answering(*[3] * 80, *[face % 7 for face in range(60)], sure=3.0)
    assert (
        verdict(drift(leading, answering(*[3] * 112, *range(7), *range(7), *range(7), *range(7))))["trust"] == "trusted"
    )
    assert "doubtful: 57 % of the predictions are neutral, 14 % before." in told(MIXED, all_but({0: 6, 1: 6, 2: 6}))
    assert "Only 29 % of the predictions are unchanged." in told(MIXED, all_but({0: 1, 1: 2, 2: 3, 3: 4, 4: 0}))
    far = told(MIXED, all_but({0: 1, 2: 3, 4: 5}))
    assert far.startswith("doubtful: ") and "surprise (14 % before), disgust (14 % before), sadness (14 %" in far
    apart = SURER.clone()
    apart[:, :FUSED] = apart[:, :FUSED].roll(1, -1)
    assert "The heads agree less: 0 %, 100 % before." in told(MIXED, apart)
    assert "doubtful: 60 of 200 images have no face" in told(MIXED, SURER, found=140, listed=200)
    assert "doubtful: 7 of 140 faces are copies" in told(MIXED, SURER, duplicates=7)
    assert verdict(drift(MIXED, SURER), found=140, listed=None, duplicates=None)["trust"] == "trusted"


def test_rules_that_prefer_the_start_are_a_reason() -> None:
    found = drift(MIXED, SURER)
    against = {**found, "rules": {rule: {"before": 2.0, "after": 1.0, "prefers": "start"} for rule in found["rules"]}}
    told = verdict(against)
    assert told["trust"] == "not trusted"
    assert told["reasons"] == ["All 6 selection rules that need no labels prefer the starting model."]
    against["rules"]["bnm"] = {"before": 1.0, "after": 2.0, "prefers": "adapted"}
    told = verdict(against)
    assert (told["trust"], told["reasons"]) == (
        "doubtful",
        ["5 of 6 selection rules that need no labels prefer the starting model."],
    )
    for rule in ("infomax", "entropy"):
        against["rules"][rule] = against["rules"]["bnm"]
    assert verdict(against)["trust"] == "trusted"  # three and three
    against = {**found, "rules": {rule: {"before": 2.0, "after": 1.0, "prefers": "start"} for rule in found["rules"]}}
    against["rules"]["snd"] = {"before": None, "after": None, "prefers": "neither"}
    assert verdict(against)["reasons"] == ["All 5 selection rules that need no labels prefer the starting model."]


# scored


def scored_by(bench: Bench, kind: str) -> tuple[Tensor, Tensor]:
    folders = bench.runs / "source", bench.runs / "adapt-jaffe"
    before, after = (read_outputs(folder / f"outputs/dataset-{kind}.safetensors")[0]["scored"] for folder in folders)
    return before, after


def test_only_an_adapted_models_entry_has_drift(adapted: Bench) -> None:
    results = adapted.json("evaluate")
    entries = {(entry["method"], entry["dataset"]): entry for entry in results["entries"]}
    assert entries["source-only", "raf-db"]["drift"] is None and entries["source-only", "jaffe"]["drift"] is None
    found = entries["aglrls", "jaffe"]["drift"]
    entry = entries["aglrls", "jaffe"]
    due = drift(*scored_by(adapted, "jaffe"))
    assert found == {
        **due,
        "found": entry["found"],
        "listed": entry["expected"],
        "duplicates": 0,
        "verdict": verdict(due, entry["found"], entry["expected"], 0),
    }
    rows = (adapted.runs / "report/results.csv").read_text().splitlines()
    (row,) = [row for row in rows if "drift:agreement" in row]
    assert row.split(",")[-4:] == [str(due["agreement"]), "", "", str(due["faces"])]
    trust = {"trusted": "1.0", "doubtful": "0.5", "not trusted": "0.0"}[found["verdict"]["trust"]]
    assert [row.split(",")[-4] for row in rows if "drift:trust" in row] == [trust]


def test_labels_do_not_change_drift(adapted: Bench, tmp_path) -> None:
    due = adapted.json("evaluate")["entries"]
    bench = Bench(tmp_path, with_labels(adapted.prepared, tmp_path / "prepared", lambda labels: 0 * labels - 1))
    shutil.copytree(adapted.runs, bench.runs, ignore=shutil.ignore_patterns("report"))
    result = bench.done("evaluate")
    assert "Drift" in result.stdout and "same predictions %" in result.stdout
    found = json.loads((bench.runs / "report/results.json").read_text())["entries"]
    moved = [{e["method"]: e["drift"] for e in entries if e["dataset"] == "jaffe"} for entries in (found, due)]
    assert moved[0] == moved[1] and moved[0]["aglrls"] is not None
    if moved[0]["aglrls"]["verdict"]["trust"] != "trusted":
        first = moved[0]["aglrls"]["verdict"]["reasons"][0]
        told = " ".join(result.stderr.split())
        assert f"warning: jaffe, aglrls: {moved[0]['aglrls']['verdict']['trust']}. {first}" in told


# a run that started from an external model


@pytest.fixture
def started(adapted: Bench, tmp_path) -> Bench:
    """The adapted run as if its source model were external, without its source's store."""
    (tmp_path / "prepared").mkdir()
    shutil.copytree(adapted.prepared / "jaffe", tmp_path / "prepared/jaffe")
    bench = Bench(tmp_path, tmp_path / "prepared")
    shutil.copytree(adapted.runs, bench.runs, ignore=shutil.ignore_patterns("report", "outputs"))
    shutil.copytree(adapted.runs / "adapt-jaffe/outputs", bench.runs / "adapt-jaffe/outputs")
    return bench


def mark(bench: Bench, **state: object) -> None:
    for folder in ("source", "adapt-jaffe"):
        path = bench.runs / folder / "best.ckpt"
        checkpoint.save(path, {**checkpoint.load(path), **state})


START = {"path": "starter", "title": "source-only", "oracle": False}


def test_a_start_from_elsewhere_needs_no_store_of_its_source(started: Bench, adapted: Bench) -> None:
    refused = started("evaluate")
    assert refused.exit_code == 1 and "raf-db is not prepared" in refused.stderr
    mark(started, start=START)
    result = started.done("evaluate", "--report")
    assert "no prepared store of raf-db, the model's training data, so no temperature is fitted" in result.stderr
    found = json.loads((started.runs / "report/results.json").read_text())
    assert [(e["dataset"], e["method"]) for e in found["entries"]] == [("jaffe", "source-only"), ("jaffe", "aglrls")]
    assert not found["gaps"] and found["targets"] == ["jaffe"]
    due = {e["method"]: e for e in adapted.json("evaluate")["entries"] if e["dataset"] == "jaffe"}
    for entry in found["entries"]:
        assert entry["heads"] == due[entry["method"]]["heads"] and entry["drift"] == due[entry["method"]]["drift"]
        assert not entry["oracle_method"]
        assert entry["calibration"]["temperature"] == 1
    assert "Can the adaptation be trusted?" in (started.runs / "report/report.html").read_text()


def test_a_start_is_scored_on_its_source_if_available(started: Bench, adapted: Bench) -> None:
    mark(started, start=START)
    shutil.copytree(adapted.prepared / "raf-db", started.prepared / "raf-db")
    found = started.json("evaluate")
    assert [e["dataset"] for e in found["entries"]] == ["raf-db", "jaffe", "jaffe"] and found["gaps"]


def test_the_spec_need_not_name_a_starts_source_or_its_target(started: Bench) -> None:
    mark(started, start=START)
    path = started.runs / "adapt-jaffe/best.ckpt"
    state = checkpoint.load(path)
    own = {"jaffe": {"reader": "jaffe", "root": "elsewhere", "options": {}}}
    checkpoint.save(path, {**state, "spec": merge(state["spec"], {"data.datasets": own})})
    started.changes.update({"data.source": "affectnet", "data.targets": []})
    found = started.json("evaluate")
    assert [(e["dataset"], e["source"]) for e in found["entries"]] == [("jaffe", "raf-db")] * 2
    assert found["spec"]["data"]["source"] == ["raf-db"]
    assert found["spec"]["data"]["datasets"]["jaffe"]["root"] == "elsewhere"


def test_an_oracles_model_stays_one_as_a_start(started: Bench) -> None:
    mark(started, start={**START, "oracle": True})
    assert all(entry["oracle_method"] for entry in started.json("evaluate")["entries"])


def test_copies_of_faces_are_counted(started: Bench) -> None:
    mark(started, start=START)
    store = started.prepared / "jaffe"
    digests = np.load(store / "digests.npy")
    digests[1:4] = digests[0]
    np.save(store / "digests.npy", digests)
    seal(store)
    for folder in ("source", "adapt-jaffe"):
        path = started.runs / folder / "best.ckpt"
        state = checkpoint.load(path)
        checkpoint.save(path, {**state, "stores": {}})
    (entry,) = [entry for entry in started.json("evaluate")["entries"] if entry["drift"]]
    assert entry["drift"]["duplicates"] == 3
    assert any("3 of" in reason and "copies" in reason for reason in entry["drift"]["verdict"]["reasons"])


@pytest.mark.parametrize(("sharpness", "doubted"), [(1.0, True), (6.0, False)])
def test_a_model_that_is_still_unsure_is_doubted(sharpness: float, doubted: bool) -> None:
    found = drift(seven_heads(150, 0), seven_heads(150, 0, sharpness))
    assert (found["entropy"]["after"] > math.log(7) / 2) == doubted
    assert any("still unsure" in reason for reason in verdict(found)["reasons"]) == doubted
