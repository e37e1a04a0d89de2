"""Devices, precision and processes come from Lightning Fabric; this is where it is set up.

Several processes, one a device, are started from without, and found here by the environment they are given:

- ``torchrun --nproc-per-node 4 -m fercli adapt ...``, on each machine;
- SLURM: ``srun --nodes 2 --ntasks-per-node 4 --gres gpu:4 python -m fercli adapt ...``.

They are one run: the same spec, one batch shared out (`fercli.engine.sharding`), one folder that the first process
writes in. Data and runs must lie where every machine sees them.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from fercli import console
from fercli.engine import distributed
from fercli.engine.acceleration import resolve_precision, set_libraries
from fercli.errors import FercliError
from fercli.machine import name_of, no_cuda
from fercli.spec import Engine


class Launch(NamedTuple):
    """How processes were started (by torchrun, srun or nobody: one alone), how many, and on how many machines."""

    by: str
    processes: int
    machines: int


def launched() -> Launch:
    """Read from the environment how this process was started.

    Raises:
        FercliError: the machines have different numbers of processes.
    """
    environment = os.environ
    uneven = "the machines have different numbers of processes: give each as many as the others"
    if "TORCHELASTIC_RUN_ID" in environment:
        by, processes = "torchrun", int(environment["WORLD_SIZE"])
        here = int(environment["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_NUM_TASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        # srun sets it; a batch script by itself does not have it.
        by, processes = "srun", int(environment["SLURM_STEP_NUM_TASKS"])
        each = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", str(processes)))
        if each is None:  # "4,3", say
            raise FercliError(uneven)
        here = int(each[1])
    else:
        by, processes, here = "nobody", 1, 1
    if processes == 1:
        return Launch("nobody", 1, 1)
    if processes % here:
        raise FercliError(uneven)
    return Launch(by, processes, processes // here)


def resolve_device(name: str) -> str:
    """ "cpu" or "cuda" for `engine.device`.

    Raises:
        FercliError: "cuda" is asked for and torch can use none.
    """
    if name == "cpu":
        return name
    missing = no_cuda()
    if missing is None:
        return "cuda"
    if name == "cuda":
        raise FercliError(
            f"engine.device is cuda but torch can use no CUDA device: {missing.found}",
            f"{missing.fix}, or set engine.device=auto",
        )
    return "cpu"


def unused_card(name: str) -> str | None:
    """Why `engine.device` "auto" takes the CPU where there is an NVIDIA card, and what to do, in a line; else None."""
    missing = no_cuda() if name == "auto" else None
    if missing is None or not missing.card:
        return None
    return f"the CPU is used and no CUDA device: {missing.found}; {missing.fix}, or say engine.device=cpu"


def tell_device(device: str) -> None:
    """Say once a command what trains: "cpu" or "cuda", by the maker's name too."""
    processes = launched().processes
    console.say(f"device: {name_of(device)}" + (f", {processes} processes" if processes > 1 else ""), once=True)


def warn_of_unused_card(name: str) -> None:
    """Warn once a command where `engine.device` "auto" takes the CPU beside an NVIDIA card."""
    unused = unused_card(name)
    if unused is not None:
        console.warn(unused, once=True)


def make_fabric(engine: Engine, reaches_all: bool = False) -> Any:
    """A launched `Fabric` on this process's device, the process seeded and its threads set.

    Of several processes only the first speaks from here on; it warns of an NVIDIA card that is not used.

    Args:
        engine: the spec's section.
        reaches_all: whether every update gives every parameter a gradient (`fercli.methods.base.Method`).

    Raises:
        FercliError: no CUDA device where one is asked for, or fewer than there are processes; as `launched`.
    """
    from fercli.engine.lightning import Fabric, precision_plugin

    device, launch = resolve_device(engine.device), launched()
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
        processes = _processes(launch, device, reaches_all)
        processes["plugins"].append(precision_plugin(precision, device))
        fabric = Fabric(accelerator=device, **processes)
        fabric.launch()
    distributed.open_cpu_group()
    if distributed.rank():
        console.mute()
    warn_of_unused_card(engine.device)
    torch.manual_seed(engine.seed)
    return fabric


def how_to_reduce() -> dict[str, bool]:
    """What DDP is told of gradients and buffers, as far as this torch knows it.

    Gradients lie in DDP's buckets, which are summed as they are, and go there a bucket at a time in place of one by
    one: some 700 launches a step less of IR-50. Buffers are left alone, for every process moves them alike, or
    `fercli.engine.sharding.average_norms` does. The graph is not called static: passes come and go (a pool of pseudo
    labels that is empty at first, a method's several updates), and where every parameter gets a gradient it would
    save nothing.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    batched = {"batched_grad_copy": True} if "batched_grad_copy" in known else {}
    return {buffers: False, "gradient_as_bucket_view": True, **batched}


def _processes(launch: Launch, device: str, reaches_all: bool) -> dict[str, Any]:
    """What `Fabric` is told of devices and processes; named in full, so that it does not guess at the environment."""
    from fercli.engine.lightning import DDPStrategy, environments

    if launch.processes == 1:
        return {"devices": 1, "plugins": [environments.LightningEnvironment()]}
    here = launch.processes // launch.machines
    if device == "cuda" and torch.cuda.device_count() < here:
        raise FercliError(
            f"{here} processes a machine, but a process sees {torch.cuda.device_count()} CUDA device(s)",
            "start one process a device, each seeing all of them (srun: --gres gpu:N, not --gpus-per-task)",
        )
    strategy = DDPStrategy(find_unused_parameters=not reaches_all, **how_to_reduce())
    if launch.by == "torchrun":
        found = environments.TorchElasticEnvironment()
    else:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(here))  # Lightning asks for it
        found = environments.SLURMEnvironment(auto_requeue=False)
    return {"devices": here, "num_nodes": launch.machines, "strategy": strategy, "plugins": [found]}
