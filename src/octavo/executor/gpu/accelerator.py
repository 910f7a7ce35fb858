"""What the GPU executor asks of a device, and CUDA's answer.

The executor reaches streams, events, pinned memory, graphs and memory figures through these protocols alone: so the
tests can run it on a stand-in of theirs, whose copies are late and whose memory is as short as they like.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether the work up to it is done."""

    def synchronize(self) -> None:
        """Let the host wait until it is."""


class Stream(Protocol):
    """Work that the device does in order. Calls return at once."""

    def record(self) -> Event:
        """The point after all that has been queued so far."""

    def wait(self, event: Event) -> None:
        """Whatever is queued from now on begins after ``event``."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy between host and device, or within the device: same shape, same dtype, both contiguous.

        The host's tensor must be :meth:`Accelerator.pinned` for the call to return at once, and neither may be touched
        by anyone who has not waited for an event recorded after this."""


class Graph(Protocol):
    """Work of the main stream that was recorded once and is launched as a whole."""

    def replay(self) -> None:
        """Queue it on the main stream, on the very memory that it was captured on."""


@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """A GPU, for a person and for tables of launch shapes."""

    name: str
    total_bytes: int
    capability: tuple[int, int]  #: compute capability: (9, 0) is an H100


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The device's memory right now, in bytes."""

    free: int  #: nobody's: neither another process's nor kept by PyTorch for later
    total: int

    @property
    def used(self) -> int:
        """Taken by whomever."""
        return self.total - self.free


class Accelerator(Protocol):
    """A device with memory of its own that works beside the host."""

    @property
    def device(self) -> torch.device:
        """Where tensors go."""

    @property
    def description(self) -> DeviceDescription:
        """What it is."""

    @property
    def main(self) -> Stream:
        """The stream of all PyTorch operations and kernels."""

    def side_stream(self) -> Stream:
        """Another stream, that waits for nothing of its own accord."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised host tensor that the device reads and writes itself.

        Raises:
            Exception: the host has no such memory left (:meth:`is_out_of_memory` may or may not say so).
        """

    def new_pool(self) -> object:
        """Memory that graphs share: of those captured in one pool only the last replayed has valid results."""

    def capture(self, work: Callable[[], object], pool: object) -> Graph:
        """Record what ``work`` queues on the main stream; nothing of it is done.

        It must have run before (so that all its kernels are compiled and loaded), must neither wait for the device nor
        take anything from the host but constants, and must leave its results in memory allocated beforehand.

        Raises:
            Exception: whatever ``work`` raises, or the device refuses; the stream is as it was.
        """

    def memory(self) -> DeviceMemory:
        """What is free, after memory that PyTorch keeps and nobody uses has been given back."""

    def allocated(self) -> int:
        """Bytes that live tensors hold."""

    def reset_peak(self) -> None:
        """Begin to measure :meth:`peak` anew."""

    def peak(self) -> int:
        """The most bytes that live tensors held at once since :meth:`reset_peak`."""

    def synchronize(self) -> None:
        """Let the host wait for everything."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception says that the device's memory did not suffice."""


class CudaStream:
    """A stream of CUDA's."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def record(self) -> torch.cuda.Event:
        """The point after all that has been queued so far."""
        return self._stream.record_event()

    def wait(self, event: Event) -> None:
        """Whatever is queued from now on begins after ``event``."""
        self._stream.wait_event(event)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)


class CudaAccelerator:
    """The current CUDA device. There must be one: see :func:`octavo.executor.device.resolved`."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.main = CudaStream(torch.cuda.current_stream(self.device))
        self._capture_stream = torch.cuda.Stream(self.device)
        self._abandoned: list[torch.cuda.CUDAGraph] = []

    @property
    def description(self) -> DeviceDescription:
        """What it is."""
        found = torch.cuda.get_device_properties(self.device)
        return DeviceDescription(found.name, found.total_memory, (found.major, found.minor))

    def side_stream(self) -> CudaStream:
        """Another stream. PyTorch's do not wait for the default stream."""
        return CudaStream(torch.cuda.Stream(self.device))

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in page-locked host memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def new_pool(self) -> object:
        """A handle for graphs that share memory. (Never one whose graphs are gone: PyTorch would not take it.)"""
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], object], pool: object) -> torch.cuda.CUDAGraph:
        """Record a CUDA graph. Other threads may go on with theirs meanwhile."""
        graph = torch.cuda.CUDAGraph()
        stream = self._capture_stream
        # The outer context restores the stream where ending a capture that has failed raises an error of its own.
        try:
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                work()
        except Exception:
            self._abandon(graph, pool)
            raise
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Where a capture cannot even be ended, PyTorch before 2.12 goes on believing that it is under way (its pull
        request 180395): giving memory back would then be an internal error, and random numbers would be refused."""
        try:
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        except RuntimeError:  # PyTorch has ended it
            return
        torch._C._cuda_releasePool(self.device.index, pool)
        self._abandoned.append(graph)  # the pinned memory's allocator may ask it yet which streams are its own
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._capture_stream):
            torch.zeros(1, device=self.device)  # a capture that ends well resets the generator of random numbers

    def memory(self) -> DeviceMemory:
        """What the driver says is free, and all there is."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return DeviceMemory(*torch.cuda.mem_get_info(self.device))

    def allocated(self) -> int:
        """Bytes that live tensors hold."""
        return torch.cuda.memory_allocated(self.device)

    def reset_peak(self) -> None:
        """Begin to measure the peak anew."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """The most bytes that live tensors held at once."""
        return torch.cuda.max_memory_allocated(self.device)

    def synchronize(self) -> None:
        """Let the host wait for every stream."""
        torch.cuda.synchronize(self.device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """PyTorch's allocator, the driver (which modules and graphs ask) and cuBLAS each say it in their own way; and
        an error in a capture may be hidden behind the one that ended it."""
        if isinstance(error, torch.OutOfMemoryError):
            return True
        says = str(error)
        if isinstance(error, RuntimeError) and ("out of memory" in says or "CUBLAS_STATUS_ALLOC_FAILED" in says):
            return True
        return error.__context__ is not None and self.is_out_of_memory(error.__context__)
