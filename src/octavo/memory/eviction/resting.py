"""The blocks that may be evicted, in the order in which they go."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key", int, float, tuple[int, int], tuple[float, int])


class RestingQueue(Generic[Key]):
    """A heap of blocks by key, the smallest first. Removal is lazy: an entry whose key is no longer its block's is
    skipped when it comes up, and when such entries outnumber the others the heap is rebuilt, so that every operation
    is O(log n) amortised and the memory is bounded by what rests."""

    __slots__ = ("_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int]] = []
        self._keys: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def put(self, block: int, key: Key) -> None:
        """Add a block, or change its key."""
        self._keys[block] = key
        heap = self._heap
        heappush(heap, (key, block))
        if len(heap) > 2 * len(self._keys) + 64:
            heap[:] = [(key, block) for block, key in self._keys.items()]
            heapify(heap)

    def discard(self, block: int) -> None:
        """Take a block out, if it is there."""
        self._keys.pop(block, None)

    def first(self) -> int:
        """The block with the smallest key (of equal ones, the smallest block).

        Raises:
            LookupError: the queue is empty.
        """
        heap, keys = self._heap, self._keys
        while heap:
            key, block = heap[0]
            if keys.get(block) == key:
                return block
            heappop(heap)
        raise LookupError("nothing rests")
