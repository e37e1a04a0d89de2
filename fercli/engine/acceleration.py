"""How a device is used: which precision, which of its libraries, what is compiled.

The network alone is trained in half precision, by `torch.autocast` inside it. Its answers, the losses and thresholds of
the methods, their discriminators, the optimizer, all saved weights and every evaluation are float32. With ``tf32`` the
matrix products of all that trains are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from fercli import console
from fercli.engine import distributed
from fercli.errors import FercliError
from fercli.machine import cpu_flags
from fercli.models import GlobalLocal, Output
from fercli.models.local import WINDOW
from fercli.spec import Engine

#: What a processor that multiplies bfloat16 says of itself (x86's AVX-512 and AMX, Arm).
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"}
#: Channels of the local windows up to which crop nets side by side are the faster on CPUs (`LocalNets`).
SIDE_BY_SIDE = 32
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_precision(precision: str, device: str) -> str:
    """``32-true``, ``tf32``, ``bf16-mixed`` or ``16-mixed`` for `engine.precision` on "cpu" or "cuda".

    ``auto`` is bfloat16 on CUDA devices that have it (Ampere and later), float32 on all others. On CPUs float32 stays
    the default: bfloat16 is faster on those that have it, but not shown to leave the accuracy as it is.

    Raises:
        FercliError: the device has none of what is asked for.
    """
    if precision == "auto":
        return "bf16-mixed" if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if device == "cpu" and precision in ("tf32", "16-mixed"):
        raise FercliError(f"engine.precision {precision} needs a CUDA device", "on a CPU take 32-true or bf16-mixed")
    return precision


def autocast_of(precision: str) -> torch.dtype | None:
    """The half-precision type of a resolved precision, None for none."""
    return _HALF.get(precision)


def set_libraries(precision: str, device: str, deterministic: bool) -> None:
    """Set what torch keeps for the whole process: TF32 only where it is asked for, cuDNN's search where it may."""
    if device == "cuda":
        tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic


def accelerate(network: GlobalLocal, engine: Engine, device: torch.device, batch: int) -> dict[str, Any]:
    """Make a network's training steps as fast as the spec and the device allow.

    Args:
        network: moved to `device`.
        batch: faces in its largest forward pass, for choosing how the crop nets run.

    Returns:
        What was chosen: ``precision``, ``crop_nets``, ``compile`` (bool), for the record.
    """
    precision = resolve_precision(engine.precision, device.type)
    if device.type == "cpu" and precision == "bf16-mixed" and not (cpu_flags() & _BF16_FLAGS):
        console.warn("this processor shows no bfloat16 instructions: engine.precision=32-true is likely faster here")
    network.to(device)
    network.autocast = autocast_of(precision)
    network.local_nets.implementation = _crop_nets(network, engine, device, batch)
    network.compiled = compiled_or_none(network.compute) if engine.compile == "on" else None
    return {
        "precision": precision,
        "crop_nets": network.local_nets.implementation,
        "compile": network.compiled is not None,
    }


def _crop_nets(network: GlobalLocal, engine: Engine, device: torch.device, batch: int) -> str:
    if engine.crop_nets != "auto":
        return engine.crop_nets
    channels = network.backbone.local_channels
    if engine.deterministic:  # what is measured may come out otherwise in the next run
        return "loop"
    if device.type == "cpu":
        return "grouped" if channels <= SIDE_BY_SIDE else "loop"
    windows = torch.zeros(5, batch, WINDOW, WINDOW, channels, device=device).permute(1, 0, 4, 2, 3)
    # Processes measure together, for their norms may send messages. What they find may differ: the first one's counts.
    spent = network.local_nets.fastest(windows, network.autocast)
    return distributed.on_rank_zero(lambda: next(iter(spent)))


class Compiled:
    """A network's forward pass through `torch.compile`, each shape for itself (up to torch's limit of 8).

    Attributes:
        proven: kinds of updates that went well, there and back.
    """

    def __init__(self, compute: Callable[..., Output], **options: Any):
        self._compiled = torch.compile(compute, dynamic=False, **options)
        self.proven: set[Hashable] = set()

    def __call__(self, images: Tensor, landmarks: Tensor, crops: Tensor | None = None) -> Output:
        return self._compiled(images, landmarks, crops)


def compiled_or_none(compute: Callable[..., Output], **options: Any) -> Compiled | None:
    """`Compiled`, or with a warning None on a platform or Python that it does not support."""
    try:
        return Compiled(compute, **options)
    except Exception as problem:
        _give_up(problem)
        return None


def with_way_back(network: GlobalLocal, module: nn.Module, kind: Hashable, gradients: Callable[[], None]) -> None:
    """Compute gradients by a compiled network; if that fails, once more without, with one warning for good.

    A pass is compiled when it first runs, forwards and later backwards, and both may fail. So the first of each kind
    can be taken back: what a forward pass changes, buffers and random numbers, is kept until it is done.

    Args:
        network: `GlobalLocal.compiled` of it is removed where it fails.
        module: whose buffers `gradients` may change.
        kind: of update: by shapes, and whatever else leads to other passes.
        gradients: clears the gradients and sets them.
    """
    compiled = network.compiled
    if compiled is None or kind in compiled.proven:
        gradients()
        return
    buffers = list(module.buffers())
    kept, drawn = [buffer.clone() for buffer in buffers], torch.get_rng_state()
    on_device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        gradients()
        compiled.proven.add(kind)
    except (FercliError, torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as problem:
        network.compiled = None
        with torch.no_grad():
            for buffer, before in zip(buffers, kept, strict=True):
                buffer.copy_(before)
        torch.set_rng_state(drawn)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device)
        gradients()  # what the pass itself is to blame for happens again
        _give_up(problem)


def first_line(problem: Exception) -> str:
    """An error's type and the first line of what it says."""
    text = next(iter(str(problem).splitlines()), "")
    return f"{type(problem).__name__}{': ' + text[:120] if text else ''}"


def _give_up(problem: Exception) -> None:
    console.warn(f"torch.compile does not work here ({first_line(problem)}); going on without it (engine.compile=off)")
