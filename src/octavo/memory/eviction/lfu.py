"""Least frequently used."""

from __future__ import annotations

from octavo.memory.eviction.keyed import KeyedEviction


class LFU(KeyedEviction[tuple[int, int]]):
    """The block goes that was used least often since it was filed; of equals, the least recently used one.

    Counts are kept while the content is cached and forgotten with it ("in-cache LFU").
    """

    __slots__ = ()

    def file(self, block: int, content: int, depth: int) -> None:
        """Its first use."""
        self._clock += 1
        self._set_key(block, (1, self._clock))

    def touch(self, block: int) -> None:
        """One use more, and the latest."""
        self._clock += 1
        self._set_key(block, (self._key[block][0] + 1, self._clock))
