"""Selected faces of prepared stores, as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fercli.loading.augment import View, ViewSettings, plain_view
from fercli.loading.placement import DeviceCache, RawBatch, place
from fercli.store import Store, subsample


class FaceDataset:
    """Selected faces of one or several stores, as device tensors on demand.

    Positions 0..len-1 run through the selected indices of the first store, then of the second, and so on.

    Args:
        data: where the faces are kept, as ``engine.data`` (`fercli.loading.placement.place`); ``host`` suits faces that
            are used once.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        indices: Sequence[np.ndarray],
        device: torch.device,
        with_crops: bool,
        data: str = "host",
    ):
        self._stores, self._indices, self._device, self._with_crops = stores, indices, device, with_crops
        self._data, self._homes = data, [place(store, device, with_crops, data) for store in stores]
        self._starts = np.cumsum([0] + [len(i) for i in indices])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def device(self) -> torch.device:
        """The device on which `gather` and `plain` return faces."""
        return self._device

    @property
    def counts(self) -> list[int]:
        """The number of selected faces in each store."""
        return [len(indices) for indices in self._indices]

    def subsampled(self, limit: int) -> FaceDataset:
        """Return about `limit` of the faces at most, evenly spread over the stores and within each."""
        if len(self) <= limit:
            return self
        kept = []
        for indices in self._indices:
            amount = -(-len(indices) * limit // len(self))
            kept.append(indices[subsample(len(indices), amount)])
        return FaceDataset(self._stores, kept, self._device, self._with_crops, self._data)

    def same_as(self, other: FaceDataset) -> bool:
        """Return whether these are the same faces as the other's, in the same order."""
        mine, theirs = self._indices, other._indices
        return self._stores == other._stores and all(map(np.array_equal, mine, theirs))

    def names(self, positions: np.ndarray) -> list[tuple[int, str, str]]:
        """Return position, dataset and id of the faces at `positions`."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        named = []
        for number, position in zip(which.tolist(), positions.tolist(), strict=True):
            store = self._stores[number]
            row = self._indices[number][position - self._starts[number]]
            named.append((position, store.name, str(store.ids[row])))
        return named

    @property
    def on_device(self) -> bool:
        """Whether all faces are on the device."""
        return all(isinstance(home, DeviceCache) for home in self._homes)

    @property
    def worth_fetching_ahead(self) -> bool:
        """Whether a thread should fetch the next faces: from the host's memory, while a CUDA device works."""
        return self._device.type == "cuda" and not self.on_device

    def fetch(self, positions: np.ndarray) -> RawBatch:
        """Return the rows of `gather`, not copied to the device: they are on it, or in (pinned) host memory."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        numbers = np.unique(which)
        if len(numbers) <= 1:  # the common case; also, a process's share of a small batch may be empty
            number = int(numbers[0]) if len(numbers) else 0
            return self._homes[number].rows(self._indices[number][positions - self._starts[number]])
        parts, order = [], []
        for number in numbers:
            inside = np.flatnonzero(which == number)
            order.append(inside)
            parts.append(self._homes[number].rows(self._indices[number][positions[inside] - self._starts[number]]))
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        devices = {part[0].device for part in parts}
        if len(devices) > 1:  # one store fits on the device and another does not
            parts = [to_device(part, self._device) for part in parts]
        merged = [
            torch.cat(column)[back.to(column[0].device, non_blocking=True)]
            for column in zip(*parts, strict=True)
            if column[0] is not None
        ]
        if merged[0].device != self._device and self._device.type == "cuda":
            merged = [tensor.pin_memory() for tensor in merged]
        return merged[0], merged[1], merged[2] if self._with_crops else None

    def gather(self, positions: np.ndarray) -> RawBatch:
        """Return faces uint8 [B,S,S,3], landmarks float32 [B,5,2], crops uint8 [B,5,C,C,3] or None at positions [B]."""
        return to_device(self.fetch(positions), self._device)

    def plain(self, positions: np.ndarray, settings: ViewSettings) -> View:
        """Return centre-crop views of `positions`, for scoring."""
        return plain_view(*self.gather(positions), settings)


def to_device(rows: RawBatch, device: torch.device) -> RawBatch:
    faces, landmarks, crops = (None if part is None else part.to(device, non_blocking=True) for part in rows)
    return faces, landmarks, crops
