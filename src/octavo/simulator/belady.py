"""The policy that knows the future. It exists in the laboratory alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from octavo.memory.eviction import Eviction
from octavo.memory.eviction.resting import RestingQueue


class Belady(Eviction):
    """The block goes whose next use is farthest in the future, or never comes (Belady, IBM Systems Journal 1966).

    Uses are counted in the laboratory's order: request by request, within a request from the prompt's end to its
    beginning. What arrives is always taken in, also where everything resident is wanted sooner.

    Args:
        requests: the whole future; each request's contents, which serve as blocks.
        num_contents: they are smaller.
    """

    __slots__ = ("_next_use", "_resting", "_upcoming", "_uses")

    def __init__(self, requests: Sequence[Sequence[int]], num_contents: int) -> None:
        never = sum(len(contents) for contents in requests)
        # For each use, in order, when the same content is used next.
        self._upcoming = array("q", bytes(8 * never))
        following = array("q", [never]) * num_contents
        use = never
        for contents in reversed(requests):
            for content in contents:  # backwards in time is from a prompt's beginning to its end
                use -= 1
                self._upcoming[use] = following[content]
                following[content] = use
        self._uses = 0
        self._next_use = [never] * num_contents
        self._resting: RestingQueue[int] = RestingQueue()

    def file(self, block: int, content: int, depth: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._use(block)

    def touch(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._use(block)
        if block in self._resting:
            self._resting.put(block, -self._next_use[block])

    def rest(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.put(block, -self._next_use[block])

    def wake(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.discard(block)

    def drop(self, block: int) -> None:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        self._resting.discard(block)

    def victim(self) -> int:
        """See :class:`~octavo.memory.eviction.Eviction`."""
        return self._resting.first()

    def _use(self, block: int) -> None:
        self._next_use[block] = self._upcoming[self._uses]
        self._uses += 1
