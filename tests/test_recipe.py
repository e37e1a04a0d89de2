"""The training recipe: cosine rates, averaged weights, mixed and weighted faces, grey input, mirrored predictions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bench, told
from tiny import batch, model_spec
from trained_runs import assert_same_run, stopped

from fercli.engine import checkpoint, distributed
from fercli.engine.averaging import WeightAverage
from fercli.engine.schedule import rate_at
from fercli.engine.sharding import shard_of
from fercli.loading.augment import ViewSettings
from fercli.loading.batches import Batches, SourceRecipe, class_weights
from fercli.loading.face_dataset import FaceDataset
from fercli.methods.losses import head_cross_entropy
from fercli.models.build import build_network
from fercli.models.global_local import Luminance
from fercli.spec import parse
from fercli.store import Store

CPU = torch.device("cpu")
RECIPE = {
    "train_source.lr": 0.01,
    "train_source.schedule": "cosine",
    "train_source.warmup_epochs": 0.5,
    "train_source.ema": 0.9,
    "train_source.mixup": 0.4,
    "train_source.class_balance": 0.5,
    "train_source.label_smoothing": 0.1,
    "train_source.views": "strong",
    "model.input": "grey",
    "model.test_flip": True,
}


def plan(**keys):
    return parse({"train_source": keys}).train_source


@pytest.mark.parametrize(
    ("keys", "step", "expected"),
    [
        ({"lr": {1: 1.0, 3: 0.1}, "epochs": 4}, 19, 1.0),
        ({"lr": {1: 1.0, 3: 0.1}, "epochs": 4}, 20, 0.1),
        ({"lr": {1: 1.0, 3: 0.1}, "epochs": 4, "warmup_epochs": 0.5}, 0, 0.2),
        ({"lr": 1.0, "schedule": "cosine", "epochs": 4, "warmup_epochs": 1}, 9, 1.0),
        ({"lr": 1.0, "schedule": "cosine", "epochs": 4, "warmup_epochs": 1}, 25, 0.5),
        ({"lr": 1.0, "schedule": "cosine", "epochs": 4}, 39, (1 + math.cos(math.pi * 39 / 40)) / 2),
    ],
)
def test_the_rate_of_a_step(keys, step, expected):
    made = plan(**keys)
    assert rate_at(made, made.lr, step, steps_per_epoch=10) == pytest.approx(expected)


def test_the_average_is_that_of_a_plain_loop_and_gives_the_weights_back():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(network, [], 0.9)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(4, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():  # counters are not averaged
                expected[name] = decay * expected[name] + (1 - decay) * value
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with average.in_place():
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def test_rare_expressions_have_more_weight_and_the_mean_stays_one():
    labels = np.array([0] * 8 + [1] * 2 + [2] * 4)
    weights = class_weights(labels, 1.0)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(weights[:3] * [8, 2, 4], 14 / 3, rtol=1e-6)
    assert not weights[3:].any()
    np.testing.assert_allclose(class_weights(labels, 0.0)[labels], 1)


def test_soft_labels_of_one_expression_cost_what_labels_cost():
    torch.manual_seed(0)
    logits, labels, heads = torch.randn(5, 7, 7), torch.tensor([0, 6, 3, 3, 1]), torch.rand(7)
    soft = torch.nn.functional.one_hot(labels, 7).float()
    for smoothing in (0.0, 0.2):
        hard = head_cross_entropy(logits, labels, heads, smoothing)
        torch.testing.assert_close(head_cross_entropy(logits, soft, heads, smoothing), hard)
        torch.testing.assert_close(head_cross_entropy(logits, 2 * soft, heads, smoothing), 2 * hard)


def test_a_grey_network_sees_no_colour():
    images, landmarks, _ = batch(2)
    torch.manual_seed(0)
    network = build_network(model_spec(input="grey")).eval()
    grey = Luminance()(images)
    torch.testing.assert_close(Luminance()(grey), grey, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images, landmarks).logits, network(grey, landmarks).logits, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_a_face_and_its_mirror_image_get_the_same_prediction(local):
    images, landmarks, crops = batch(2)
    torch.manual_seed(0)
    network = build_network(model_spec(test_flip=True, local=local)).eval()
    order = [1, 0, 2, 4, 3]
    turned = torch.stack([111 - landmarks[..., 0], landmarks[..., 1]], -1)[:, order]
    with torch.no_grad():
        here = network(images, landmarks, crops)
        there = network(images.flip(-1), turned, crops.flip(-1)[:, order])
    torch.testing.assert_close(here.logits, there.logits, rtol=1e-4, atol=1e-5)


def batches_of(prepared: Path, recipe: SourceRecipe, settings: ViewSettings) -> tuple[Batches, Store]:
    store = Store.open(prepared / "raf-db")
    faces = FaceDataset([store], [np.arange(len(store.labels))], CPU, with_crops=True)
    return Batches(faces, store.labels, None, frozenset(), 8, 0, settings, CPU, recipe=recipe, shard=shard_of), store


def test_blended_faces_are_those_of_a_plain_loop(prepared: Path) -> None:
    still = ViewSettings(flip=0, jitter=0)
    blended, store = batches_of(prepared, SourceRecipe(mixup=0.4), still)
    plain, _ = batches_of(prepared, SourceRecipe(), still)
    mixed, own = blended(3), plain(3)
    assert torch.equal(mixed.labels, own.labels)
    assert own.soft_labels is None
    share = blended._own_share(3)
    assert 0.5 <= share <= 1
    rows = [position for position, _, _ in blended.names(3)["source"]]
    for i, row in enumerate(rows):
        other = rows[i - 1]
        for array, part in ((store.faces, mixed.source.images), (store.crops, mixed.source.crops)):
            expected = np.round(share * array[row].astype(float) + (1 - share) * array[other].astype(float))
            made = part[i] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
                [0.485, 0.456, 0.406]
            ).view(3, 1, 1)
            if array is store.faces:
                expected = expected[14:-14, 14:-14]
            axes = (2, 0, 1) if expected.ndim == 3 else (0, 3, 1, 2)
            assert np.abs(255 * made.numpy() - expected.transpose(axes)).max() < 1.01
        wanted = torch.zeros(7)
        wanted[store.labels[row]] += share
        wanted[store.labels[other]] += 1 - share
        torch.testing.assert_close(mixed.soft_labels[i], wanted)
        assert torch.equal(mixed.source.landmarks[i], own.source.landmarks[i])


def test_shares_of_a_blended_batch_add_up_to_the_batch(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _ = batches_of(prepared, SourceRecipe("strong", 0.4, 0.5), ViewSettings())
    whole = batches(1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = batches(1)
        assert torch.equal(share.soft_labels, whole.soft_labels)
        for part, all_of_it in zip(share.source.inputs, whole.source.inputs, strict=True):
            assert torch.equal(part, all_of_it[rank::2])


def test_weights_of_a_batch_are_those_of_its_classes(prepared: Path) -> None:
    batches, store = batches_of(prepared, SourceRecipe(class_balance=1.0), ViewSettings())
    made = batches(0)
    expected = class_weights(store.labels, 1.0)[made.labels.numpy()]
    np.testing.assert_allclose(made.soft_labels.sum(1), expected, rtol=1e-6)


@pytest.mark.parametrize("step", [1, 4])
def test_a_stopped_training_with_the_whole_recipe_resumes_to_the_same_bits(
    step: int, tmp_path: Path, prepared: Path
) -> None:
    whole, other = (Bench(tmp_path / name, prepared, RECIPE) for name in ("whole", "stopped"))
    whole.done("train-source", "--quiet")
    stopped(other, "train-source", step)
    other.done("train-source", "--quiet")
    assert_same_run(other.runs / "source", whole.runs / "source")
    averages = [checkpoint.load(bench.runs / "source/last.ckpt")["average"] for bench in (whole, other)]
    assert all(map(torch.equal, *averages))


def test_the_average_is_what_is_saved(tmp_path: Path, prepared: Path) -> None:
    bench = Bench(tmp_path / "bench", prepared, {"train_source.ema": 0.9, "train_source.select": "last"})
    bench.done("train-source", "--quiet")
    best, last = (checkpoint.load(bench.runs / f"source/{name}.ckpt") for name in ("best", "last"))
    same = [torch.equal(*pair) for pair in zip(best["network"].values(), last["average"], strict=True)]
    assert all(same)
    assert not torch.equal(best["network"]["classifiers.0.weight"], last["network"]["classifiers.0.weight"])


def test_an_adaptation_averages_too(make_adapting) -> None:
    bench = make_adapting("averaged", {"adapt.ema": 0.9, "adapt.schedule": "cosine", "adapt.lr": 0.005})
    bench.done("adapt", "--target", "jaffe", "--quiet")
    assert "average" in checkpoint.load(bench.runs / "adapt-jaffe/last.ckpt")


def test_epochs_along_a_cosine_cannot_be_raised(tmp_path: Path, prepared: Path) -> None:
    bench = Bench(tmp_path / "bench", prepared, RECIPE)
    bench.done("train-source", "--quiet")
    assert "train_source.epochs 2 -> 3" in told(bench("train-source", "--set", "train_source.epochs=3"), 1)


@pytest.mark.parametrize(
    ("validation", "told_of"),
    [
        ("test", None),
        ("train", ["data.validation: raf-db trains on its split train"]),
        ("public-test", ["no labelled face in a split public-test", "splits not used for training: test"]),
    ],
)
def test_a_split_of_the_source_chooses_the_epoch(validation, told_of, tmp_path: Path, prepared: Path) -> None:
    bench = Bench(tmp_path / "bench", prepared, {"data.validation": validation})
    result = bench("train-source", "--quiet")
    if told_of is None:
        assert result.exit_code == 0, result.stderr
        assert (bench.runs / "source/best.ckpt").exists()
    else:
        line = told(result, 1)
        assert all(text in line for text in told_of)


def test_cosine_needs_a_single_rate(bench: Bench) -> None:
    settings = ("--set", "train_source.schedule=cosine", "--set", "train_source.lr={1: 0.1, 2: 0.01}")
    assert "needs a single initial rate; set lr to one number" in told(bench("train-source", *settings), 2)


def test_a_resolved_spec_with_a_cosine_reads_back() -> None:
    made = parse({"train_source": {"schedule": "cosine"}, "adapt": {"schedule": "cosine"}})
    assert parse(made.model_dump(mode="json")) == made
    assert rate_at(made.adapt, made.adapt.discriminator_lr, 0, 10) == pytest.approx(1e-4)
