"""A dataset and a method from outside, as the README says to add them, through the whole command line."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import run
from PIL import Image

from fercli.datasets import read_dataset
from fercli.datasets.base import Collector
from fercli.datasets.records import Record
from fercli.errors import FercliError
from fercli.store import Store

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block_of(name: str) -> re.Match:
    """The README's code of the module `name`, and the command that it gives behind it."""
    (found,) = re.finditer(rf"```python\n(# {name}\.py\n.*?)```\n+```\nfercli (.*?)\n```\n", README, re.DOTALL)
    return found


def command_of(name: str) -> list[str]:
    return shlex.split(block_of(name)[2])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with the README's two modules and three that are wrong; they are forgotten afterwards."""
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


def test_the_readmes_method_adapts_and_is_evaluated(here: Path, make_adapting) -> None:
    # The spec's own method is another one, and so are its options.
    bench = make_adapting("own", {"adapt.options": {"reversal_steps": 50}})
    bench.done(*command_of("my_methods"), "--quiet")
    lines = [json.loads(line) for line in (bench.runs / "adapt-jaffe-means/metrics.jsonl").read_text().splitlines()]
    assert all(line["losses"]["means"] >= 0 for line in lines if line["kind"] == "train")
    method = ("--set", "adapt.method=my_methods:MeanAlignment", "--set", "adapt.tag=means")
    results = json.loads(bench.done("evaluate", "--json", *method).stdout)
    assert "my_methods:MeanAlignment (means)" in {row["method"] for row in results["table"]}


def test_the_readmes_dataset_is_checked_prepared_and_adapted_to(
    here: Path, make_adapting, prepared: Path, faces
) -> None:
    (here / "pictures").mkdir()
    for number, face in enumerate(faces[:7]):
        name = f"p{number % 2}_{['surprise', 'fear', 'disgust', 'happy', 'sad', 'anger', 'neutral'][number]}_{number}"
        Image.fromarray(face.image).save(here / f"pictures/{name}.png")
    Image.fromarray(faces[7].image).save(here / "pictures/p1_contempt_8.png")  # counted and left out
    (here / "prepared").mkdir()
    (here / "prepared/raf-db").symlink_to(prepared / "raf-db")
    plain = make_adapting("plain", prepared=here / "prepared")
    plain.done(*command_of("my_layouts"), "--quiet")  # as the README gives it; below the spec says the same
    store = Store.open(here / "prepared/mine")
    assert len(store) >= 5 and set(store.subjects) == {"p0", "p1"}
    assert read_dataset("mine", "my_layouts:READER", here / "pictures", ending="png").records[0].subject == "p0"
    mine = {"reader": "my_layouts:READER", "root": "pictures"}
    bench = make_adapting("own", {"data.targets": ["mine"], "data.datasets.mine": mine}, here / "prepared")
    checked = run("datasets", "check", "mine", "-c", str(bench.spec), "--json")
    assert json.loads(checked.stdout)["check"]["images"] == 7
    bench.done("adapt", "--quiet")
    assert (bench.runs / "adapt-mine/best.ckpt").is_file()


def test_show_tells_of_a_reader_from_outside_what_it_says_itself(here: Path) -> None:
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


def test_a_label_that_is_none_is_told_by_the_record() -> None:
    with pytest.raises(FercliError, match=r"a\.png: a reader gave it the label None; it must be -1 to 6"):
        Collector().add(Record(id="a.png", path="a.png", split="all", label=None))


MISTAKES = {
    "my_methods:Nothing": "my_methods has no Nothing",
    "no_such_module:Thing": "no module no_such_module in ",
    "other_module:not_a_method": "is no method: derive it from fercli.methods.base.Method",
    "broken_module:X": "importing broken_module failed: ZeroDivisionError: division by zero",
    "needing_module:X": "its module needs a_package_that_is_not_there, which is not installed",
    "my_methods.MeanAlignment": "'my_methods.MeanAlignment' is not known",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_methods_place_is_one_line(name: str, here: Path, make_adapting) -> None:
    bench = make_adapting("wrong")
    result = bench("adapt", "--method", name)
    assert result.exit_code == 2 and MISTAKES[name] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ("my_layouts:parse", "is no reader: make it a fercli.datasets.base.Reader"),
        ("my_layouts:READE", "my_layouts has no READE"),
        ("nowhere:READER", "no module nowhere"),
    ],
)
def test_a_mistake_in_a_readers_place_is_one_line(reader: str, told: str, here: Path) -> None:
    with pytest.raises(FercliError) as problem:
        read_dataset("mine", reader, here)
    assert told in str(problem.value) and "\n" not in str(problem.value)
