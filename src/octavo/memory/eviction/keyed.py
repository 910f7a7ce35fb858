"""Policies that give every block a key: the smallest goes first."""

from __future__ import annotations

from typing import Generic

from octavo.memory.eviction.policy import Eviction
from octavo.memory.eviction.resting import Key, RestingQueue


class KeyedEviction(Eviction, Generic[Key]):
    """Keeps each filed block's key in ``_key`` and the resting ones in order. What a key is made of is the
    subclass's: it sets one when a block is filed, and may change it when the block is touched."""

    __slots__ = ("_clock", "_key", "_resting")

    def __init__(self, capacity: int) -> None:
        self._clock = 0  # counts events, where a key needs to tell earlier from later
        self._key: dict[int, Key] = {}
        self._resting: RestingQueue[Key] = RestingQueue()

    def _set_key(self, block: int, key: Key) -> None:
        self._key[block] = key
        if block in self._resting:
            self._resting.put(block, key)

    def rest(self, block: int) -> None:
        """Put it among the resting, by its key."""
        self._resting.put(block, self._key[block])

    def wake(self, block: int) -> None:
        """Take it from among the resting; its key stays."""
        self._resting.discard(block)

    def drop(self, block: int) -> None:
        """Forget it and its key."""
        self._resting.discard(block)
        del self._key[block]

    def victim(self) -> int:
        """The resting block with the smallest key."""
        return self._resting.first()

    def rests(self, block: int) -> bool:
        """Whether it is among the resting."""
        return block in self._resting
