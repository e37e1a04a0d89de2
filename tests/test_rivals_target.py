"""MCC, BNM and DALN against plain loops on a small network (values, gradients) and by hand."""

from __future__ import annotations

import math

import loops
import pytest
import torch
from tiny import Small, Tiny, batch_for, draw, pictures, sure

from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.base import Method, Progress
from fercli.methods.daln import nuclear_discrepancy
from fercli.methods.losses import nuclear_norm, reversal_coefficient
from fercli.methods.mcc import class_confusion
from fercli.models import FEATURE_SIZE, GlobalLocal
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt

STEP = 700
WEIGHTS = [5.0, 1, 1, 2, 1, 1, 7]
RIVALS = ["bnm", "daln", "mcc"]


def rival(name: str, **options) -> Method:
    kind = method_class(name)
    return kind(Adapt(head_weights=WEIGHTS), kind.read_options(options), FEATURE_SIZE, 12)


def network() -> Small:
    torch.manual_seed(0)
    return Small().train()


# The references: loops written from the equations


def confusion_loop(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    rows = [loops.softmax(row / temperature) for row in logits]
    sureness = [1 + math.exp(sum(p * math.log(p + 1e-5) for p in row)) for row in torch.stack(rows).tolist()]
    weights = [len(rows) * one / sum(sureness) for one in sureness]
    confusion = [[sum(w * y[a] * y[b] for w, y in zip(weights, rows, strict=True)) for b in range(7)] for a in range(7)]
    return sum(confusion[a][b] / sum(confusion[a]) for a in range(7) for b in range(7) if a != b) / 7


def nuclear_loop(rows: list[torch.Tensor]) -> torch.Tensor:
    """The trace of the root of P^T P, or of P P^T, from eigenvalues."""
    matrix = torch.stack(rows).double()
    gram = matrix @ matrix.T if len(rows) < 7 else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).sqrt().sum().float()


def expected_loss(method: Method, net: Small, batch: Batch) -> torch.Tensor:
    both = net(torch.cat([batch.source.images, batch.target.images]), None)
    count, options = len(batch.labels), method.options
    target = both.logits[count:, 6]
    if method.name == "mcc":
        return 7 * options.weight * confusion_loop(target, options.temperature)
    if method.name == "bnm":
        return -7 * options.weight * nuclear_loop([loops.softmax(row) for row in target]) / len(target)
    coefficient = 2 / (1 + math.exp(-10 * STEP / options.reversal_steps)) - 1
    last = net.classifiers[2]
    rows = [loops.softmax(last.weight @ loops.reverse(f.flatten(), coefficient) + last.bias) for f in both.features]
    norms = nuclear_loop(rows[:count]), nuclear_loop(rows[count:])
    return -7 * options.weight * (norms[0] / count - norms[1] / (len(rows) - count))


@pytest.mark.parametrize(
    ("name", "options", "extra", "logs"),
    [
        ("mcc", {}, "confusion", {"confusion"}),
        ("mcc", {"weight": 0.5, "temperature": 1}, "confusion", {"confusion"}),
        ("bnm", {}, "nuclear-norm", {"nuclear-norm"}),
        ("bnm", {"weight": 3}, "nuclear-norm", {"nuclear-norm"}),
        ("daln", {}, "discrepancy", {"discrepancy", "reversal"}),
        ("daln", {"weight": 2, "reversal_steps": 1000}, "discrepancy", {"discrepancy", "reversal"}),
    ],
)
@pytest.mark.parametrize("count", [4, 9])
def test_a_rival_is_the_sum_of_its_equations(name: str, options: dict, extra: str, logs: set[str], count: int) -> None:
    method, net = rival(name, **options), network()
    batch = batch_for(method, count)
    step = method(net, batch, Progress(STEP, 1))
    assert set(step.losses) == {"source", extra}
    assert set(step.logs) == logs | {"source-accuracy"}
    wanted = [batch.source.images, batch.target.images, *net.parameters()]
    expected = expected_loss(method, net, batch)
    torch.testing.assert_close(step.losses[extra], expected, rtol=1e-4, atol=1e-5)
    pairs = zip(
        *(torch.autograd.grad(x, wanted, retain_graph=True, allow_unused=True) for x in (step.losses[extra], expected)),
        strict=True,
    )
    some = False
    for ours, plain in pairs:
        ours, plain = (torch.zeros(()) if g is None or not g.any() else g for g in (ours, plain))
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
        some |= bool(ours.any())
    assert some
    both = net(torch.cat([batch.source.images, batch.target.images]), None)
    torch.testing.assert_close(
        step.losses["source"], loops.head_cross_entropy(both.logits[:count], batch.labels, WEIGHTS)
    )


# By hand


def test_class_confusion_by_hand() -> None:
    certain = 1000 * torch.eye(7)[[0, 3, 3]]
    assert class_confusion(certain).item() == 0
    assert class_confusion(torch.zeros(3, 7)).item() == pytest.approx(6 / 7)
    # Two faces undecided between the same two classes confuse them fully: half of each row, in two of seven rows.
    doubt = torch.full((2, 7), -1000.0)
    doubt[:, :2] = 0
    assert class_confusion(doubt).item() == pytest.approx(1 / 7)


def test_a_certain_face_weighs_more_in_the_confusion() -> None:
    # Certain of class 0, and undecided between 0 and 1: entropies 0 and ln 2, weights 2 and 3/2 scaled to mean 1.
    logits = torch.full((2, 7), -1000.0)
    logits[0, 0] = logits[1, 0] = logits[1, 1] = 0
    one, two = 2 / 1.75, 1.5 / 1.75
    rows = {0: (one + two / 4, two / 4), 1: (two / 4, two / 4)}
    expected = sum(row[1 - k] / sum(row) for k, row in rows.items()) / 7
    assert class_confusion(logits, 1.0).item() == pytest.approx(expected, rel=1e-4)


def test_nuclear_norm_by_hand() -> None:
    assert nuclear_norm(torch.eye(7)[[0, 0, 3]]).item() == pytest.approx(math.sqrt(2) + 1)
    assert nuclear_norm(torch.zeros(3, 7)).item() == 0
    assert math.isnan(nuclear_norm(torch.tensor([[math.nan, 1.0]])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nuclear_norm_of_a_rank_deficient_matrix_has_the_least_gradient(dtype: torch.dtype) -> None:
    # Equal rows: one singular value, |row| sqrt B, and the subgradient u v^T without any other direction.
    row = torch.tensor([0.5, 0.3, 0.2, 0, 0, 0, 0], dtype=dtype)
    matrix = row.repeat(4, 1).requires_grad_()
    value = nuclear_norm(matrix)
    value.backward()
    assert value.item() == pytest.approx(2 * math.sqrt(0.38))
    torch.testing.assert_close(matrix.grad, (row / row.norm() / 2).repeat(4, 1).to(dtype), rtol=1e-4, atol=1e-6)
    zero = torch.zeros(3, 7, dtype=dtype, requires_grad=True)
    nuclear_norm(zero).backward()
    assert not zero.grad.any()
    equal = torch.eye(7, dtype=dtype).requires_grad_()  # seven equal singular values
    nuclear_norm(equal).backward()
    torch.testing.assert_close(equal.grad, torch.eye(7, dtype=dtype))


def test_bnm_is_least_for_certain_predictions_of_many_classes() -> None:
    method, values = rival("bnm"), {}
    for case, answers in {"many": [0, 1, 2, 3], "one": [2] * 4, "none": None}.items():
        faces = pictures(*(sure(0, 0) for _ in range(4)) if answers is None else (sure(c, 40) for c in answers))
        tiny = Tiny()
        tiny.gain.data.fill_(1)
        losses = method(tiny, Batch(faces, torch.zeros(4, dtype=torch.long), faces), Progress(0, 1)).losses
        values[case] = losses["nuclear-norm"].item()
    assert values == pytest.approx({"many": -7, "one": -7 / 2, "none": -7 / math.sqrt(28)}, rel=1e-4)


def test_nuclear_discrepancy_by_hand() -> None:
    certain, vague = torch.eye(7)[:4], torch.full((2, 7), 1 / 7)
    assert nuclear_discrepancy(certain, vague).item() == pytest.approx(1 - 1 / math.sqrt(14))
    assert nuclear_discrepancy(vague, certain).item() == pytest.approx(1 / math.sqrt(14) - 1)
    assert nuclear_discrepancy(certain, certain[[2, 1, 0, 3]]).item() == pytest.approx(0, abs=1e-6)


def test_daln_s_classifier_raises_the_discrepancy_and_the_features_lower_it() -> None:
    method, net = rival("daln", reversal_steps=1000), network()
    batch = batch_for(method, 6)

    def discrepancy() -> float:
        return method(net, batch, Progress(STEP, 1)).logs["discrepancy"].item()

    before = discrepancy()
    classifier, features = list(net.classifiers[-1].parameters()), list(net.spread.parameters())
    loss = method(net, batch, Progress(STEP, 1)).losses["discrepancy"]
    slopes = torch.autograd.grad(loss, [*classifier, *features])
    for parts, steps, rises in ((classifier, slopes[:2], True), (features, slopes[2:], False)):
        with torch.no_grad():
            for parameter, slope in zip(parts, steps, strict=True):
                parameter -= 1e-3 * slope  # as the optimizer would
        assert (discrepancy() > before) is rises
        with torch.no_grad():
            for parameter, slope in zip(parts, steps, strict=True):
                parameter += 1e-3 * slope
    at_first = torch.autograd.grad(method(net, batch, Progress(0, 1)).losses["discrepancy"], features)
    assert not any(slope.any() for slope in at_first)  # the reversal is still zero, so no gradient passes
    assert method(net, batch, Progress(STEP, 1)).logs["reversal"].item() == pytest.approx(
        reversal_coefficient(STEP, 1000)
    )


def test_daln_follows_the_authors_reversal_schedule() -> None:
    # 2 / (1 + exp(-i / 1000)) - 1 in their code
    for step in (0, 300, 5000):
        made = rival("daln")(network(), batch_for(rival("daln")), Progress(step, 1)).logs["reversal"]
        assert made.item() == pytest.approx(2 / (1 + math.exp(-step / 1000)) - 1)


# Degenerate batches


@pytest.mark.parametrize("case", ["black images", "faces alike", "one face", "certain"])
@pytest.mark.parametrize("name", RIVALS)
def test_degenerate_batches_give_finite_losses_and_gradients(name: str, case: str) -> None:
    method, net = rival(name), network()
    batch = batch_for(method, 1 if case == "one face" else 4, 0.0 if case == "black images" else 2.0)
    if case == "faces alike":
        batch = batch._replace(
            **{
                key: View(view.images[:1].detach().repeat(4, 1, 1, 1), view.landmarks)
                for key, view in (("source", batch.source), ("target", batch.target))
            }
        )
    if case == "certain":
        with torch.no_grad():
            net.classifiers[-1].weight.mul_(1e4)
    step = method(net, batch, Progress(STEP, 1))
    for value in (*step.losses.values(), *step.logs.values()):
        assert value.shape == ()
        assert torch.isfinite(value)
    sum(step.losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


# The contract


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_rival_needs(name: str) -> None:
    method = rival(name)
    assert (method.name, method.wants, method.decision, method.updates) == (name, {"target"}, "fused", 1)
    assert method.needs_source
    assert not [*method.parameters(), *method.state_dict()]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_trains_the_real_network(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    net, method = GlobalLocal(build_backbone("ir-small", 4)), rival(name).train()

    def faces(seed: int) -> View:
        return View(draw(2, 3, 112, 112, seed=seed), torch.full((2, 5, 2), 56.0))

    batch = Batch(faces(0), torch.tensor([2, 5]), faces(1))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    sources = []
    for step in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = method(net, batch, Progress(step, 1)).losses
        assert all(loss.dtype == torch.float32 and bool(torch.isfinite(loss)) for loss in losses.values())
        sources.append(losses["source"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())  # `reaches_all`
        optimizer.step()
    assert sources[-1] < sources[0]
