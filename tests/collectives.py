"""Count the messages, and their bytes, that processes exchange in a training step of an adaptation.

    torchrun --nproc-per-node 2 tests/collectives.py SPEC [KEY=VALUE ...]

Each process counts the collectives it takes part in, in steps of the real loop on stores of noise. The first process
prints a JSON document: for each step the number of collectives by name, and the bytes that this process sends in them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fercli.benchmarks.steps import Steps
from fercli.engine.acceleration import accelerate
from fercli.engine.loop import fit
from fercli.spec import Spec, load

#: Number of counted steps; DDP rebuilds its buckets in the second.
STEPS = 3


class Collectives(TorchDispatchMode):
    """Counts torch's collectives while it is active, including those of the backward pass and of DDP.

    Attributes:
        seen: name, such as ``allreduce_`` -> count.
        sent: bytes that this process has sent in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.seen[func._schema.name.removeprefix("c10d::")] += 1
            # the second argument of a gather is the input
            given = args[1] if "gather" in func._schema.name else args[0]
            self.sent += sum(t.nbytes for t in tree_leaves(given) if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


class _Enough(Exception):
    pass


def count(spec: Spec, room: Path) -> list[dict[str, int]]:
    """Collectives by name, and ``bytes``, of each of `STEPS` steps of an adaptation."""
    made = Steps(spec, "adapt", room)
    training, noted = made.training, []
    accelerate(training.network, spec.engine, made.device, training.faces_a_step)
    make = training.batch

    def batch() -> Any:
        noted.append({**mode.seen, "bytes": mode.sent})
        if len(noted) > STEPS:
            raise _Enough
        return make()

    training.batch = batch
    with Collectives() as mode, contextlib.suppress(_Enough):
        fit(training)
    return [{name: after[name] - before.get(name, 0) for name in after} for before, after in itertools.pairwise(noted)]


if __name__ == "__main__":
    rank = os.environ["RANK"]
    with tempfile.TemporaryDirectory() as folder:
        counted = count(load(sys.argv[1], sys.argv[2:]), Path(folder) / rank)
    if rank == "0":
        print(json.dumps(counted))
    sys.stdout.flush()
    os._exit(0)
