"""Released checkpoints as their authors' code writes them, filled by the tests, and a reference for predictions."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import torch
from tiny import model_spec
from torch import Tensor, nn

from fercli.models import GlobalLocal
from fercli.models.build import build_network
from fercli.models.names import to_published_names

#: b of an AGLRLS file: some classes are well learned, some not at all.
STATUS = torch.linspace(0, 1, 49).view(7, 7).roll(3, 1)


def names_and_shapes(state: dict[str, Tensor]) -> str:
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fill(state: dict[str, Tensor], dtype: type = np.float32) -> dict[str, Tensor]:
    """Fill every tensor of a published state with the numbers of the fixture's rule."""
    filled = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        z = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))
        parent, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            filled[name] = torch.zeros((), dtype=torch.int64)
            continue
        if last == "running_mean":
            value = 0.1 * z
        elif last == "running_var":
            value = 1 + 0.1 * np.abs(z)
        elif len(shape) >= 2:
            value = z / np.sqrt(np.prod(shape[1:]))
        elif last == "weight":
            value = 1 + 0.1 * z if f"{parent}.running_mean" in state else 0.25 + 0.05 * z
        else:
            value = 0.1 * z
        filled[name] = torch.from_numpy(value.astype(dtype))
    return filled


def hollow(name: str) -> dict[str, Tensor]:
    """A published state of millions of numbers that needs no memory: every tensor is a single expanded zero."""
    with torch.device("meta"):
        state = to_published_names(build_network(model_spec(backbone=name)).state_dict())
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def network_of(backbone: str = "ir18", seed: int = 0) -> GlobalLocal:
    """A network with trained norm statistics, whose heads disagree."""
    torch.manual_seed(seed)
    network = build_network(model_spec(backbone=backbone)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
        for layer in network.classifiers:
            layer.weight.mul_(3)
            layer.bias.normal_(0, 0.5)
    return network


def aglrls(network: GlobalLocal, **changes: object) -> dict[str, object]:
    """A file as AGLRLS's second stage saves it; `changes` replace entries, None removes one."""
    document = {
        "epoch": 12,
        "classwise": list(STATUS),
        "optimizer": {"state": {}, "param_groups": []},
        "optimizer_ad": {"state": {}, "param_groups": []},
        "ad_nets": [{"ad_layer1.weight": torch.zeros(2, 2)}],
        "model": to_published_names(network.state_dict()),
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def agra_extras(seed: int = 0, clusters: bool = True) -> dict[str, Tensor]:
    """AGRA's tensors besides backbone and crop nets, under its names: graphs, norms, means and two classifiers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    mask = torch.ones(12, 12)
    mask[:6, :6] = mask[6:, 6:] = 0
    mask.fill_diagonal_(1)
    state = {
        "GCN.IntraAdjMatrix": normal(6, 6, scale=1),
        "GCN.InterAdjMatrix": normal(12, 12, scale=1),
        "GCN.InterMaskMatrix": mask,
        "fc.weight": normal(7, 384, scale=0.5),
        "fc.bias": normal(7),
        "loc_fc.weight": normal(7, 320),
        "loc_fc.bias": normal(7),
    }
    for name, (inputs, outputs) in {"IntraGCN_1": (64, 128), "IntraGCN_2": (128, 64), "InterGCN": (64, 64)}.items():
        state[f"GCN.{name}.FC.weight"], state[f"GCN.{name}.FC.bias"] = normal(outputs, inputs), normal(outputs)
    for domain in ("Source", "Target"):
        state[f"{domain}BN.weight"], state[f"{domain}BN.bias"] = 1 + normal(384), normal(384)
        state[f"{domain}BN.running_mean"] = normal(384).abs()
        state[f"{domain}BN.running_var"] = 1 + normal(384).abs()
        state[f"{domain}BN.num_batches_tracked"] = torch.tensor(40)
        state[f"{domain}Mean.running_mean"] = normal(7, 384, scale=0.3).abs() if clusters else normal(384).abs()
        state[f"{domain}Mean.num_batches_tracked"] = torch.tensor(40)
    return state


def agra(network: GlobalLocal, **extras: Tensor) -> dict[str, Tensor]:
    """A file as AGRA's code saves it: only the state."""
    backbone = {k: v for k, v in to_published_names(network.state_dict()).items() if not k.startswith("classifiers.")}
    return backbone | (extras or agra_extras())


def agra_answer(features: Tensor, state: dict[str, Tensor]) -> Tensor:
    """AGRA's logits [7] for one target face, by plain products, from its features [384] and a file's tensors."""
    means = state["SourceMean.running_mean"]
    if means.ndim == 2:
        means = means[int(torch.stack([((features - mean) ** 2).sum() for mean in means]).argmin())]
    nodes = []
    for domain, x in (("Source", means), ("Target", features)):
        norm = {name: state[f"{domain}BN.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        scaled = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
        nodes.append((scaled * norm["weight"] + norm["bias"]).view(6, 64))

    def rows(name: str, mask: Tensor | None = None) -> Tensor:
        kept = (state[f"GCN.{name}"] * (1 if mask is None else mask)).clamp(min=0)
        return kept / kept.sum(1, keepdim=True)

    def layer(name: str, x: Tensor) -> Tensor:
        return x @ state[f"GCN.{name}.FC.weight"].T + state[f"GCN.{name}.FC.bias"]

    intra, inter = rows("IntraAdjMatrix"), rows("InterAdjMatrix", state["GCN.InterMaskMatrix"])
    halves = [intra @ layer("IntraGCN_2", (intra @ layer("IntraGCN_1", x)).relu()) for x in nodes]
    refined = (inter @ layer("InterGCN", torch.cat(halves)))[6:].flatten()
    return state["fc.weight"] @ refined + state["fc.bias"]
