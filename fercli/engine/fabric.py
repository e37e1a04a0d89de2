"""Devices and precision come from Lightning Fabric; this is where it is set up."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch

from fercli.engine.acceleration import precision_plugin, resolve_precision, set_libraries
from fercli.errors import FercliError
from fercli.spec import Engine

# lightning-fabric installs lightning_fabric; the full lightning package holds the same thing under another name.
try:
    from lightning_fabric import Fabric
except ImportError:
    from lightning.fabric import Fabric

for _name in ("lightning_fabric", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def resolve_device(name: str) -> str:
    """ "cpu" or "cuda" for `engine.device`.

    Raises:
        FercliError: "cuda" is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise FercliError(
            "engine.device is cuda but torch sees no CUDA device; check the driver with nvidia-smi, or set "
            "engine.device=auto"
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def make_fabric(engine: Engine) -> Any:
    """A launched `Fabric` on one device, the process seeded and its threads set."""
    device = resolve_device(engine.device)
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if engine.deterministic:
        # cuBLAS asks for this before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(engine.deterministic)
    precision = resolve_precision(engine.precision, device)
    set_libraries(precision, device, engine.deterministic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(accelerator=device, devices=1, plugins=[precision_plugin(precision, device)])
        fabric.launch()
    torch.manual_seed(engine.seed)
    return fabric
