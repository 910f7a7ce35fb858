"""Least recently used."""

from __future__ import annotations

from octavo.memory.eviction.keyed import KeyedEviction


class LRU(KeyedEviction[int]):
    """The block goes whose last use (filing or touch) is longest ago.

    Whoever touches a prefix from its end to its beginning gives its blocks the order in which they should go.
    (:class:`~octavo.memory.pool.BlockPool` needs no such object for "lru": there the free list itself is in order of
    use, which ends when the last holder lets go.)
    """

    __slots__ = ()

    def file(self, block: int, content: int, depth: int) -> None:
        """The latest use is its filing."""
        self._clock += 1
        self._set_key(block, self._clock)

    def touch(self, block: int) -> None:
        """The latest use is now."""
        self._clock += 1
        self._set_key(block, self._clock)
