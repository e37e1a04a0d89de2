"""What a figure was measured on, what a run ran on, how long work on a device takes, and why there is no CUDA."""

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

#: Below it lie the system's files about NVIDIA's cards; tests have one of their own.
_ROOT = Path("/")
_OTHER_TORCH = "https://pytorch.org/get-started/previous-versions"


def describe(*packages: str) -> dict[str, str]:
    """Return processor, platform, versions (of Python, fercli and the packages named), date and command.

    A package that is not installed is left out.
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
    """The version of a package by its metadata; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_device(device: str) -> dict[str, str | int]:
    """Return what `describe` does and torch's part: its versions, the device ("cpu" or "cuda") by name, CPU threads."""
    import torch

    return {
        **describe("torch", "torchvision", "numpy"),
        "torch": torch.__version__,  # which names its CUDA too
        "device": name_of(device),
        "threads": torch.get_num_threads(),
    }


def name_of(device: str) -> str:
    """A device ("cpu" or "cuda") by its maker's name too: ``cuda (NVIDIA H200)``."""
    import torch

    return f"{device} ({torch.cuda.get_device_name() if device == 'cuda' else processor()})"


class NoCuda(NamedTuple):
    """Why torch cannot use a CUDA device.

    Attributes:
        found: what is amiss, in words.
        fix: what to do.
        card: whether an NVIDIA card or driver is seen: one that torch could be expected to use.
    """

    found: str
    fix: str
    card: bool = True


@lru_cache(maxsize=1)  # torch says why only when it is asked for the first time
def no_cuda() -> NoCuda | None:
    """Why torch can use no CUDA device here; None where it can."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return _unusable()
    driver, card = _nvidia_driver(), _sees_nvidia_card()
    if torch.version.cuda is None and torch.version.hip is None:
        seen = f"there is a driver ({driver})" if driver else "there is an NVIDIA card" if card else ""
        found = f"torch {torch.__version__} is built for the CPU" + (f", though {seen}" if seen else "")
        return NoCuda(found, "install torch built for CUDA, as https://pytorch.org says", bool(driver) or card)
    containers = "in a container give it the devices (docker: --gpus all)"
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
        found = f"the driver ({driver}) knows CUDA up to {most}, and torch {torch.__version__} is built for"
        fix = f"update the driver, or install torch for CUDA {most} or older ({_OTHER_TORCH})"
        return NoCuda(f"{found} {torch.version.cuda}", fix)
    if not reason and visible is not None:
        fix = "unset CUDA_VISIBLE_DEVICES, or name a device that nvidia-smi -L lists"
        return NoCuda(f"CUDA_VISIBLE_DEVICES ({visible}) names no device that there is", fix)
    if not reason and not card:
        fix = f"{containers}, and in SLURM ask for one (--gres gpu:1)"
        return NoCuda(f"a driver ({driver}), but no card", fix)
    found = f"{reason or 'torch sees no device'}; driver {driver}, torch's CUDA {torch.version.cuda}"
    return NoCuda(found, f"see whether nvidia-smi works; update the driver, or install another torch ({_OTHER_TORCH})")


def _unusable() -> NoCuda | None:
    """Why the first of the devices that torch sees is of no use; None where it is."""
    import torch

    built = torch.cuda.get_arch_list()
    try:
        name, (major, minor) = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    except RuntimeError as problem:
        return NoCuda(next(iter(str(problem).strip().splitlines()), "torch cannot begin"), "see what nvidia-smi says")
    if torch.version.hip is not None or not built or any(_runs_on(one, (major, minor)) for one in built):
        return None
    found = f"{name} is sm_{major}{minor}, and torch {torch.__version__} is built for {', '.join(built)}"
    return NoCuda(found, f"install torch built for it ({_OTHER_TORCH}), or name another card by CUDA_VISIBLE_DEVICES")


def _runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether code that torch was built with, ``sm_86`` say, runs on a device of a compute capability.

    Machine code (sm) runs on its own generation, from its own step on; what is marked ``a`` on that step alone. PTX
    (compute) is translated for every later device. (NVIDIA, CUDA C++ Programming Guide, "Application Compatibility".)
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if parts is None:
        return False
    kind, step, mark = parts[1], (int(parts[2]), int(parts[3])), parts[4]
    if mark == "a":
        return step == capability
    return step <= capability and ((kind == "compute" and not mark) or step[0] == capability[0])


def _nvidia_driver() -> str | None:
    """The NVIDIA driver's version, as far as the system tells it; None without one."""
    try:
        text = (_ROOT / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "of unknown version" if shutil.which("nvidia-smi") else None
    return next((word for word in text.split() if re.fullmatch(r"\d+(\.\d+)+", word)), "of unknown version")


def _sees_nvidia_card() -> bool:
    """Whether the system shows a card of NVIDIA's, with a driver or without."""
    if any(_ROOT.glob("dev/nvidia[0-9]*")):
        return True
    for device in _ROOT.glob("sys/bus/pci/devices/*"):
        with suppress(OSError):
            maker, kind = ((device / name).read_bytes() for name in ("vendor", "class"))
            if maker.startswith(b"0x10de") and kind.startswith(b"0x03"):  # a display controller
                return True
    return False


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The processor's instruction sets as Linux names them (``avx2``, ``avx512_bf16``, ...); empty where not known."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return ""


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it scikit-learn works on one thread: sums over several round differently from run to run."""
    from joblib.externals.loky import cpu_count
    from threadpoolctl import threadpool_limits

    # scikit-learn asks joblib for the number of cores. That calls ``lscpu``, which slim containers lack, and tells of
    # it at length, but only the first time.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        cpu_count(only_physical_cores=True)
    with threadpool_limits(1):
        yield


class Clock:
    """Seconds by part of some work, in `spent`: ``with clock("decode"): ...``, waiting for `device` after each."""

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
    """Return the seconds of each of `rounds` calls, after `warm` ones that are not counted."""
    spent = []
    for _ in range(warm + rounds):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        spent.append(time.perf_counter() - started)
    return spent[warm:]
