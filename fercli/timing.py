"""Timing work on devices that answer before they are done."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
