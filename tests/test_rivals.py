"""DANN, CDAN, CDAN+E, SAFN and FixMatch against plain loops on a small network (values, gradients) and by hand."""

from __future__ import annotations

import math

import loops
import pytest
import torch
from tiny import Tiny, batch_for, pictures, sure, view
from torch import nn

from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.alignment import domain_adversarial, hard_feature_norm, stepwise_feature_norm
from fercli.methods.base import Method, Progress
from fercli.methods.joint import fused_feature, joint_pass
from fercli.methods.losses import reversal_coefficient
from fercli.models import FEATURE_SIZE, GlobalLocal, Output
from fercli.models.backbones import build_backbone
from fercli.spec import Adapt

B, STEP = 4, 700
WEIGHTS = [5.0, 1, 1, 2, 1, 1, 7]
RIVALS = ["cdan", "cdan-e", "dann", "fixmatch", "safn"]
ADVERSARIAL = ["cdan", "cdan-e", "dann"]


def rival(name: str, **options) -> Method:
    torch.manual_seed(0)
    kind = method_class(name)
    if name in (*ADVERSARIAL, "aglrls"):
        options = {"hidden": 16, **options}
    # without dropout, as in the reference
    return kind(Adapt(head_weights=WEIGHTS), kind.read_options(options), FEATURE_SIZE, 12).eval()


# The references: loops written from the equations


def dann_loop(method: Method, source: Output, target: Output, coefficient: float) -> torch.Tensor:
    total = torch.zeros(())
    for output, is_source in ((source, True), (target, False)):
        for i in range(len(output.features)):
            loss = loops.domain_loss(method.discriminator, output.features[i].flatten(), coefficient, is_source)
            total = total + loss / len(output.features) / 2
    return total


def norm_loop(method: Method, output: Output) -> torch.Tensor:
    norms = [sum(value**2 for value in row).sqrt() for row in output.features.flatten(1)]
    if method.options.variant == "hard":
        return (sum(norms) / len(norms) - method.options.radius) ** 2
    return sum((norm - (float(norm.detach()) + method.options.step)) ** 2 for norm in norms) / len(norms)


def expected_losses(method: Method, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    source, options = network(*batch.source.inputs), method.options
    losses = {"source": loops.head_cross_entropy(source.logits, batch.labels, WEIGHTS)}
    if method.name == "fixmatch":
        weak, strong = network(*batch.weak.inputs), network(*batch.strong.inputs)
        ones = torch.ones(7, 7)  # for the fused head only, and one threshold for all
        pseudo = loops.pseudo_label_loss(weak.logits, strong.logits, ones, [0] * 6 + [7], options.threshold)[0]
        return losses | {"pseudo": options.weight * pseudo}
    target = network(*batch.target.inputs)
    if method.name == "safn":
        pairs = (("source", source), ("target", target))
        return losses | {
            f"norm-{domain}": WEIGHTS[-1] * options.weight * norm_loop(method, out) for domain, out in pairs
        }
    coefficient = WEIGHTS[-1] * reversal_coefficient(STEP, options.reversal_steps).item()
    if method.name == "dann":
        return losses | {"adversarial": options.weight * dann_loop(method, source, target, coefficient)}
    logits, features = torch.cat([source.logits, target.logits])[:, 6], torch.cat([source.features, target.features])
    seen = features.flatten(1), logits, torch.arange(len(logits)) < len(source.logits), method.discriminator
    conditioned = method.name == "cdan-e"
    return losses | {"adversarial": options.weight * loops.conditional_adversarial(*seen, coefficient, conditioned)}


@pytest.mark.parametrize(
    ("name", "options", "logs"),
    [
        ("dann", {}, {"reversal"}),
        ("dann", {"weight": 3, "reversal_steps": 1000}, {"reversal"}),
        ("cdan", {}, {"reversal"}),
        ("cdan", {"weight": 0.5, "reversal_steps": 100}, {"reversal"}),
        ("cdan-e", {}, {"reversal"}),
        ("cdan-e", {"weight": 0.5, "reversal_steps": 100}, {"reversal"}),
        ("safn", {}, {"mean-norm/source", "mean-norm/target"}),
        ("safn", {"step": 0.3, "weight": 2}, {"mean-norm/source", "mean-norm/target"}),
        ("safn", {"variant": "hard"}, {"mean-norm/source", "mean-norm/target"}),
        ("safn", {"variant": "hard", "radius": 4, "weight": 1}, {"mean-norm/source", "mean-norm/target"}),
        ("fixmatch", {"threshold": 0.8}, {"pseudo-rate"}),
        ("fixmatch", {"threshold": 0.5, "weight": 2}, {"pseudo-rate"}),
    ],
)
def test_a_rival_is_the_sum_of_its_equations(name: str, options: dict, logs: set[str]) -> None:
    method, network = rival(name, **options), Tiny()
    batch = batch_for(method)
    step = method(network, batch, Progress(STEP, 1))
    expected = expected_losses(method, network, batch)
    assert set(step.losses) == set(expected)
    assert set(step.logs) == logs | {"source-accuracy"}
    views = [v.images for v in (batch.source, batch.target, batch.weak, batch.strong) if v is not None]
    wanted = [network.gain, network.mix, *method.parameters(), *views]
    for key, value in expected.items():
        assert value > 0, key
        torch.testing.assert_close(step.losses[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        both = [torch.autograd.grad(x, wanted, retain_graph=True, allow_unused=True) for x in (step.losses[key], value)]
        assert any(g is not None and bool(g.any()) for g in both[0]), key
        for ours, plain in zip(*both, strict=True):  # None and zero are equivalent: joined views give zeros to all
            ours, plain = (torch.zeros(()) if g is None or not g.any() else g for g in (ours, plain))
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


# By hand


def test_domain_adversarial_by_hand() -> None:
    class Total(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1)

    # The source is recognised with probability 3/4, the two targets with 1/2: (ln 4/3 + ln 2) / 2. The gradients are
    # -(1 - 3/4) / 2 and 1/2 / 2 / 2, times -1/2.
    source = torch.tensor([[math.log(3)]], requires_grad=True)
    target = torch.zeros(2, 1, requires_grad=True)
    value = domain_adversarial(source, target, Total(), 0.5)
    value.backward()
    assert value.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert source.grad.tolist() == [[pytest.approx(1 / 16)]]
    assert target.grad.tolist() == [[pytest.approx(-1 / 16)]] * 2


def test_stepwise_feature_norm_by_hand() -> None:
    # Norms 5 and 0: the loss is step^2; the gradient is -2 * step / 2 along (0.6, 0.8), and zero for the zero feature.
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    value = stepwise_feature_norm(features, 0.5)
    value.backward()
    assert value.item() == pytest.approx(0.25)
    torch.testing.assert_close(features.grad, torch.tensor([[-0.3, -0.4], [0.0, 0.0]]))


def test_hard_feature_norm_by_hand() -> None:
    # Mean norm 2.5 for radius 5: the loss is 6.25, the gradient 2 * -2.5 / 2 along (0.6, 0.8).
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    value = hard_feature_norm(features, 5)
    value.backward()
    assert value.item() == pytest.approx(6.25)
    torch.testing.assert_close(features.grad, torch.tensor([[-1.5, -2.0], [0.0, 0.0]]))
    assert hard_feature_norm(torch.tensor([[24.0], [26.0]]), 25).item() == 0


def test_fixmatch_by_hand() -> None:
    # One of two faces is confident; its strong view is uniform: 7 (the head's weight) * ln 7 / 2 faces.
    weak, strong = pictures(sure(3), sure(5, 0.1)), pictures(sure(0, 0), sure(0, 0))
    batch = Batch(pictures(sure(1), sure(2)), torch.tensor([1, 3]), None, weak, strong, torch.arange(2))
    step = rival("fixmatch")(Tiny(), batch, Progress(0, 1))
    assert step.losses["pseudo"].item() == pytest.approx(7 * math.log(7) / 2, rel=1e-5)
    assert step.logs["pseudo-rate"].item() == 0.5
    assert step.logs["source-accuracy"].item() == 0.5
    # Only the strong view of the confident face gets a gradient; no weak view does.
    grads = torch.autograd.grad(step.losses["pseudo"], [weak.images, strong.images])
    assert not grads[0].any()
    assert grads[1][0].any()
    assert not grads[1][1].any()


def test_fixmatch_without_a_confident_face_has_zero_loss() -> None:
    method, network = rival("fixmatch", threshold=1.0), Tiny()
    step = method(network, batch_for(method), Progress(0, 1))
    assert step.losses["pseudo"].item() == 0
    assert step.logs["pseudo-rate"].item() == 0
    assert not any(
        g.any()
        for g in torch.autograd.grad(step.losses["pseudo"], network.parameters(), allow_unused=True)
        if g is not None
    )


def test_cdan_e_is_cdan_if_all_faces_are_equally_confident() -> None:
    views = [pictures(sure(1), sure(4), sure(2)) for _ in range(2)]
    batch = Batch(views[0], torch.tensor([1, 4, 0]), views[1])
    one, other = (rival(name)(Tiny(), batch, Progress(STEP, 1)).losses["adversarial"] for name in ("cdan", "cdan-e"))
    torch.testing.assert_close(one, other)


# The reversal


@pytest.mark.parametrize("name", [*ADVERSARIAL, "aglrls"])
def test_the_reversal_turns_the_network_against_the_discriminator(name: str) -> None:
    network, gradients = Tiny(), {}
    for step in (0, STEP):
        method = rival(name, reversal_steps=1000)
        made = method(network, batch_for(method), Progress(step, 1))
        assert made.logs["reversal"].item() == pytest.approx(reversal_coefficient(step, 1000))
        discriminator = method.discriminators[0] if name == "aglrls" else method.discriminator
        gradients[step] = torch.autograd.grad(made.losses["adversarial"], [network.mix, discriminator.layers[0].weight])
    assert not gradients[0][0].any()  # the reversal is zero at step 0, so no gradient passes
    assert gradients[STEP][0].any()
    torch.testing.assert_close(gradients[0][1], gradients[STEP][1])  # the discriminator still learns


@pytest.mark.parametrize(("name", "width"), [("dann", 384), ("cdan", 2688), ("cdan-e", 2688)])
def test_what_the_discriminator_reads(name: str, width: int) -> None:
    assert rival(name).discriminator.layers[0].in_features == width


# Degenerate batches


def degenerate(case: str, method: Method) -> Batch:
    batch = batch_for(method, count=1 if case == "one face" else B, scale=0.0 if case == "zero features" else 2.0)
    return batch._replace(labels=torch.full_like(batch.labels, 3)) if case == "one class" else batch


@pytest.mark.parametrize("case", ["zero features", "one class", "one face"])
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in RIVALS), ("safn", {"variant": "hard"})], ids=[*RIVALS, "hafn"]
)
def test_degenerate_batches_give_finite_losses_and_gradients(name: str, options: dict, case: str) -> None:
    method, network = rival(name, **options), Tiny()
    batch = degenerate(case, method)
    step = method(network, batch, Progress(STEP, 1))
    for value in (*step.losses.values(), *step.logs.values()):
        assert value.shape == ()
        assert torch.isfinite(value)
    sum(step.losses.values()).backward()
    for parameter in (*network.parameters(), *method.parameters(), batch.source.images):
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_values_of_zero_features() -> None:
    # The discriminator's biases are initially zero, so it predicts 1/2. SAFN's loss is one step, HAFN's the whole
    # radius.
    for name, options, expected in [
        ("dann", {}, {"adversarial": math.log(2)}),
        ("cdan", {}, {"adversarial": math.log(2)}),
        ("cdan-e", {}, {"adversarial": math.log(2)}),
        ("safn", {"step": 2}, {"norm-source": 7 * 0.05 * 4, "norm-target": 7 * 0.05 * 4}),
        ("safn", {"variant": "hard"}, {"norm-source": 7 * 0.05 * 625, "norm-target": 7 * 0.05 * 625}),
        ("fixmatch", {}, {"pseudo": 0}),
    ]:
        method = rival(name, **options)
        losses = method(Tiny(), batch_for(method, scale=0.0), Progress(STEP, 1)).losses
        assert {key: losses[key].item() for key in expected} == pytest.approx(expected)


# The contract


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_rival_needs(name: str) -> None:
    method = rival(name)
    assert method.wants == ({"weak", "strong"} if name == "fixmatch" else {"target"})
    assert (method.name, method.decision, method.updates, method.oracle, method.transforms_output) == (
        name,
        "fused",
        1,
        False,
        False,
    )
    assert method.pseudo_labelled() is None
    assert method.status() is None


def test_the_joint_pass_splits_what_it_joined() -> None:
    network, source, target = Tiny(), view(1, 2), view(2, 5)
    answers = network(*source.inputs).logits.argmax(-1)
    labels = torch.stack([answers[0, 6], (answers[1, 6] + 1) % 7])
    assert not (answers[:, 0] == labels).any()  # reading the global head instead of the fused one would be noticed
    of_source, of_target, losses, logs = joint_pass(network, source, target, labels, torch.tensor(WEIGHTS))
    for got, alone in ((of_source, network(*source.inputs)), (of_target, network(*target.inputs))):
        torch.testing.assert_close(got.logits, alone.logits)
        torch.testing.assert_close(fused_feature(got), alone.features.flatten(1))
    torch.testing.assert_close(losses["source"], loops.head_cross_entropy(of_source.logits, labels, WEIGHTS))
    assert logs["source-accuracy"].item() == 0.5  # only the first face is right


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_trains_the_real_network(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    network = GlobalLocal(build_backbone("ir-small", 4))
    method = rival(name, **({"threshold": 0.2} if name == "fixmatch" else {})).train()

    def faces(seed: int) -> View:
        images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(seed))
        return View(images, torch.full((2, 5, 2), 56.0))

    batch = Batch(faces(0), torch.tensor([2, 5]), faces(1), faces(2), faces(3), torch.arange(2))
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], 0.01)
    sources = []
    for step in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = method(network, batch, Progress(step, 1)).losses
        assert all(loss.dtype == torch.float32 and bool(torch.isfinite(loss)) for loss in losses.values())
        sources.append(losses["source"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert sources[-1] < sources[0]
    assert all(torch.isfinite(p).all() for p in network.parameters())
