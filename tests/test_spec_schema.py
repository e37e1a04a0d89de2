"""The JSON schema of the run spec: the packaged file matches the spec, and accepts what the spec accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import jsonschema
import pytest
import yaml
from conftest import run

from fercli.spec import Spec, load, packaged, parse, to_yaml
from fercli.spec.json_schema import schema, schema_file
from fercli.spec.template import to_template

#: Strings that YAML 1.1 (PyYAML) does not read as numbers, while the spec and editors' YAML 1.2 do.
_NUMBER = re.compile(r"[0-9.]+e[+-]?[0-9]+")


def read(text: str) -> Any:
    """YAML as an editor's language server passes it to the schema: keys are strings, 1e-4 is a number."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value

    return plain(yaml.safe_load(text))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    whole = json.loads(schema_file().read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


def test_the_packaged_file_matches_the_spec() -> None:
    """If this fails, regenerate the file: python -m fercli.spec.json_schema"""
    assert json.loads(schema_file().read_text(encoding="utf-8")) == schema()


@pytest.mark.parametrize("name", sorted(packaged()))
def test_it_accepts_the_packaged_specs_as_written_and_resolved(name: str, validator) -> None:
    validator.validate(read(packaged()[name].read_text(encoding="utf-8")))
    validator.validate(read(to_yaml(load(name))))


def test_it_accepts_the_template_with_every_key_enabled(validator) -> None:
    text = re.sub(r"(?m)^( *)#(?=[a-z_]+:)", r"\1", to_template(Spec()))
    validator.validate(read(text))


@pytest.mark.parametrize(
    "text",
    [
        "{data: {source: raf-db, targets: [jaffe]}}",
        "{train_source: {lr: 0.1}, adapt: {lr: {1: 0.1, 3: 0.01}}}",
        "{engine: {compile: true}}",
        "{adapt: {method: 'mine:Method', select: dev, also_score: [dev]}}",
        "{sweep: {methods: [dann, mcd]}}",
        "{sweep: {methods: {dann: , mine: {method: aglrls, options: {glpc: false}}}, targets: jaffe}}",
        "{sweep: null, model: {weights: null}}",
    ],
)
def test_it_accepts_what_the_spec_accepts(text: str, validator) -> None:
    parse(yaml.safe_load(text))
    validator.validate(read(text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{adapt: {epoch: 5}}", ["adapt"]),
        ("{nothing: 1}", []),
        ("{adapt: {epochs: many}}", ["adapt", "epochs"]),
        ("{adapt: {epochs: 0}}", ["adapt", "epochs"]),
        ("{adapt: {method: aglrl}}", ["adapt", "method"]),
        ("{adapt: {select: best}}", ["adapt", "select"]),
        ("{model: {backbone: ir-50}}", ["model", "backbone"]),
        ("{data: {augment: {flip: 2}}}", ["data", "augment", "flip"]),
        ("{data: {datasets: {mine: {folder: x}}}}", ["data", "datasets", "mine"]),
        ("{train_source: {lr: -1}}", ["train_source", "lr"]),
        ("{prepare: {retries: [pray]}}", ["prepare", "retries", 0]),
        ("{sweep: {seeds: [1]}}", ["sweep"]),
    ],
)
def test_it_refuses_what_the_spec_refuses(text: str, where: list[Any], validator) -> None:
    from fercli.errors import SpecError

    with pytest.raises(SpecError):
        parse(yaml.safe_load(text))
    assert where in [list(error.absolute_path) for error in validator.iter_errors(read(text))]


def test_every_key_has_a_description(validator) -> None:
    def keys(part: dict[str, Any], path: str = "") -> None:
        for name, value in part["properties"].items():
            below = value.get("$ref", "").rpartition("/")[2]
            assert "title" not in value
            assert len(value["description"]) > 5 and not set("`\n") & set(value["description"]), f"{path}{name}"
            if below:
                keys(validator.schema["$defs"][below], f"{path}{name}.")

    keys(validator.schema)


def test_init_names_the_schema_in_the_first_line(tmp_path) -> None:
    assert run("init", str(tmp_path / "mine.yaml"), "--quiet").exit_code == 0
    first = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    address = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)[1]
    assert json.loads(Path(unquote(urlparse(address).path)).read_text(encoding="utf-8"))["title"] == "fercli run spec"
    assert load(str(tmp_path / "mine.yaml")) == load("default")
