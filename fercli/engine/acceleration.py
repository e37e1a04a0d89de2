"""How a device is used: its precision, its libraries, and compilation.

Only the network is trained in half precision, by `torch.autocast` inside it. Its outputs, the losses and thresholds of
the methods, their discriminators, the optimizer, all saved weights and every evaluation are float32. With ``tf32`` all
matrix products in training use TF32.
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

#: CPU flags of a processor that multiplies bfloat16 (x86's AVX-512 and AMX, Arm).
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"}
#: Crop nets run faster side by side on CPUs up to this number of channels in the local windows (`LocalNets`).
SIDE_BY_SIDE = 32
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_precision(precision: str, device: str) -> str:
    """``32-true``, ``tf32``, ``bf16-mixed`` or ``16-mixed`` for `engine.precision` on "cpu" or "cuda".

    ``auto`` is bfloat16 on CUDA devices that support it (Ampere and later) and float32 on all others. On CPUs float32
    stays the default: bfloat16 is faster where it is supported, but has not been shown to preserve accuracy.

    Raises:
        FercliError: the device does not support the precision.
    """
    if precision == "auto":
        return "bf16-mixed" if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if device == "cpu" and precision in ("tf32", "16-mixed"):
        raise FercliError(f"engine.precision {precision} needs a CUDA device", "on a CPU use 32-true or bf16-mixed")
    return precision


def autocast_of(precision: str) -> torch.dtype | None:
    """The half-precision type of a resolved precision, or None if it has none."""
    return _HALF.get(precision)


def set_libraries(precision: str, device: str, deterministic: bool) -> None:
    """Set torch's process-wide options: TF32 only with ``tf32``, cuDNN's benchmark search unless `deterministic`."""
    if device == "cuda":
        tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic


def accelerate(network: GlobalLocal, engine: Engine, device: torch.device, batch: int) -> dict[str, Any]:
    """Make a network's training steps as fast as the spec and the device allow.

    Args:
        network: already moved to `device`.
        batch: number of faces in its largest forward pass; it decides how the crop nets run.

    Returns:
        The choices, for the record: ``precision``, ``crop_nets`` and ``compile`` (bool).
    """
    precision = resolve_precision(engine.precision, device.type)
    if device.type == "cpu" and precision == "bf16-mixed" and not (cpu_flags() & _BF16_FLAGS):
        console.warn("this processor lists no bfloat16 instructions: engine.precision=32-true is likely faster here")
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
    if engine.deterministic:  # a measurement may come out differently in the next run
        return "loop"
    if device.type == "cpu":
        return "grouped" if channels <= SIDE_BY_SIDE else "loop"
    windows = torch.zeros(5, batch, WINDOW, WINDOW, channels, device=device).permute(1, 0, 4, 2, 3)
    # All processes measure together, as their norms may communicate. Results may differ: the first process's counts.
    spent = network.local_nets.fastest(windows, network.autocast)
    return distributed.on_rank_zero(lambda: next(iter(spent)))


class Compiled:
    """A network's forward pass through `torch.compile`, compiled separately for each shape (up to torch's limit of 8).

    Attributes:
        proven: kinds of updates that succeeded, forward and backward.
    """

    def __init__(self, compute: Callable[..., Output], **options: Any):
        self._compiled = torch.compile(compute, dynamic=False, **options)
        self.proven: set[Hashable] = set()

    def __call__(self, images: Tensor, landmarks: Tensor, crops: Tensor | None = None) -> Output:
        return self._compiled(images, landmarks, crops)


def compiled_or_none(compute: Callable[..., Output], **options: Any) -> Compiled | None:
    """Return `Compiled`, or warn and return None on a platform or Python that does not support it."""
    try:
        return Compiled(compute, **options)
    except Exception as problem:
        _give_up(problem)
        return None


def with_way_back(network: GlobalLocal, module: nn.Module, kind: Hashable, gradients: Callable[[], None]) -> None:
    """Compute gradients through a compiled network; if that fails, warn once and go without compilation from then on.

    A pass is compiled when it first runs, forward and later backward, and both may fail. The first update of each kind
    can therefore be undone: the buffers and random state that a forward pass changes are kept until it is done.

    Args:
        network: its `GlobalLocal.compiled` is removed if compilation fails.
        module: the module whose buffers `gradients` may change.
        kind: of the update: its shapes, and anything else that leads to different passes.
        gradients: clears the gradients and computes them.
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
        gradients()  # an error that compilation did not cause is raised again here
        _give_up(problem)


def first_line(problem: Exception) -> str:
    """An error's type and the first line of its message."""
    text = next(iter(str(problem).splitlines()), "")
    return f"{type(problem).__name__}{': ' + text[:120] if text else ''}"


def _give_up(problem: Exception) -> None:
    console.warn(f"torch.compile does not work here ({first_line(problem)}); training without it (engine.compile=off)")
