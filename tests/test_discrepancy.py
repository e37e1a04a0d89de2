"""MCD and SWD: discrepancies against plain loops, each update's loss, what each update trains, and the second
classifier.

Equations: MCD, arXiv 1712.02560, section 3.3; SWD, arXiv 1903.04064.
"""

from __future__ import annotations

import math

import loops
import pytest
import torch
from tiny import Small, draw
from torch import nn

from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods.base import Outputs, Progress
from fercli.methods.mcd import MCD, classifier_discrepancy, fit
from fercli.methods.swd import SWD, random_directions, sliced_wasserstein
from fercli.models import FEATURE_SIZE, GlobalLocal
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt

B = 4
WEIGHTS = [7.0, 1, 1, 1, 1, 1, 3]


def batch_of(count: int = B, seed: int = 1) -> Batch:
    source, target = (View(draw(count, 3, 8, 8, seed=seed + k), torch.zeros(count, 5, 2)) for k in (0, 1))
    labels = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(seed))
    return Batch(source, labels, View(2 * target.images + 1, target.landmarks))


def made(kind: type[MCD] = MCD, **options) -> tuple[MCD, Small]:
    torch.manual_seed(0)
    method = kind(Adapt(head_weights=WEIGHTS), kind.read_options(options), FEATURE_SIZE, 9)
    return method.train(), Small().train()


def probabilities(count: int, seed: int) -> torch.Tensor:
    return draw(count, 7, seed=seed).double().mul(2).softmax(-1).requires_grad_()


# The discrepancies


def l1_loop(p: torch.Tensor, q: torch.Tensor, directions: None = None) -> torch.Tensor:
    return sum((p[i, c] - q[i, c]).abs() for i in range(len(p)) for c in range(7)) / (7 * len(p))


def sliced_loop(p: torch.Tensor, q: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for m in range(directions.shape[1]):
        rows = [[sum(row[c] * directions[c, m] for c in range(7)) for row in side] for side in (p, q)]
        ordered = [sorted(side, key=lambda value: value.item()) for side in rows]
        for a, b in zip(*ordered, strict=True):
            total = total + (a - b) ** 2 / (len(p) * directions.shape[1])
    return total


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", ["l1", "sliced"])
def test_a_discrepancy_equals_a_loop(name: str, count: int) -> None:
    p, q = probabilities(count, 1), probabilities(count, 2)
    directions = draw(7, 5, seed=3).double()
    directions = directions / directions.square().sum(0).sqrt()
    if name == "l1":
        value, expected = classifier_discrepancy(p, q), l1_loop(p, q)
    else:
        value, expected = sliced_wasserstein(p, q, directions), sliced_loop(p, q, directions)
    assert value > 0
    loops.assert_same(value, expected, [p, q], 1e-7, 1e-7)


def test_discrepancies_by_hand() -> None:
    # On one face the two are certain of different classes, on the other they agree: 2 / 7, halved.
    p, q = torch.eye(7)[[0, 3]], torch.eye(7)[[1, 3]]
    assert classifier_discrepancy(p, q).item() == pytest.approx(1 / 7)
    # Along class 0's axis, sorted (0, 1) against (0, 0) gives 1/2; along class 3's axis nothing differs.
    assert sliced_wasserstein(p, q, torch.eye(7)[:, [0, 3]]).item() == pytest.approx(1 / 4)
    # The largest possible value: two different certain predictions, along the line between them, (sqrt 2)^2.
    line = (torch.eye(7)[0] - torch.eye(7)[1])[:, None] / math.sqrt(2)
    assert sliced_wasserstein(p[:1], q[:1], line).item() == pytest.approx(2)


@pytest.mark.parametrize("discrepancy", [classifier_discrepancy, lambda p, q: sliced_wasserstein(p, q, draw(7, 9))])
def test_equal_predictions_have_no_discrepancy_and_no_gradient(discrepancy) -> None:
    p = probabilities(3, 1).detach().float().requires_grad_()
    value = discrepancy(p, p.detach())
    assert value.item() == 0
    assert not torch.autograd.grad(value, p)[0].any()


def test_the_sliced_discrepancy_ignores_the_order_of_the_faces() -> None:
    p, q = probabilities(5, 1).float(), probabilities(5, 2).float()
    directions = draw(7, 9)
    torch.testing.assert_close(
        sliced_wasserstein(p, q[[3, 1, 0, 4, 2]], directions), sliced_wasserstein(p, q, directions)
    )
    torch.testing.assert_close(sliced_wasserstein(q, p, directions), sliced_wasserstein(p, q, directions))


def test_directions_are_unit_columns_that_follow_the_seed() -> None:
    torch.manual_seed(4)
    p = torch.zeros(0)
    one, other = random_directions(7, 128, p), random_directions(7, 128, p)
    torch.testing.assert_close(one.norm(dim=0), torch.ones(128))
    assert not torch.equal(one, other)
    torch.manual_seed(4)
    assert torch.equal(random_directions(7, 128, p), one)


# The updates


def reference(method: MCD, network: Small, batch: Batch, update: int) -> torch.Tensor:
    """The step's loss from the paper's equations."""
    source, target = network(batch.source.images, None), network(batch.target.images, None)
    features = [output.features.reshape(B, -1) for output in (source, target)]
    if update == 1:
        features = [feature.detach() for feature in features]
    weight, bias = method.second.weight, method.second.bias
    first, second = ([c(f) for f in features] for c in (network.classifiers[-1], lambda f: f @ weight.T + bias))
    if update == 0:
        heads = loops.head_cross_entropy(source.logits, batch.labels, WEIGHTS)
        return heads + WEIGHTS[6] * loops.cross_entropy(second[0], batch.labels)
    p, q = (torch.stack([loops.softmax(row) for row in x[1]]) for x in (first, second))
    apart = l1_loop(p, q)
    if update == 1:
        own = (loops.cross_entropy(logits[0], batch.labels) for logits in (first, second))
        return WEIGHTS[6] * (sum(own) - apart)
    return WEIGHTS[6] * apart


@pytest.mark.parametrize("update", [0, 1, 2, 5])
def test_an_update_matches_its_equation(update: int) -> None:
    method, network = made()
    batch = batch_of()
    losses, logs = method(network, batch, Progress(0, 1, update))
    expected = reference(method, network, batch, update)
    loops.assert_same(sum(losses.values()), expected, [*network.parameters(), *method.parameters()])
    assert set(logs) == ({"source-accuracy"}, {"discrepancy"}, set())[min(update, 2)]


def test_swd_differs_from_mcd_only_in_the_discrepancy() -> None:
    (mcd, network), (swd, _) = made(), made(SWD, projections=16)
    batch = batch_of()
    features = network(batch.target.images, None).features.flatten(1)
    p, q = (c(features).softmax(-1) for c in (network.classifiers[-1], swd.second))
    for update, sign in ((0, 0), (1, -1), (2, 1)):
        plain = mcd(network, batch, Progress(0, 1, update)).losses
        torch.manual_seed(3)
        sliced = swd(network, batch, Progress(0, 1, update)).losses
        torch.manual_seed(3)
        apart = sliced_wasserstein(p, q, random_directions(7, 16, p))
        assert set(plain) == set(sliced)
        for name, value in sliced.items():
            expected = sign * WEIGHTS[6] * apart if name.startswith("discrepancy") else plain[name]
            torch.testing.assert_close(value, expected)


def take_update(method: MCD, network: Small, batch: Batch, update: int, optimizer: torch.optim.Optimizer) -> None:
    """One update as the engine does it."""
    loss = sum(method(network, batch, Progress(0, 1, update)).losses.values())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for parameter in method.frozen(network, update):
        parameter.grad = None
    optimizer.step()


@pytest.mark.parametrize("kind", [MCD, SWD])
def test_each_update_trains_only_what_it_should(kind: type[MCD]) -> None:
    method, network = made(kind, generator_steps=2)
    assert method.updates == 4
    named = {**dict(network.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    # Momentum and decay would change a parameter with a zero gradient.
    optimizer = torch.optim.SGD(named.values(), lr=0.05, momentum=0.9, weight_decay=0.1)
    everything = set(named)
    pair = {name for name in named if name.startswith(("classifiers.2.", "method.second."))}
    before_classifiers = {name for name in named if name.startswith(("backbone.", "spread."))}
    batch = batch_of()
    for update, expected in enumerate((everything, pair, before_classifiers, before_classifiers)):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        take_update(method, network, batch, update, optimizer)
        assert {name for name in named if not torch.equal(named[name], before[name])} == expected, update


def test_the_updates_raise_and_lower_the_discrepancy() -> None:
    method, network = made()
    batch = batch_of()
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=0.02)

    def apart() -> torch.Tensor:
        return method(network, batch, Progress(0, 1, 1)).logs["discrepancy"]

    start = apart()
    assert not start.requires_grad
    method(network, batch, Progress(0, 1, 1)).losses["discrepancy-raised"].backward()
    optimizer.step()
    raised = apart()
    assert raised > start
    for update in (2, 3, 4, 5):
        take_update(method, network, batch, update, optimizer)
    assert apart() < raised


# Batch norm


def test_every_pass_has_one_domain_and_updates_the_running_statistics() -> None:
    method, network = made()
    norm, batch = network.backbone[1], batch_of()

    def moments(view: View) -> torch.Tensor:
        return network.backbone[0](view.images).mean((0, 2, 3))

    seen = {0: [batch.source], 1: [batch.source, batch.target], 2: [batch.target]}
    for update, views in seen.items():
        expected = norm.running_mean.clone()
        for view in views:
            expected = 0.9 * expected + 0.1 * moments(view)
        method(network, batch, Progress(0, 1, update))
        torch.testing.assert_close(norm.running_mean, expected)


# The second classifier


class Given:
    """An evaluator of faces whose features are known; it counts its calls."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.seen, self.asked = Outputs(torch.zeros(len(labels), 7, 7), features, labels), 0

    def source(self) -> Outputs:
        self.asked += 1
        return self.seen


def test_the_second_classifier_is_fitted_to_the_source_once() -> None:
    method, network = made()
    labels = torch.arange(28) % 6  # no face of class 6
    features = draw(28, 6, FEATURE_SIZE).abs() + 2 * torch.eye(7)[labels].repeat(1, 10)[:, None, :FEATURE_SIZE]
    evaluator = Given(features, labels)
    start = method.second.weight.clone()
    assert not torch.equal(start, network.classifiers[-1].weight)
    with torch.no_grad():  # the engine may call it like this
        method.begin_epoch(evaluator)
    assert (method.second(features.flatten(1)).argmax(-1) == labels).all()
    assert all(p.grad is None for p in method.parameters())
    fitted = method.second.weight.clone()
    other, _ = made()
    other.load_state_dict(method.state_dict())  # a resumed run
    for again in (method, other):
        again.begin_epoch(evaluator)
        assert torch.equal(again.second.weight, fitted)
    assert evaluator.asked == 1


def test_the_fit_finds_the_minimum() -> None:
    # At the minimum with weight decay, the gradient of the penalised loss is zero.
    torch.manual_seed(1)
    classifier, features = nn.Linear(5, 7).double(), draw(40, 5).double()
    labels = torch.randint(0, 7, (40,), generator=torch.Generator().manual_seed(2))
    fit(classifier, features, labels, 0.1)
    loss = loops.cross_entropy(classifier(features), labels) + 0.05 * sum(
        p.square().sum() for p in classifier.parameters()
    )
    for gradient in torch.autograd.grad(loss, list(classifier.parameters())):
        assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("labels", [[3], [2, 2, 2]])
def test_the_fit_accepts_one_face_and_one_class(labels: list[int]) -> None:
    classifier, wanted = nn.Linear(5, 7), torch.tensor(labels)
    fit(classifier, draw(len(labels), 5), wanted, 1e-3)
    assert all(torch.isfinite(p).all() for p in classifier.parameters())
    assert (classifier(draw(len(labels), 5)).argmax(-1) == wanted).all()


def test_warm_start_can_be_switched_off() -> None:
    method, _ = made(warm_start=False)
    method.begin_epoch(None)  # the source is not read
    assert method.fitted


def test_the_updates_train_the_real_network_as_they_should() -> None:
    torch.manual_seed(0)
    network = GlobalLocal(build_backbone("ir-small", 4)).train()
    method = MCD(Adapt(), MCD.read_options({"generator_steps": 1}), FEATURE_SIZE, 9)
    faces = [View(draw(2, 3, 112, 112, seed=k), torch.full((2, 5, 2), 50.0)) for k in (1, 2)]
    batch = Batch(faces[0], torch.tensor([1, 4]), faces[1])
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=0.01, weight_decay=0.1)
    for update, (backbone, heads, fused) in enumerate(((True, True, True), (False, False, True), (True, False, False))):
        parts = network.backbone, network.classifiers[:2], network.classifiers[-1]
        before = [[p.detach().clone() for p in part.parameters()] for part in parts]
        take_update(method, network, batch, update, optimizer)
        moved = [
            any(not torch.equal(a, b) for a, b in zip(part.parameters(), old, strict=True))
            for part, old in zip(parts, before, strict=True)
        ]
        assert moved == [backbone, heads, fused], update


@pytest.mark.parametrize("update", range(3))
def test_a_batch_of_one_face_has_a_loss(update: int) -> None:
    method, network = made()
    losses = method(network, batch_of(1), Progress(0, 1, update)).losses
    assert torch.isfinite(sum(losses.values()))
