"""How a device is used: which precision, which of its libraries, what is compiled.

The network alone is trained in half precision, by `torch.autocast` inside it. Its answers, the losses and thresholds of
the methods, their discriminators, the optimizer, all saved weights and every evaluation are float32 (with ``tf32``, its
matrix products are).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    compiles = engine.compile == "on" or (engine.compile == "auto" and compile_pays(engine, device))
    network.compiled = Compiled(network.compute) if compiles else None
    return {"precision": precision, "crop_nets": network.local_nets.implementation, "compile": compiles}


def compile_pays(engine: Engine, device: torch.device) -> bool:
    """Whether ``engine.compile: auto`` compiles: on one CUDA device, unless runs must repeat bit for bit."""
    return device.type == "cuda" and not engine.deterministic and distributed.world_size() == 1


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
    """A network's forward pass through `torch.compile`, until that fails: then as it is, with one warning.

    Each shape is compiled for itself; after torch's limit of shapes (8) further ones run as they are.
    """

    def __init__(self, compute: Callable[..., Output], **options: Any):
        self._plain = compute
        self._compiled: Callable[..., Output] | None = None
        try:
            self._compiled = torch.compile(compute, dynamic=False, **options)
        except Exception as problem:  # a platform or Python that it does not support
            _give_up(problem)

    def __call__(self, images: Tensor, landmarks: Tensor, crops: Tensor | None = None) -> Output:
        if self._compiled is not None:
            try:
                return self._compiled(images, landmarks, crops)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as problem:
                # What the pass itself is to blame for happens again below. Compiling comes before running, so that
                # statistics have not moved yet.
                result = self._plain(images, landmarks, crops)
                self._compiled = None
                _give_up(problem)
                return result
        return self._plain(images, landmarks, crops)


def _give_up(problem: Exception) -> None:
    text = next(iter(str(problem).splitlines()), "")
    said = f"{type(problem).__name__}{': ' + text[:120] if text else ''}"
    console.warn(f"torch.compile does not work here ({said}); going on without it (engine.compile=off)")
