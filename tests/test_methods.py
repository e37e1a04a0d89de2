"""AGLRLS against a plain reference on a small network: losses, bank, and gradient flow."""

from __future__ import annotations

import loops
import pytest
import torch
from tiny import Small, Tiny, batch_for, sure

from fercli.errors import SpecError
from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods import method_class
from fercli.methods.aglrls import AGLRLS
from fercli.methods.base import Progress
from fercli.models import FEATURE_SIZE, HEADS
from fercli.spec import Adapt
from fercli.spec.registry import METHODS

B, TARGETS, STEP = 4, 12, 700
WEIGHTS = [7.0, 1, 1, 1, 1, 1, 7]


def aglrls(**options) -> AGLRLS:
    torch.manual_seed(0)
    made = AGLRLS(Adapt(head_weights=WEIGHTS), AGLRLS.read_options({"hidden": 16, **options}), FEATURE_SIZE, TARGETS)
    return made.eval()  # without dropout, as in the reference


@pytest.mark.parametrize("passes", ["published", "shared"])
@pytest.mark.parametrize("discriminators", ["shared", "separate"])
@pytest.mark.parametrize("conditioned", [True, False])
def test_the_loss_is_the_sum_of_the_equations(passes: str, discriminators: str, conditioned: bool) -> None:
    method = aglrls(passes=passes, discriminators=discriminators, entropy_conditioning=conditioned, threshold=0.6)
    network = Tiny()
    method.begin_epoch(None)
    method.bank[:, :7] = torch.arange(7)  # a bank that is not empty: thresholds differ between classes
    method.bank[:, 7:10] = 2
    batch, bank = batch_for(method), method.bank.clone()
    losses, logs = method(network, batch, Progress(STEP, 1))

    assert (batch.target is None) == (passes == "shared")
    source, weak, strong = (network(*v.inputs) for v in (batch.source, batch.weak, batch.strong))
    aligned = weak if passes == "shared" else network(*batch.target.inputs)
    expected = {
        "source": loops.head_cross_entropy(source.logits, batch.labels, WEIGHTS),
        "adversarial": 0.5 * loops.head_adversarial(method.discriminators, source, aligned, conditioned=conditioned),
        "pseudo": loops.pseudo_label_loss(weak.logits, strong.logits, loops.learning_status(bank), WEIGHTS, 0.6)[0],
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert value > 0, name
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(sum(losses.values()), sum(expected.values()), rtol=1e-4, atol=1e-5)
    assert {"source-accuracy", "reversal"} | {f"pseudo-rate/{name}" for name in HEADS} == set(logs)


def test_weights_scale_their_terms() -> None:
    network = Tiny()
    plain, scaled = aglrls(), aglrls(adversarial_weight=2, pseudo_weight=3)
    one = plain(network, batch_for(plain), Progress(0, 1)).losses
    other = scaled(network, batch_for(scaled), Progress(0, 1)).losses
    torch.testing.assert_close(other["source"], one["source"])
    torch.testing.assert_close(other["adversarial"], 4 * one["adversarial"])
    torch.testing.assert_close(other["pseudo"], 3 * one["pseudo"])


@pytest.mark.parametrize(
    ("options", "names", "wants"),
    [
        ({}, {"source", "adversarial", "pseudo"}, {"target", "weak", "strong"}),
        ({"passes": "shared"}, {"source", "adversarial", "pseudo"}, {"weak", "strong"}),
        ({"adversarial": False}, {"source", "pseudo"}, {"weak", "strong"}),
        ({"adversarial": False, "passes": "shared"}, {"source", "pseudo"}, {"weak", "strong"}),
        ({"pseudo_labels": False}, {"source", "adversarial"}, {"target"}),
        ({"pseudo_labels": False, "passes": "shared"}, {"source", "adversarial"}, {"target"}),
        ({"pseudo_labels": False, "adversarial": False}, {"source"}, set()),
    ],
)
def test_each_part_can_be_switched_off(options: dict, names: set[str], wants: set[str]) -> None:
    method, network = aglrls(**options), Tiny()
    assert method.wants == wants
    batch = batch_for(method)
    losses, _ = method(network, batch, Progress(STEP, 1))
    assert set(losses) == names
    source = loops.head_cross_entropy(network(*batch.source.inputs).logits, batch.labels, WEIGHTS)
    torch.testing.assert_close(losses["source"], source)
    assert len(method.discriminators) == (3 if "adversarial" in names else 0)
    assert method.decision == ("glpc" if "pseudo" in names else "fused")


def test_glpc_alone_can_be_switched_off() -> None:
    assert aglrls(glpc=False).decision == "fused"


# Gradient flow


@pytest.mark.parametrize("passes", ["published", "shared"])
def test_no_gradient_of_the_pseudo_labels_reaches_the_weak_view(passes: str) -> None:
    method = aglrls(passes=passes, threshold=0.3)
    batch = batch_for(method)
    losses, _ = method(Tiny(), batch, Progress(STEP, 1))
    assert losses["pseudo"] > 0
    gradients = torch.autograd.grad(
        losses["pseudo"], [batch.weak.images, batch.strong.images], allow_unused=True, retain_graph=True
    )
    assert gradients[0] is None or not gradients[0].any()
    assert gradients[1].any()
    (through_all,) = torch.autograd.grad(sum(losses.values()), [batch.weak.images], allow_unused=True)
    # If the weak view is also used for the alignment, that term does reach it.
    assert (through_all is not None and bool(through_all.any())) == (passes == "shared")


# The bank


def seen(method: AGLRLS, pictures: list[torch.Tensor], indices: list[int]) -> None:
    images = View(torch.stack(pictures), torch.zeros(len(pictures), 5, 2))
    labels = torch.zeros(len(pictures), dtype=torch.long)
    method(Tiny(), Batch(images, labels, images, images, images, torch.tensor(indices)), Progress(0, 1))


def test_the_bank_keeps_earlier_confident_labels_and_is_emptied_each_epoch() -> None:
    method = aglrls()
    method.begin_epoch(None)
    seen(method, [sure(3), sure(5), sure(0, 0)], [2, 7, 9])
    expected = torch.full((7, TARGETS), -1)
    expected[:, 2], expected[:, 7] = 3, 5
    assert torch.equal(method.bank, expected)

    seen(method, [sure(0, 0), sure(6)], [2, 7])  # no longer confident; confident on another class
    expected[:, 7] = 6
    assert torch.equal(method.bank, expected)
    torch.testing.assert_close(method.status(), loops.learning_status(expected))

    method.begin_epoch(None)
    assert (method.bank == -1).all()
    assert not method.status().any()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_image_that_occurs_twice_in_a_batch_keeps_its_confident_label(order: tuple[int, int]) -> None:
    # A batch that crosses the end of an epoch, or is larger than the target, contains two weak views of an image.
    method = aglrls()
    pictures = [sure(3), sure(3, 0)]
    seen(method, [pictures[i] for i in order], [4, 4])
    assert (method.bank[:, 4] == 3).all()


def test_the_bank_is_kept_in_the_state() -> None:
    method, other = aglrls(), aglrls()
    seen(method, [sure(3), sure(5)], [2, 7])
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.bank, method.bank)


def leaning(method: AGLRLS, steps: int = 30) -> torch.Tensor:
    """Train on a target on which all heads are biased to 5 and a source without 5; return each class's bank count."""
    torch.manual_seed(1)
    for _ in range(steps):
        # sure(k, 3) for a target face of class k, and 3.5 for class 5 on all faces: the true class comes second
        images = [sure(k, 3) + sure(5, 3.5) for k in range(B)]
        source = View(torch.stack([sure(k, 3) for k in range(B)]), torch.zeros(B, 5, 2))
        target = View(torch.stack(images), torch.zeros(B, 5, 2))
        method(Tiny(), Batch(source, torch.arange(B), target, target, target, torch.arange(B)), Progress(0, 1))
    return torch.stack([(method.bank == k).sum() for k in range(7)])


def test_alignment_removes_the_bias_on_the_target() -> None:
    plain, aligned = leaning(aglrls(threshold=0.3)), leaning(aglrls(threshold=0.3, alignment=True))
    assert plain[5] == plain.sum() > 0
    assert aligned[5] == 0
    assert (aligned[:4] > 0).all()


def test_the_alignment_is_kept_in_the_state_and_not_in_others() -> None:
    method, other = aglrls(alignment=True), aglrls(alignment=True)
    leaning(method, 2)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.aligner.of_target, method.aligner.of_target)
    assert "bank" in aglrls().state_dict()
    assert not any("aligner" in name for name in aglrls().state_dict())  # older checkpoints still fit


# Options


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("aglrls", {"treshold": 0.9}, "adapt.options.treshold: unknown key (did you mean threshold?)"),
        ("aglrls", {"passes": "both"}, "passes: 'both' is not allowed; choose one of 'published', 'shared'"),
        ("aglrls", {"threshold": 2}, "adapt.options.threshold: 2"),
        ("source-only", {"threshold": 0.9}, "threshold"),
        ("agra", {"reclusters": 5}, "adapt.options.reclusters: unknown key (did you mean recluster?)"),
        ("agra", {"means": "labels"}, "means: 'labels' is not allowed; choose one of 'clusters', 'classes'"),
        ("agra", {"average": 2}, "adapt.options.average: 2"),
        ("agra", {"warm_steps": 0}, "adapt.options.warm_steps: 0"),
        ("cglrl", {"min_accuracy": 0.9}, "adapt.options.min_accuracy: unknown key"),
        ("cglrl-oracle", {"min_agreement": 0.9}, "adapt.options.min_agreement: unknown key"),
        ("cglrl", {"min_agreement": 2}, "adapt.options.min_agreement: 2"),
        ("cglrl", {"decision": "glpc"}, "decision: 'glpc' is not allowed; choose one of 'fused', 'global+fused'"),
        ("dann", {"wieght": 1}, "adapt.options.wieght: unknown key (did you mean weight?)"),
        ("cdan-e", {"reversal_steps": 0}, "adapt.options.reversal_steps: 0"),
        ("safn", {"variant": "soft"}, "adapt.options.variant: 'soft' is not allowed; choose one of 'stepwise', 'hard'"),
        ("safn", {"step": -1}, "adapt.options.step: -1"),
        ("fixmatch", {"threshold": 1.5}, "adapt.options.threshold: 1.5"),
        ("shot", {"pseudo_wieght": 1}, "adapt.options.pseudo_wieght: unknown key (did you mean pseudo_weight?)"),
        ("aad", {"neighbours": 0}, "adapt.options.neighbours: 0"),
        ("nrc", {"affinity": 2}, "adapt.options.affinity: 2"),
        ("aglrls-sf", {"adversarial": True}, "adapt.options.adversarial: unknown key"),
        ("adabn", {"momentum": 0.1}, "momentum"),
        ("sar", {"margin": 0}, "adapt.options.margin: 0"),
    ],
)
def test_bad_options_are_reported(name: str, options: dict, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        method_class(name).read_options(options)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_gives_scalar_losses_that_train_the_network(name: str) -> None:
    kind = method_class(name)
    method, network = kind(Adapt(), kind.read_options({}), FEATURE_SIZE, TARGETS), Small()
    norm = network.backbone[1]
    before = norm.running_mean.clone()
    method.begin(network)
    losses, logs = method(network, batch_for(method), Progress(1, 1))
    for value in (*losses.values(), *logs.values()):
        assert value.shape == ()
        assert torch.isfinite(value)
    assert not torch.equal(norm.running_mean, before)
    if name == "adabn":  # it changes nothing but those statistics
        assert not losses
        return
    sum(losses.values()).backward()
    assert network.backbone[0].weight.grad is not None
