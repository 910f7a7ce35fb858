"""First in, first out."""

from __future__ import annotations

from octavo.memory.eviction.keyed import KeyedEviction


class FIFO(KeyedEviction[int]):
    """The block goes that was filed first, however often it has been used since."""

    __slots__ = ()

    def file(self, block: int, content: int, depth: int) -> None:
        """Stand at the end of the line."""
        self._clock += 1
        self._set_key(block, self._clock)

    def touch(self, block: int) -> None:
        """Changes nothing."""
