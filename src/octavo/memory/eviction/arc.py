"""Adaptive replacement."""

from __future__ import annotations

from collections import OrderedDict

from octavo.memory.eviction.policy import Eviction
from octavo.memory.eviction.resting import RestingQueue


class ARC(Eviction):
    """Blocks used once and blocks used again are two queues, each in order of last use; from which of them the next
    victim comes is learned from what comes back after it was dropped.

    ``_target`` is how many of the places the once-used should have. Content that comes back after it was dropped from
    among the once-used says that they had too few, and the other way round; two ghost lists remember, by fingerprint,
    what was dropped from where. (ARC: Megiddo and Modha, FAST '03. Here blocks may be held, or wait for their
    children to go first, so that a queue with nothing to give leaves it to the other.)
    """

    __slots__ = (
        "_again",
        "_again_ghosts",
        "_capacity",
        "_clock",
        "_known",
        "_num_once",
        "_once",
        "_once_ghosts",
        "_target",
    )

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._clock = 0
        self._target = 0.0
        self._known: dict[int, tuple[bool, int, int]] = {}  # block -> (used again?, when last, content)
        self._num_once = 0
        self._once: RestingQueue[int] = RestingQueue()
        self._again: RestingQueue[int] = RestingQueue()
        self._once_ghosts: OrderedDict[int, None] = OrderedDict()  # the oldest first
        self._again_ghosts: OrderedDict[int, None] = OrderedDict()

    def file(self, block: int, content: int, depth: int) -> None:
        """Know it again if it was dropped, and learn from that."""
        self._clock += 1
        once, again = self._once_ghosts, self._again_ghosts
        returns = True
        if content in once:
            self._target = min(self._target + max(1.0, len(again) / len(once)), self._capacity)
            del once[content]
        elif content in again:
            self._target = max(self._target - max(1.0, len(once) / len(again)), 0.0)
            del again[content]
        else:
            returns = False
            self._num_once += 1
        self._known[block] = (returns, self._clock, content)

    def touch(self, block: int) -> None:
        """From now on it is one of those used again."""
        self._clock += 1
        again, _, content = self._known[block]
        self._num_once -= not again
        self._known[block] = (True, self._clock, content)
        if block in self._once:
            self._once.discard(block)
            self._again.put(block, self._clock)
        elif block in self._again:
            self._again.put(block, self._clock)

    def rest(self, block: int) -> None:
        """Put it into its queue, by its last use."""
        again, used, _ = self._known[block]
        (self._again if again else self._once).put(block, used)

    def wake(self, block: int) -> None:
        """Take it from its queue."""
        self._once.discard(block)
        self._again.discard(block)

    def drop(self, block: int) -> None:
        """Keep its fingerprint as a ghost."""
        self.wake(block)
        again, _, content = self._known.pop(block)
        self._num_once -= not again
        ghosts = self._again_ghosts if again else self._once_ghosts
        ghosts[content] = None
        # As many ghosts of the once-used as there are places they do not have; twice the capacity in all.
        while self._once_ghosts and len(self._once_ghosts) + self._num_once > self._capacity:
            self._once_ghosts.popitem(last=False)
        while self._again_ghosts and self._num_known() > 2 * self._capacity:
            self._again_ghosts.popitem(last=False)

    def victim(self) -> int:
        """From the queue that has more than its share."""
        from_once = self._once and (self._num_once > self._target or not self._again)
        return (self._once if from_once else self._again).first()

    def rests(self, block: int) -> bool:
        """Whether one of the queues holds it."""
        return block in self._once or block in self._again

    def _num_known(self) -> int:
        return len(self._known) + len(self._once_ghosts) + len(self._again_ghosts)
