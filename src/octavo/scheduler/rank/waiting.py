"""The requests that wait to be resident, first in rank on top."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator

from octavo.request import Request

Rank = tuple[float, int]
"""Smaller goes first; the second member (the order of arrival at the scheduler) makes ranks unique."""


class Waiting(ABC):
    """Requests in rank order. Taking one in and out is O(log n); only :meth:`discard` may look at all of them."""

    @abstractmethod
    def push(self, request: Request) -> None:
        """Take a request in: a new one, one that was preempted, or one that was passed over."""

    @abstractmethod
    def first(self) -> Request:
        """The first in rank; its ``rank`` is up to date. There must be one."""

    @abstractmethod
    def pop(self) -> Request:
        """Take the first one out."""

    @abstractmethod
    def discard(self, request: Request) -> None:
        """Take a request out wherever it stands. O(n)."""

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """All of them, in no particular order."""

    @abstractmethod
    def __len__(self) -> int: ...


class RankHeap(Waiting):
    """For ranks that do not change while a request waits: a plain heap."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Request]] = []

    def push(self, request: Request) -> None:
        """O(log n)."""
        heapq.heappush(self._heap, (request.rank, request))

    def first(self) -> Request:
        """O(1)."""
        return self._heap[0][1]

    def pop(self) -> Request:
        """O(log n)."""
        return heapq.heappop(self._heap)[1]

    def discard(self, request: Request) -> None:
        """O(n)."""
        self._heap = [entry for entry in self._heap if entry[1] is not request]
        heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (entry[1] for entry in self._heap)

    def __len__(self) -> int:
        return len(self._heap)
