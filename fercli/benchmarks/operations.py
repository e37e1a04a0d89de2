"""Counting the operations that a step launches on a device, and the places where the program would wait for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that wait for the device: they read a number back, or return a tensor whose shape depends on values.
READS = frozenset(
    {
        *("_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "_unique2"),
        *("unique_dim", "unique_consecutive", "bincount", "_linalg_check_errors"),
        # these check the status that the library reports
        *("_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_eigvals", "linalg_lstsq"),
    }
)
#: Operations that launch nothing: they return a view of the same memory, or memory that is not yet written.
_FREE = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "select", "slice", "expand", "unsqueeze"),
        *("squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "unfold", "diagonal"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "promote_types"),
        *("_record_function_enter_new", "_record_function_exit"),
    }
)


class Operations(TorchDispatchMode):
    """A context manager that records all operations in which a device takes part.

    An operation over a list of tensors (``_foreach_``, ``_fused_``) counts as one, which is about what it launches.

    Args:
        device: the device's type, such as "cuda"; "cpu" stands in where there is no other device.

    Attributes:
        counts: number of operations by name, without views and allocations, which launch nothing on the device.
        waits: names of operations that would make the program wait: `READS`, indexing by a mask, and copies between a
            device and the CPU that are not asynchronous.
    """

    def __init__(self, device: str):
        super().__init__()
        self._device = device
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []

    @property
    def total(self) -> int:
        """Total number of operations."""
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        devices = {each.device.type for each in (*tensors_in(args), *tensors_in(result))}
        if self._device not in devices:
            return result
        if name not in _FREE:
            self.counts[name] += 1
        if name in READS or _masked(name, args) or (len(devices) > 1 and _copies_and_waits(name, args, kwargs or {})):
            self.waits.append(name)
        return result


def tensors_in(given: Any) -> list[Tensor]:
    """The tensors among arguments or results, including those in lists."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, list | tuple):
        return [each for part in given for each in tensors_in(part)]
    return []


def _masked(name: str, args: Any) -> bool:
    """Whether the operation indexes by a mask, whose true elements must be counted first."""
    masks = tensors_in(args[1]) if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
    return any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)


def _copies_and_waits(name: str, args: Any, kwargs: Any) -> bool:
    if name not in ("_to_copy", "copy_"):
        return False
    asynchronous = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
    return not asynchronous
