"""One GPU a process: which GPUs a machine's workers are given."""

from __future__ import annotations

import os

import torch

from fercli.errors import FercliError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def one_gpu_each() -> list[dict[str, str]]:
    """The environments of as many workers as this process sees GPUs: each sees one of them alone.

    What CUDA_VISIBLE_DEVICES names here is passed on as it is written: numbers, UUIDs, parts of a GPU (MIG).

    Raises:
        FercliError: torch sees no GPU.
    """
    count = torch.cuda.device_count()  # asks the driver, and leaves CUDA as it is
    if not count:
        raise FercliError(
            "sweep.jobs is gpus, and torch sees no GPU here", "say how many cells at a time, such as --jobs 2"
        )
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    if not named:
        named = [str(number) for number in range(count)]
    elif not any(name.startswith("MIG") for name in named):  # a process sees one MIG part of several
        named = named[:count]  # CUDA passes by what stands behind a name that it does not know
    return [{_VISIBLE: name} for name in named]
