"""fercli's batch norms against torch's: the same numbers, one operation fewer; and the strided shortcut convolution."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fercli.benchmarks.operations import Operations
from fercli.methods import method_class
from fercli.models import FEATURE_SIZE, GlobalLocal, build_network
from fercli.models.backbones import IR_BLOCKS, MOBILE, BottleneckIR, Shortcut, build_backbone
from fercli.models.local import LocalNets
from fercli.models.norms import BatchNorm1d, BatchNorm2d
from fercli.spec import Adapt, Model

KINDS = {BatchNorm1d: (nn.BatchNorm1d, (6, 5)), BatchNorm2d: (nn.BatchNorm2d, (6, 5, 3, 4))}


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_numbers_and_state_are_torch_s(ours: type, training: bool) -> None:
    kind, shape = KINDS[ours]
    torch.manual_seed(0)
    plain = kind(5)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    made = ours(5)
    made.load_state_dict(plain.state_dict())
    plain.load_state_dict(made.state_dict())
    assert isinstance(made, kind)
    for _ in range(3):
        x = torch.randn(shape)
        seen = []
        for norm in (plain.train(training), made.train(training)):
            leaf = x.clone().requires_grad_()
            out = norm(leaf)
            out.square().sum().backward()
            seen.append([out, leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert int(made.num_batches_tracked) == 0 and int(plain.num_batches_tracked) == 3 * training
    with pytest.raises(ValueError, match="expected"):
        made(torch.randn(5))


def test_a_pass_counts_nothing() -> None:
    seen = []
    for norm in (nn.BatchNorm2d(5), BatchNorm2d(5)):
        with Operations("cpu") as mode:
            norm(torch.randn(6, 5, 3, 4))
        seen.append(mode.counts)
    assert seen[0] - seen[1] == Counter({"add_": 1}) and not seen[1] - seen[0]


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
@pytest.mark.parametrize("backbone", [*IR_BLOCKS, *MOBILE])
def test_every_norm_of_a_network_is_ours(backbone: str, local: str) -> None:
    with torch.device("meta"):
        network = build_network(Model(backbone=backbone, local=local))
    norms = {type(module) for module in network.modules() if isinstance(module, _BatchNorm)}
    assert norms == {BatchNorm2d}


def test_every_norm_of_agra_is_ours() -> None:
    kind = method_class("agra")
    method = kind(Adapt(method="agra"), kind.Options(), FEATURE_SIZE, 3)
    assert {type(module) for module in method.modules() if isinstance(module, _BatchNorm)} == {BatchNorm1d}


@pytest.mark.parametrize("nets", ["loop", "grouped"])
def test_a_pass_of_the_network_touches_no_counter(nets: str) -> None:
    network = GlobalLocal(build_backbone("ir-small", 4))
    network.local_nets.implementation = nets
    counters = {key: value for key, value in network.named_buffers() if key.endswith("num_batches_tracked")}
    for value in counters.values():
        value.fill_(1234)
    versions = {key: value._version for key, value in counters.items()}
    network(torch.randn(2, 3, 112, 112), torch.full((2, 5, 2), 56.0))
    assert all(int(value) == 1234 and value._version == versions[key] for key, value in counters.items())


# Strided shortcuts


def both_ways(module: nn.Module, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Outputs and gradients, with pixels cut out first and with a strided convolution."""
    found = []
    for itself in (False, True):
        made, leaf = copy.deepcopy(module), x.clone(memory_format=torch.preserve_format).requires_grad_()
        for shortcut in made.modules():
            if isinstance(shortcut, Shortcut):
                shortcut.strides_itself = itself
        if isinstance(made, LocalNets):
            made.implementation = module.implementation  # stack the nets again
        out = made(leaf)
        (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in made.parameters())])
    return found


def assert_alike(found: list[list[torch.Tensor]]) -> None:
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm().clamp_min(1)


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("size", [7, 8])
def test_a_shortcut_may_stride_itself(light: bool, size: int) -> None:
    torch.manual_seed(0)
    block = BottleneckIR(16, 32, 2, light).to(memory_format=torch.channels_last)
    x = torch.randn(3, 16, size, size).contiguous(memory_format=torch.channels_last)
    found = both_ways(block, x)
    assert found[0][0].shape == (3, 32, -(-size // 2), -(-size // 2))
    assert_alike(found)
    (conv, norm), published = block.shortcut, nn.Conv2d(16, 32, 1, 2, bias=False)
    published.load_state_dict(conv.state_dict())
    torch.testing.assert_close(block.body(x) + norm(published(x)), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["loop", "grouped", "matmul"])
def test_shortcuts_of_the_crop_nets_may_stride_themselves(implementation: str) -> None:
    torch.manual_seed(0)
    nets = LocalNets(16)
    nets.implementation = implementation
    assert_alike(both_ways(nets, torch.randn(5, 3, 7, 7, 16).permute(1, 0, 4, 2, 3)))


@pytest.mark.parametrize("itself", [False, True])
def test_compiled_there_is_one_convolution_and_no_copy_beside_it(itself: bool) -> None:
    graphs = []

    def keep(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    shortcut = Shortcut(16, 32, 2)
    shortcut.strides_itself = itself
    compiled = torch.compile(shortcut, backend=keep, fullgraph=True)
    x = torch.randn(2, 16, 7, 7)
    torch.testing.assert_close(compiled(x), shortcut(x))
    (calls,) = graphs
    assert len(calls) == (1 if itself else 2)
    torch._dynamo.reset()
