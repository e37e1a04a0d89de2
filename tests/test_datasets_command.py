"""`fercli datasets`: the list, one dataset, and checks of trees against their cards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run
from drawn import write_class_folders
from PIL import Image
from trees import touch, write

from fercli.datasets import READERS, Listing, read_dataset
from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.check import check
from fercli.datasets.protocol import WHOLE, in_order
from fercli.datasets.reader import PROTOCOL_OPTIONS, Record
from fercli.expressions import EXPRESSIONS
from fercli.synthetic.render import LAB, render
from fercli.synthetic.writers import write_jaffe, write_raf_db

CARDS = {name: reader.card for name, reader in READERS.items() if reader.card}

#: Total faces, from each dataset's paper or label list.
TOTALS = {
    "raf-db": 15339,
    "ck+": 1254,
    "jaffe": 213,
    "sfew": 958 + 436,
    "fer2013": 35887,
    "expw": 91793,
    "affectnet": 287401,
    "oulu-casia": 1920,
}


@pytest.fixture(autouse=True)
def _columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


# The cards


def test_every_dataset_has_a_card_a_tree_and_help_for_its_options():
    assert set(CARDS) == set(READERS) - {"folders", "csv"}
    for reader in READERS.values():
        assert reader.tree
        own = set(reader.options) - set(PROTOCOL_OPTIONS)
        assert own <= set(reader.option_help) <= set(reader.options)


@pytest.mark.parametrize("name", CARDS)
def test_official_counts_add_up(name):
    for release in CARDS[name].releases:
        parts = {split: known for split, known in release.splits.items() if split != WHOLE}
        assert all(isinstance(known, int) or len(known) == len(EXPRESSIONS) for known in release.splits.values())
        if parts and WHOLE in release.splits:
            assert release.total(WHOLE) == sum(map(release.total, parts))
    if name in TOTALS:
        assert CARDS[name].releases[0].total(WHOLE) == TOTALS[name]


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_one_line_each_with_an_address(name):
    card = CARDS[name]
    assert card.apply.startswith(("http://", "https://")) and " " not in card.apply
    for text in (card.title, card.about, card.licence, card.split, card.split_note, card.paper):
        assert "\n" not in text and text == text.strip()
    assert card.title and card.about and card.licence and card.split and card.paper


@pytest.mark.parametrize("name", READERS)
def test_trees_fit_a_terminal(name):
    assert max(map(len, READERS[name].tree_lines)) <= 98


def test_the_first_files_of_a_layout_can_be_read(tmp_path):
    """The readers of the simplest datasets accept the trees shown for them."""
    touch(tmp_path / "jaffe", "KA.AN1.39.tiff", "KM.NE1.1.tiff")
    touch(tmp_path / "folders", "train/happy/1.jpg")
    touch(tmp_path / "fer", "train/angry/Training_3908.jpg", "test/angry/PrivateTest_88305.jpg")
    for reader, folder in (("jaffe", "jaffe"), ("folders", "folders"), ("fer2013", "fer")):
        listing = read_dataset("x", reader, tmp_path / folder)
        assert not listing.left_out


# The comparison


def test_the_comparison_uses_the_nearest_release():
    counts = {0: 249, 1: 75, 2: 177, 3: 207, 4: 84, 5: 135}

    def listing(records):
        return Listing("ck", Path("/nowhere"), records, ("train",), ("test",))

    peaks = [Record(f"{i}-{k}", "x.png", i, "train") for i, count in counts.items() for k in range(count)]
    neutral = [Record(f"6-{k}", "x.png", 6, "train") for k in range(320)]
    assert check(listing(peaks), CARDS["ck+"]).official.form.startswith("CK+48")
    whole = check(listing(peaks + neutral), CARDS["ck+"])
    assert whole.official.form.startswith("the release")
    assert (whole.found(WHOLE, 6), whole.expected(WHOLE, 6), whole.differences) == (320, 327, 2)
    assert (whole.images, whole.missing) == (1, ["x.png"])


def test_without_a_card_there_are_no_differences(tmp_path):
    touch(tmp_path, "happy/1.jpg")
    result = check(read_dataset("f", "folders", tmp_path), None)
    assert result.official is None and result.differences is None and result.missing == []


# The command


def test_the_list_reads_at_a_hundred_columns():
    result = run("datasets")
    assert result.exit_code == 0
    for name, card in CARDS.items():
        assert name in result.stdout and card.apply in result.stdout and card.size in result.stdout
    for reader in READERS.values():
        assert reader.layout.split()[0] in result.stdout
    long = [line for line in result.stdout.splitlines() if len(line) > 100]
    assert all("https://www.kaggle.com/c/" in line for line in long) and len(long) == 1


def test_the_list_as_json():
    document = json.loads(run("datasets", "--json").stdout)["datasets"]
    assert list(document) == list(READERS)
    assert document["raf-db"]["official"][0]["splits"]["test"]["expressions"]["fear"] == 74
    assert document["sfew"]["official"][0]["splits"]["val"] == {
        "faces": 436,
        "expressions": dict.fromkeys(EXPRESSIONS),
    }
    assert document["csv"]["layout"] == READERS["csv"].layout and "official" not in document["csv"]
    *_, option = document["fer2013"]["options"]
    assert (option["name"], option["default"]) == ("score", None) and "public-test" in option["values"]


@pytest.mark.parametrize("name", READERS)
def test_show(name):
    result = run("datasets", "show", name.upper())
    assert result.exit_code == 0
    assert all(line.strip() in result.stdout for line in READERS[name].tree_lines)
    if name in CARDS:
        assert CARDS[name].apply in result.stdout and CARDS[name].title in result.stdout
    assert json.loads(run("datasets", "show", name, "--json").stdout)["dataset"]["tree"] == READERS[name].tree_lines


def test_check_marks_what_differs(tmp_path):
    names = [f"KA.{code}{i}.{i}.tiff" for code, n in (("SU", 30), ("FE", 30), ("HA", 31), ("AN", 31)) for i in range(n)]
    touch(tmp_path, *names, "README", "photo.tiff")
    result = run("datasets", "check", "jaffe", tmp_path)
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["surprise"] == ["surprise", "30", "/", "30"]
    assert lines["fear"] == ["fear", "*", "-2", "30", "/", "32"]
    assert lines["anger"] == ["anger", "*", "+1", "31", "/", "30"]
    assert lines["neutral"] == ["neutral", "*", "-30", "0", "/", "30"]
    assert lines["total"] == ["total", "*", "-91", "122", "/", "213"]
    assert "1  files without an ending" in result.stdout and "1  image not named like KM.NE1.1.tiff" in result.stdout
    assert "122 faces of 1 subject in 122 files" in result.stdout
    assert "No listed file is missing." in result.stdout


def test_check_counts_missing_files_per_listed_picture(tmp_path):
    write(tmp_path, "label/label.lst", "a.jpg 0 1 2 3 4 5 3\na.jpg 1 1 2 3 4 5 4\nb.jpg 0 1 2 3 4 5 6\n")
    touch(tmp_path, "image/origin/b.jpg")
    document = json.loads(run("datasets", "check", "expw", tmp_path, "--json").stdout)["check"]
    assert (document["faces"], document["images"]) == (3, 2)
    assert document["missing"] == {"count": 1, "examples": ["image/origin/a.jpg"]}
    shown = run("datasets", "check", "expw", tmp_path).stdout
    assert "Missing: 1 of 2 files listed\n" in shown and "image/origin/a.jpg" in shown
    (tmp_path / "image/origin/b.jpg").unlink()
    assert "are the images in another folder?" in run("datasets", "check", "expw", tmp_path).stdout


def test_check_as_json(tmp_path):
    write(tmp_path, "EmoLabel/list_patition_label.txt", "train_00001.jpg 1\ntest_0001.jpg 2\ntest_0002.jpg 9\n")
    touch(tmp_path, "Image/original/train_00001.jpg", "Image/original/test_0001.jpg")
    document = json.loads(run("datasets", "check", "raf-db", tmp_path, "--json").stdout)["check"]
    assert document["splits"]["train"]["expressions"]["surprise"] == {"found": 1, "official": 1290}
    assert document["splits"]["test"]["found"] == 1 and document["splits"]["test"]["official"] == 3068
    assert document["splits"]["all"]["expressions"]["fear"] == {"found": 1, "official": 355}
    assert document["left_out"] == {"unknown code '9'": 1}
    assert document["reader"] == "raf-db" and document["differences"] == 24


def test_check_of_procedural_faces_compares_with_nothing(tmp_path):
    faces = [render(LAB, 0, label, 5) for label in range(7)]
    write_raf_db(tmp_path / "raf", faces[:4], faces[4:])
    write_jaffe(tmp_path / "jaffe", faces)
    for name in ("raf-db", "jaffe"):
        result = run("datasets", "check", name, tmp_path / name.split("-")[0])
        assert result.exit_code == 0 and "procedural faces" in result.stdout and "*" not in result.stdout
        assert "No listed file is missing." in result.stdout


def test_check_with_a_spec_takes_its_reader_folder_and_options(tmp_path):
    faces = [render(LAB, 0, label, 5) for label in range(7)]
    write_class_folders(tmp_path / "data/mine", {"train": faces})
    spec = tmp_path / "run.yaml"
    csv = {"reader": "csv", "root": str(tmp_path / "list"), "options": {"file": "b.csv"}}
    spec.write_text(
        yaml.safe_dump(
            {
                "paths": {"data": str(tmp_path / "data")},
                "data": {"datasets": {"mine": {"reader": "folders"}, "listed": csv}},
            }
        )
    )
    touch(tmp_path / "list", "1.jpg")
    (tmp_path / "list/a.csv").write_text("image,label\n1.jpg,sad\n")
    (tmp_path / "list/b.csv").write_text("image,label\n1.jpg,happy\n")
    mine = json.loads(run("datasets", "check", "mine", "-c", spec, "--json").stdout)["check"]
    assert mine["reader"] == "folders" and mine["faces"] == 7 and mine["release"] is None
    for extra, word in (((), "happiness"), (("--option", "file=a.csv"), "sadness")):
        document = json.loads(run("datasets", "check", "listed", "-c", spec, *extra, "--json").stdout)["check"]
        assert document["splits"]["all"]["expressions"][word]["found"] == 1


def test_check_options_are_yaml(tmp_path):
    (tmp_path / "l.csv").write_text("where,what\n1.jpg,1\n2.jpg,2\n")
    result = run(
        "datasets", "check", "csv", tmp_path, "--option", "path_column=where", "--option", "label_column=what",
        "--option", "codes={1: happy, 2: sad}", "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)["check"]["splits"]["all"]["expressions"]
    assert (found["happiness"]["found"], found["sadness"]["found"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("check", "jaffe", "{}"), 1, "expected: 213 files"),
        (("check", "jaffe", "{}/nowhere"), 1, "nowhere; expected: 213 files"),
        (("check", "jafe", "{}"), 1, "no such dataset: 'jafe'"),
        (("check", "jafe", "{}"), 1, "did you mean jaffe?"),
        (("show", "afectnet"), 1, "did you mean affectnet?"),
        (("check", "fer2013", "{}", "--option", "scor=1"), 1, "no option 'scor' (it has: file, adapt, score)"),
        (("check", "fer2013", "{}", "--option", "score"), 2, "--option score: expected KEY=VALUE"),
        (("check", "fer2013", "{}", "--option", "score=[1"), 2, "the value is not YAML"),
        (("check", "fer2013", "{}", "--option", "file=x.csv"), 1, "option file is 'x.csv', which is not in"),
        (("shw",), 2, "show"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, code, words):
    result = run("datasets", *(str(a).format(tmp_path) for a in arguments))
    assert result.exit_code == code and words in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_names_that_are_not_utf8_are_printed(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"image,label\n\xff.jpg,happy\n")
    result = run("datasets", "check", "csv", tmp_path)
    assert result.exit_code == 1 and "\\xff.jpg" in result.stdout and "\\xff.jpg" in result.stderr
    document = json.loads(run("datasets", "check", "csv", tmp_path, "--json").stdout)["check"]
    assert document["missing"]["examples"] == ["\udcff.jpg"]


def test_unlabelled_faces_have_their_own_row(tmp_path):
    (tmp_path / "l.csv").write_text("image,label\na.jpg,happy\nb.jpg,\n")
    lines = [line.split() for line in run("datasets", "check", "csv", tmp_path).stdout.splitlines()]
    assert ["total", "1"] in lines and ["unlabelled", "1"] in lines


def test_unknown_totals_are_shown_as_unknown():
    assert DatasetCard("t", "a", "https://x", "l", "s", "p").size == "?"
    half = DatasetCard("t", "a", "https://x", "l", "s", "p", releases=(Official({"train": 1234}),))
    assert half.size == "1,234+"


@pytest.mark.parametrize("flag", ["--json", "--quiet", "-q"])
def test_flags_of_the_group_apply_to_its_subcommands(tmp_path, flag):
    touch(tmp_path, "KA.AN1.39.tiff")
    for arguments in (("show", "jaffe"), ("check", "jaffe", tmp_path)):
        before, behind = run("datasets", flag, *arguments), run("datasets", *arguments, flag)
        assert before.exit_code == behind.exit_code == 0
        assert before.stdout == behind.stdout and before.stdout.startswith("{" if flag == "--json" else "")
        assert bool(before.stdout) == (flag == "--json")


def test_splits_have_one_order(tmp_path):
    assert in_order(["all", "spare", "test", "private-test", "public-test", "val", "train", "val"]) == [
        "train", "val", "public-test", "private-test", "test", "spare", "all"
    ]  # fmt: skip
    touch(tmp_path, "test/happy/1.jpg", "odd/happy/1.jpg", "val/sad/1.jpg", "train/sad/1.jpg")
    stated = ("--option", "adapt=train", "--option", "score=test")
    document = json.loads(run("datasets", "check", "folders", tmp_path, *stated, "--json").stdout)["check"]
    assert list(document["splits"]) == ["train", "val", "test", "odd", "all"]


def test_options_are_explained():
    shown = run("datasets", "show", "raf-db").stdout
    assert "  images  original or aligned (default: the originals if they exist)" in shown
    assert "score  the split scored: private-test (default) or public-test" in run("datasets", "show", "fer2013").stdout
    lines = run("datasets", "show", "csv").stdout.splitlines()
    assert all(any(line.split()[:1] == [option] for line in lines) for option in READERS["csv"].options)


def test_terms_wrap_between_words_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table = run("datasets").stdout.split("Where to apply")[0]
    assert "non-commercial" in table and "competition" in table and "…" not in table
    monkeypatch.setenv("COLUMNS", "40")
    assert "…" not in run("datasets").stdout


def test_missing_files_are_a_warning_and_all_of_them_an_error(tmp_path):
    write(tmp_path, "label/label.lst", "a.jpg 0 1 2 3 4 5 3\nb.jpg 0 1 2 3 4 5 6\n")
    touch(tmp_path, "image/origin/b.jpg")
    result = run("datasets", "check", "expw", tmp_path, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "warning: expw: 1 of 2 listed files are missing: image/origin/a.jpg, ...\n"
    assert run("datasets", "check", "expw", tmp_path, "--json").stderr == ""
    (tmp_path / "image/origin/b.jpg").unlink()
    result = run("datasets", "check", "expw", tmp_path, "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: expw: none of the 2 listed files is in ")


def test_a_scored_split_without_faces_is_reported(tmp_path):
    touch(
        tmp_path,
        "cohn-kanade-images/S010/001/S010_001_00000001.png",
        "cohn-kanade-images/S010/001/S010_001_00000002.png",
    )
    write(tmp_path, "Emotion/S010/001/S010_001_00000002_emotion.txt", "5.0")
    shown = run("datasets", "check", "ck+", tmp_path)
    assert shown.exit_code == 0 and "no labelled face in test: nothing can be scored there" in shown.stdout
    check = ("datasets", "check", "ck+", tmp_path, "--json")
    assert json.loads(run(*check).stdout)["check"]["unscored"] == ["test"]
    assert json.loads(run(*check, "--option", "split=all").stdout)["check"]["unscored"] == []


def test_an_option_without_a_value_is_empty(tmp_path):
    touch(tmp_path, "1.jpg")
    (tmp_path / "l.csv").write_text("image,mood\n1.jpg,sad\n")
    assert run("datasets", "check", "csv", tmp_path).exit_code == 1
    result = run("datasets", "check", "csv", tmp_path, "--option", "label_column=", "--json")
    assert json.loads(result.stdout)["check"]["splits"]["all"]["unlabelled"] == 1


def test_quiet_prints_nothing():
    result = run("datasets", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_prepare_takes_the_options_of_a_reader(tmp_path, faces):
    """As `datasets check` does: the options that a reader's message advises work with both commands."""
    root = tmp_path / "mine"
    root.mkdir()
    for i in range(2):
        Image.fromarray(faces[i].image).save(root / f"{i}.png")
    (root / "list.csv").write_text("image,code\n0.png,1\n1.png,7\n")
    given = ("prepare", "--dataset", "mine", "--root", root, "--set", "data.datasets.mine.reader=csv", "--no-report")
    paths = ("--set", f"paths.prepared={tmp_path / 'out'}", "--set", "prepare.workers=1", "--quiet")
    refused = run(*given, *paths)
    assert refused.exit_code == 1 and "--option NAME=VALUE" in refused.stderr
    done = run(*given, *paths, "--option", "label_column=code", "--option", "codes={1: sad, 7: happy}")
    assert done.exit_code == 0, done.stderr
    assert np.load(tmp_path / "out/mine/labels.npy").tolist() == [4, 3]
    for options, message in (
        ((*given[:1], "--option", "a=b"), "--option needs exactly one --dataset"),
        ((*given, "--option", "a"), "--option a: expected KEY=VALUE"),
        ((*given, "--option", "a=b"), "this reader has no option 'a'"),
    ):
        result = run(*options, *paths)
        assert result.exit_code and message in result.stderr
