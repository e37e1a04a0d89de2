"""Every packaged spec parses and does what its comments say; registry, specs and tests name the same methods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fercli.datasets import READERS
from fercli.methods import method_class
from fercli.methods.aglrls import AGLRLS
from fercli.methods.base import Method
from fercli.spec import Adapt, Spec, load, packaged
from fercli.spec.fidelity import departures
from fercli.spec.load import config_folder
from fercli.spec.registry import METHODS

NAMES = sorted(packaged())
PUBLISHED = [f"{source}-{net}" for source in ("raf-db", "fer2013") for net in ("ir50", "ir18", "mobilenet-v2")]
TESTS = sorted(Path(__file__).parent.glob("test_*.py"))


def head_of(name: str) -> str:
    """The comment at the top of a spec, without the # marks; lines ending in a backslash are joined."""
    lines = packaged()[name].read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return re.sub(r"\\\n\s*", "", "\n".join(line.lstrip("#").rstrip() for line in lines[:end]))


def test_the_packaged_specs_exist() -> None:
    assert {"default", "demo", "fer-to-wild", "wild-to-fer", *PUBLISHED} <= set(NAMES)
    on_disk = {path.relative_to(config_folder()).with_suffix("").as_posix() for path in config_folder().rglob("*.yaml")}
    assert set(NAMES) == on_disk


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_spec_parses_is_named_after_its_file_and_explains_itself(name: str) -> None:
    spec, text = load(name), packaged()[name].read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    method_class(spec.adapt.method).read_options(spec.adapt.options)
    assert text.startswith("# ") and len(head_of(name).split()) >= 15
    assert name == "default" or spec.name == name.removeprefix("methods/")
    for dataset in {*spec.data.source, *spec.data.targets}:
        assert (spec.data.datasets[dataset].reader if dataset in spec.data.datasets else dataset) in READERS


@pytest.mark.parametrize("name", NAMES)
def test_every_set_in_a_comment_can_be_set(name: str) -> None:
    """The spec accepts the --set settings in the top comment, all settings of a line together."""
    for line in head_of(name).splitlines():
        found = re.findall(r"""--set (?:"([^"]+)"|'([^']+)'|(\S+))""", line)
        settings = ["".join(quoted).rstrip(".,;:)") for quoted in found]
        if settings:
            spec = load(name, settings)
            method_class(spec.adapt.method).read_options(spec.adapt.options)
            assert spec != load(name), f"{settings} changes nothing"


# ------------------------------------------------------------------------------------------------ AGLRLS as published


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_specs_are_as_published(name: str) -> None:
    """The method's settings, written out: a changed default must not change these runs."""
    spec = load(name)
    assert spec.faithful == "published" and not list(departures(spec.model_dump(mode="json"), AGLRLS.published_options))
    net = spec.model.backbone
    assert (f"{spec.data.source[0]}-{net}", len(spec.data.source)) == (name, 1)
    assert len(spec.data.targets) == 5 and {"ck+", "jaffe", "sfew", "expw"} < set(spec.data.targets)
    assert (spec.model.local, spec.model.classifiers) == ("feature-map", "shared")
    augment = spec.data.augment
    assert (augment.flip, augment.jitter, augment.operations, augment.magnitude) == (0.5, 0.1, 3, 5)
    assert not augment.swap_landmarks and not augment.move_landmarks and augment.shared_crop
    assert (augment.crop, augment.randaugment, spec.prepare.align) == ("released", "released", "box")
    assert (spec.data.validation, spec.model.first_weights) == (0, "released")

    stage = spec.train_source
    falling = {1: 1e-3, 21: 1e-4, 41: 1e-5} if net == "mobilenet-v2" else {1: 1e-4, 11: 1e-5, 21: 1e-6}
    assert (stage.batch, stage.epochs, stage.lr, stage.head_lr_multiplier) == (64, 15, falling, 10)
    assert (stage.momentum, stage.weight_decay, stage.nesterov, stage.clip_norm) == (0.9, 2 * 5e-4, False, None)
    assert stage.late_rates and stage.select == "last"
    assert (stage.head_weights, stage.label_smoothing, stage.steps_per_epoch) == ([5, 1, 1, 1, 1, 1, 5], 0, None)

    stage = spec.adapt
    assert (stage.method, stage.batch, stage.epochs, stage.steps_per_epoch) == ("aglrls", 16, 30, None)
    assert stage.lr == {1: 1e-5, 11: 5e-6, 21: 1e-6}
    assert (stage.discriminator_lr, stage.head_lr_multiplier) == ({1: 1e-4, 21: 1e-5}, 10)
    assert (stage.head_weights, stage.momentum, stage.clip_norm) == ([7, 1, 1, 1, 1, 1, 7], 0.9, None)
    assert stage.carry_momentum
    options = method_class("aglrls").read_options(stage.options, spec.faithful)
    assert (options.reversal_counts, options.glpc_empty_sum, options.drop_last) == ("forwards", "class-0", True)
    assert (options.adversarial_weight, options.entropy_conditioning, options.reversal_steps) == (0.5, True, 10_000)
    assert (options.discriminators, options.hidden, options.threshold) == ("shared", 512, 0.95)
    assert (options.pseudo_labels, options.glpc, options.passes) == (True, True, "published")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_specs_say_how_they_differ_from_the_publication(name: str) -> None:
    head, spec = head_of(name), load(name)
    for words in (
        f"fercli adapt -c {name} --target jaffe",
        f"fercli train-source -c {name}",
        "--set faithful=corrected",
        "docs/faithful.md",
        "ORACLE",
    ):
        assert words in head
    assert spec.model.weights is not None and spec.model.weights.parent.name == "weights"
    # the file sets only what differs
    written = yaml.safe_load(packaged()[name].read_text(encoding="utf-8"))
    assert set(written) <= {"name", "faithful", "paths", "data", "model", "train_source"}
    assert set(written["model"]) == {"backbone", "weights"}


def test_the_published_specs_differ_only_in_source_and_network() -> None:
    own = {"name": True, "data": {"source", "targets"}, "model": True, "train_source": {"lr"}}
    first = load(PUBLISHED[0]).model_dump(exclude=own)
    assert all(load(name).model_dump(exclude=own) == first for name in PUBLISHED)
    bare = Spec.model_validate({"faithful": "published", "paths": {"prepared": "prepared-box"}})
    assert bare.model_dump(exclude=own) == first
    assert load("fer2013-ir18").train_source == bare.train_source == load("raf-db-ir50").train_source


# ------------------------------------------------------------------------------ methods: registry, class, spec and test


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_registered_method_matches_the_registry(name: str) -> None:
    kind = method_class(name)
    assert issubclass(kind, Method)
    assert kind.name == name
    assert kind.__doc__
    assert kind.forward is not Method.forward
    method = kind(Adapt(), kind.read_options({}), feature_dim=64, target_size=5)
    assert method.wants <= {"target", "weak", "strong"}
    assert method.decision in ("fused", "glpc")
    assert method.head_weights.shape == (7,)
    assert kind.oracle == ("oracle" in name)


def test_each_registered_method_and_nothing_else_has_a_spec() -> None:
    own = {name: load(name).adapt.method for name in NAMES if name.startswith("methods/")}
    due = {f"methods/{name}": name for name in set(METHODS) - {"source-only"}}
    assert own == due, "write configs/methods/NAME.yaml"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_registered_method_is_tested_under_its_name_or_its_class_name(name: str) -> None:
    words = {name, METHODS[name].rpartition(":")[2]}
    wanted = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(?![\w-])")
    found = [path.name for path in TESTS if path.name != Path(__file__).name and wanted.search(path.read_text())]
    assert found, f"no tests/test_*.py contains {' or '.join(sorted(words))}"
