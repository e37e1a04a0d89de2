"""The five crop nets run together, compared with one after the other."""

from __future__ import annotations

import copy

import pytest
import torch

from fercli.models.grouped import IMPLEMENTATIONS, GroupedMatmul
from fercli.models.local import LocalNets
from fercli.models.norms import BatchNorm2d

AT_ONCE = IMPLEMENTATIONS[1:]


def inverted() -> torch.nn.Sequential:
    """Return MobileNetV2's blocks from 4 to 16 channels, whose convolutions have their own groups."""
    from torchvision.models.mobilenetv2 import InvertedResidual

    return torch.nn.Sequential(InvertedResidual(4, 16, 2, 6, BatchNorm2d), InvertedResidual(16, 16, 1, 6, BatchNorm2d))


def nets(channels: int = 8, light: bool = False, seed: int = 0, blocks=None) -> LocalNets:
    """Return crop nets whose norms and slopes differ from their initial values."""
    torch.manual_seed(seed)
    made = LocalNets(channels, light, blocks)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand_like(tensor))
    return made


def windows(batch: int, channels: int, size: int = 7) -> torch.Tensor:
    """Return windows like those of `cut_windows`: regions first and channels last in memory."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(5, batch, size, size, channels, generator=generator).permute(1, 0, 4, 2, 3)


def passed(module: LocalNets, maps: torch.Tensor, steps: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features, and the gradient with respect to the windows, of the last of several passes."""
    for _ in range(steps):
        leaf = maps.clone(memory_format=torch.preserve_format).requires_grad_()
        features = module(leaf)
        (features * torch.linspace(-1, 2, features.numel()).view_as(features)).sum().backward()
    return features.detach(), leaf.grad


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    # Some gradients are nothing but rounding, such as those of biases that a batch norm cancels.
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "light", "size", "blocks"),
    [(8, False, 7, None), (8, True, 7, None), (4, False, 6, None), (20, True, 5, None), (4, False, 7, inverted)],
)
@pytest.mark.parametrize("implementation", AT_ONCE)
def test_all_together_equal_one_after_the_other(implementation, channels, light, size, blocks, channels_last):
    one = nets(channels, light, blocks=blocks)
    if channels_last:
        one = one.to(memory_format=torch.channels_last)
    all_, maps = copy.deepcopy(one), windows(3, channels, size)
    all_.implementation = implementation
    (expected, expected_gradient), (features, gradient) = passed(one, maps), passed(all_, maps)
    assert features.shape == (3, 5, 64)
    assert relative(features, expected) < 1e-5
    assert relative(gradient, expected_gradient) < 1e-5
    for (name, ours), theirs in zip(all_.named_parameters(), one.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < 1e-5, name
    begun = nets(channels, light, blocks=blocks)
    for (name, ours), theirs, first in zip(all_.named_buffers(), one.buffers(), begun.buffers(), strict=True):
        if ours.is_floating_point():
            assert relative(ours, theirs) < 1e-5 < relative(ours, first), name
        else:
            assert ours == theirs == first, name


@pytest.mark.parametrize("implementation", AT_ONCE)
def test_eval_mode_uses_the_running_statistics_and_keeps_them(implementation):
    one = nets().eval()
    all_ = copy.deepcopy(one)
    all_.implementation = implementation
    before = {name: tensor.clone() for name, tensor in all_.state_dict().items()}
    with torch.inference_mode():
        torch.testing.assert_close(all_(windows(1, 8)), one(windows(1, 8)), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in all_.state_dict().items())


@pytest.mark.parametrize("implementation", AT_ONCE)
def test_states_have_the_same_names_and_go_both_ways(implementation):
    one, all_ = nets(seed=1), nets(seed=2)
    all_.implementation = implementation
    passed(all_, windows(2, 8), steps=1)
    assert list(one.state_dict()) == list(all_.state_dict()) == list(LocalNets(8).state_dict())
    all_.load_state_dict(one.state_dict())
    one.eval(), all_.eval()
    torch.testing.assert_close(all_(windows(2, 8)), one(windows(2, 8)), rtol=1e-5, atol=1e-6)
    one.load_state_dict(all_.state_dict())


@pytest.mark.parametrize("implementation", AT_ONCE)
def test_half_precision_is_close_to_full_precision(implementation):
    one, maps = nets(16).to(memory_format=torch.channels_last), windows(4, 16)
    all_ = copy.deepcopy(one)
    all_.implementation = implementation
    with torch.no_grad():
        full = one(maps)
        with torch.autocast("cpu", torch.bfloat16):
            half = all_(maps)
    assert half.dtype == torch.float32
    assert relative(half, full) < 0.03


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups"), [(3, 1, 1, 5), (3, 2, 1, 5), (1, 1, 0, 5), (3, 2, 0, 2)]
)
def test_a_convolution_by_matrix_products(size, stride, padding, groups):
    torch.manual_seed(0)
    ours = GroupedMatmul(20, 30 if groups == 5 else 8, size, stride, padding, groups=groups).double()
    maps = torch.randn(2, 20, 7, 6, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(maps, ours.weight, ours.bias, stride, padding, groups=groups)
    torch.testing.assert_close(ours(maps), expected, rtol=1e-12, atol=1e-12)


def test_timing_changes_nothing_and_names_every_implementation():
    made = nets(4)
    before = copy.deepcopy(made.state_dict())
    spent = made.fastest(windows(2, 4), torch.bfloat16)
    assert (
        set(spent) == set(IMPLEMENTATIONS)
        and list(spent.values()) == sorted(spent.values())
        and min(spent.values()) > 0
    )
    assert made.implementation == "loop" and made.training
    assert all(p.grad is None for p in made.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
