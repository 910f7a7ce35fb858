"""Frequencies that outlive eviction. It exists in the laboratory alone, for it remembers every content ever seen."""

from __future__ import annotations

from octavo.memory.eviction import Eviction
from octavo.memory.eviction.resting import RestingQueue


class PerfectLFU(Eviction):
    """The block goes whose content was used least often since the beginning, evicted or not; of equals, the least
    recently used one. (The engine's "lfu" forgets a count with the content: it needs no memory for what is gone.)"""

    __slots__ = ("_clock", "_content", "_resting", "_used")

    def __init__(self) -> None:
        self._clock = 0
        self._used: dict[int, tuple[int, int]] = {}  # content -> (how often, when last)
        self._content: dict[int, int] = {}  # block -> its content
        self._resting: RestingQueue[tuple[float, ...]] = RestingQueue()

    def file(self, block: int, content: int, depth: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._content[block] = content
        self._use(content)

    def touch(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._use(self._content[block])
        if block in self._resting:
            self._resting.put(block, self._used[self._content[block]])

    def rest(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.put(block, self._used[self._content[block]])

    def wake(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.discard(block)

    def drop(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.discard(block)
        del self._content[block]

    def victim(self) -> int:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        return self._resting.first()

    def _use(self, content: int) -> None:
        self._clock += 1
        self._used[content] = (self._used.get(content, (0, 0))[0] + 1, self._clock)
