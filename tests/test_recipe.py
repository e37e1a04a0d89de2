"""The training recipe: cosine rates, averaged weights, blended and weighed faces, grey input, mirrored answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_networks import batch, model_spec

from fercli.batches import class_weights
from fercli.engine.averaging import WeightAverage
from fercli.engine.schedule import rate_at
from fercli.methods.losses import head_cross_entropy
from fercli.models.global_local import build_network, luminance
from fercli.spec import parse


def plan(**keys):
    return parse({"train_source": keys}).train_source


@pytest.mark.parametrize(
    ("keys", "step", "expected"),
    [
        ({"rate": {1: 1.0, 3: 0.1}, "epochs": 4}, 19, 1.0),
        ({"rate": {1: 1.0, 3: 0.1}, "epochs": 4}, 20, 0.1),
        ({"rate": {1: 1.0, 3: 0.1}, "epochs": 4, "warmup_epochs": 0.5}, 0, 0.2),
        ({"rate": 1.0, "schedule": "cosine", "epochs": 4, "warmup_epochs": 1}, 9, 1.0),
        ({"rate": 1.0, "schedule": "cosine", "epochs": 4, "warmup_epochs": 1}, 25, 0.5),
        ({"rate": 1.0, "schedule": "cosine", "epochs": 4}, 39, (1 + math.cos(math.pi * 39 / 40)) / 2),
    ],
)
def test_the_rate_of_a_step(keys, step, expected):
    made = plan(**keys)
    assert rate_at(made, made.rate, step, steps_per_epoch=10) == pytest.approx(expected)


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
            whole = not value.is_floating_point()
            expected[name] = value.clone() if whole else decay * expected[name] + (1 - decay) * value
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with average.in_place():
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def test_rare_expressions_weigh_more_and_the_mean_stays_one():
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
    grey = luminance(images)
    torch.testing.assert_close(luminance(grey), grey, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images, landmarks).logits, network(grey, landmarks).logits, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_a_face_and_its_mirror_image_get_one_answer(local):
    images, landmarks, crops = batch(2)
    torch.manual_seed(0)
    network = build_network(model_spec(test_flip=True, local=local)).eval()
    order = [1, 0, 2, 4, 3]
    turned = torch.stack([111 - landmarks[..., 0], landmarks[..., 1]], -1)[:, order]
    with torch.no_grad():
        here = network(images, landmarks, crops)
        there = network(images.flip(-1), turned, crops.flip(-1)[:, order])
    torch.testing.assert_close(here.logits, there.logits, rtol=1e-4, atol=1e-5)
