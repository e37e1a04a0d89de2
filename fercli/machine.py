"""What a figure was measured on, what a run ran on, and how long work on a device takes."""

from __future__ import annotations

import datetime
import io
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from typing import TYPE_CHECKING

from fercli.version import __version__

if TYPE_CHECKING:
    import torch


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

    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        **describe("torch", "torchvision", "numpy"),
        "torch": torch.__version__,  # which names its CUDA too
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
    }


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
