"""How long a piece of GPU work takes, launches left out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Work = Callable[[], object]

MOST_SETS = 16
"""Input sets to rotate among at the most: making them takes time too."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Of samples of one call each."""
        return cls(statistics.median(samples), min(samples), max(samples))


class Clock(Protocol):
    """Times work on a device."""

    def sets(self, num_bytes: int) -> int:
        """Among how many sets of inputs of so many bytes to rotate, so that no call finds its own in a cache."""

    def time(self, works: Sequence[Work], rounds: int = 15) -> Timing:
        """One call of ``works``, which do the same on different inputs."""


class CudaClock:
    """Captures the calls in a CUDA graph and times its replays, so that neither Python nor the driver's launches count;
    what cannot be captured is timed call by call, and says so in ``launched``."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self._cache = properties.L2_cache_size
        self._memory = properties.total_memory
        self.launched: set[str] = set()

    def sets(self, num_bytes: int) -> int:
        """Twice the second-level cache, within a sixth of the memory."""
        wanted = -(-2 * self._cache // max(1, num_bytes)) + 1
        return max(1, min(wanted, MOST_SETS, self._memory // 6 // max(1, num_bytes)))

    def time(self, works: Sequence[Work], rounds: int = 15) -> Timing:
        """Rounds of at least a millisecond each."""
        for work in (*works, *works):
            work()
        torch.cuda.synchronize()
        replay, calls = self._captured(works)
        replay()
        torch.cuda.synchronize()
        began = time.perf_counter()
        replay()
        torch.cuda.synchronize()
        replays = max(1, min(100, round(1e-3 / (time.perf_counter() - began))))
        samples = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(replays):
                replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) / 1e3 / replays / calls)
        return Timing.of(samples)

    def _captured(self, works: Sequence[Work]) -> tuple[Work, int]:
        """What runs all of them, and how many calls that is."""
        times = max(1, 32 // len(works))
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        try:
            # the outer context restores the stream where ending a failed capture fails too
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
                for _ in range(times):
                    for work in works:
                        work()
        except Exception:  # it reads from the device, or allocates in a way that a graph forbids
            torch.cuda.synchronize()
            self.launched.add(getattr(works[0], "__qualname__", repr(works[0])))

            def run() -> None:
                for work in works:
                    work()

            return run, len(works)
        return graph.replay, times * len(works)


class HostClock:
    """Where there is no GPU: for the benchmark's own test, not for figures."""

    launched: frozenset[str] = frozenset()

    def sets(self, num_bytes: int) -> int:
        """Two, so that rotation is exercised."""
        return 2

    def time(self, works: Sequence[Work], rounds: int = 2) -> Timing:
        """The wall clock, call by call."""
        samples = []
        for _ in range(rounds):
            for work in works:
                began = time.perf_counter()
                work()
                samples.append(time.perf_counter() - began)
        return Timing.of(samples)
