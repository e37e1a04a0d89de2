"""The network's parts against plain versions, and its shapes, sizes and costs."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import batch, model_spec
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fercli.errors import FercliError
from fercli.models import prelu
from fercli.models.backbones import BottleneckIR, build_backbone
from fercli.models.build import build_network
from fercli.models.global_local import GlobalLocal
from fercli.models.heads import HEADS
from fercli.models.local import CropNet, LocalNets, PatchStems, cut_windows, to_map
from fercli.models.prelu import PReLU

BACKBONES = {
    "ir50": (128, 512),
    "ir18": (128, 512),
    "mobilenet-v2": (128, 512),
    "mobilenet-v2-wide": (128, 512),
    "ir-small": (16, 64),
    "ir-lite": (5, 32),
}


def plain_windows(maps: torch.Tensor, centres: torch.Tensor, size: int = 7) -> torch.Tensor:
    """The windows of METHOD.md, one sample and one landmark at a time."""
    samples = []
    for sample, points in zip(maps, centres.tolist(), strict=True):
        windows = []
        for x, y in points:
            left = min(max(x, 3), 24) - size // 2
            top = min(max(y, 3), 24) - size // 2
            windows.append(sample[:, top : top + size, left : left + size])
        samples.append(torch.stack(windows))
    return torch.stack(samples)


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_equal_a_plain_loop_in_values_and_gradients(channels_last):
    generator = torch.Generator().manual_seed(0)
    # inside, on the border, outside, and all five at one place (their gradients add up)
    inside = torch.randint(3, 25, (4, 5, 2), generator=generator)
    border = torch.tensor([[0, 0], [27, 27], [0, 27], [2, 13], [25, 3]])
    beyond = torch.tensor([[-9, 5], [40, 12], [13, -1], [14, 28], [-100, 1000]])
    centres = torch.cat([inside, border[None], beyond[None], torch.full((1, 5, 2), 14)])
    maps = torch.randn(len(centres), 6, 28, 28, generator=generator, dtype=torch.float64)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(len(centres), 5, 6, 7, 7, generator=generator, dtype=torch.float64)
    results = []
    for cut in (cut_windows, plain_windows):
        leaf = maps.clone().requires_grad_()
        windows = cut(leaf, centres)
        (gradient,) = torch.autograd.grad((windows * weight).sum(), leaf)
        results.append((windows, gradient))
    (ours, our_gradient), (plain, plain_gradient) = results
    assert ours.shape == (len(centres), 5, 6, 7, 7)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(our_gradient, plain_gradient, rtol=1e-12, atol=1e-12)


def test_a_window_by_hand():
    maps = torch.arange(28 * 28.0).view(1, 1, 28, 28)  # pixel (x, y) holds 28 y + x
    window = cut_windows(maps, torch.tensor([[[10, 5], [0, 27], [3, 24], [4, 24], [24, 3]]]))[0, :, 0]
    assert window[0, 0, 0] == 28 * 2 + 7
    assert window[0, 3, 3] == 28 * 5 + 10
    assert torch.equal(window[1], window[2])  # clamped to x 3, y 24
    assert window[3, 0, 0] == 28 * 21 + 1
    assert window[4, 6, 6] == 28 * 6 + 27


def test_each_region_of_the_windows_is_dense_in_memory():
    windows = cut_windows(torch.randn(3, 4, 28, 28), torch.full((3, 5, 2), 9))
    assert all(windows[:, i].is_contiguous(memory_format=torch.channels_last) for i in range(5))


def test_landmarks_are_scaled_by_four_and_truncated():
    points = torch.tensor([[[0.0, 3.99], [4.0, 7.9], [111.99, 100.4], [-0.5, -7.9], [38.29, 51.69]]])
    assert to_map(points, 112, 28).tolist() == [[[0, 0], [1, 1], [27, 25], [0, -1], [9, 12]]]


# ---------------------------------------------------------------------------------------------------- blocks, backbones


@pytest.mark.parametrize(("stride", "channels"), [(1, 6), (2, 6), (2, 10)])
def test_a_block_matches_its_equation(stride, channels):
    torch.manual_seed(0)
    block = BottleneckIR(6, channels, stride).double()
    x = torch.randn(3, 6, 9, 9, dtype=torch.float64)
    before, first, slope, second, after = block.body
    expected = after(second(torch.where((inner := first(before(x))) > 0, inner, slope.weight[:, None, None] * inner)))
    if channels == 6:  # as published: a max-pool of kernel 1
        expected = expected + torch.nn.functional.max_pool2d(x, 1, stride)
    else:  # as published: a 1x1 convolution with the stride
        convolution, norm = block.shortcut
        expected = expected + norm(torch.nn.functional.conv2d(x, convolution.weight, stride=stride))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_give_their_maps(name):
    backbone = build_backbone(name, 8).eval()
    with torch.inference_mode():
        local, whole = backbone(batch()[0])
    channels = (backbone.local_channels, backbone.global_channels)
    assert channels == BACKBONES[name]
    assert (local.shape, whole.shape) == ((2, channels[0], 28, 28), (2, channels[1], 7, 7))


def test_no_such_backbone():
    with pytest.raises(ValueError, match=r"no such backbone: 'vgg'; choose one of .*ir50.*mobilenet-v2"):
        build_backbone("vgg")


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("width", [4, 12])
def test_channels_last_gives_the_same_gradients(width, light):
    """oneDNN's gradient of a strided 1x1 convolution is wrong, or crashes, below 16 channels in this format."""
    torch.manual_seed(0)
    block = BottleneckIR(width, 2 * width, 2, light)
    x, weight = torch.randn(8, width, 20, 20), torch.randn(8, 2 * width, 10, 10)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        block.to(memory_format=layout).zero_grad()
        (block(x.contiguous(memory_format=layout)) * weight.contiguous(memory_format=layout)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in block.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-4


# ---------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
@pytest.mark.parametrize("name", BACKBONES)
def test_networks_give_seven_heads_and_six_features(name, local):
    network = build_network(model_spec(backbone=name, local=local)).eval()
    with torch.inference_mode():
        logits, features = network(*batch())
    assert len(HEADS) == 7
    assert (logits.shape, features.shape) == ((2, 7, 7), (2, 6, 64))
    assert logits.isfinite().all() and (features >= 0).all()


@pytest.mark.parametrize(
    ("name", "millions", "gflop"),
    [("ir50", 84.97, 13.5), ("ir18", 65.41, 6.12), ("mobilenet-v2", None, None), ("mobilenet-v2-wide", None, None)],
)
def test_sizes_and_costs_are_the_published_ones(name, millions, gflop):
    with torch.device("meta"):
        network = GlobalLocal(build_backbone(name)).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 112, 112), torch.empty(1, 5, 2))
    groups = network.parameter_groups()
    total = sum(parameter.numel() for parameter in network.parameters())
    assert sum(p.numel() for group in groups.values() for p in group) == total
    if millions is not None:
        assert round(total / 1e6, 2) == millions
        assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=5e-3)


@pytest.mark.parametrize("classifiers", ["shared", "separate"])
def test_heads_read_their_features(classifiers):
    network = build_network(model_spec(classifiers=classifiers)).eval()
    with torch.inference_mode():
        logits, features = network(*batch()[:2])
        heads = list(network.classifiers)
        if classifiers == "shared":
            heads = [heads[0], *[heads[1]] * 5, heads[2]]
        inputs = [*features.unbind(1), features.flatten(1)]
        expected = torch.stack([head(x) for head, x in zip(heads, inputs, strict=True)], dim=1)
    assert len(network.classifiers) == (3 if classifiers == "shared" else 7)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_each_region_has_its_own_net(local):
    """A change in one landmark's window or patch changes that region's feature and no other."""
    network = build_network(model_spec(local=local)).eval()
    images, landmarks, crops = batch()
    landmarks = torch.tensor([[20.0, 20], [90, 20], [56, 60], [30, 90], [80, 90]]).expand(2, 5, 2).clone()
    with torch.inference_mode():
        before = network(images, landmarks, crops).features
        landmarks[:, 3] -= 16
        crops[:, 3] += 1
        moved = (network(images, landmarks, crops).features - before).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, False, False, True, False]


def test_local_nets_equal_five_nets_one_after_the_other():
    torch.manual_seed(0)
    nets, windows = LocalNets(4), torch.randn(3, 5, 4, 7, 7)
    expected = [net(windows[:, i]) for i, net in enumerate(nets.nets)]
    torch.testing.assert_close(nets(windows), torch.stack(expected, 1), rtol=0, atol=0)
    assert len({id(p) for p in nets.parameters()}) == 5 * len(list(CropNet(4).parameters()))


@pytest.mark.parametrize(("patch", "side"), [(48, 6), (32, 4), (50, 7), (5, 1)])
def test_patches_of_any_size(patch, side):
    stems = PatchStems(16).eval()
    crops = batch(patch=patch)[2]
    with torch.inference_mode():
        assert stems(crops).shape == (2, 5, 16, side, side)
        assert LocalNets(16).eval()(stems(crops)).shape == (2, 5, 64)


def test_image_crop_without_crops_is_an_error():
    with pytest.raises(FercliError, match="image-crop needs prepared local crops"):
        build_network(model_spec(local="image-crop"))(*batch()[:2])


def test_parameter_groups_separate_pretrained_from_new():
    for name, local in (("ir-small", "image-crop"), ("mobilenet-v2", "feature-map")):
        network = build_network(model_spec(backbone=name, local=local))
        groups = network.parameter_groups()
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        old, new = ({names[id(p)] for p in groups[key]} for key in ("backbone", "new"))
        assert len(old) + len(new) == len(names) and not old & new
        assert all(key.startswith("backbone.") and "project" not in key for key in old)
        wanted = {"global_head", "local_nets", "classifiers"}
        wanted |= {"patch_stems"} if local == "image-crop" else {"backbone"}
        assert {key.split(".")[0] for key in new} == wanted


def test_every_parameter_gets_a_gradient_and_training_updates_the_statistics():
    network = build_network(model_spec(local="image-crop", classifiers="separate")).train()
    before = network.backbone.stem[1].running_mean.clone()
    network(*batch()).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not torch.equal(network.backbone.stem[1].running_mean, before)
    network.eval()
    before = network.backbone.stem[1].running_mean.clone()
    network(*batch())
    assert torch.equal(network.backbone.stem[1].running_mean, before)


def test_bfloat16_autocast_gives_float32_logits_near_the_full_ones():
    network = build_network(model_spec()).eval().to(memory_format=torch.channels_last)
    images, landmarks, _ = batch()
    with torch.inference_mode():
        full = network(images, landmarks).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(images, landmarks).logits
    assert half.dtype == torch.float32
    assert (half - full).norm() / full.norm() < 0.05


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build_network(model_spec()).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


# ---------------------------------------------------------------------------------------------------------------- PReLU

LAYOUTS = {"plain": torch.contiguous_format, "channels last": torch.channels_last}


def gradients(layer: nn.Module, x: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    return (y.detach(), *torch.autograd.grad(y, (x, layer.weight), back))


@pytest.mark.parametrize("shape", [(5, 3, 7, 7), (1, 3, 1, 1), (0, 3, 4, 4), (6, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 300, 1 << 18])
def test_values_and_gradients_are_torchs(shape, layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelu, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    x, back = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if x.dim() == 4:
        x, back = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, back))
    if x.numel():
        x[(0,) * x.dim()] = 0  # exactly zero: torch uses the slope
    ours = PReLU(3).double()
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.25, -0.5, 2.0]))
    theirs = nn.PReLU(3).double()
    theirs.load_state_dict(ours.state_dict())
    for mine, expected in zip(gradients(ours, x, back), gradients(theirs, x, back), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    if len(shape) == 2:
        _, of_x, of_weight = gradients(ours, x, back)
        slopes = [0.0, 0.0, 0.0]
        for i in range(shape[0]):
            for c in range(3):
                positive = float(x[i, c]) > 0
                assert float(of_x[i, c]) == pytest.approx(
                    float(back[i, c]) * (1 if positive else ours.weight[c].item())
                )
                slopes[c] += 0 if positive else float(back[i, c] * x[i, c])
        assert of_weight.tolist() == pytest.approx(slopes)


def test_in_half_precision_the_slopes_gradient_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(1)
    x, back = (torch.randn(16, 4, 20, 20, generator=generator).bfloat16() for _ in range(2))
    layer = PReLU(4)
    _, of_x, of_weight = gradients(layer, x, back)
    exact = gradients(nn.PReLU(4).double(), x.double(), back.double())
    assert of_x.dtype == torch.bfloat16 and of_weight.dtype == torch.float32
    torch.testing.assert_close(of_x.double(), exact[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(of_weight.double(), exact[2], rtol=1e-2, atol=0.5)


def test_in_evaluation_and_compiled_it_is_torchs_own() -> None:
    layer, x = PReLU(3), torch.randn(2, 3, 4, 4)
    expected = nn.functional.prelu(x, layer.weight)
    assert torch.equal(copy.deepcopy(layer).eval()(x), expected)
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
