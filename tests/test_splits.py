"""Split names, and which faces are adapted to and scored: never the same faces unless the user says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Bench, run
from PIL import Image
from trees import refusal, rows, touch, write

from fercli.datasets import read_dataset
from fercli.datasets.protocol import known_split
from fercli.datasets.reader import Reader, Record
from fercli.errors import FercliError
from fercli.store import Store


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train TRAIN Training trn train_set Train-Set trainset TrainData train.images images_train"),
        ("val", "val valid Validation dev eval Evaluation val_set VALSET devset valid-images PublicTest public_test"),
        ("test", "test Testing tst TestSet test_data test-imgs dataset_test PrivateTest Private-Test test_faces"),
        (None, "left gallery part_a fold1 0 1 all train_test contest train2 pretrain trainee holdout data ''"),
    ],
)  # fmt: skip
def test_names_of_splits(split, names):
    assert {name: known_split(name.strip("'")) for name in names.split(" ")} == dict.fromkeys(names.split(" "), split)


def listed(root: Path, reader: str, splits: str) -> Path:
    """Write a tree with a face in each of these splits, as folders or as a csv."""
    names = splits.split()
    if reader == "folders":
        touch(root, *(f"{name}/fear/{i}.jpg" for i, name in enumerate(names)))
    else:
        write(root, "l.csv", "image,label,Usage\n" + "".join(f"{i}.jpg,fear,{name}\n" for i, name in enumerate(names)))
    return root


@pytest.mark.parametrize("reader", ["folders", "csv"])
@pytest.mark.parametrize(
    ("splits", "options", "adapt", "score"),
    [
        ("Training PublicTest PrivateTest", {}, "train", "test"),
        ("train_set val_set", {}, "train", "val"),
        ("trn tst", {}, "train", "test"),
        ("test", {}, "train", "test"),
        ("train", {"score": "train"}, "train", "train"),
        ("train_set test_set", {"adapt": "all"}, "train test", "test"),
        ("fold0 fold1 fold2", {"adapt": ["fold1", "Fold_2"], "score": "fold0"}, "fold1 fold2", "fold0"),
        ("0 1", {"adapt": 0, "score": [1]}, "0", "1"),
        ("left right", {"adapt": "all", "score": "all"}, "left right", "left right"),
        ("train gallery", {"score": "gallery"}, "train", "gallery"),
        ("train test extra", {"adapt": "train", "score": "TEST"}, "train", "test"),
    ],
)
def test_what_is_adapted_to_and_what_is_scored(tmp_path, reader, splits, options, adapt, score):
    listing = read_dataset("mine", reader, listed(tmp_path, reader, splits), **options)
    assert (set(listing.adapt_splits), set(listing.score_splits)) == (set(adapt.split()), set(score.split()))
    assert len(listing) == len(splits.split())


@pytest.mark.parametrize("reader", ["folders", "csv"])
@pytest.mark.parametrize(
    ("splits", "options", "words"),
    [
        ("left right", {}, "mine: split names are not understood: 'left', 'right' (in "),
        ("left right", {}, "data.datasets.mine.options: {adapt: A, score: B} (splits found: "),
        ("train test extra", {}, "not understood: 'extra' (in "),
        ("train test extra", {}, "split names are not understood: 'extra' (in "),
        ("fold1 fold2 fold3", {"score": "fold3"}, "--option adapt=A --option score=B"),
        ("1 2 3 4 5 6", {}, "'1', '2', '3', '4', ... (6 in all)"),
        (
            "test train",
            {"score": "val"},
            "mine: option score is 'val', which is not a split (splits found: test, train; several",
        ),
        ("train test", {"adapt": []}, "option adapt names no split"),
    ],
)
def test_unknown_split_names_are_an_error_that_names_the_option(tmp_path, reader, splits, options, words):
    assert words in refusal(reader, listed(tmp_path, reader, splits), **options)


@pytest.mark.parametrize("reader", ["folders", "csv"])
def test_faces_without_a_split_are_not_used(tmp_path, reader):
    if reader == "folders":
        touch(tmp_path, "sad/0.jpg", "train_set/sad/1.jpg", "test_set/sad/2.jpg")
    else:
        write(tmp_path, "l.csv", "image,label,split\n0.jpg,sad,\n1.jpg,sad,train_set\n2.jpg,sad,Test\n")
    checked = run("datasets", "check", reader, tmp_path).stdout
    assert "trained on or adapted to train; scored on test; not used: faces without a split" in " ".join(
        checked.split()
    )


def test_split_folders_may_be_below_the_class(tmp_path):
    touch(tmp_path, "sad/train/1.jpg", "sad/Test/2.jpg", "fear/train/a/3.jpg")
    assert {r.id: r.split for r in read_dataset("f", "folders", tmp_path)} == {
        "sad/train/1.jpg": "train",
        "sad/Test/2.jpg": "test",
        "fear/train/a/3.jpg": "train",
    }


@pytest.mark.parametrize("tree", ["archive/{}", "{}", "a/b/{}"])
def test_a_folder_around_everything_is_not_a_split(tmp_path, tree):
    touch(tmp_path / "flat", tree.format("happy/1.jpg"), tree.format("sad/1.jpg"))
    touch(tmp_path / "split", tree.format("train/happy/1.jpg"), tree.format("test/sad/1.jpg"))
    assert {r.split for r in read_dataset("f", "folders", tmp_path / "flat")} == {"all"}
    assert {r.split for r in read_dataset("f", "folders", tmp_path / "split")} == {"train", "test"}


def test_the_error_says_where_deeper_class_folders_are(tmp_path):
    touch(tmp_path, "a/b/train/happy/1.jpg", "notes/1.txt")
    assert "(found in a/b/train/; give the folder a/b/ instead)" in refusal("folders", tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("purpose", ("Training", "PublicTest"), "'purpose' (PublicTest, Training) looks like splits"),
        ("is_train", ("1", "0"), "'is_train' (0, 1) looks like splits; name it with --option split_column=is_train,"),
    ],
)
def test_a_column_that_looks_like_splits_is_an_error(tmp_path, column, values, words):
    write(tmp_path, "l.csv", f"image,label,{column}\n1.jpg,sad,{values[0]}\n2.jpg,sad,{values[1]}\n")
    assert words in refusal("csv", tmp_path)
    assert rows(read_dataset("c", "csv", tmp_path, split_column=""), "split") == [("all",), ("all",)]
    stated = {"split_column": column, "adapt": values[0], "score": values[1]}
    assert len({r.split for r in read_dataset("c", "csv", tmp_path, **stated)}) == 2


def test_a_reader_from_outside_may_not_silently_score_what_it_adapts_to(tmp_path):
    def parse(root, collector):
        collector.add(Record("1", "1.jpg", 1, "train"))
        return ("train",), ("train",)

    with pytest.raises(
        FercliError, match=r"scores splits that are adapted to \(train\); .*\{adapt: \[train\], score: \[train\]\}"
    ):
        Reader("a layout", parse).read(tmp_path, "mine")
    assert Reader("a layout", parse).read(tmp_path, "mine", score="train").score_splits == ("train",)


def test_an_option_without_a_default_must_be_given(tmp_path):
    def parse(root, collector, ending):
        collector.add(Record("1", "1." + ending, 1))
        return ("all",), ("all",)

    with pytest.raises(FercliError, match="this reader needs the option ending"):
        Reader("a layout", parse).read(tmp_path)
    assert Reader("a layout", parse).read(tmp_path, ending="png").records[0].path == "1.png"


# Through the commands: a target with a single split is scored on it only if the user says so


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, faces) -> Path:
    """Seven faces below train/, a class folder each, and none elsewhere."""
    root = tmp_path_factory.mktemp("pictures")
    for number, face in enumerate(faces[:7]):
        folder = root / "train" / ["surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"][number]
        folder.mkdir(parents=True)
        Image.fromarray(face.image).save(folder / f"{number}.png")
    return root


def bench_on(tmp_path: Path, pictures: Path, make_adapting, prepared: Path, role: str, **options) -> Bench:
    stores = tmp_path / "prepared"
    stores.mkdir()
    for name in ("raf-db", "jaffe"):
        (stores / name).symlink_to(prepared / name)
    mine = {"reader": "folders", "root": str(pictures), "options": options}
    changes = {"data.datasets.mine": mine, **({"data.targets": ["mine"]} if role == "target" else {})}
    return make_adapting("bench", changes, stores)


def test_a_target_of_a_single_split_stops_before_it_is_prepared(tmp_path, pictures, make_adapting, prepared):
    bench = bench_on(tmp_path, pictures, make_adapting, prepared, "target")
    result = bench("prepare", "--dataset", "mine")
    assert result.exit_code == 1 and not (tmp_path / "prepared/mine").exists()
    assert "mine has no face to score: none is in test (splits found: train)" in result.stderr
    assert "--option score=SPLIT (one of train, all" in result.stderr


@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_adapt_and_evaluate_do_not_score_it(tmp_path, pictures, make_adapting, prepared, command):
    bench = bench_on(tmp_path, pictures, make_adapting, prepared, "none yet")
    said = bench.done("prepare", "--dataset", "mine").stderr
    assert "trained on or adapted to train; scored on test" in said
    result = bench(command, "--target", "mine")
    assert result.exit_code == 1 and "mine has no face to score: none is in test" in result.stderr
    assert result.stderr.count("error:") == 1 and not list(bench.runs.glob("adapt-*"))


def test_a_target_is_scored_on_its_adapted_split_on_request_with_a_warning_each_time(
    tmp_path, pictures, make_adapting, prepared
):
    bench = bench_on(tmp_path, pictures, make_adapting, prepared, "target", score="train")
    assert "train is scored though it is adapted to" in bench.done("prepare", "--dataset", "mine").stderr
    for command in ("adapt", "evaluate"):
        told = bench.done(command, "--target", "mine").stderr
        assert told.count("mine is scored on faces that it is adapted to (split train)") == 1
    results = json.loads((bench.runs / "report/results.json").read_text())
    assert {e["splits"][0] for e in results["entries"] if e["dataset"] == "mine"} == {"train"}


def test_a_source_with_a_single_split_is_scored_on_held_out_faces(tmp_path, pictures, make_adapting, prepared, faces):
    from fercli.scoring.results import scored_part
    from fercli.spec import load

    many = tmp_path / "many"
    for label, name in enumerate(["surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"]):
        for number in range(6):
            (many / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(faces[label].image, number, 0)).save(many / f"train/{name}/{number}.png")
    bench = bench_on(tmp_path, many, make_adapting, prepared, "source")
    bench.done("prepare", "--dataset", "mine", "--no-report", "--set", "data.source=mine")
    store = Store.open(tmp_path / "prepared/mine")
    spec = load(str(bench.spec), ("data.source=mine",))
    splits, positions, expected = scored_part(spec, store, is_source=True)
    assert splits == ["held out of training"] and 0 < expected == len(positions) < len(store)


def test_a_flat_target_is_reported_as_adapted_to_and_scored_as_a_whole(tmp_path, pictures, make_adapting, prepared):
    bench = bench_on(tmp_path, pictures / "train", make_adapting, prepared, "target")
    assert (
        "no splits: a target is adapted to and scored as a whole" in bench.done("prepare", "--dataset", "mine").stderr
    )
    store = Store.open(tmp_path / "prepared/mine")
    assert (store.adapt_splits, store.score_splits) == (("all",), ("all",))
