"""What a step brought, on its way back to the host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from octavo.executor.gpu.accelerator import Accelerator, Event

_SMALLEST = 4096
"""Bytes of the smallest pinned buffer: most steps' results fit."""


class Parcel:
    """Tensors being copied to the host.

    Args:
        arrived: when they are there.
        arrays: where they go, and the pinned memory under each.
        kept: the tensors themselves, lest their memory is given to others before they are copied.
        outbox: takes the pinned memory back.
    """

    __slots__ = ("_arrays", "_arrived", "_buffers", "_kept", "_outbox")

    def __init__(
        self,
        arrived: Event,
        arrays: list[NDArray[Any]],
        buffers: list[torch.Tensor],
        kept: Sequence[torch.Tensor],
        outbox: Outbox,
    ) -> None:
        self._arrived = arrived
        self._arrays = arrays
        self._buffers = buffers
        self._kept: Sequence[torch.Tensor] = kept
        self._outbox = outbox

    def open(self) -> list[list[Any]]:
        """Wait, and take each tensor's numbers as lists. Once only."""
        self._arrived.synchronize()
        values = [array.tolist() for array in self._arrays]
        self._kept = ()
        self._outbox.give_back(self._buffers)
        return values


class Outbox:
    """Sends tensors to the host on a stream of their own, so that the next step need not wait for the copies.

    Args:
        accelerator: the device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._stream = accelerator.side_stream()
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)  # by size in bytes

    def post(self, tensors: Sequence[torch.Tensor]) -> Parcel:
        """Copy tensors of the main stream once what was queued there so far is done. Nobody may write to them again.

        Args:
            tensors: contiguous, of any shape; int64, int32, float32 or bool.
        """
        self._stream.wait(self._accelerator.main.record())
        arrays: list[NDArray[Any]] = []
        buffers = []
        for tensor in tensors:
            buffer = self._buffer(max(tensor.nbytes, 1))
            target = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if tensor.nbytes:
                self._stream.copy(target, tensor)
            arrays.append(target.numpy())
            buffers.append(buffer)
        return Parcel(self._stream.record(), arrays, buffers, tensors, self)

    def give_back(self, buffers: Sequence[torch.Tensor]) -> None:
        """Pinned memory that nobody reads any more."""
        for buffer in buffers:
            self._free[len(buffer)].append(buffer)

    def _buffer(self, num_bytes: int) -> torch.Tensor:
        size = max(_SMALLEST, 1 << (num_bytes - 1).bit_length())
        free = self._free[size]
        return free.pop() if free else self._accelerator.pinned((size,), torch.uint8)
