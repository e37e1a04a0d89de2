"""Our PReLU against torch's, and against a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fercli.models import prelu
from fercli.models.prelu import PReLU

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
        x[(0,) * x.dim()] = 0  # neither side: torch gives it the slope
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
