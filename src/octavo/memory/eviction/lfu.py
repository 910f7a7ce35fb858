"""Least frequently used."""

from __future__ import annotations

from collections import OrderedDict

from octavo.memory.eviction.keyed import KeyedEviction

_MEMORY = 16
"""Contents remembered after they were dropped, for each block there is."""
_MOST = 1 << 20
"""And never more than so many."""


class LFU(KeyedEviction[tuple[int, int]]):
    """The block goes whose content was used least often; of equals, the least recently used one.

    The count goes on where it stood when dropped content comes back, as long as that is remembered: the
    ``16 * capacity`` contents dropped last are.
    """

    __slots__ = ("_content", "_dropped", "_most")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._content: dict[int, int] = {}
        self._dropped: OrderedDict[int, int] = OrderedDict()  # content -> how often it was used; the oldest first
        self._most = min(_MEMORY * capacity, _MOST)

    def file(self, block: int, content: int, depth: int) -> None:
        """One use more than is remembered of this content."""
        self._clock += 1
        self._content[block] = content
        self._set_key(block, (self._dropped.pop(content, 0) + 1, self._clock))

    def touch(self, block: int) -> None:
        """One use more, and the latest."""
        self._clock += 1
        self._set_key(block, (self._key[block][0] + 1, self._clock))

    def drop(self, block: int) -> None:
        """Remember how often its content was used."""
        self._dropped[self._content.pop(block)] = self._key[block][0]
        if len(self._dropped) > self._most:
            self._dropped.popitem(last=False)
        super().drop(block)
