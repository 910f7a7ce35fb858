"""What an eviction policy is told, and what it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Eviction(ABC):
    """Chooses which cached block is dropped next, from the order of events alone (there is no clock).

    Blocks are small integers; a policy knows those whose content is filed in the prefix tree. A filed block *rests*
    while nobody holds it and no filed block hangs below it, and only resting blocks are offered: that a block in use
    is never evicted, nor a parent before its child, is not a policy's to get wrong. Every call is O(1) or O(log n).

    Args (of every policy):
        capacity: how many blocks there are. Block numbers may be larger (a laboratory numbers contents, not places).
    """

    __slots__ = ()

    @abstractmethod
    def file(self, block: int, content: int, depth: int) -> None:
        """``block``, unknown so far, now holds cached content, and does not rest yet. ``content`` is a fingerprint of
        the whole prefix that ends in it, by which a policy may know again what it has dropped; ``depth`` counts the
        blocks before it in that prefix."""

    @abstractmethod
    def touch(self, block: int) -> None:
        """The block's content was found and used again. The block may rest or not."""

    @abstractmethod
    def rest(self, block: int) -> None:
        """The block may be evicted from now on."""

    @abstractmethod
    def wake(self, block: int) -> None:
        """The block, which rests, may not be evicted any more: it is held, or has a child."""

    @abstractmethod
    def drop(self, block: int) -> None:
        """The block's content is gone (evicted, or forgotten). It may rest or not; it does not afterwards."""

    @abstractmethod
    def victim(self) -> int:
        """The resting block that is to go next. It stays where it is until :meth:`drop`.

        Raises:
            LookupError: nothing rests.
        """

    @abstractmethod
    def rests(self, block: int) -> bool:
        """Whether the block is among those that may be evicted (for audits)."""
