"""Octavo's own: cost to recompute times chance of reuse."""

from __future__ import annotations

from collections import OrderedDict
from math import log

from octavo.memory.eviction.keyed import KeyedEviction

_USES = 9
"""Classes by how often a block was used: 1, 2, .. 8, more."""
_DEPTHS = 9
"""Classes by how many blocks come before it: 0, 1, 2-3, 4-7, .. 128 and more."""
_MEMORY = 8
"""Contents remembered after they were dropped, for each block there is."""
_MOST = 1 << 20
"""And never more than so many."""
_WINDOW = 2000
"""Returns over which their average interval is taken."""
_HORIZON = 1.5
"""A block's worth falls to 1/e within so many average intervals without a use."""
_ATTENTION = 1 / 2048
"""What each block before it adds to the cost of computing a block: attention over the context. (Blocks of 16 tokens
and a model of 8 billion parameters, where attention over 32k tokens costs as much as all else.)"""


class PrefixAware(KeyedEviction[float]):
    """The block goes that is worth least: what it costs to compute again, times the chance that it is wanted again.

    The chance is learned, for classes of blocks by number of uses and by depth: of all the times a block of the class
    was left alone, how many ended in another use (in the cache, or after it was dropped, as long as that is
    remembered), and how many in being dropped? It fades with the time since the last use. As time scale for that
    serves the average interval after which content returns, which is learned too; it is the load's own and does not
    grow with the cache: a large cache ends up near LRU, a small one near LFU that prefers short prefixes.

    Worth is then ``cost * chance * exp(-(now - last use) / scale)``. Its logarithm orders blocks in the same way at
    every moment, so that a block's key, ``last use + scale * log(cost * chance)``, need not change between uses: a
    heap will do, where hit densities by age (LHD: Beckmann et al., NSDI '18) have to be looked up for a sample of
    blocks at every eviction. Time is counted in uses of blocks.
    """

    __slots__ = ("_dropped", "_interval", "_known", "_most", "_num_trials", "_patience", "_returns", "_trials")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._known: dict[int, tuple[int, int, int, int, int]] = {}  # block -> content, depth, uses, class, last use
        # What was dropped, the oldest first: content -> uses, class, last use.
        self._dropped: OrderedDict[int, tuple[int, int, int]] = OrderedDict()
        self._most = min(_MEMORY * capacity, _MOST)
        self._interval = float(capacity)  # a guess, until contents return
        self._trials = [1.0] * (_USES * _DEPTHS)
        self._returns = [0.5] * (_USES * _DEPTHS)
        self._num_trials = 0
        self._patience = 64 * max(capacity, _WINDOW)

    def file(self, block: int, content: int, depth: int) -> None:
        """New content, or content that returns after it was dropped."""
        self._clock += 1
        uses, which, used = self._dropped.pop(content, (0, 0, 0))
        if uses:
            self._returned(which, used)
        self._use(block, content, depth, uses + 1)

    def touch(self, block: int) -> None:
        """Content that returns while it is there."""
        self._clock += 1
        content, depth, uses, which, used = self._known[block]
        self._tried(which)
        self._returned(which, used)
        self._use(block, content, depth, uses + 1)

    def drop(self, block: int) -> None:
        """Count it as not wanted again, until it is."""
        content, _, uses, which, used = self._known.pop(block)
        self._tried(which)
        self._dropped[content] = (uses, which, used)
        if len(self._dropped) > self._most:
            self._dropped.popitem(last=False)
        super().drop(block)

    def _use(self, block: int, content: int, depth: int, uses: int) -> None:
        now = self._clock
        row = uses if uses < _USES else _USES
        column = depth.bit_length()
        which = (row - 1) * _DEPTHS + (column if column < _DEPTHS else _DEPTHS - 1)
        self._known[block] = (content, depth, uses, which, now)
        worth = (1 + depth * _ATTENTION) * self._returns[which] / self._trials[which]
        self._set_key(block, now + _HORIZON * self._interval * log(worth))

    def _tried(self, which: int) -> None:
        self._trials[which] += 1
        self._num_trials += 1
        if self._num_trials > self._patience:  # loads change: what is long ago counts half
            self._num_trials //= 2
            self._trials = [1 + (count - 1) / 2 for count in self._trials]
            self._returns = [0.5 + (count - 0.5) / 2 for count in self._returns]

    def _returned(self, which: int, used: int) -> None:
        self._returns[which] += 1
        self._interval += (self._clock - used - self._interval) / _WINDOW
