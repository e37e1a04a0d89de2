"""A dataset and a method from outside, as the README says to add them, through the whole command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Bench, run
from PIL import Image

from fercli.datasets import read_dataset
from fercli.datasets.base import Collector
from fercli.datasets.records import Record
from fercli.errors import FercliError
from fercli.store import Store

METHOD = '''
import torch
from pydantic import Field

from fercli.methods.base import Batch, Clock, Method, Step
from fercli.methods.joint import fused_feature, joint_pass
from fercli.spec import Section


class MeanAlignment(Method):
    """The domains' mean features are drawn together."""

    name = "mean-alignment"
    reaches_all = True
    wants = frozenset({"target"})

    class Options(Section):
        weight: float = Field(1.0, ge=0)

    def forward(self, network, batch: Batch, clock: Clock) -> Step:
        source, target, losses, logs = joint_pass(network, batch.source, batch.target, batch.labels, self.head_weights)
        distance = (fused_feature(source).mean(0) - fused_feature(target).mean(0)).square().sum()
        losses["means"] = self.options.weight * distance
        return Step(losses, logs)


not_a_method = 3
'''

READER = '''
from fercli.datasets.base import Reader, WrongLayout
from fercli.datasets.records import Record


def parse(root, collector, ending="png"):
    """Pictures named PERSON_EXPRESSION_NUMBER.png, all in one folder."""
    files = sorted(root.glob(f"*_*_*.{ending}"))
    if not files:
        raise WrongLayout(f"no PERSON_EXPRESSION_NUMBER.{ending}")
    for file in files:
        person, expression, _ = file.stem.split("_")
        label = collector.named_label(expression)  # None, and counted, where it is none of the seven
        if label is not None:
            collector.add(Record(id=file.stem, path=file.name, split="all", label=label, subject=person))
    return ("all",), ("all",)


READER = Reader(layout="PERSON_EXPRESSION_NUMBER.png, all in one folder", parse=parse)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's two modules, to be worked in; they are forgotten afterwards."""
    (tmp_path / "my_methods.py").write_text(METHOD)
    (tmp_path / "my_layouts.py").write_text(READER)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "needing_module.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_methods", "my_layouts", "broken_module", "needing_module"):
        sys.modules.pop(name, None)


def test_a_method_from_outside_adapts_and_is_evaluated(here: Path, make_adapting) -> None:
    # The spec's own method is another one, and so are its options.
    bench = make_adapting("own", {"adapt.options": {"reversal_steps": 50}})
    method = ("--method", "my_methods:MeanAlignment", "--set", "adapt.options.weight=0.5")
    bench.done("adapt", "--quiet", *method)
    lines = [json.loads(line) for line in (bench.runs / "adapt-jaffe/metrics.jsonl").read_text().splitlines()]
    assert all(line["losses"]["means"] >= 0 for line in lines if line["kind"] == "train")
    results = json.loads(bench.done("evaluate", "--json", *("--set", "adapt.method=my_methods:MeanAlignment")).stdout)
    assert "my_methods:MeanAlignment" in {row["method"] for row in results["table"]}


def test_a_dataset_from_outside_is_listed_prepared_and_adapted_to(here: Path, bench: Bench, faces) -> None:
    (here / "pictures").mkdir()
    for number, face in enumerate(faces[:7]):
        name = f"p{number % 2}_{['surprise', 'fear', 'disgust', 'happy', 'sad', 'anger', 'neutral'][number]}_{number}"
        Image.fromarray(face.image).save(here / f"pictures/{name}.png")
    Image.fromarray(faces[7].image).save(here / "pictures/p1_contempt_8.png")  # counted and left out
    mine = {"reader": "my_layouts:READER", "root": str(here / "pictures")}
    own = Bench(here / "bench", here / "prepared", {"data.targets": ["mine"], "data.datasets.mine": mine})
    checked = run("datasets", "check", "mine", "-c", str(own.spec), "--json")
    assert json.loads(checked.stdout)["check"]["images"] == 7
    own.done("prepare", "--quiet", "--dataset", "mine")
    store = Store.open(here / "prepared/mine")
    assert len(store) >= 5 and set(store.subjects) == {"p0", "p1"}
    assert read_dataset("mine", "my_layouts:READER", here / "pictures", ending="png").records[0].subject == "p0"


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
    "my_methods:not_a_method": "is no method: derive it from fercli.methods.base.Method",
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
