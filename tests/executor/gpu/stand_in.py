"""A stand-in for a GPU, on CPU tensors, that makes the mistakes visible which a real one makes rarely.

- What is copied to pinned memory, or on a side stream, arrives as late as it may: when its event is waited for. Until
  then the target holds poison, and what a side stream copies is read then, not before.
- A pinned buffer that the host writes to while its copy is under way is caught.
- A side stream that copies without having waited for the main stream's latest work is caught.
- Capturing does nothing to memory, and a replay runs no Python: it repeats operations on the tensors, and with the
  numbers, of the capture. What would wait for the device in there is refused, as CUDA refuses it.
- Memory figures are what the test says, and runs out where the test says.

PyTorch's own operations run at once, so a main stream that fails to wait for an event finds poison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.executor.gpu.accelerator import DeviceDescription, DeviceMemory

POISON = 0xA5
"""Fills each byte that has not arrived."""

_REFUSED = (
    *("_local_scalar_dense", "is_nonzero", "equal"),
    *("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim"),
    "lift_fresh",
)
"""Operations whose result goes to the host, whose shape depends on values, or that bring values from the host."""


class StandInOutOfMemoryError(RuntimeError):
    """The stand-in's memory does not suffice."""


def _poison(tensor: torch.Tensor) -> None:
    tensor.view(torch.uint8).fill_(POISON) if tensor.dim() else tensor.fill_(-1)


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    return begin, begin + tensor.numel() * tensor.element_size()


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    (a0, a1), (b0, b1) = _bytes(a), _bytes(b)
    return a0 < b1 and b0 < a1


class StandInEvent:
    def __init__(self, stream: StandInStream, ticket: int) -> None:
        self.stream, self.ticket = stream, ticket
        self._asked = False

    def query(self) -> bool:
        """No, the first time: whoever does not ask again never has the result."""
        if self.ticket > self.stream.done and not self._asked:
            self._asked = True
            return False
        self.synchronize()
        return True

    def synchronize(self) -> None:
        self.stream.run_until(self.ticket)


class StandInStream:
    """Queued copies and waits; number ``n`` (from 1) is done when ``done >= n``."""

    def __init__(self, device: StandIn, is_main: bool) -> None:
        self.device, self.is_main = device, is_main
        self.queued = self.done = 0
        self.seen = 0  # of the main stream's work, how much this one has waited for
        self._work: list[tuple[int, Callable[[], None], torch.Tensor | None]] = []

    def record(self) -> StandInEvent:
        return StandInEvent(self, self.queued)

    def wait(self, event: StandInEvent) -> None:
        if self.is_main:  # what comes after runs at once, so what it waits for must have come
            event.synchronize()
            return
        if event.stream.is_main:
            self.seen = max(self.seen, event.ticket)
        self._queue(event.synchronize, None)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.shape == source.shape, f"{tuple(source.shape)} into {tuple(target.shape)}"
        assert target.dtype == source.dtype, f"{source.dtype} into {target.dtype}"
        assert target.is_contiguous(), "the target is not contiguous"
        assert source.is_contiguous(), "the source is not contiguous"
        assert not self.device.capturing, "a copy between host and device does not belong into a graph"
        for waiting in (waiting for _, _, waiting in self._work):
            if waiting is not None and _overlap(target, waiting):
                self.run_until(self.queued)  # in order on one stream: not a mistake
                break
        if not self.is_main:
            assert self.seen >= self.device.main.queued, "a side stream copies without waiting for the main stream"
            self._queue(lambda: target.copy_(source), source)
            _poison(target)
        elif self.device.is_pinned(target):
            now = source.clone()
            self._queue(lambda: target.copy_(now), None)
            _poison(target)
        else:
            if self.device.is_pinned(source):
                before = source.clone()
                self._queue(lambda: self._untouched(source, before), None)
            else:
                self.launched()
            target.copy_(source)

    def launched(self) -> None:
        """Something has been queued that is done at once."""
        self._queue(lambda: None, None)

    def run_until(self, ticket: int) -> None:
        while self._work and self._work[0][0] <= ticket:
            number, action, _ = self._work.pop(0)
            action()
            self.done = number

    def _queue(self, action: Callable[[], None], source: torch.Tensor | None) -> None:
        self.queued += 1
        self._work.append((self.queued, action, source))

    @staticmethod
    def _untouched(source: torch.Tensor, before: torch.Tensor) -> None:
        same = torch.equal(source.contiguous().view(torch.uint8), before.view(torch.uint8))
        assert same, "pinned memory was written to while it was being copied from"


class StandInGraph:
    """Operations and their operands, results included, in order."""

    def __init__(self, device: StandIn, tape: _Tape) -> None:
        self.device = device
        self._nodes = tape.nodes
        self.replays = 0

    def replay(self) -> None:
        assert not self.device.capturing
        self.device.main.launched()
        for function, args, kwargs, results in self._nodes:
            fresh = tree_leaves(function(*args, **kwargs))
            old = tree_leaves(results)
            inputs = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
            for result, kept in zip(fresh, old, strict=True):
                if _is_tensor(kept) and kept.untyped_storage().data_ptr() not in inputs:
                    assert result.shape == kept.shape, f"{function}: {tuple(kept.shape)} became {tuple(result.shape)}"
                    kept.copy_(result)
        self.replays += 1


class _Tape(TorchDispatchMode):
    """Records operations, and what the memory they use held before them."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: dict[int, torch.Tensor] = {}  # made during the capture; held, so that no other gets their place
        self._depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self._depth and name in _REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return self.node(func, args, kwargs or {})

    def node(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do it, and take it down."""
        if self._depth:
            return function(*args, **kwargs)
        self._depth += 1
        try:
            for tensor in _tensors((args, kwargs)):
                self._keep(tensor)
            results = function(*args, **kwargs)
        finally:
            self._depth -= 1
        for tensor in _tensors(results):
            if tensor.untyped_storage().data_ptr() not in self._before:
                self._own[tensor.untyped_storage().data_ptr()] = tensor
        self.nodes.append((function, args, kwargs, results))
        return results

    def _keep(self, tensor: torch.Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        if place and place not in self._before and place not in self._own:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before[place] = (whole, whole.clone())

    def undo(self) -> None:
        """As before the capture."""
        for whole, before in self._before.values():
            whole.copy_(before)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those among the arguments of an operation, within dataclasses too."""
    for leaf in tree_leaves(value):
        if _is_tensor(leaf):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors([getattr(leaf, item.name) for item in fields(leaf)])


def _is_tensor(leaf: Any) -> bool:
    """With memory to look at: packed weights are opaque, and nobody writes to them."""
    return isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided


class StandIn:
    """A device with ``total`` bytes of memory, of which others hold ``used``; ``allocated`` and ``peak_bytes`` are what
    a test sets them to.

    ``capture_fails`` is asked before each capture, with the number of those that succeeded. ``most_rows`` is how many
    rows ``add_rms_norm`` may be called with before memory runs out: in the midst of a forward.
    """

    def __init__(self, total: int = 80 * 2**30, used: int = 0) -> None:
        self.device = torch.device("cpu")
        self.main = StandInStream(self, is_main=True)
        self.total, self.used = total, used
        self.allocated_bytes = self.peak_bytes = 0
        self.graph_bytes = 0  #: taken by each capture
        self.capture_fails: Callable[[int], bool] = lambda captured: False
        self.most_rows: int | None = None
        self.graphs: list[StandInGraph] = []
        self.capturing: _Tape | None = None
        self._pinned: dict[int, torch.Tensor] = {}
        self._sides: list[StandInStream] = []

    @property
    def description(self) -> DeviceDescription:
        return DeviceDescription("stand-in", self.total, (9, 0))

    def side_stream(self) -> StandInStream:
        self._sides.append(StandInStream(self, is_main=False))
        return self._sides[-1]

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        _poison(tensor)
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def new_pool(self) -> object:
        return object()

    def capture(self, work: Callable[[], object], pool: object) -> StandInGraph:
        if self.capture_fails(len(self.graphs)):
            raise StandInOutOfMemoryError("out of memory")
        self.capturing = tape = _Tape()
        try:
            with tape:
                work()
        finally:
            self.capturing = None
            tape.undo()
        self.used += self.graph_bytes
        graph = StandInGraph(self, tape)
        self.graphs.append(graph)
        return graph

    def memory(self) -> DeviceMemory:
        self.synchronize()
        return DeviceMemory(self.total - self.used, self.total)

    def allocated(self) -> int:
        return self.allocated_bytes

    def reset_peak(self) -> None:
        self.peak_bytes = self.allocated_bytes

    def peak(self) -> int:
        return self.peak_bytes

    def synchronize(self) -> None:
        for stream in (self.main, *self._sides):
            stream.run_until(stream.queued)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, StandInOutOfMemoryError)

    def kernels(self, backend: ModuleType) -> Any:
        """A backend whose functions are launches on this device: captured whole, and short of memory where the device
        is."""
        return _Kernels(self, backend)

    def launch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A kernel call."""
        if function.__name__ == "add_rms_norm" and self.most_rows is not None and len(args[0]) > self.most_rows:
            raise StandInOutOfMemoryError(f"out of memory with {len(args[0])} rows")
        if self.capturing is not None:
            return self.capturing.node(function, args, kwargs)
        self.main.launched()
        return function(*args, **kwargs)


class _Kernels:
    def __init__(self, device: StandIn, backend: ModuleType) -> None:
        self._device, self._backend = device, backend

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found) or isinstance(found, type) or name in ("warm_up", "set_num_threads"):
            return found
        return lambda *args, **kwargs: self._device.launch(found, args, kwargs)
