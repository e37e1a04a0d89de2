"""A user's own dataset and method, added as docs/extending.md describes, through the whole command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import conftest
import pytest
from conftest import run
from PIL import Image
from trees import refusal

import fercli
from fercli.datasets import read_dataset
from fercli.datasets.reader import Collector, Record
from fercli.errors import FercliError
from fercli.store import Store

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")


def block_of(name: str) -> re.Match:
    """The page's code of the module `name`, and the command that follows it."""
    (found,) = re.finditer(rf"```python\n(# {name}\.py\n.*?)```\n+```\nfercli (.*?)\n```\n", PAGE, re.DOTALL)
    return found


def command_of(name: str) -> list[str]:
    return shlex.split(block_of(name)[2])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's two modules and three faulty ones, which are unloaded afterwards."""
    modules = {name: block_of(name)[1] for name in ("my_methods", "my_layouts")}
    modules |= {"other_module": "not_a_method = 3", "broken_module": "1 / 0"}
    modules |= {"needing_module": "import a_package_that_is_not_there"}
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def test_the_documented_method_adapts_and_is_evaluated(here: Path, make_adapting) -> None:
    # The spec's own method is a different one, and so are its options.
    bench = make_adapting("own", {"adapt.options": {"reversal_steps": 50}})
    bench.done(*command_of("my_methods"), "--quiet")
    lines = [json.loads(line) for line in (bench.runs / "adapt-jaffe-means/metrics.jsonl").read_text().splitlines()]
    assert all(line["losses"]["means"] >= 0 for line in lines if line["kind"] == "train")
    method = ("--set", "adapt.method=my_methods:MeanAlignment", "--set", "adapt.tag=means")
    results = json.loads(bench.done("evaluate", "--json", *method).stdout)
    assert "my_methods:MeanAlignment (means)" in {row["method"] for row in results["entries"]}


def test_the_documented_dataset_is_checked_prepared_and_adapted_to(
    here: Path, make_adapting, prepared: Path, faces
) -> None:
    (here / "images").mkdir()
    for number, face in enumerate(faces[:7]):
        name = f"p{number % 2}_{['surprise', 'fear', 'disgust', 'happy', 'sad', 'anger', 'neutral'][number]}_{number}"
        Image.fromarray(face.image).save(here / f"images/{name}.png")
    Image.fromarray(faces[7].image).save(here / "images/p1_contempt_8.png")  # counted and left out
    (here / "prepared").mkdir()
    (here / "prepared/raf-db").symlink_to(prepared / "raf-db")
    plain = make_adapting("plain", prepared=here / "prepared")
    plain.done(*command_of("my_layouts"), "--quiet")  # as the page gives it; below, the spec does the same
    store = Store.open(here / "prepared/mine")
    assert len(store) >= 5 and set(store.subjects) == {"p0", "p1"}
    assert read_dataset("mine", "my_layouts:READER", here / "images", ending="png").records[0].subject == "p0"
    mine = {"reader": "my_layouts:READER", "root": "images"}
    bench = make_adapting("own", {"data.targets": ["mine"], "data.datasets.mine": mine}, here / "prepared")
    checked = run("datasets", "check", "mine", "-c", str(bench.spec), "--json")
    assert json.loads(checked.stdout)["check"]["images"] == 7
    bench.done("adapt", "--quiet")
    assert (bench.runs / "adapt-mine/best.ckpt").is_file()


def test_show_prints_the_description_of_a_users_own_reader(here: Path) -> None:
    shown = run("datasets", "show", "my_layouts:READER")
    assert shown.exit_code == 0 and "PERSON_EXPRESSION_NUMBER.png, all in one folder" in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["ending=png"] in lines and any(line[:1] == ["score"] for line in lines)
    told = json.loads(run("datasets", "show", "my_layouts:READER", "--json").stdout)["dataset"]
    assert told["tree"] == ["PERSON_EXPRESSION_NUMBER.png, all in one folder"]
    assert told["options"][0] == {"name": "ending", "default": "png", "values": ""}
    (here / "pictures").mkdir()
    checked = run("datasets", "check", "my_layouts:READER", here / "pictures", "--option", "ending=gif")
    assert checked.exit_code == 1 and "no PERSON_EXPRESSION_NUMBER.gif in " in checked.stderr


#: The one file that adds a dataset to fercli.
MINE = '''"""MINE: images named CODE_PERSON.png."""

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.reader import Reader, Record

CODES = {1: 3, 2: 4, 9: None}


def parse(root, collector, ending="png"):
    for file in sorted(root.glob(f"*.{ending}")):
        code, _, person = file.stem.partition("_")
        label = collector.label(CODES, code)
        if label is not None:
            split = "test" if person == "zoe" else "train"
            collector.add(Record(file.name, file.name, label, split, subject=person))
    return ("train",), ("test",)


READER = Reader(
    layout="CODE_PERSON.png in one folder",
    parse=parse,
    codes=CODES,
    tree="1_ann.png    1 happy, 2 sad, 9 bored",
    option_help={"ending": "how the images' names end"},
    card=DatasetCard(
        title="My Own Faces",
        about="holiday photographs",
        apply="https://example.org/mine",
        licence="all rights mine",
        split="ours, by subject",
        paper="Doe: Faces of mine. 2026",
        releases=(Official.of_splits(train=(0, 0, 0, 2, 1, 0, 0), test=(0, 0, 0, 1, 0, 0, 0)),),
    ),
)
'''


def test_a_dataset_is_one_file_and_one_line_of_the_registry(tmp_path: Path, faces, monkeypatch) -> None:
    """In a copy of the package whose other modules are symbolic links."""
    package = Path(fercli.__file__).parent
    copy = tmp_path / "copy/fercli"
    copy.mkdir(parents=True)
    for path in package.iterdir():
        if path.name not in ("datasets", "__pycache__"):
            (copy / path.name).symlink_to(path)
    shutil.copytree(package / "datasets", copy / "datasets", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "copy/configs").symlink_to(package.parent / "configs")
    (copy / "datasets/mine.py").write_text(MINE)
    registry = copy / "datasets/__init__.py"
    line = '    "raf-db": "raf_db",\n'
    assert registry.read_text().count(line) == 1
    registry.write_text(registry.read_text().replace(line, f'{line}    "mine": "mine",\n'))
    pictures, labels = tmp_path / "pictures", tmp_path / "numbers"
    for folder, name in ((pictures, "1_ann"), (pictures, "2_ann"), (pictures, "1_zoe"), (pictures, "9_zoe")):
        folder.mkdir(exist_ok=True)
        Image.fromarray(faces[0].image).save(folder / f"{name}.png")
    for code in ("1", "2"):
        (labels / code).mkdir(parents=True)
        Image.fromarray(faces[0].image).save(labels / f"{code}/a.png")

    monkeypatch.chdir(copy.parent)  # `python -m` imports it from here

    def done(*arguments: str | Path) -> str:
        result = conftest.fercli(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert re.search(r"^mine +4  holiday photographs +ours, by subject +all rights mine", done("datasets"), re.M)
    shown = done("datasets", "show", "mine")
    for text in ("My Own Faces", "https://example.org/mine", "1_ann.png    1 happy", "Doe: Faces of mine. 2026"):
        assert text in shown
    assert re.search(r"^ +ending=png +how the images' names end$", shown, re.M)
    assert re.search(r"^happiness +2 +1 +3 *$", shown, re.M)
    checked = done("datasets", "check", "mine", pictures)
    assert re.search(r"^happiness +\* -1 +1 / 2 +1 / 1 +\* -1 +2 / 3 *$", checked, re.M), checked
    assert "label '9' outside the seven" in checked
    spec = ("--set", f"paths.prepared={tmp_path / 'prepared'}", "--set", "prepare.workers=1", "--no-report")
    prepared = conftest.fercli("prepare", "--dataset", "mine", "--root", pictures, *spec)
    assert prepared.returncode == 0, prepared.stderr
    assert "trained on or adapted to train; scored on test" in prepared.stdout + prepared.stderr
    store = Store.open(tmp_path / "prepared/mine")
    assert sorted(zip(store.labels.tolist(), store.splits.tolist(), store.subjects.tolist(), strict=True)) == [
        (3, "test", "zoe"), (3, "train", "ann"), (4, "train", "ann")
    ]  # fmt: skip
    # Other readers can use its codes.
    borrowed = json.loads(done("datasets", "check", "folders", labels, "--option", "codes=mine", "--json"))["check"]
    found = borrowed["splits"]["all"]["expressions"]
    assert (found["happiness"]["found"], found["sadness"]["found"]) == (1, 1)


def test_the_error_about_an_invalid_label_names_the_record() -> None:
    with pytest.raises(FercliError, match=r"a\.png: the reader gave the label None; it must be -1 to 6"):
        Collector().add(Record(id="a.png", path="a.png", split="all", label=None))


MISTAKES = {
    "my_methods:Nothing": "my_methods has no Nothing",
    "no_such_module:Thing": "no module named no_such_module in ",
    "other_module:not_a_method": "is not a method; derive it from fercli.methods.base.Method",
    "broken_module:X": "importing broken_module failed: ZeroDivisionError: division by zero",
    "needing_module:X": "its module needs a_package_that_is_not_there, which is not installed",
    "my_methods.MeanAlignment": "'my_methods.MeanAlignment' is not known",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_methods_name_is_one_line(name: str, here: Path, make_adapting) -> None:
    bench = make_adapting("wrong")
    result = bench("adapt", "--method", name)
    assert result.exit_code == 2 and MISTAKES[name] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ("my_layouts:parse", "is not a reader; make it an instance of fercli.datasets.reader.Reader"),
        ("my_layouts:READE", "my_layouts has no READE"),
        ("nowhere:READER", "no module named nowhere"),
    ],
)
def test_a_mistake_in_a_readers_name_is_one_line(reader: str, told: str, here: Path) -> None:
    assert told in refusal(reader, here)
