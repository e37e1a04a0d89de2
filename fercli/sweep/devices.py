"""Assigning one GPU of a machine to each worker process."""

from __future__ import annotations

import os

import torch

from fercli.errors import FercliError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def one_gpu_each() -> list[dict[str, str]]:
    """Environment variables for one worker per GPU that this process sees. Each worker sees only its own GPU.

    The names in CUDA_VISIBLE_DEVICES are passed on unchanged: numbers, UUIDs or parts of a GPU (MIG).

    Raises:
        FercliError: torch sees no GPU.
    """
    count = torch.cuda.device_count()  # asks the driver without initialising CUDA
    if not count:
        raise FercliError(
            "sweep.jobs is gpus, but torch finds no GPU here", "set the number of cells at a time, such as --jobs 2"
        )
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    if not named:
        named = [str(number) for number in range(count)]
    elif not any(name.startswith("MIG") for name in named):  # of several MIG parts a process sees only one
        named = named[:count]  # CUDA ignores everything after a name that it does not know
    return [{_VISIBLE: name} for name in named]
