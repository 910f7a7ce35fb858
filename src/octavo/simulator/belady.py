"""The policy that knows the future. It exists in the laboratory alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from octavo.memory.eviction.keyed import KeyedEviction


class Belady(KeyedEviction[int]):
    """The block goes whose next use is farthest in the future, or never comes (Belady, IBM Systems Journal 1966).

    Uses are counted in the laboratory's order: request by request, within a request from the prompt's end to its
    beginning. What arrives is always taken in, also where everything resident is wanted sooner.

    Args:
        capacity: blocks there are.
        requests: the whole future; each request's contents, which serve as blocks.
        num_contents: they are smaller.
    """

    __slots__ = ("_upcoming",)

    def __init__(self, capacity: int, requests: Sequence[Sequence[int]], num_contents: int) -> None:
        super().__init__(capacity)
        use = never = sum(len(contents) for contents in requests)
        # For each use, in order, when the same content is used next.
        self._upcoming = array("q", bytes(8 * never))
        following = array("q", [never]) * num_contents
        for contents in reversed(requests):
            for content in contents:  # backwards in time is from a prompt's beginning to its end
                use -= 1
                self._upcoming[use] = following[content]
                following[content] = use

    def file(self, block: int, content: int, depth: int) -> None:
        """A use, like any other."""
        self.touch(block)

    def touch(self, block: int) -> None:
        """The use that was foreseen; now the next one counts."""
        self._set_key(block, -self._upcoming[self._clock])
        self._clock += 1
