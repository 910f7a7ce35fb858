"""Numbers on their way to the device: whatever a step brings travels in one copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.gpu.accelerator import Accelerator, Event

ALIGNMENT = 16
"""Bytes: kernels read whole vectors where an array begins on such an address."""


@dataclass(slots=True)
class _Side:
    """One host buffer, and the point at which the device has read it."""

    pinned: torch.Tensor
    words: NDArray[np.uint8]
    read: Event | None = None


class Mailbox:
    """A buffer on the device and as many pinned ones as there are plans in flight, filled array by array.

    The host writes the arrays of one step side by side, then all of it is copied at once; what comes of an array on
    the device is good until the next step's :meth:`send`, in the order of the main stream.

    Args:
        accelerator: the device.
        num_bytes: room for one step.
        sides: steps whose copies may be under way at once without the host's waiting.
    """

    def __init__(self, accelerator: Accelerator, num_bytes: int, sides: int = 2) -> None:
        self._accelerator = accelerator
        self._sides: list[_Side] = []
        self._num_sides = sides
        self._turn = 0
        self._fill = 0
        self.device = torch.empty(0, dtype=torch.uint8, device=accelerator.device)
        self._allocate(num_bytes)

    @property
    def num_bytes(self) -> int:
        """Room for one step."""
        return len(self.device)

    def begin(self, num_bytes: int = 0) -> None:
        """Start a step's letter; the buffers grow where it needs more than there is room for."""
        if num_bytes > self.num_bytes:
            self._allocate(max(num_bytes, 2 * self.num_bytes))
        self._turn = (self._turn + 1) % self._num_sides
        side = self._sides[self._turn]
        if side.read is not None:  # of a step that was collected long ago: nobody waits
            side.read.synchronize()
            side.read = None
        self._fill = 0

    def put(self, array: NDArray[Any]) -> int:
        """Add an array; returns where it begins, in bytes, for :meth:`take`."""
        start = self._fill
        end = start + array.nbytes
        self._sides[self._turn].words[start:end].view(array.dtype)[:] = array
        self._fill = -(-end // ALIGNMENT) * ALIGNMENT
        return start

    def skip_to(self, start: int) -> None:
        """Leave room: the next array begins at ``start``, a multiple of :data:`ALIGNMENT`."""
        self._fill = start

    def send(self) -> None:
        """Queue the copy of everything put since :meth:`begin`."""
        side, main = self._sides[self._turn], self._accelerator.main
        if self._fill:
            main.copy(self.device[: self._fill], side.pinned[: self._fill])
            side.read = main.record()

    def take(self, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        """An array on the device: ``[count]``, no copy."""
        return self.device[start : start + count * dtype.itemsize].view(dtype)

    def _allocate(self, num_bytes: int) -> None:
        for side in self._sides:
            if side.read is not None:
                side.read.synchronize()
        self.device = torch.zeros(num_bytes, dtype=torch.uint8, device=self._accelerator.device)
        pinned = [self._accelerator.pinned((num_bytes,), torch.uint8) for _ in range(self._num_sides)]
        self._sides = [_Side(each, each.numpy()) for each in pinned]
