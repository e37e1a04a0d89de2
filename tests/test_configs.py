"""Every packaged spec parses, and every registered method is what the registry says."""

from __future__ import annotations

import pytest
import yaml

from fercli.datasets import READERS
from fercli.methods import METHODS, method_class
from fercli.methods.base import Method
from fercli.spec import Adapt, load, packaged


def test_the_packaged_specs_are_there() -> None:
    assert {"default", "demo"} <= set(packaged())


@pytest.mark.parametrize("name", sorted(packaged()))
def test_a_packaged_spec_parses_with_its_method_options(name: str) -> None:
    spec = load(name)
    assert isinstance(yaml.safe_load(packaged()[name].read_text(encoding="utf-8")), dict)
    method_class(spec.adapt.method).read_options(spec.adapt.options)


@pytest.mark.parametrize("name", sorted(packaged()))
def test_a_packaged_spec_is_named_after_its_file_and_explains_itself(name: str) -> None:
    text = packaged()[name].read_text(encoding="utf-8")
    assert text.startswith("#")
    if name != "default":
        assert load(name).name == name


@pytest.mark.parametrize("name", sorted(packaged()))
def test_a_packaged_spec_names_readers_that_exist(name: str) -> None:
    for entry in load(name).data.datasets.values():
        assert entry.reader is None or entry.reader in READERS


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_registered_method_is_what_the_registry_says(name: str) -> None:
    kind = method_class(name)
    assert issubclass(kind, Method)
    assert kind.name == name
    assert kind.__doc__
    assert kind.forward is not Method.forward
    method = kind(Adapt(), kind.read_options({}), feature_dim=64, target_size=5)
    assert method.wants <= {"target", "weak", "strong"}
    assert method.decision in ("fused", "glpc")
    assert method.head_weights.shape == (7,)
