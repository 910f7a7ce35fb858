"""A pool whose cached blocks go in the order of an eviction policy."""

from __future__ import annotations

from collections.abc import Callable

from octavo.memory.eviction import Eviction
from octavo.memory.pool import BlockPool
from octavo.request import PrefixNode


class EvictingPool(BlockPool):
    """A :class:`BlockPool` whose free list holds the blocks with nothing worth keeping, and goes first; among free
    blocks with cached content, ``eviction`` chooses.

    Args:
        num_blocks: as for the plain pool.
        eviction: told of every cached block, and asked when the free list is empty.
        may_go: whether a free block with cached content may be evicted as far as the prefix tree is concerned (no
            filed block hangs on it). It is asked when the last holder lets go; :meth:`settle` says so later.
    """

    __slots__ = ("_content", "_depth", "_may_go", "eviction")

    def __init__(self, num_blocks: int, eviction: Eviction, may_go: Callable[[int], bool]) -> None:
        super().__init__(num_blocks)
        self.eviction = eviction
        self._may_go = may_go
        self._content: dict[int, int] = {}  # node -> fingerprint of the prefix that ends in it
        self._depth = [0] * num_blocks

    def file(self, node: int, blocks: tuple[int, ...], parent: PrefixNode, key: bytes, depth: int) -> None:
        """``blocks``, which are held, have got the content of ``node``: tell the policy.

        Fingerprints chain 64-bit hashes under this process's own random key. They only ever sway a choice of victim,
        so that a collision costs nothing but that.
        """
        above = self._content[parent] if isinstance(parent, int) else hash(parent)
        content = self._content[node] = hash((above, key))
        for block in blocks:
            self._depth[block] = depth
            self.eviction.file(block, content, depth)

    def allocate(self) -> int:
        """Take a block without content, or else the policy's victim: see :meth:`BlockPool.allocate`."""
        if not self.num_free or self._next[self.num_blocks] != self.num_blocks:
            return super().allocate()
        block = self.eviction.victim()  # which is dropped next, when the caller removes its node
        self.num_free -= 1
        self.refs[block] = 1
        return block

    def forget(self, block: int) -> None:
        """The block's content is no longer cached; if it is free, it goes to the head of the free list."""
        self.node[block] = 0
        self.eviction.drop(block)
        if self.refs[block] == 0:
            self.num_free -= 1  # linking counts it again
            self._link(block, at_tail=False)

    def settle(self, block: int) -> None:
        """The last filed block that hung on this one is gone; if nobody holds it, it may be evicted from now on."""
        if self.refs[block] == 0:
            self.eviction.rest(block)

    def free_blocks(self) -> list[int]:
        """The blocks without content in the order of reuse, then the cached ones, children before their parents."""
        cached = [block for block, refs in enumerate(self.refs) if not refs and self.node[block]]
        return super().free_blocks() + sorted(cached, key=lambda block: -self._depth[block])

    def audit(self) -> None:
        """Check that exactly those blocks rest that may go.

        Raises:
            RuntimeError: they do not; the message names a block.
        """
        for block, refs in enumerate(self.refs):
            may_go = not refs and self.node[block] != 0 and self._may_go(block)
            if self.eviction.rests(block) != may_go:
                raise RuntimeError(f"block {block} {'should' if may_go else 'must not'} be among those to be evicted")

    def _enter(self, block: int) -> None:
        if not self.node[block]:
            self._link(block, at_tail=False)
            return
        self.num_free += 1
        if self._may_go(block):
            self.eviction.rest(block)

    def _leave(self, block: int) -> None:
        if not self.node[block]:
            self._unlink(block)
            return
        self.num_free -= 1
        if self._may_go(block):
            self.eviction.wake(block)
