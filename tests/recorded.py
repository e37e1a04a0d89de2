"""Training steps for tests, without data: on a device without memory, and recorded as a CUDA graph would be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tiny import Small
from torch.utils._python_dispatch import TorchDispatchMode

from fercli.benchmarks.operations import tensors_in
from fercli.benchmarks.steps import changed, on_noise
from fercli.benchmarks.stores import noise_store
from fercli.engine.data import open_store, source_faces, target_faces
from fercli.engine.network import empty_network
from fercli.engine.training import Training
from fercli.methods import method_class
from fercli.spec import Spec

#: Faces of each store.
FACES = 24


def fabric_on(device: torch.device) -> Any:
    """The parts of Fabric that `Training` uses for one process in float32."""
    return SimpleNamespace(
        device=device,
        setup=lambda module, optimizer: (module.to(device), optimizer),
        backward=lambda loss: loss.backward(),
        clip_gradients=lambda module, _, max_norm, **__: torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm),
    )


def noise_spec(room: Path, backbone: str = "ir-small", batch: int = 6, **adapt: Any) -> Spec:
    """A spec whose source and target are stores of noise in `room`; missing stores are created."""
    spec = on_noise(changed(Spec(), model={"backbone": backbone, "width": 4}), room)
    for seed, name in enumerate(("source", "target")):
        if not (room / name).exists():
            noise_store(room, name, FACES, spec.prepare, False, seed)
    return changed(spec, adapt={"batch": batch, **adapt})


def adaptation(spec: Spec, device: torch.device, folder: Path, fused: bool = False, real: bool = False) -> Training:
    """An adaptation to the target, set up on a device, before its first step. The same numbers every time.

    Args:
        fused: whether the optimizer is the one used on a CUDA device.
        real: whether the network is the spec's, instead of the smallest that methods accept.
    """
    torch.manual_seed(0)
    kind = method_class(spec.adapt.method)
    with device:  # also for tensors that methods create
        network = empty_network(spec) if real else Small()
        source = source_faces(spec, device) if kind.needs_source else None
        target = target_faces(spec, open_store(spec, "target", labels=False), device)
        training = Training(spec, fabric_on(device), network, source, target, folder, record={})
    if kind.oracle:
        training.method.give_labels(torch.zeros(FACES, dtype=torch.long))
    if fused:
        training.fused = True
        training.fuse()
    return training


class Tape(TorchDispatchMode):
    """Records every operation while it is active, and replays them: what a CUDA graph does, on any device.

    Each operation runs again on the same tensors, whatever they hold by then, and with the same Python numbers. Its
    results are written to where the recorded ones are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._played: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._played.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, result in self._played:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                if old.numel() and old.data_ptr() != new.data_ptr():  # not a view, and not written in place
                    old.copy_(new)
