"""`fercli compare`: which models are compared; the test and the changed faces, checked by hand and by plain loops."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Bench, run, told

from fercli.evaluation.compare import compare, spec_differences
from fercli.evaluation.runs import find_run, match, within
from fercli.evaluation.significance import mcnemar
from fercli.expressions import EXPRESSIONS

#: (id, split, label, answer); label "" is unknown.
Row = tuple[str, str, str, str]


def write_run(
    folder: Path,
    scored: dict[tuple[str, str], list[Row]],
    changes: dict[str, Any] | None = None,
    subjects: Sequence[str] = ("p",),
) -> Path:
    """Write a run folder like `fercli evaluate`, from {(stage folder, dataset): rows}; `subjects` repeat in turn."""
    report = folder / "report"
    (report / "predictions").mkdir(parents=True)
    entries = []
    for (stage, dataset), rows in scored.items():
        file = f"predictions/{stage}--{dataset}.csv"
        with (report / file).open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(["position", "id", "subject", "split", "label", "answer", "stage"])
            table.writerows(
                [i, name, subjects[i % len(subjects)], *answered, ""] for i, (name, *answered) in enumerate(rows)
            )
        method = "source-only" if stage == "source" else "aglrls"
        about = {"dataset": dataset, "folder": stage, "method": method, "oracle_method": False}
        entries.append({**about, "predictions": file})
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "best.ckpt").touch()
        os.utime(folder / stage / "best.ckpt", (1, 1))
        spec = {"name": folder.name, "adapt": {"epochs": 30, "options": {}}, "model": {"width": 16}, **(changes or {})}
        (folder / stage / "spec.yaml").write_text(yaml.safe_dump(spec))
    datasets = {dataset: {"synthetic": True} for _, dataset in scored}
    document = {"schema": 5, "created": "2026-11-23", "entries": entries, "datasets": datasets, "spec": {}}
    (report / "results.json").write_text(json.dumps(document))
    (folder / "spec.yaml").write_text("name: x\n")
    return folder


def faces(answers: str, labels: str, split: str = "test") -> list[Row]:
    """Return rows from letters: the n-th letter of the alphabet is the n-th expression; a blank is no label."""
    names = dict(zip("abcdefg", EXPRESSIONS, strict=True)) | {" ": ""}
    return [(f"f{i}", split, names[b], names[a]) for i, (a, b) in enumerate(zip(answers, labels, strict=True))]


def compared(folder: Path, ours: list[Row], theirs: list[Row]) -> dict[str, Any]:
    """Compare two runs with these predictions on one dataset."""
    runs = [write_run(folder / name, {("source", "jaffe"): rows}) for name, rows in (("a", ours), ("b", theirs))]
    (document,) = compare(match(*(find_run(str(run), folder) for run in runs))[0])
    return document


# Faces


def test_counts_by_hand(tmp_path: Path) -> None:
    # By position: right, fixed  broken  otherwise  unlabelled, changed and not
    document = compared(tmp_path, faces("abbbcdbcab", "abaacdaa  "), faces("abaaaacbbb", "abaacdaa  "))
    assert (document["fixed"], document["broken"], document["otherwise"]) == (2, 2, 3)
    assert document["faces"] == {"both": 10, "labelled": 8, "only_reference": 0, "only_other": 0, "relabelled": 0}
    assert document["reference"]["accuracy"] == document["other"]["accuracy"] == 4 / 8
    assert document["points"]["accuracy"] == 0
    one = {"name": "mcnemar", "form": "exact", "by": "images", "units": 8, "subjects": 1}  # all of person p
    assert document["test"] == {**one, "p": 1.0, "p_holm": 1.0}
    assert [face["id"] for face in document["changed"]] == ["f2", "f3", "f4", "f5", "f6", "f7", "f8"]
    assert document["changed"][0] == {
        "id": "f2",
        "split": "test",
        "subject": "p",
        "label": "surprise",
        "reference": "fear",
        "other": "surprise",
        "change": "fixed",
    }


def test_random_predictions_against_plain_loops(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    letters = np.array(list("abcdefg"))
    for trial in range(20):
        count = int(random.integers(1, 80))
        labels = "".join(random.choice([*letters, " "], count))
        ours, theirs = (faces("".join(random.choice(letters, count)), labels) for _ in range(2))
        # Another order, and fewer faces.
        kept = [theirs[i] for i in random.permutation(count)[: max(1, int(0.9 * count))]]
        document = compared(tmp_path / f"{trial}", ours, kept)
        fixed = broken = right_a = right_b = known = 0
        for name, _, label, other in kept:
            if label:
                reference = next(answer for face, _, _, answer in ours if face == name)
                known += 1
                right_a += reference == label
                right_b += other == label
                fixed += reference != label == other
                broken += other != label == reference
        assert (document["fixed"], document["broken"]) == (fixed, broken)
        assert document["faces"]["only_reference"] == count - len(kept)
        if known:
            assert document["reference"]["accuracy"] == pytest.approx(right_a / known)
            assert document["points"]["accuracy"] == pytest.approx(100 * (right_b - right_a) / known)
            assert document["test"]["p"] == mcnemar(fixed, broken).p


def test_faces_match_only_with_the_same_split_and_label(tmp_path: Path) -> None:
    ours, theirs = ("abc", "abc", "a", "val"), ("bbb", "abb", "b", "dev")
    rows = ([*faces(said, labels), *faces(one, one, split)] for said, labels, one, split in (ours, theirs))
    document = compared(tmp_path, *rows)
    assert document["faces"] == {"both": 3, "labelled": 2, "only_reference": 1, "only_other": 1, "relabelled": 1}
    assert (document["fixed"], document["broken"]) == (0, 1)


def test_without_labels_nothing_is_tested_but_changes_are_reported(tmp_path: Path) -> None:
    document = compared(tmp_path, faces("abc", "   "), faces("abd", "   "))
    assert document["otherwise"] == 1
    assert document["test"]["p"] is document["test"]["p_holm"] is None
    assert document["reference"]["accuracy"] is document["points"]["accuracy"] is None
    assert run("compare", tmp_path / "a", tmp_path / "b").exit_code == 0


@pytest.mark.parametrize(
    ("subjects", "p", "words"),
    [
        # Three subjects gain two faces each and one loses both. Of 16 sums of four signed twos, ten reach +-4.
        ([*"abcd"], 10 / 16, "p on j: sign-flip test over 4 subjects (p is at least 0.125)."),
        ([*"abcdefgh"], 74 / 256, "p on j: sign-flip test over 8 subjects."),
        ([""], 74 / 256, "p on j: McNemar’s exact test, faces taken as independent."),
        (["a", "b", "c", ""], 74 / 256, "p on j: McNemar’s exact test, faces taken as independent."),
        (["a"], 74 / 256, "p on j: McNemar’s exact test, one subject’s faces taken as independent."),
    ],
)
def test_the_test_is_by_subject_if_subjects_are_known(subjects, p, words, tmp_path: Path) -> None:
    before, after = faces("bbba" * 2, "a" * 8), faces("aaab" * 2, "a" * 8)
    write_run(tmp_path / "a", {("source", "j"): before, ("adapt-j", "j"): after}, subjects=subjects)
    (document,) = compare(within(find_run("a", tmp_path)))
    assert document["test"]["p"] == document["test"]["p_holm"] == pytest.approx(p)
    assert words in " ".join(run("compare", tmp_path / "a").stdout.split())


def test_faces_scored_by_only_one_model_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {("source", "j"): faces("abc", "abb")})
    write_run(tmp_path / "b", {("source", "j"): faces("abc", "abb")[1:]})
    write_run(tmp_path / "c", {("source", "j"): faces("abc", "abb", "other")})
    told = " ".join(run("compare", tmp_path / "a", tmp_path / "b").stdout.split())
    assert "Faces left out of j, a/source -> b/source: 1 scored only in the first." in told
    told = " ".join(run("compare", tmp_path / "a", tmp_path / "c").stdout.split())
    only = "3 scored only in the first, 3 scored only in the second; no face was scored in both."
    assert f"Faces left out of j, a/source -> c/source: {only}" in told and "p on j" not in told


# Which models


ALIKE = faces("aab", "abb")


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs", "left"),
    [
        (["source", "adapt-j"], ["source", "adapt-j"], [("source", "source"), ("adapt-j", "adapt-j")], 0),
        (["adapt-j"], ["adapt-j-dann"], [("adapt-j", "adapt-j-dann")], 0),
        (["source", "adapt-j"], ["source", "adapt-j-dann"], [("source", "source"), ("adapt-j", "adapt-j-dann")], 0),
        (["adapt-j", "adapt-j-a"], ["adapt-j", "adapt-j-b"], [("adapt-j", "adapt-j"), ("adapt-j-a", "adapt-j-b")], 0),
        (["adapt-j-a"], ["adapt-j-b", "adapt-j-c"], [], 1),
        (["source"], ["adapt-j"], [], 2),
        (["source", "adapt-j"], ["source"], [("source", "source")], 1),
    ],
)
def test_models_are_matched(ours, theirs, pairs, left, tmp_path: Path) -> None:
    for name, folders in (("a", ours), ("b", theirs)):
        write_run(tmp_path / name, {(folder, "j"): ALIKE for folder in folders})
    found, lines = match(find_run("a", tmp_path), find_run("b", tmp_path))
    assert [(pair.reference.folder, pair.other.folder) for pair in found] == pairs
    assert [(pair.reference.run, pair.other.run) for pair in found] == [("a", "b")] * len(pairs)
    assert len(lines) == left


def test_two_stage_folders_are_compared_whatever_their_names(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {("source", "j"): ALIKE, ("source", "k"): ALIKE, ("adapt-j", "j"): ALIKE})
    pairs, left = match(find_run("a/source", tmp_path), find_run("a/adapt-j", tmp_path))
    assert [(p.reference.folder, p.other.folder, p.other.dataset) for p in pairs] == [("source", "adapt-j", "j")]
    assert not left


def test_one_run_is_compared_with_its_own_source_model(tmp_path: Path) -> None:
    scored = [("adapt-j", "j"), ("source", "j"), ("adapt-j-b", "j"), ("source", "k"), ("source", "s")]
    write_run(tmp_path / "a", dict.fromkeys(scored, ALIKE))
    pairs = within(find_run("a", tmp_path))
    assert [(p.reference.folder, p.other.folder) for p in pairs] == [("source", "adapt-j"), ("source", "adapt-j-b")]


# Specs


def test_spec_differences_are_key_paths() -> None:
    a = {"name": "same", "adapt": {"lr": {1: 0.1}, "options": {}}, "only": 1, "same": [1, {"x": 2}]}
    b = {"name": "same", "adapt": {"lr": {1: 0.2, 5: 0.1}, "options": {"glpc": False}}, "same": [1, {"x": 2}]}
    assert spec_differences(a, b) == {
        "adapt.lr.1": (0.1, 0.2),
        "adapt.lr.5": (None, 0.1),
        "adapt.options.glpc": (None, False),
        "only": (1, None),
    }
    assert spec_differences(a, a) == {}
    assert spec_differences(a["adapt"], b["adapt"], "adapt", {"lr"}) == {"adapt.options.glpc": (None, False)}


# The command


BEFORE = faces("abcdefg" * 6, "aacdeff" * 6)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs under ./runs; the second is adapted for a different number of epochs."""
    monkeypatch.chdir(tmp_path)
    after = faces("aacdefg" * 5 + "bacdefg", "aacdeff" * 6)
    for name, adapted, epochs in (("one", BEFORE, 30), ("two", after, 40)):
        scored = {("source", "raf"): ALIKE, ("source", "j"): BEFORE, ("adapt-j", "j"): adapted}
        write_run(tmp_path / "runs" / name, scored, {"adapt": {"epochs": epochs, "options": {}}})
    return tmp_path / "runs"


def test_tables(runs: Path) -> None:
    result = run("compare", "one", "two", "--faces", "2")
    assert result.exit_code == 0, result.stderr
    for text in ("j †", "+11.90", "adapt.epochs", "fixed", "... 4 more", "broken", "surprise", "Holm"):
        assert text in result.stdout, text
    assert "adapt.epochs" not in run("compare", "one").stdout
    quiet = run("compare", "one", "two", "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_json_and_csv_hold_every_face(runs: Path) -> None:
    result = run("compare", "one", "two", "--json", "--csv", "faces.csv")
    document = json.loads(result.stdout)["compare"]
    assert result.stderr == ""
    raf, source, adapted = document["comparisons"]
    assert (raf["dataset"], raf["spec"], raf["changed"]) == ("raf", {}, [])
    assert source["changed"] == []
    assert (adapted["fixed"], adapted["broken"], adapted["spec"]) == (6, 1, {"adapt.epochs": [30, 40]})
    assert adapted["test"]["p"] == pytest.approx(0.125)
    assert adapted["test"]["p_holm"] == pytest.approx(0.375)  # of three comparisons, the others with p 1
    with Path("faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [face["id"] for face in adapted["changed"]]
    assert rows[0]["other_run"] == "two" and rows[0]["other_model"] == "adapt-j"
    again = run("compare", "one", "two", "--csv", "faces.csv")
    assert again.exit_code == 1 and "--force" in again.stderr
    assert run("compare", "one", "two", "--csv", "faces.csv", "--force").exit_code == 0
    nowhere = run("compare", "one", "two", "--csv", "nowhere/faces.csv")
    assert nowhere.exit_code == 1 and "cannot write nowhere/faces.csv" in nowhere.stderr


def test_three_runs_and_a_choice_of_datasets(runs: Path) -> None:
    write_run(runs / "three", {("adapt-j-dann", "j"): BEFORE})
    document = json.loads(run("compare", "one", "two", "three", "--dataset", "j", "--json").stdout)["compare"]
    named = [(one["other"]["run"], one["other"]["folder"]) for one in document["comparisons"]]
    assert named == [("two", "source"), ("two", "adapt-j"), ("three", "adapt-j-dann")]
    assert any("raf" in line for line in document["not_compared"])


def test_runs_of_the_same_name_are_distinguished(runs: Path) -> None:
    write_run(runs.parent / "elsewhere" / "one", {("adapt-j", "j"): BEFORE})
    document = json.loads(run("compare", "runs/one", "elsewhere/one", "--json").stdout)["compare"]
    assert [one["name"] for one in document["runs"]] == ["runs/one", "elsewhere/one"]


def test_a_model_trained_after_it_was_scored_is_reported(runs: Path) -> None:
    os.utime(runs / "two/adapt-j/best.ckpt")
    os.utime(runs / "two/report/results.json", (5, 5))
    assert "runs/two/adapt-j was trained after it was scored" in " ".join(run("compare", "one", "two").stderr.split())


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("results.json", None, "runs/two has not been evaluated; run: fercli evaluate -c runs/two/spec.yaml"),
        ("results.json", "{", "results.json is damaged; run: fercli evaluate -c runs/two/spec.yaml"),
        ("results.json", '{"schema": 1}', "another version of fercli; run: fercli evaluate -c runs/two"),
        ("predictions/source--j.csv", None, "source--j.csv: No such file or directory; run: fercli evaluate"),
        ("predictions/source--j.csv", "a,b\n1,2\n", "is not a predictions file; run: fercli evaluate"),
        ("predictions/source--j.csv", "id,split,subject,label,answer\nx,t,p,happy,fear\n", "is not a predictions file"),
    ],
)
def test_an_unreadable_file_is_reported_in_one_line(name: str, content: str | None, text: str, runs: Path) -> None:
    file = runs / "two/report" / name
    file.unlink() if content is None else file.write_text(content)
    assert text in told(run("compare", "one", "two"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["one", "tow"], "no such run: tow; did you mean two?"),
        (["one", "zzzzz"], "no such run: zzzzz; runs contains one, two"),
        (["one/adapt-j"], "nothing to compare: no two models are scored on the same dataset"),
        (["one", "two", "--dataset", "k"], "nothing to compare: no two models are scored on k"),
        (["many"], "many is a sweep, not one run; compare its runs, such as runs/many/seed-0"),
    ],
)
def test_mistakes(arguments: list[str], text: str, runs: Path) -> None:
    write_run(runs / "many" / "seed-0", {("source", "j"): ALIKE})
    assert text in told(run("compare", *arguments))


def test_a_real_run(make_adapting) -> None:
    bench: Bench = make_adapting("compared")
    bench.done("adapt", "--quiet")
    results = json.loads(bench.done("evaluate", "--json").stdout)
    (one,) = json.loads(bench.done("compare", "tiny", "--json").stdout)["compare"]["comparisons"]
    scored = {(e["folder"], e["dataset"]): e["heads"][e["decision"]] for e in results["entries"]}
    for side, folder in (("reference", "source"), ("other", "adapt-jaffe")):
        assert one[side]["folder"] == folder
        for name in ("accuracy", "macro_f1"):
            assert one[side][name] == pytest.approx(scored[folder, "jaffe"][name])
    right = [42 * one[side]["accuracy"] for side in ("reference", "other")]
    assert one["fixed"] - one["broken"] == pytest.approx(right[1] - right[0])
