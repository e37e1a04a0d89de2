"""Grad-CAM against a loop over single faces and against a case computed by hand; votes; images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loops import certain
from torch import Tensor, nn

from fercli.loading.augment import ViewSettings, plain_view
from fercli.methods import method_class
from fercli.methods.base import Method
from fercli.models import FEATURE_SIZE, HEADS, GlobalLocal
from fercli.models.backbones import build_backbone
from fercli.scoring.explain import grad_cam, picture_of, votes
from fercli.spec import Adapt
from fercli.store import Store

FACES = 3


def network_of(backbone: str, local: str = "feature-map", classifiers: str = "shared") -> GlobalLocal:
    torch.manual_seed(3)
    return GlobalLocal(build_backbone(backbone, 4), local, classifiers)


def inputs_for(local: str) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(FACES, 3, 112, 112, generator=generator)
    landmarks = 20 + 70 * torch.rand(FACES, 5, 2, generator=generator)
    crops = torch.randn(FACES, 5, 3, 28, 28, generator=generator) if local == "image-crop" else None
    return images, landmarks, crops


def one_by_one(network: GlobalLocal, inputs: tuple[Tensor, ...], expressions: Tensor, output_transform=None) -> Tensor:
    """Grad-CAM for one face at a time, with the whole network differentiated, written from the paper's equations."""
    network.eval()
    heats = []
    for face, expression in enumerate(expressions.tolist()):
        own = [None if part is None else part[face : face + 1] for part in inputs]
        kept = {}

        def keep(module: nn.Module, given: tuple[Tensor], kept: dict[str, Tensor] = kept) -> None:
            kept["maps"] = given[0]

        hook = network.global_head.register_forward_pre_hook(keep)
        output = network(*own)
        hook.remove()
        output = output if output_transform is None else output_transform(output)
        (gradient,) = torch.autograd.grad(output.logits[0, HEADS.index("fused"), expression], kept["maps"])
        heat = torch.zeros(kept["maps"].shape[2:])
        for channel in range(gradient.shape[1]):
            heat += gradient[0, channel].mean() * kept["maps"][0, channel].detach()
        heat = heat.clamp_min(0)
        heats.append(heat / heat.max() if heat.max() > 0 else heat)
    return torch.stack(heats)


def agra() -> Method:
    """A method that refines the network's output."""
    kind = method_class("agra")
    torch.manual_seed(5)
    return kind(Adapt(), kind.read_options({}), FEATURE_SIZE, target_size=0).eval()


@pytest.mark.parametrize(
    ("backbone", "local", "classifiers", "refined"),
    [
        ("ir-small", "feature-map", "shared", False),
        ("ir-small", "feature-map", "shared", True),
        ("ir-small", "image-crop", "separate", False),
        ("ir18", "feature-map", "shared", False),
        ("mobilenet-v2", "feature-map", "separate", False),
        pytest.param("ir50", "feature-map", "shared", False, marks=pytest.mark.slow),
    ],
)
def test_heat_equals_a_loop_over_single_faces(backbone: str, local: str, classifiers: str, refined: bool) -> None:
    network, inputs = network_of(backbone, local, classifiers), inputs_for(local)
    expressions, transform = torch.tensor([0, 6, 3]), agra().transform_output if refined else None
    heat = grad_cam(network, inputs, expressions, transform)
    assert (heat.shape, heat.dtype) == ((FACES, 7, 7), torch.float32)
    assert heat.min() >= 0
    assert heat.amax((1, 2)).tolist() == [1 if one.any() else 0 for one in heat]
    torch.testing.assert_close(heat, one_by_one(network, inputs, expressions, transform), rtol=1e-4, atol=1e-5)
    assert not refined or not torch.allclose(heat, grad_cam(network, inputs, expressions))


class TwoMaps(nn.Module):
    """A backbone whose global map is two channels of the image; its local map is arbitrary."""

    local_channels, global_channels = 4, 2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.new_zeros(len(images), 4, 28, 28), images[:, :2, :7, :7]


def test_a_case_by_hand() -> None:
    network = GlobalLocal(TwoMaps())
    for parameter in (*network.global_head.parameters(), *network.classifiers[-1].parameters()):
        nn.init.zeros_(parameter)
    # Feature 0 is channel 0's mean, feature 1 channel 1's; happiness is feature 0 minus half of feature 1.
    with torch.no_grad():
        network.global_head.conv.weight[0, 0, 1, 1] = network.global_head.conv.weight[1, 1, 1, 1] = 1
        network.classifiers[-1].weight[3, :2] = torch.tensor([1, -0.5])
    images = torch.zeros(2, 3, 112, 112)
    images[0, 0, 2, 3], images[0, 0, 5, 5] = 4, 2
    images[0, 1, :7, :7] = 1e-3  # positive at every pixel, and against happiness
    images[1, 1, 4, 4] = 3  # evidence against happiness only
    heat = grad_cam(network, (images, torch.full((2, 5, 2), 56.0), None), torch.tensor([3, 3]))
    # ReLU passes gradients where a feature is positive: 2 pixels of 49 in channel 0, all in channel 1. The means of the
    # gradients, 2/49 and -0.5 up to a common factor, weight the maps.
    raw = (2 / 49 * images[0, 0, :7, :7] - 0.5 * images[0, 1, :7, :7]).clamp_min(0)
    torch.testing.assert_close(heat[0], raw / raw.max())
    assert heat[0, 2, 3] == 1
    assert heat[0, 5, 5] == pytest.approx((4 / 49 - 5e-4) / (8 / 49 - 5e-4))
    assert not heat[1].any()  # nothing positive: zeros, not NaN
    assert not grad_cam(network, (images, torch.full((2, 5, 2), 56.0), None), torch.tensor([0, 0])).any()


@pytest.mark.parametrize("training", [False, True])
def test_mode_gradients_and_hooks_are_restored(training: bool) -> None:
    network, inputs, method = network_of("ir-small"), inputs_for("feature-map"), agra()
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # as evaluate may call it
        for transform in (None, method.transform_output):
            grad_cam(network, inputs, torch.zeros(FACES, dtype=torch.long), transform)
    assert network.training is training
    assert not network.global_head._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in (*network.parameters(), *method.parameters()))
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(IndexError):  # also where it fails
        grad_cam(network, (inputs[0], inputs[1][:, :0], None), torch.full((FACES,), 7))
    assert not network.global_head._forward_pre_hooks
    assert network.training is training


def test_votes_name_each_heads_prediction() -> None:
    probabilities = certain(*((answer, 0.7) for answer in (6, 0, 0, 3, 3, 5, 1)))
    found = votes(probabilities)
    names = ["neutral", "surprise", "surprise", "happiness", "happiness", "anger", "fear"]
    assert [(vote["head"], vote["expression"]) for vote in found] == list(zip(HEADS, names, strict=True))
    assert all(vote["probability"] == pytest.approx(0.7) for vote in found)
    probabilities[0] = 1 / 7
    assert votes(probabilities)[0]["expression"] == "surprise"  # on a tie the lower class, as in the decision


def test_a_picture_is_what_the_network_sees(raf_store) -> None:
    store = Store.open(raf_store)
    position, heat = len(store) - 1, np.ones((7, 7))
    picture = picture_of(store, position, 112, heat)
    rows = (torch.from_numpy(np.array(part[[position]])) for part in (store.faces, store.landmarks))
    view = plain_view(*rows, None, ViewSettings(size=112))
    assert picture.face.dtype == np.uint8
    levels = view.images[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    levels = 255 * (levels + torch.tensor([0.485, 0.456, 0.406])[:, None, None])
    np.testing.assert_array_equal(picture.face, levels.round().permute(1, 2, 0).numpy().astype(np.uint8))
    np.testing.assert_allclose(picture.landmarks, view.landmarks[0].numpy())
    assert picture.heat is heat
