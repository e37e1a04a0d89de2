"""Where prepared faces are kept: memory-mapped in the store's files, or cached entirely on a device.

In both places, the same rows give the same bytes.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fercli.errors import FercliError
from fercli.store import Store

T = TypeVar("T")
#: Faces uint8 [B, S, S, 3], landmarks float32 [B, 5, 2], crops uint8 [B, 5, C, C, 3] or None.
RawBatch = tuple[Tensor, Tensor, Tensor | None]

#: The fraction of a device's free memory that one store may take if the choice is automatic. Training needs the rest.
SHARE = 0.4
_CHUNK = 64 << 20

_resident: weakref.WeakKeyDictionary[Store, dict[tuple[torch.device, bool], DeviceCache]] = weakref.WeakKeyDictionary()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting. A copy from pageable memory might wait for the device first."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class MemoryMapped:
    """Rows read on demand from the memory-mapped store, into pinned memory if the target is a CUDA device."""

    def __init__(self, store: Store, device: torch.device, with_crops: bool):
        arrays = (store.faces, store.landmarks, *((store.crops,) if with_crops else ()))
        self._arrays, self._pins = arrays, device.type == "cuda"
        if self._pins:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that the map is read-only, but nothing writes to it
                self._tensors = [torch.from_numpy(array) for array in arrays]

    def rows(self, index: np.ndarray) -> RawBatch:
        """Return rows `index` int64 [B], on the CPU."""
        if not self._pins:
            parts = [torch.from_numpy(array[index]) for array in self._arrays]
        else:
            # Directly into pinned memory without holding the GIL, so that a thread can do it while another trains.
            where, parts = torch.from_numpy(index), []
            for tensor in self._tensors:
                out = torch.empty(len(index), *tensor.shape[1:], dtype=tensor.dtype, pin_memory=True)
                parts.append(torch.index_select(tensor, 0, where, out=out))
        return parts[0], parts[1], parts[2] if len(parts) > 2 else None


class DeviceCache:
    """A complete store in a device's memory, as uint8."""

    def __init__(self, store: Store, device: torch.device, with_crops: bool):
        arrays = (store.faces, store.landmarks, *((store.crops,) if with_crops else ()))
        self._device, self._tensors = device, [_upload(array, device) for array in arrays]

    def rows(self, index: np.ndarray) -> RawBatch:
        """Return rows `index` int64 [B], on the device."""
        where = upload(torch.from_numpy(index), self._device)
        parts = [tensor.index_select(0, where) for tensor in self._tensors]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else None


def place(store: Store, device: torch.device, with_crops: bool, data: str = "auto") -> MemoryMapped | DeviceCache:
    """Choose a place for a store's faces, and return it.

    Args:
        data: as ``engine.data``. ``auto`` is the device if it is a CUDA device and the store fits in `SHARE` of its
            free memory. Otherwise it is the disk (cached in the system's memory). All users of the same store share
            its copy on the device.

    Raises:
        FercliError: the device is requested and cannot hold the store.
    """
    here = _resident.setdefault(store, {})
    if (device, with_crops) in here:
        return here[device, with_crops]
    if data == "host" or (data == "auto" and not _fits(store, device, with_crops)):
        return MemoryMapped(store, device, with_crops)
    try:
        here[device, with_crops] = DeviceCache(store, device, with_crops)
    except (RuntimeError, MemoryError) as problem:
        if data == "auto" and isinstance(problem, torch.cuda.OutOfMemoryError):
            return MemoryMapped(store, device, with_crops)
        gigabytes = size_of(store, with_crops) / 1e9
        raise FercliError(
            f"{store.name} ({gigabytes:.1f} GB) does not fit on {device}; set engine.data=host"
        ) from problem
    return here[device, with_crops]


def size_of(store: Store, with_crops: bool) -> int:
    """Return the number of bytes that a store's faces take in memory."""
    return store.faces.nbytes + store.landmarks.nbytes + (store.crops.nbytes if with_crops else 0)


def _fits(store: Store, device: torch.device, with_crops: bool) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size_of(store, with_crops) <= SHARE * free


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a memory-mapped array [N, ...] piece by piece, so that the CPU never holds all of it."""
    whole = torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device=device)
    rows = max(1, _CHUNK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        whole[start : start + rows].copy_(torch.from_numpy(np.array(array[start : start + rows])))
    return whole


class Prefetcher(Generic[T]):
    """Prepares the next step in a thread while the current one runs: maps a step to the result of `work`.

    Errors are raised when their step is requested. Steps may be requested in any order, but only the step after the
    last one is prepared in advance.

    Args:
        end: the number after the last step; no step from it on is prepared in advance. None for no end.
    """

    def __init__(self, work: Callable[[int], T], end: int | None = None):
        self._work, self._pool = work, ThreadPoolExecutor(1, thread_name_prefix="fercli-data")
        self._end = end
        self._step: int | None = None
        self._future: Future[T] | None = None

    def __call__(self, step: int) -> T:
        # always in the same thread: the work need not be safe for concurrent calls
        done = (self._future if step == self._step else self._pool.submit(self._work, step)).result()
        self._step = self._future = None
        if self._end is None or step + 1 < self._end:
            self._step, self._future = step + 1, self._pool.submit(self._work, step + 1)
        return done

    def close(self) -> None:
        """End the thread after its current work; a prepared result is discarded."""
        self._pool.shutdown(cancel_futures=True)
