"""``faithful: published | corrected``, and the protocol options that it sets: each takes effect in a real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Bench, told
from tiny import model_spec

from fercli.engine import checkpoint
from fercli.engine.schedule import rate_in, set_rates
from fercli.errors import SpecError
from fercli.loading.samplers import ShuffledSampler
from fercli.methods import method_class
from fercli.models.build import build_network
from fercli.spec import load, parse
from fercli.spec.fidelity import PUBLISHED, departures
from fercli.spec.registry import METHODS
from fercli.spec.schema import TrainSource
from fercli.spec.template import to_template


def at(tree: dict, path: str):
    for key in path.split("."):
        tree = tree[key]
    return tree


# ------------------------------------------------------------------------------------------------------- the switch


def test_published_sets_what_the_spec_does_not() -> None:
    corrected, published = parse({}).model_dump(mode="json"), parse({"faithful": "published"}).model_dump(mode="json")
    for path, value in PUBLISHED.items():
        assert at(published, path) == value != at(corrected, path), path
    assert parse({"faithful": "corrected"}) == parse({})
    for path in PUBLISHED:  # nothing else differs
        *parents, last = path.split(".")
        at(published, ".".join(parents))[last] = at(corrected, path)
    assert {**published, "faithful": "corrected"} == corrected
    mine = parse({"faithful": "published", "data": {"validation": 0.2}, "prepare": {"align": "template"}})
    assert (mine.data.validation, mine.prepare.align, mine.data.augment.crop) == (0.2, "template", "released")
    assert list(departures(mine.model_dump(mode="json"), {})) == [
        "prepare.align template (published: box)",
        "data.validation 0.2 (published: 0)",
    ]


def test_a_resolved_spec_and_a_file_to_edit_stay_unchanged() -> None:
    """Even if the spec sets a published key back."""
    spec = parse({"faithful": "published", "data": {"validation": 0.1, "augment": {"shared_crop": False}}})
    assert parse(json.loads(spec.model_dump_json())) == spec
    assert parse(yaml.safe_load(to_template(spec))) == spec


def test_a_method_s_published_options_are_its_defaults_then() -> None:
    for name in METHODS:
        kind = method_class(name)
        plain, published = kind.read_options({}), kind.read_options({}, "published")
        for key, value in kind.published_options.items():
            assert getattr(published, key) == value != getattr(plain, key)
            assert kind.read_options({key: getattr(plain, key)}, "published") == published.model_copy(
                update={key: getattr(plain, key)}
            )
        assert bool(kind.published_options) == (name in ("aglrls", "cglrl", "cglrl-oracle"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["faithful=paper"], "faithful: 'paper' is not allowed"),
        (["data.validation=0"], "train_source.select: source-val needs held-out source faces"),
        (["data.validation=0", "train_source.select=last", "adapt.select=source-val"], "adapt.select: source-val"),
        (["data.validation=0", "train_source.select=last", "adapt.also_score=dev"], "adapt.also_score: dev"),
        (["data.validation=-0.1"], "is neither a fraction"),
        (["faithful=published", "data=5"], "data: "),
    ],
)
def test_impossible_settings_are_reported(settings: list[str], words: str) -> None:
    with pytest.raises(SpecError, match=words.replace(".", r"\.")):
        load("default", settings)


def test_a_grid_over_the_switch_is_refused() -> None:
    from fercli.sweep.plan import plan

    spec = load("default", ["sweep.methods=[aglrls]", "sweep.grid={faithful: [corrected, published]}"])
    with pytest.raises(SpecError, match="faithful sets other keys and cannot be in the grid; run a second sweep"):
        plan(spec)


# ------------------------------------------------------------------------------------------------- the whole protocol


@pytest.fixture(scope="module")
def published(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A run with published settings, from photographs to a report, on its own stores."""
    folder = tmp_path_factory.mktemp("published")
    changes = {"faithful": "published", "paths.data": str(prepared.parent / "data"), "adapt.epochs": 1}
    bench = Bench(folder, folder / "prepared-box", changes)
    bench.done("prepare", "--quiet")
    bench.done("train-source", "--quiet")
    bench.done("adapt", "--target", "jaffe", "--quiet")
    return bench


def test_a_published_run_trains_on_all_faces_and_is_scored(published: Bench) -> None:
    document = published.json("evaluate", "--report")
    assert document["departures"] == []
    assert "Settings of AGLRLS’s released code" in (published.runs / "report/report.html").read_text()
    by_dataset = {(entry["dataset"], entry["folder"]): entry for entry in document["entries"]}
    assert set(by_dataset) == {("raf-db", "source"), ("jaffe", "source"), ("jaffe", "adapt-jaffe")}
    entry = by_dataset["jaffe", "adapt-jaffe"]
    assert entry["calibration"]["fitted_on"] == 0 and entry["calibration"]["temperature"] == 1
    assert "source-val" not in entry["rules"] and entry["decision"] == "glpc"
    lines = [json.loads(line) for line in (published.runs / "source/metrics.jsonl").read_text().splitlines()]
    assert all(set(line["scores"]) == {"last"} for line in lines if line["kind"] == "validate")
    # The domain gap is measured on the source's test part, which nothing was trained on.
    assert document["gaps"][0]["models"][0]["energy_distance"] is not None
    kept = checkpoint.load(published.runs / "source/best.ckpt")
    assert kept["best"]["epoch"] == kept["epoch"] == kept["spec"]["train_source"]["epochs"]


def test_a_store_of_another_alignment_is_refused(published: Bench, prepared: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, prepared, {"faithful": "published"})
    said = told(bench("train-source"))
    assert f"{prepared / 'raf-db'} was not prepared with the spec's settings: align template" in said


# --------------------------------------------------------------------------------------------------------- its parts


def test_the_momentum_of_stage_1_continues_in_stage_2(published: Bench, prepared: Path, tmp_path: Path) -> None:
    """The first step of stage 2 moves a weight by the rate times the step of plain SGD with the old momentum."""
    without = Bench(tmp_path, prepared, {})
    without.done("train-source", "--quiet")
    said = told(without("adapt", "--target", "jaffe", "--set", "adapt.carry_momentum=true"))
    assert "its momentum was not kept" in said and "train-source" in said

    state = checkpoint.load(published.runs / "source/best.ckpt")
    moved = {}
    for carried in (True, False):
        bench = Bench(tmp_path / str(carried), published.prepared, {**published.changes, "adapt.tag": "one"})
        (bench.runs / "source").mkdir(parents=True)
        (bench.runs / "source/best.ckpt").symlink_to(published.runs / "source/best.ckpt")
        one = [f"adapt.carry_momentum={carried}", "adapt.steps_per_epoch=1", "adapt.lr=0.001", "adapt.clip_norm=null"]
        settings = [text for setting in one for text in ("--set", setting)]
        bench.done("adapt", "--target", "jaffe", "--quiet", *settings)
        moved[carried] = checkpoint.load(bench.runs / "adapt-jaffe-one/best.ckpt")["network"]
    spec = state["spec"]
    optimizer = state["optimizer"]
    names = [name for name, _ in build_network(model_spec(**spec["model"])).named_parameters()]
    backbone = [n for n in names if n.startswith("backbone.") and not n.startswith("backbone.project_")]
    new = [n for n in names if n not in backbone]
    for group, members, scale in zip(optimizer["param_groups"], (backbone, new), (1, None), strict=True):
        scale = scale or spec["train_source"]["head_lr_multiplier"]
        for number, name in zip(group["params"], members, strict=True):
            buffer = optimizer["state"][number]["momentum_buffer"]
            expected = -0.001 * scale * 0.9 * buffer
            found = moved[True][name] - moved[False][name]
            # The subtraction rounds to the precision of the weights.
            slack = 4e-7 * moved[True][name].abs().max().item()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=slack)


def test_rates_come_one_step_late_and_the_first_step_has_no_factors() -> None:
    plan = TrainSource(late_rates=True)
    groups = [{"rates": plan.lr, "scale": 1.0}, {"rates": plan.lr, "scale": 10.0}]
    for step in (0, 1, 2, 99, 100, 101):  # ten steps per epoch: the rate falls in epoch 11, at step 100
        set_rates(plan, groups, step, 10)
        if step == 0:
            expected = [(1e-4, plan.weight_decay / 2)] * 2
        else:
            rate = rate_in(plan.lr, 10 if step <= 100 else 11)
            expected = [(rate, plan.weight_decay), (10 * rate, plan.weight_decay)]
        found = [(group["lr"], group["weight_decay"]) for group in groups]
        assert np.array(found) == pytest.approx(np.array(expected))
    set_rates(TrainSource(), groups, 100, 10)
    assert [group["lr"] for group in groups] == pytest.approx([1e-5, 1e-4])


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_first_weights_as_released(local: str) -> None:
    """Crop nets start equal. Convolutions have torch's default weights and biases, heads Xavier-normal without bias."""
    torch.manual_seed(0)
    network = build_network(model_spec(first_weights="released", local=local, backbone="ir18"))
    first, *others = (net.state_dict() for net in network.local_nets.nets)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    conv = network.global_head.conv
    bound = 1 / np.sqrt(conv.in_channels * 9)  # Kaiming-uniform with a slope of sqrt 5, and torch's biases
    assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert 0 < conv.bias.abs().max().item() <= bound
    for head in network.classifiers:
        assert not head.bias.any()
        assert head.weight.std().item() == pytest.approx(np.sqrt(2 / sum(head.weight.shape)), rel=0.1)
        assert head.weight.abs().max() > np.sqrt(6 / sum(head.weight.shape))  # more than Xavier-uniform can draw
    torch.manual_seed(0)
    plain = build_network(model_spec(local=local, backbone="ir18"))
    ratio = plain.global_head.conv.weight.std() / conv.weight.std()
    assert ratio.item() == pytest.approx(np.sqrt(6), rel=0.02)


def test_a_sampler_of_whole_batches() -> None:
    """The last 13 - 12 places of every permutation are left out; otherwise it draws as usual."""
    whole, every = ShuffledSampler(13, 5, multiple=4), ShuffledSampler(13, 5)
    for number in range(5):
        drawn = whole.take(12 * number, 12).tolist()
        assert drawn == every.take(13 * number, 12).tolist() and len(set(drawn)) == 12
    assert sorted(ShuffledSampler(3, 5, multiple=16).take(0, 3).tolist()) == [0, 1, 2]  # fewer than a batch: all


def test_a_source_without_any_face_left_to_score(prepared: Path, tmp_path: Path) -> None:
    """JAFFE is trained on as a whole: no face of it is left to score, to measure the domain gap or to fit on."""
    changes = {"data.source": "jaffe", "data.targets": ["raf-db"], "data.validation": 0, "train_source.select": "last"}
    bench = Bench(tmp_path, prepared, changes)
    bench.done("train-source", "--quiet")
    bench.done("adapt", "--target", "raf-db", "--quiet", "--set", "adapt.epochs=1")
    result = bench.done("evaluate", "--report", "--json")
    document = json.loads(result.stdout)
    entries = {(entry["dataset"], entry["folder"]): entry for entry in document["entries"]}
    at_home, adapted = entries["jaffe", "source"], entries["raf-db", "adapt-raf-db"]
    assert (at_home["found"], at_home["scored"], at_home["heads"]["fused"]) == (0, 0, None)
    assert adapted["scored"] == 42 and adapted["calibration"]["fitted_on"] == 0
    assert {model["energy_distance"] for gap in document["gaps"] for model in gap["models"]} == {None}
    assert "none were held out of training" in (bench.runs / "report/report.html").read_text()
