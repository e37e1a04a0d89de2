"""What a figure was measured on."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib import metadata

from fercli import __version__


def describe(*packages: str) -> dict[str, str]:
    """Return processor, system, versions (of Python, fercli and the packages named), date and command."""
    return {
        "processor": f"{os.cpu_count()} cores of {_processor()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "fercli": __version__,
        **{name: metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
        "command": " ".join(sys.argv),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
