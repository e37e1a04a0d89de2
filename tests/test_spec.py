"""The run spec: what is accepted, and the message for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fercli.errors import SpecError
from fercli.spec import Spec, load, packaged, parse, to_yaml
from fercli.spec.load import find


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        load(None if file is None else str(file), overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("adapt.epoch=3", ["adapt.epoch: unknown key", "did you mean epochs?"]),
        ("adpat.epochs=3", ["adpat: unknown key", "did you mean adapt?"]),
        ("engine.zzz=3", ["engine.zzz: unknown key", "known: device, precision"]),
        (
            "model.backbone=ir51",
            ["model.backbone: 'ir51' is not allowed", "'mobilenet-v2', 'mobilenet-v2-wide', 'ir-small', 'ir-lite'"],
        ),
        ("prepare.retries=[border,zoom]", ["prepare.retries.1: 'zoom' is not allowed", "'full-range'"]),
        ("model.width=99", ["model.width: 99", "less than or equal to 64"]),
        ("model.width=3", ["model.width: 3", "greater than or equal to 4"]),
        ("adapt.epochs=0", ["adapt.epochs: 0", "greater than 0"]),
        ("adapt.epochs=", ["adapt.epochs: None", "valid integer"]),
        ("adapt.epochs.x=3", ["adapt.epochs: {'x': 3}", "valid integer"]),
        ("adapt.batch=1", ["adapt.batch: 1", "greater than or equal to 2"]),
        ("adapt=3", ["adapt: 3"]),
        ("data.source=[]", ["data.source", "at least one source"]),
        ("data.source=jaffe", ["jaffe is in both data.source and data.targets", "must be another dataset"]),
        ("data.source=[raf-db,expw]", ["expw is in both"]),
        ("data.validation=1", ["data.validation: 1", "less than 1"]),
        ("data.datasets.mine.raeder=folders", ["data.datasets.mine.raeder: unknown key", "did you mean reader?"]),
        ("adapt.head_weights=[1,2,3]", ["adapt.head_weights: [1, 2, 3]", "at least 7"]),
        ("adapt.head_weights=[1,1,1,1,1,1,1,1]", ["adapt.head_weights", "at most 7"]),
        ("adapt.head_weights=[1,1,1,1,1,1,-1]", ["adapt.head_weights.6: -1"]),
        ("adapt.lr=abc", ["adapt.lr.1: 'abc'", "valid number"]),
        ("adapt.lr={0: 1}", ["adapt.lr.0", "greater than 0"]),
        ("adapt.lr={}", ["adapt.lr", "at least 1"]),
        ("adapt.lr=.inf", ["adapt.lr.1: inf", "finite"]),
        ("adapt.lr=-1", ["adapt.lr.1: -1"]),
        ("train_source.select=infomax", ["train_source.select: 'infomax' is not known", "one of last, source-val"]),
        ("adapt.select=infomx", ["adapt.select: 'infomx'", "did you mean infomax?"]),
        ("adapt.method=aglrs", ["adapt.method: 'aglrs' is not known", "did you mean aglrls?", "source-only"]),
        ("name=a/b", ["name: 'a/b'"]),
        ("name=..", ["name: '..'"]),
        ("adapt.tag=../x", ["adapt.tag: '../x'"]),
        ("adapt", ["--set adapt", "key.path=value"]),
        ("=3", ["--set =3", "key.path=value"]),
        ("adapt.epochs=[1", ["--set adapt.epochs=[1", "not YAML"]),
    ],
)
def test_a_bad_value_is_reported_in_one_line(override: str, told: list[str]) -> None:
    text = refusal(override)
    assert "\n" not in text
    for part in told:
        assert part in text


def test_all_problems_are_reported_at_once() -> None:
    text = refusal("adapt.epochs=0", "model.width=99", "engine.devise=cpu")
    head, *lines = text.splitlines()
    assert "3 problems" in head
    assert len(lines) == 3
    for key in ("adapt.epochs", "model.width", "engine.devise"):
        assert sum(key in line for line in lines) == 1


def test_unknown_names_are_reported_together() -> None:
    text = refusal("adapt.method=nothing", "adapt.select=oracle")
    assert "adapt.method" in text
    assert "adapt.select" in text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [1", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"\xff\xfe\x00a", "is not YAML"),
        (b"- 1\n- 2", "must be a mapping of sections (paths, data, prepare, ...), not a list"),
        (b"just words", "must be a mapping of sections (paths, data, prepare, ...), not a str"),
        (b"1: 2", "keys should be strings"),
        (b"adapt:\n", "adapt: None"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_not_a_spec_is_reported_in_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    text = refusal(file=file)
    assert told in text
    assert str(file) in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["missing.yaml", "demoo", "."])
def test_a_missing_file_is_reported_with_the_packaged_names(name: str) -> None:
    text = refusal(file=Path(name))
    assert f"no such spec file: {name}" in text
    assert "default" in text
    assert "demo" in text


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert load(str(tmp_path / "run.yaml")) == Spec()


def test_the_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(None) == packaged()["default"]
    assert find("demo") == packaged()["demo"]
    Path("fercli.yaml").write_text("name: here\n")
    assert load().name == "here"
    Path("other.yaml").write_text("name: other\n")
    assert load("other.yaml").name == "other"
    Path("demo").write_text("name: a-file-called-demo\n")  # a path comes before a packaged name
    assert load("demo").name == "a-file-called-demo"


def test_overrides_replace_the_file_and_shortcuts_replace_both(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: a\nadapt: {epochs: 7, batch: 4}\ndata: {source: raf-db, targets: jaffe}\n")
    overrides = ["adapt.epochs=5", "adapt.epochs=6", "data.source=[raf-db, expw]", "adapt.options.glpc=false"]
    spec = load(str(file), overrides, {"data.source": ["fer2013"]})
    assert (spec.name, spec.adapt.epochs, spec.adapt.batch) == ("a", 6, 4)
    assert spec.data.source == ["fer2013"]
    assert spec.data.targets == ["jaffe"]
    assert spec.adapt.options == {"glpc": False}


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "{1: 1e-5}"])
def test_a_rate_can_be_a_number_in_any_notation(text: str) -> None:
    assert load(None, [f"adapt.lr={text}"]).adapt.lr == {1: 1e-5}


@pytest.mark.parametrize("name", sorted(packaged()))
def test_the_resolved_spec_reads_back_as_itself(name: str) -> None:
    spec = load(name, ["adapt.schedule=steps", "adapt.lr={1: 0.1, 3: 0.01}"])
    assert parse(yaml.safe_load(to_yaml(spec))) == spec
    assert set(yaml.safe_load(to_yaml(spec))) == set(Spec.model_fields)


def test_folders() -> None:
    spec = load(None, ["name=x", "paths.runs=/r", "paths.prepared=/p", "adapt.tag=t"])
    assert spec.run_folder == Path("/r/x")
    assert spec.store_path("jaffe") == Path("/p/jaffe")
    assert spec.adapt_folder("jaffe") == Path("/r/x/adapt-jaffe-t")


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Spec().name = "other"


@pytest.mark.parametrize(("text", "value"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_yaml_booleans_are_switches(text: str, value: str) -> None:
    assert load(None, [f"engine.compile={text}"]).engine.compile == value
