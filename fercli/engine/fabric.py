"""The set-up of Lightning Fabric, which provides devices, precision and processes.

Several processes, one per device, are started by a launcher. fercli detects them by their environment variables:

- ``torchrun --nproc-per-node 4 -m fercli adapt ...``, on each machine;
- SLURM: ``srun --nodes 2 --ntasks-per-node 4 --gres gpu:4 python -m fercli adapt ...``.

They are one run: they share one spec, one batch split between them (`fercli.engine.sharding`), and one folder, which
only the first process writes. Data and runs must be on storage that every machine can access.
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
    """How the processes were started (torchrun, srun or nobody), how many there are, and on how many machines."""

    by: str
    processes: int
    machines: int


def launched() -> Launch:
    """Read from the environment how this process was started.

    Raises:
        FercliError: the machines have different numbers of processes.
    """
    environment = os.environ
    uneven = "the machines have different numbers of processes: start the same number on each"
    if "TORCHELASTIC_RUN_ID" in environment:
        by, processes = "torchrun", int(environment["WORLD_SIZE"])
        here = int(environment["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_NUM_TASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        # srun sets it; a batch script alone does not have it.
        by, processes = "srun", int(environment["SLURM_STEP_NUM_TASKS"])
        each = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", str(processes)))
        if each is None:  # for example "4,3"
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
        FercliError: "cuda" is requested, but torch can use no CUDA device.
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
    """Why `engine.device` "auto" uses the CPU beside an NVIDIA card, and what to do, in one line; else None."""
    missing = no_cuda() if name == "auto" else None
    if missing is None or not missing.card:
        return None
    return f"the CPU is used, not the GPU: {missing.found}; {missing.fix}, or set engine.device=cpu"


def tell_device(device: str) -> None:
    """Print once per command what trains: "cpu" or "cuda", with the device's product name."""
    processes = launched().processes
    console.say(f"device: {name_of(device)}" + (f", {processes} processes" if processes > 1 else ""), once=True)


def warn_of_unused_card(name: str) -> None:
    """Warn once per command if `engine.device` "auto" uses the CPU beside an NVIDIA card."""
    unused = unused_card(name)
    if unused is not None:
        console.warn(unused, once=True)


def make_fabric(engine: Engine, reaches_all: bool = False) -> Any:
    """Launch a `Fabric` on this process's device, seed the process and set its threads.

    Of several processes only the first prints from here on. It warns of an NVIDIA card that is not used.

    Args:
        engine: the spec's section.
        reaches_all: whether every update gives every parameter a gradient (`fercli.methods.base.Method`).

    Raises:
        FercliError: "cuda" is requested without a CUDA device, or there are fewer devices than processes; and the
            errors of `launched`.
    """
    from fercli.engine.lightning import Fabric, precision_plugin

    device, launch = resolve_device(engine.device), launched()
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if engine.deterministic:
        # cuBLAS needs this before its first call.
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
    """DDP's options for gradients and buffers, as far as this version of torch supports them.

    Gradients are views of DDP's buckets. They are copied there one bucket at a time instead of one by one, which saves
    about 700 launches per step with IR-50. Buffers are not synchronised by DDP: either every process updates them
    equally, or `fercli.engine.sharding.average_norms` averages them. The graph is not declared static. Passes vary (a
    pool of pseudo labels that is empty at first, a method with several updates), and where every parameter gets a
    gradient a static graph would save nothing.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    batched = {"batched_grad_copy": True} if "batched_grad_copy" in known else {}
    return {buffers: False, "gradient_as_bucket_view": True, **batched}


def _processes(launch: Launch, device: str, reaches_all: bool) -> dict[str, Any]:
    """`Fabric`'s options for devices and processes, all explicit, so that it does not guess from the environment."""
    from fercli.engine.lightning import DDPStrategy, environments

    if launch.processes == 1:
        return {"devices": 1, "plugins": [environments.LightningEnvironment()]}
    here = launch.processes // launch.machines
    if device == "cuda" and torch.cuda.device_count() < here:
        raise FercliError(
            f"{here} processes per machine, but a process sees {torch.cuda.device_count()} CUDA device(s)",
            "start one process per device, each seeing all devices (srun: --gres gpu:N, not --gpus-per-task)",
        )
    strategy = DDPStrategy(find_unused_parameters=not reaches_all, **how_to_reduce())
    if launch.by == "torchrun":
        found = environments.TorchElasticEnvironment()
    else:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(here))  # Lightning requires it
        found = environments.SLURMEnvironment(auto_requeue=False)
    return {"devices": here, "num_nodes": launch.machines, "strategy": strategy, "plugins": [found]}
