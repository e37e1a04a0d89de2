"""SHOT, AaD, NRC, AGLRLS without a source, AdaBN, Tent and SAR against plain loops (values and gradients)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import loops
import pytest
import torch
import torch.nn.functional as F
from tiny import Looking, NormedTiny, Tiny, batch, draw, pictures, sure, view
from torch import Tensor, nn

from fercli.errors import FercliError
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.base import Method, Outputs, Progress, Step
from fercli.methods.sharpness import perturbed
from fercli.methods.shot import centroid_labels
from fercli.methods.source_free import batch_norms, information_maximisation, norm_parameters
from fercli.models import FEATURE_SIZE, GlobalLocal, Output
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt

N, STEP = 12, 700
WEIGHTS = [5.0, 1, 1, 2, 1, 0.5, 7]
SOURCE_FREE = ["aad", "adabn", "aglrls-sf", "nrc", "sar", "shot", "tent"]
TRAINING = [name for name in SOURCE_FREE if name != "adabn"]


def made(name: str, network: nn.Module, **options) -> Method:
    """A method as it is before the engine's first step: after `begin`, and after `begin_epoch` on 12 faces."""
    torch.manual_seed(0)
    kind = method_class(name)
    method = kind(Adapt(head_weights=WEIGHTS), kind.read_options(options), FEATURE_SIZE, N)
    method.begin(network)
    method.begin_epoch(Looking(network, faces(network)))
    return method


def faces(network: nn.Module, seed: int = 20) -> View:
    """All target faces, for `Looking`."""
    if isinstance(network, GlobalLocal):
        images, landmarks, _ = batch(N)
        return View(images, landmarks)
    return view(seed, N)


def seen_by(method: Method, indices: tuple[int, ...] = (7, 2, 11, 5, 0), scale: float = 1.5) -> Batch:
    """A batch without a source, with the views that a method needs."""
    target, weak, strong = (
        view(seed, len(indices), scale) if name in method.wants else None
        for seed, name in ((2, "target"), (3, "weak"), (4, "strong"))
    )
    return Batch(None, None, target, weak, strong, torch.tensor(indices))


# The references: loops written from the equations


def entropy(p: Tensor) -> Tensor:
    return -sum(x * (x + 1e-5).log() for x in p)


def information_loop(logits: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for h, weight in enumerate(WEIGHTS):
        each = [loops.softmax(row) for row in logits[:, h]]
        total = total + weight * (sum(entropy(p) for p in each) / len(each) - entropy(sum(each) / len(each)))
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt()))


def centroid_loop(seen: Outputs, weights: list[float]) -> list[int]:
    """SHOT's labels, face by face, class by class, head by head."""
    count, share = len(seen.probabilities), [w / sum(weights) for w in weights]

    def feature(i: int, h: int) -> Tensor:
        own = seen.features[i].flatten() if h == 6 else seen.features[i, h]
        own = torch.cat([own, torch.ones(1)]).double()
        return own / (own * own).sum().sqrt()

    labels = []
    for i in range(count):
        mean = [sum(share[h] * float(seen.probabilities[i, h, c]) for h in range(7)) for c in range(7)]
        labels.append(mean.index(max(mean)))
    for turn in range(2):
        near = {}
        for c in set(labels):
            for h in range(7):
                member = [
                    float(seen.probabilities[i, h, c]) if turn == 0 else float(labels[i] == c) for i in range(count)
                ]
                centroid = sum(m * feature(i, h) for i, m in enumerate(member)) / sum(member)
                for i in range(count):
                    near[i, c] = near.get((i, c), 0) + share[h] * cosine(feature(i, h), centroid)
        labels = [max(sorted(set(labels)), key=lambda c, i=i: near[i, c]) for i in range(count)]
    return labels


class Bank:
    """The bank of AaD and NRC as lists."""

    def __init__(self, network: nn.Module) -> None:
        seen = Looking(network, faces(network)).target()
        self.features = [row.flatten() for row in seen.features]
        self.answers = list(seen.probabilities[:, 6])

    def update(self, indices: Tensor, output: Output) -> list[Tensor]:
        each = [loops.softmax(row) for row in output.logits[:, 6]]
        for i, index in enumerate(indices.tolist()):
            self.features[index], self.answers[index] = output.features[i].flatten().detach(), each[i].detach()
        return each

    def nearest(self, own: int, count: int) -> list[int]:
        others = [j for j in range(len(self.features)) if j != own]
        return sorted(others, key=lambda j: -cosine(self.features[own], self.features[j]))[:count]


def aad_loop(method: Method, network: nn.Module, seen: Batch, step: int) -> dict[str, Tensor]:
    bank, options = Bank(network), method.options
    each = bank.update(seen.indices, network(*seen.weak.inputs))
    attraction = dispersion = torch.zeros(())
    for i, index in enumerate(seen.indices.tolist()):
        for k in bank.nearest(index, options.neighbours):
            attraction = attraction - (each[i] * bank.answers[k]).sum() / len(each)
        for j in range(len(each)):
            if j != i:
                dispersion = dispersion + (each[i] * each[j]).sum() / len(each)
    strength = options.alpha / (1 + 10 * step / options.decay_steps) ** options.beta
    return {"attraction": 7 * attraction, "dispersion": 7 * strength * dispersion}


def nrc_loop(method: Method, network: nn.Module, seen: Batch) -> dict[str, Tensor]:
    bank, options = Bank(network), method.options
    each = bank.update(seen.indices, network(*seen.weak.inputs))
    losses = dict.fromkeys(("neighbours", "expanded", "self"), torch.zeros(()))
    for i, index in enumerate(seen.indices.tolist()):
        for k in bank.nearest(index, options.neighbours):
            further = bank.nearest(k, options.expanded)
            affinity = 1 if index in further else options.affinity
            losses["neighbours"] = losses["neighbours"] - 7 * affinity * (each[i] * bank.answers[k]).sum() / len(each)
            for m in further:
                if m != index:
                    alike = (each[i] * bank.answers[m]).sum()
                    losses["expanded"] = losses["expanded"] - 7 * options.affinity * alike / len(each)
        losses["self"] = losses["self"] - 7 * (each[i] * bank.answers[index]).sum() / len(each)
    return {**losses, "diversity": -7 * entropy(sum(each) / len(each))}


def reliable_loop(logits: Tensor, kept: list[set[int]], limit: float) -> tuple[Tensor, list[set[int]], float]:
    """SAR's loss over each head's kept faces that are below the limit, these faces, and their weighted mean."""
    loss, left, total, mass = logits.new_zeros(()), [], 0.0, 0.0
    for h, weight in enumerate(WEIGHTS):
        each = {i: entropy(loops.softmax(logits[i, h])) for i in kept[h]}
        below = {i for i, value in each.items() if float(value.detach()) < limit}
        left.append(below)
        for i in below:
            loss = loss + weight * each[i] / len(below)
            total, mass = total + weight * float(each[i].detach()), mass + weight
    return loss, left, total / mass if mass else math.nan


def sar_loop(method: Method, network: nn.Module, seen: Batch) -> tuple[Tensor, nn.Module, float]:
    """The loss at the perturbed weights, a copy of the network with them, and the mean for the moving average."""
    limit, every = method.options.margin * math.log(7), [set(range(len(seen.indices)))] * 7
    first, kept, _ = reliable_loop(network(*seen.target.inputs).logits, every, limit)
    moved = copy.deepcopy(network)
    gradients = torch.autograd.grad(first, list(network.norm.parameters()))
    norm = sum(float((g * g).sum()) for g in gradients) ** 0.5
    with torch.no_grad():
        for parameter, gradient in zip(moved.norm.parameters(), gradients, strict=True):
            parameter += method.options.rho * gradient / norm
    loss, _, mean = reliable_loop(moved(*seen.target.inputs).logits, kept, limit)
    return loss, moved, mean


def expected_losses(method: Method, network: nn.Module, seen: Batch, step: int) -> dict[str, Tensor]:
    options, name = method.options, method.name
    if name == "aad":
        return aad_loop(method, network, seen, step)
    if name == "nrc":
        return nrc_loop(method, network, seen)
    if name == "tent":
        logits = network(*seen.target.inputs).logits
        each = [sum(entropy(loops.softmax(row)) for row in logits[:, h]) / len(logits) for h in range(7)]
        return {"entropy": sum(weight * value for weight, value in zip(WEIGHTS, each, strict=True))}
    weak = network(*seen.weak.inputs).logits
    losses = {"information": options.information_weight * information_loop(weak)}
    if name == "shot":
        labels = centroid_loop(Looking(network, faces(network)).target(), WEIGHTS)
        pseudo = loops.head_cross_entropy(weak, torch.tensor([labels[i] for i in seen.indices]), WEIGHTS)
    else:
        strong, status = network(*seen.strong.inputs).logits, torch.zeros(7, 7)
        pseudo = loops.pseudo_label_loss(weak, strong, status, WEIGHTS, options.threshold)[0]
    return losses | {"pseudo": options.pseudo_weight * pseudo}


@pytest.mark.parametrize(
    ("name", "options", "logs"),
    [
        ("shot", {}, {"pseudo-agreement"}),
        ("shot", {"pseudo_weight": 2, "information_weight": 0.5}, {"pseudo-agreement"}),
        ("aad", {}, {"dispersion-weight"}),
        ("aad", {"neighbours": 5, "alpha": 2, "beta": 2, "decay_steps": 3000}, {"dispersion-weight"}),
        ("aad", {"neighbours": 50}, {"dispersion-weight"}),  # more than exist: all others
        ("nrc", {}, {"mutual-neighbours"}),
        ("nrc", {"neighbours": 4, "expanded": 2, "affinity": 0.4}, {"mutual-neighbours"}),
        ("nrc", {"neighbours": 2, "expanded": 50}, {"mutual-neighbours"}),
        ("aglrls-sf", {"threshold": 0.8}, {f"pseudo-rate/{head}" for head in ("global", "nose", "fused")}),
        ("aglrls-sf", {"threshold": 0.6, "pseudo_weight": 2, "information_weight": 3}, set()),
        ("tent", {}, {"entropy/fused"}),
    ],
)
def test_a_method_is_the_sum_of_its_equations(name: str, options: dict, logs: set[str]) -> None:
    network = NormedTiny()
    method = made(name, network, **options)
    seen = seen_by(method)
    expected = expected_losses(method, network, seen, STEP)
    step = method(network, seen, Progress(STEP, 1))
    assert set(step.losses) == set(expected)
    assert logs <= set(step.logs)
    views = [v.images for v in (seen.target, seen.weak, seen.strong) if v is not None]
    wanted = [*network.parameters(), *views]
    for key, value in expected.items():
        assert abs(value) > 1e-3, key
        torch.testing.assert_close(step.losses[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        both = [torch.autograd.grad(x, wanted, retain_graph=True, allow_unused=True) for x in (step.losses[key], value)]
        assert any(g is not None and bool(g.any()) for g in both[0]), key
        for ours, plain in zip(*both, strict=True):
            ours, plain = (torch.zeros(()) if g is None or not g.any() else g for g in (ours, plain))
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("margin", [0.4, 0.7, 1.0])
def test_sar_matches_its_equations(margin: float) -> None:
    network = NormedTiny()
    network.gain.data.fill_(3)  # so that some are below and some above
    method = made("sar", network, margin=margin, rho=0.5, reset_below=0)
    seen = seen_by(method)
    loss, moved, mean = sar_loop(method, network, seen)
    before = [p.clone() for p in network.parameters()]
    step = method(network, seen, Progress(STEP, 1))
    assert loss > 0
    torch.testing.assert_close(step.losses["entropy"], loss, rtol=1e-4, atol=1e-5)
    at_start = reliable_loop(network(*seen.target.inputs).logits, [set(range(5))] * 7, margin * math.log(7))[0]
    assert abs(at_start - loss) > 1e-3  # it is not the loss at the original weights
    ours, plain = (
        torch.autograd.grad(x, list(n.parameters()), allow_unused=True)
        for x, n in ((step.losses["entropy"], network), (loss, moved))
    )
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert method.average.item() == pytest.approx(mean, rel=1e-4)
    method(network, seen_by(method, (1, 2, 3)), Progress(STEP, 1))
    second = sar_loop(method, network, seen_by(method, (1, 2, 3)))[2]
    assert method.average.item() == pytest.approx(0.9 * mean + 0.1 * second, rel=1e-4)


# Centroid labels


def outputs(count: int, seed: int = 0, **changes: Tensor) -> Outputs:
    probabilities = loops.seven_heads(count, seed)
    return Outputs(probabilities, draw(count, 6, FEATURE_SIZE, seed=seed + 1).relu())._replace(**changes)


@pytest.mark.parametrize(
    "seen",
    [
        outputs(20),
        outputs(40, 3),
        outputs(1),
        outputs(5),  # classes without a face
        outputs(6, features=torch.zeros(6, 6, FEATURE_SIZE)),
        Outputs(loops.seven_heads(1, 0).expand(4, 7, 7), draw(1, 6, FEATURE_SIZE).relu().expand(4, 6, FEATURE_SIZE)),
    ],
    ids=["many", "more", "one", "few", "no features", "all alike"],
)
def test_centroid_labels_equal_a_loop(seen: Outputs) -> None:
    found = centroid_labels(seen, torch.tensor(WEIGHTS))
    assert found.tolist() == centroid_loop(seen, WEIGHTS)


def test_a_class_without_faces_gets_none() -> None:
    # Class 6 has some probability on every face, but no face is predicted as 6.
    row = torch.tensor([0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4])
    probabilities = torch.stack([row, row.roll(1).roll(0)]).repeat(3, 1)
    probabilities[1::2] = torch.tensor([0.0, 0.6, 0, 0, 0, 0, 0.4])
    seen = outputs(6, probabilities=probabilities[:, None].expand(6, 7, 7))
    assert set(centroid_labels(seen, torch.ones(7)).tolist()) <= {0, 1}


def test_centroids_correct_a_face_among_faces_of_another_class() -> None:
    # Five faces in two places; the last one is with the first two but is predicted as 1.
    places = torch.tensor([0, 0, 1, 1, 0])
    features = F.one_hot(places, 64).float()[:, None].expand(5, 6, 64) * 8
    probabilities = torch.full((5, 7, 7), 0.01)
    for i, label in enumerate([0, 0, 1, 1, 1]):
        probabilities[i, :, label] = 0.94 if i < 4 else 0.5
    assert centroid_labels(Outputs(probabilities, features), torch.tensor(WEIGHTS)).tolist() == [0, 0, 1, 1, 0]


def test_shot_labels_again_before_each_epoch() -> None:
    network = NormedTiny()
    method = made("shot", network)
    first = method.labels.clone()
    assert first.dtype == torch.long
    other = Looking(network, view(33, N))
    method.begin_epoch(other)
    assert method.labels.tolist() == centroid_loop(other.target(), WEIGHTS)
    assert not torch.equal(first, method.labels)


# Information maximisation by hand


def test_information_is_largest_for_confident_predictions_of_all_classes() -> None:
    weights = torch.tensor(WEIGHTS)
    apart = torch.stack([sure(c, 50).flatten()[:49].view(7, 7) for c in (0, 3)])
    assert information_maximisation(apart, weights).item() == pytest.approx(-sum(WEIGHTS) * math.log(2), rel=1e-3)
    alike = apart[:1].expand(3, 7, 7)
    assert information_maximisation(alike, weights).item() == pytest.approx(0, abs=1e-3)
    assert information_maximisation(torch.zeros(3, 7, 7), weights).item() == pytest.approx(0, abs=1e-3)


# The bank


@pytest.mark.parametrize("name", ["aad", "nrc"])
def test_the_bank_holds_all_faces_from_the_first_epoch_on_and_then_follows_the_batches(name: str) -> None:
    network = NormedTiny()
    method = made(name, network)
    bank, seen = method.bank, Looking(network, faces(network)).target()
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(N))
    torch.testing.assert_close(bank.probabilities, seen.probabilities[:, 6])
    method.begin_epoch(Looking(network, view(33, N)))  # evaluated again
    torch.testing.assert_close(bank.probabilities, seen.probabilities[:, 6])

    shown = seen_by(method, (3, 8, 3))
    output = network(*shown.weak.inputs)
    method(network, shown, Progress(0, 2))
    for place, index in ((1, 8), (2, 3)):  # of a face that occurs twice, the last one
        torch.testing.assert_close(bank.probabilities[index], output.logits[place, 6].softmax(-1))
        torch.testing.assert_close(bank.features[index], F.normalize(output.features[place].flatten(), dim=0))
    others = [i for i in range(N) if i not in (3, 8)]
    torch.testing.assert_close(bank.probabilities[others], seen.probabilities[others, 6])


def test_the_dispersion_decays() -> None:
    network = NormedTiny()
    method = made("aad", network, beta=2, decay_steps=100, alpha=3)
    one, other = (method(network, seen_by(method), Progress(step, 1)) for step in (0, 90))
    assert one.logs["dispersion-weight"].item() == 3
    assert other.logs["dispersion-weight"].item() == pytest.approx(0.03)
    torch.testing.assert_close(other.losses["dispersion"], one.losses["dispersion"] / 100)


def test_aglrls_without_a_source_fills_the_bank_as_aglrls_does() -> None:
    network = Tiny()
    method = made("aglrls-sf", network)
    shown = pictures(sure(3), sure(5), sure(0, 0))
    method(network, Batch(None, None, None, shown, shown, torch.tensor([2, 7, 9])), Progress(0, 1))
    expected = torch.full((7, N), -1)
    expected[:, 2], expected[:, 7] = 3, 5
    assert torch.equal(method.bank, expected)
    torch.testing.assert_close(method.status(), loops.learning_status(expected))
    method.begin_epoch(None)
    assert not method.status().any()
    assert (method.decision, made("aglrls-sf", network, glpc=False).decision) == ("glpc", "fused")
    assert method.decision_options(method.read_options({"threshold": 0.7})) == {"threshold": 0.7}


# The real network: what is trained


def real(implementation: str = "loop") -> GlobalLocal:
    torch.manual_seed(0)
    network = GlobalLocal(build_backbone("ir-small", 4))
    network.local_nets.implementation = implementation
    return network.train()


def real_batch(method: Method, count: int = 3, seed: int = 0) -> Batch:
    def drawn(number: int) -> View:
        return View(draw(count, 3, 112, 112, seed=seed + number), torch.full((count, 5, 2), 56.0))

    views = [drawn(i) if name in method.wants else None for i, name in enumerate(("target", "weak", "strong"))]
    return Batch(None, None, *views, indices=torch.arange(count))


def train(method: Method, network: nn.Module, batches: list[Batch], step: int = 0) -> list[Step]:
    """Updates as the engine does them: frozen parameters get no gradient, so neither momentum nor decay."""
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], 0.01, 0.9, weight_decay=1e-2)
    done = []
    for number, seen in enumerate(batches, step):
        done.append(method(network, seen, Progress(number, 1)))
        optimizer.zero_grad(set_to_none=True)
        if done[-1].losses:
            sum(done[-1].losses.values()).backward()
        for parameter in method.frozen(network, 0):
            parameter.grad = None
        optimizer.step()
    return done


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "options", "moves"),
    [
        ("shot", {}, lambda name: not name.startswith("classifiers")),
        ("aglrls-sf", {"threshold": 0.2}, lambda name: not name.startswith("classifiers")),
        ("aglrls-sf", {"threshold": 0.2, "freeze_classifiers": False}, lambda name: True),
        ("aad", {}, lambda name: not name.startswith(("classifiers.0", "classifiers.1"))),
        ("nrc", {}, lambda name: not name.startswith(("classifiers.0", "classifiers.1"))),
        ("tent", {}, None),
        ("sar", {"margin": 1.0}, None),
        ("adabn", {}, lambda name: False),
    ],
)
def test_what_a_method_trains_in_the_real_network(name: str, options: dict, moves: Callable[[str], bool]) -> None:
    network = real()
    norms = {
        f"{name}.{of}"
        for name, m in network.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for of in ("weight", "bias")
    }
    assert set(norm_parameters(network)) == norms
    method = made(name, network, **options)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    statistics = {name: norm.running_mean.clone() for name, norm in batch_norms(network).items()}
    for step in train(method, network, [real_batch(method)] * 2):
        assert all(bool(torch.isfinite(value)) for value in (*step.losses.values(), *step.logs.values()))
    expected = norms if moves is None else {name for name in before if moves(name)}
    assert moved(before, network) == expected
    assert not any(torch.equal(norm.running_mean, statistics[name]) for name, norm in batch_norms(network).items())


@pytest.mark.parametrize("name", TRAINING)
def test_a_method_lowers_its_own_loss(name: str) -> None:
    network = real()
    method = made(name, network, **{"aglrls-sf": {"threshold": 0.2}, "sar": {"margin": 1.0}}.get(name, {}))
    seen = real_batch(method, 6)
    done = [sum(step.losses.values()).item() for step in train(method, network, [seen] * 5)]
    assert done[-1] < done[0]


# AdaBN


@pytest.mark.parametrize("implementation", ["loop", "grouped"])
def test_adabn_stores_the_mean_of_the_batch_statistics_and_changes_nothing_else(implementation: str) -> None:
    network, plain = real(implementation), real()
    method = made("adabn", network)
    batches = [real_batch(method, 4, 10 * i) for i in range(3)]
    means = {}
    for norm in batch_norms(plain).values():
        norm.momentum = 1.0  # stores each batch's own statistics
    for seen in batches:
        plain(*seen.target.inputs)
        for name, norm in batch_norms(plain).items():
            means.setdefault(name, []).append((norm.running_mean.clone(), norm.running_var.clone()))
    before = copy.deepcopy(network.state_dict())
    for step in train(method, network, batches):
        assert step == Step({}, {})
    found = network.state_dict()
    for name, each in means.items():
        for of, values in zip(("running_mean", "running_var"), zip(*each, strict=True), strict=True):
            expected = torch.stack(values).mean(0)
            torch.testing.assert_close(found[f"{name}.{of}"], expected, rtol=1e-4, atol=1e-5)
    kept = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(found[name], before[name]) for name in kept)


# SAR


def test_sar_without_a_reliable_face_does_nothing() -> None:
    network = NormedTiny()
    method = made("sar", network, margin=1e-6)
    step = method(network, seen_by(method), Progress(0, 1))
    assert step.losses["entropy"].item() == 0
    assert step.logs["reliable"].item() == 0
    assert method.average.item() == -1
    gradients = torch.autograd.grad(step.losses["entropy"], list(network.parameters()), allow_unused=True)
    assert not any(g.any() for g in gradients if g is not None)


def test_sar_returns_to_the_starting_model_after_a_collapse() -> None:
    network = NormedTiny()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5)
    method = made("sar", network, margin=1.0)
    start = [p.detach().clone() for p in network.norm.parameters()]
    with torch.no_grad():
        network.norm.weight.mul_(3)
        network.norm.bias.add_(1)
        network.gain.add_(1)
    method.average.fill_(0.21)
    assert method(network, seen_by(method), Progress(0, 1)).logs["recovered"].item() == 0
    assert not torch.equal(network.norm.weight, start[0])
    method.average.fill_(0.19)
    gain = network.gain.item()
    seen = seen_by(method)
    step = method(network, seen, Progress(1, 1))
    assert step.logs["recovered"].item() == 1
    assert all(torch.equal(p, old) for p, old in zip(network.norm.parameters(), start, strict=True))
    assert network.gain.item() == gain
    mean = sar_loop(method, network, seen)[2]
    assert method.average.item() == pytest.approx(mean, rel=1e-4)  # restarted


def test_sar_gives_the_same_with_crop_nets_side_by_side() -> None:
    states = []
    for implementation in ("loop", "grouped"):
        network = real(implementation)
        method = made("sar", network, margin=1.0, rho=0.5)
        train(method, network, [real_batch(method, 3, seed) for seed in range(3)])
        states.append(network.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)


# Sharpness


def test_perturbed_is_a_step_uphill_that_changes_no_weight() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(4.0))
            self.unused = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Output:
            return Output(self.a * x + self.b, self.unused)

    network, x = Line(), torch.tensor(2.0)

    def loss(output: Output) -> Tensor:
        return output.logits.square() / 20

    # At 10 the gradients are 2 and 1: uphill by 0.5 is (3 + 1 / sqrt 5, 4 + 0.5 / sqrt 5).
    uphill = perturbed(network, loss(network(x)), 0.5)
    a, b = 3 + 1 / math.sqrt(5), 4 + 0.5 / math.sqrt(5)
    value = loss(uphill(x))
    assert value.item() == pytest.approx((2 * a + b) ** 2 / 20)
    value.backward()  # e is a constant: the gradient at the new weights goes to the old ones
    assert network.a.grad.item() == pytest.approx(2 * (2 * a + b) / 10)
    assert (network.a.item(), network.b.item()) == (3, 4)
    assert network.unused.grad is None
    # of b only
    alone = perturbed(network, loss(network(x)), 0.5, {"b": network.b})
    assert alone(x).logits.item() == pytest.approx(2 * 3 + 4.5)
    assert perturbed(network, loss(network(x)), 0.0)(x).logits.item() == 10
    # there is no uphill direction
    assert perturbed(network, 0 * loss(network(x)), 0.5)(x).logits.item() == 10
    assert perturbed(network, loss(network(x)), 0.5, {"unused": network.unused})(x).logits.item() == 10


def test_perturbed_rejects_a_shared_batch() -> None:
    with pytest.raises(FercliError, match="one process"):
        perturbed(lambda x: x, torch.zeros(()), 0.1)


# The contract


@pytest.mark.parametrize("name", SOURCE_FREE)
def test_what_a_method_without_a_source_needs(name: str) -> None:
    method = made(name, NormedTiny())
    views = {"aglrls-sf": {"weak", "strong"}, **{key: {"target"} for key in ("adabn", "sar", "tent")}}
    assert method.wants == views.get(name, {"weak"})
    told = (method.name, method.needs_source, method.updates, method.oracle, method.transforms_output)
    assert told == (name, False, 1, False, False)
    assert list(method.parameters()) == []
    assert method_class("aglrls").needs_source


@pytest.mark.parametrize("name", SOURCE_FREE)
def test_state_is_kept_and_the_same_step_gives_the_same_bits(name: str) -> None:
    network = real()
    method = made(name, network)
    train(method, network, [real_batch(method, 3, 5)])
    other_network = real()
    kind = method_class(name)
    other = kind(Adapt(head_weights=WEIGHTS), kind.read_options({}), FEATURE_SIZE, N)
    other.begin(other_network)
    other.load_state_dict(method.state_dict())
    other_network.load_state_dict(network.state_dict())
    for step, begins in ((1, False), (2, True)):
        for one, its in ((method, network), (other, other_network)):
            if begins:
                one.begin_epoch(Looking(its, faces(its)))
            train(one, its, [real_batch(one, 3, 7)], step)
        for mine, theirs in ((network, other_network), (method, other)):
            assert mine.state_dict().keys() == theirs.state_dict().keys()
            assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


def degenerate(case: str, method: Method) -> Batch:
    indices, shown = {
        "one face": ((4,), pictures(sure(2, 1.0))),
        "the same face twice": ((4, 4), pictures(sure(2), sure(2))),
        "all alike": (tuple(range(4)), pictures(*[sure(3)] * 4)),
        "nothing known": (tuple(range(4)), view(1, 4, 0.0)),
        "certain": (tuple(range(4)), pictures(*[sure(c, 1e4) for c in (1, 1, 2, 2)])),
    }[case]
    target, weak, strong = (shown if name in method.wants else None for name in ("target", "weak", "strong"))
    return Batch(None, None, target, weak, strong, torch.tensor(indices))


@pytest.mark.parametrize("case", ["one face", "the same face twice", "all alike", "nothing known", "certain"])
@pytest.mark.parametrize("name", TRAINING)
def test_degenerate_batches_give_finite_losses_and_gradients(name: str, case: str) -> None:
    network = Tiny() if name != "sar" else NormedTiny().eval()  # a batch norm cannot train on one face
    method = made(name, network)
    network.eval()
    step = method(network, degenerate(case, method), Progress(3, 1))
    for value in (*step.losses.values(), *step.logs.values()):
        assert value.shape == ()
        assert torch.isfinite(value)
    sum(step.losses.values()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize("name", ["aad", "nrc", "shot"])
def test_a_target_of_one_face_or_of_equal_faces(name: str) -> None:
    kind, network = method_class(name), Tiny()
    for shown in ([sure(2)], [sure(2)] * 3, [sure(2, 0.0)] * 3):
        method = kind(Adapt(), kind.read_options({}), FEATURE_SIZE, len(shown))
        method.begin_epoch(Looking(network, pictures(*shown)))
        seen = Batch(None, None, None, pictures(*shown), None, torch.arange(len(shown)))
        step = method(network, seen, Progress(0, 1))
        assert all(bool(torch.isfinite(value)) for value in (*step.losses.values(), *step.logs.values()))
        sum(step.losses.values()).backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize("name", SOURCE_FREE)
def test_half_precision_gives_losses_in_float32(name: str) -> None:
    network = real()
    method = made(name, network)
    with torch.autocast("cpu", torch.bfloat16):
        step = method(network, real_batch(method), Progress(0, 1))
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value)) for value in step.losses.values())
