"""Describe the machine of a measurement or run, time work on a device, and explain why CUDA is unavailable."""

from __future__ import annotations

import datetime
import io
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fercli.version import __version__

if TYPE_CHECKING:
    import torch

#: Root of the system files that describe NVIDIA cards; tests use their own.
_ROOT = Path("/")
_OTHER_TORCH = "https://pytorch.org/get-started/previous-versions"


def describe(*packages: str) -> dict[str, str]:
    """Return processor, platform, versions (of Python, fercli and the named packages), date and command.

    Packages that are not installed are left out.
    """
    return {
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "fercli": __version__,
        **{name: version for name in packages if (version := installed_version(name)) is not None},
        "date": datetime.date.today().isoformat(),
        "command": " ".join(sys.argv),
    }


def installed_version(package: str) -> str | None:
    """Return the version of a package from its metadata; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_device(device: str) -> dict[str, str | int]:
    """Return `describe` plus the versions of torch, the name of the device ("cpu" or "cuda") and the CPU threads."""
    import torch

    return {
        **describe("torch", "torchvision", "numpy"),
        "torch": torch.__version__,  # which names its CUDA too
        "device": name_of(device),
        "threads": torch.get_num_threads(),
    }


def name_of(device: str) -> str:
    """Return a device ("cpu" or "cuda") with its product name: ``cuda (NVIDIA H200)``."""
    import torch

    return f"{device} ({torch.cuda.get_device_name() if device == 'cuda' else processor()})"


class NoCuda(NamedTuple):
    """Why torch cannot use a CUDA device.

    Attributes:
        found: what is wrong, in words.
        fix: what to do.
        card: whether an NVIDIA card or driver is found that torch could be expected to use.
    """

    found: str
    fix: str
    card: bool = True


@lru_cache(maxsize=1)  # torch gives the reason only on the first call
def no_cuda() -> NoCuda | None:
    """Return why torch cannot use a CUDA device here; None if it can."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return _unusable()
    driver, card = _nvidia_driver(), _sees_nvidia_card()
    if torch.version.cuda is None and torch.version.hip is None:
        seen = f"there is a driver ({driver})" if driver else "there is an NVIDIA card" if card else ""
        found = f"torch {torch.__version__} is built for the CPU" + (f", though {seen}" if seen else "")
        return NoCuda(found, "install torch built for CUDA, as described on https://pytorch.org", bool(driver) or card)
    containers = "in a container, pass the devices through (docker: --gpus all)"
    if driver is None:
        found = "no NVIDIA driver" + (", though there is an NVIDIA card" if card else "")
        return NoCuda(found, f"install the driver, or {containers}", card)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return NoCuda("CUDA_VISIBLE_DEVICES hides all devices", "unset CUDA_VISIBLE_DEVICES")
    reason = " ".join(str(said[0].message).split(". ")[0].split()) if said else ""
    older = re.search(r"driver .*too old \(found version (\d+)\)", reason)
    if older is not None:
        most = f"{int(older[1]) // 1000}.{int(older[1]) % 1000 // 10}"
        found = f"the driver ({driver}) supports CUDA up to {most}, but torch {torch.__version__} is built for"
        fix = f"update the driver, or install torch for CUDA {most} or older ({_OTHER_TORCH})"
        return NoCuda(f"{found} {torch.version.cuda}", fix)
    if not reason and visible is not None:
        fix = "unset CUDA_VISIBLE_DEVICES, or name a device that nvidia-smi -L lists"
        return NoCuda(f"CUDA_VISIBLE_DEVICES ({visible}) names no existing device", fix)
    if not reason and not card:
        fix = f"{containers}; in SLURM, request a GPU (--gres gpu:1)"
        return NoCuda(f"there is a driver ({driver}), but no card", fix)
    found = f"{reason or 'torch sees no device'}; driver {driver}, torch's CUDA {torch.version.cuda}"
    return NoCuda(found, f"check that nvidia-smi works; update the driver, or install another torch ({_OTHER_TORCH})")


def _unusable() -> NoCuda | None:
    """Return why the first device that torch sees is unusable; None if it is usable."""
    import torch

    built = torch.cuda.get_arch_list()
    try:
        name, (major, minor) = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    except RuntimeError as problem:
        return NoCuda(
            next(iter(str(problem).strip().splitlines()), "torch cannot initialise CUDA"),
            "see the output of nvidia-smi",
        )
    if torch.version.hip is not None or not built or any(_runs_on(one, (major, minor)) for one in built):
        return None
    found = f"{name} is sm_{major}{minor}, but torch {torch.__version__} is built for {', '.join(built)}"
    return NoCuda(
        found, f"install torch built for it ({_OTHER_TORCH}), or select another card with CUDA_VISIBLE_DEVICES"
    )


def _runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Return whether code that torch was built with, such as ``sm_86``, runs on a device of a compute capability.

    Machine code (sm) runs on devices of the same major version and the same or a later minor version. Code marked ``a``
    runs on that exact version only. PTX (compute) is translated for every later device. (NVIDIA, CUDA C++ Programming
    Guide, "Application Compatibility".)
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if parts is None:
        return False
    kind, step, mark = parts[1], (int(parts[2]), int(parts[3])), parts[4]
    if mark == "a":
        return step == capability
    return step <= capability and ((kind == "compute" and not mark) or step[0] == capability[0])


def _nvidia_driver() -> str | None:
    """Return the NVIDIA driver's version, or "of unknown version" if the system does not report it; None if absent."""
    try:
        text = (_ROOT / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "of unknown version" if shutil.which("nvidia-smi") else None
    return next((word for word in text.split() if re.fullmatch(r"\d+(\.\d+)+", word)), "of unknown version")


def _sees_nvidia_card() -> bool:
    """Return whether the system shows an NVIDIA card, with or without a driver."""
    if any(_ROOT.glob("dev/nvidia[0-9]*")):
        return True
    for device in _ROOT.glob("sys/bus/pci/devices/*"):
        with suppress(OSError):
            maker, kind = ((device / name).read_bytes() for name in ("vendor", "class"))
            if maker.startswith(b"0x10de") and kind.startswith(b"0x03"):  # a display controller
                return True
    return False


def processor() -> str:
    """Return the processor's name, as far as the system reports it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction sets by Linux name (``avx2``, ``avx512_bf16``, ...); empty if unknown."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return ""


def wait(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run scikit-learn on one thread within the block: multi-threaded sums round differently from run to run."""
    from joblib.externals.loky import cpu_count
    from threadpoolctl import threadpool_limits

    # scikit-learn asks joblib for the number of cores. joblib calls ``lscpu``, which slim containers lack, and prints a
    # long warning, but only the first time.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        cpu_count(only_physical_cores=True)
    with threadpool_limits(1):
        yield


class Clock:
    """Seconds spent on each part of a task, in `spent`.

    Use as ``with clock("decode"): ...``; it waits for `device` after each part.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device, self.spent = device, dict[str, float]()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._device is not None:
            wait(self._device)
        self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - started


def seconds(run: Callable[[], object], device: torch.device, rounds: int = 3, warm: int = 1) -> list[float]:
    """Return the seconds of each of `rounds` calls, after `warm` warm-up calls that are not counted."""
    spent = []
    for _ in range(warm + rounds):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        spent.append(time.perf_counter() - started)
    return spent[warm:]
