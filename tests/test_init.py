"""The spec that `fercli init` writes: it loads as the defaults, commented out or not, and explains every key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import run

from fercli.spec import Section, Spec, load, packaged, parse
from fercli.spec.template import COMMON, plain, to_template

_OUT = re.compile(r"(?m)^( *)#(?=[a-z_]+:)")


def sections(kind: type[Section] = Spec) -> list[type[Section]]:
    """All sections of the spec."""
    found = [kind]
    for field in kind.model_fields.values():
        for one in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for inner in (one, *getattr(one, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, Section):
                    found += sections(inner)
    return list(dict.fromkeys(found))


def test_all_sections_are_found() -> None:
    names = {kind.__name__ for kind in sections()}
    assert {"Paths", "Data", "Augment", "Dataset", "Prepare", "Model", "Engine", "Adapt", "Sweep"} <= names


@pytest.mark.parametrize("kind", sections(), ids=lambda kind: kind.__name__)
def test_every_key_has_a_description(kind: type[Section]) -> None:
    for name, field in kind.model_fields.items():
        assert len(plain(field.description or "")) > 8, name


@pytest.mark.parametrize("name", sorted(packaged()))
def test_the_written_spec_loads_as_the_original_with_and_without_comments(name: str) -> None:
    spec = load(name)
    text = to_template(spec)
    assert parse(yaml.safe_load(text)) == spec
    everything = _OUT.sub(r"\1", text)
    assert parse(yaml.safe_load(everything)) == spec
    if spec.sweep is None:
        assert not _OUT.search(everything)
        assert _keys(yaml.safe_load(everything)) == _keys(spec.model_dump(mode="json"))


def _keys(tree: dict, before: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        path = f"{before}{key}"
        if isinstance(value, dict) and not path.endswith(("lr", "options", "datasets")):
            found |= _keys(value, path + ".")
        else:
            found.add(path)
    return found


def test_the_defaults_are_written_and_read_back() -> None:
    text = to_template(Spec())
    assert parse(yaml.safe_load(text)) == Spec()
    live = _keys(yaml.safe_load(text))
    assert live == COMMON  # also checks that every common key exists


def test_every_commented_out_key_can_be_enabled_alone() -> None:
    text = to_template(Spec())
    for match in _OUT.finditer(text):
        one = text[: match.start()] + match[1] + text[match.end() :]
        assert parse(yaml.safe_load(one)) == Spec(), text[match.start() : match.end() + 40]


def test_lines_are_short_and_choices_are_listed() -> None:
    text = to_template(load("default"))
    assert max(map(len, text.splitlines())) <= 120
    for word in ("mobilenet-v2", "bf16-mixed", "image-crop", "aglrls", "infomax", "mean-landmarks", "sqrt"):
        assert word in text
    assert "`" not in text


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ([], "data.source", ["raf-db"]),
        (["--source", "fer2013"], "data.targets", ["ck+", "jaffe", "sfew", "expw"]),
        (["--source", "raf-db", "--source", "ck+", "--target", "jaffe"], "data.source", ["raf-db", "ck+"]),
        (["--target", "jaffe", "--target", "sfew"], "data.targets", ["jaffe", "sfew"]),
        (["--backbone", "ir18"], "model.backbone", "ir18"),
        (["--from", "demo"], "adapt.options", {"reversal_steps": 1000}),
        (["--set", "adapt.momentum=0.5", "--set", "name=mine"], "adapt.momentum", 0.5),
        (["--set", "data.datasets.mine.reader=folders"], "data.datasets", {"mine": {"reader": "folders"}}),
    ],
)
def test_options(arguments: list[str], key: str, value: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "fercli prepare" in result.stderr
    tree = yaml.safe_load(Path("fercli.yaml").read_text())
    load()
    for part in key.split("."):
        tree = tree[part]
    assert tree == value


def test_a_file_is_not_replaced_without_force(tmp_path: Path) -> None:
    file = tmp_path / "below" / "mine.yaml"
    assert run("init", file, "--quiet").exit_code == 0
    file.write_text("name: precious\n")
    result = run("init", file)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "--force" in result.stderr
    assert file.read_text() == "name: precious\n"
    document = json.loads(run("init", file, "--force", "--json").stdout)["init"]
    assert document["file"] == str(file)
    assert load(str(file)) == Spec() == parse(document["spec"])
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_and_stdout(tmp_path: Path) -> None:
    assert run("init", tmp_path).exit_code == 0
    assert load(str(tmp_path / "fercli.yaml")) == Spec()
    assert run("init", "-").stdout == (tmp_path / "fercli.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--backbone", "ir51"], 2, "model.backbone: 'ir51' is not allowed"),
        (["--from", "nothing"], 2, "no such spec file: nothing"),
        (["--source", "a", "--target", "a"], 2, "must be another dataset"),
        (["--targt", "a"], 2, "No such option"),
    ],
)
def test_mistakes_give_one_line_and_no_file(arguments, code, text, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", *arguments)
    assert result.exit_code == code
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("init", tmp_path / "file" / "fercli.yaml")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "cannot write" in result.stderr
