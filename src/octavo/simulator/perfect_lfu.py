"""Frequencies that outlive eviction. It exists in the laboratory alone, for it remembers every content ever seen."""

from __future__ import annotations

from octavo.memory.eviction.keyed import KeyedEviction


class PerfectLFU(KeyedEviction[tuple[int, int]]):
    """The block goes whose content was used least often since the beginning, evicted or not; of equals, the least
    recently used one. (The engine's "lfu" forgets a count with the content: it needs no memory for what is gone.)"""

    __slots__ = ("_content", "_uses")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._uses: dict[int, int] = {}  # by content
        self._content: dict[int, int] = {}  # by block

    def file(self, block: int, content: int, depth: int) -> None:
        """One use more of a content that may have been here before."""
        self._content[block] = content
        self.touch(block)

    def touch(self, block: int) -> None:
        """One use more, and the latest."""
        content = self._content[block]
        self._clock += 1
        self._uses[content] = self._uses.get(content, 0) + 1
        self._set_key(block, (self._uses[content], self._clock))
