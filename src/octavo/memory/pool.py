"""The pool of physical blocks: reference counts and an intrusive free list."""

from __future__ import annotations

from octavo.errors import OutOfBlocksError


class BlockPool:
    """``num_blocks`` blocks, each free (reference count 0) or held.

    Free blocks stand in a doubly linked list threaded through two arrays, so that taking the head, appending, and
    removing from the middle (a cached block that is wanted again) are O(1). The list is in the order of reuse: blocks
    with nothing worth keeping at the head, then cached blocks, least recently used first. Whoever frees a sequence
    does so from its tail, which therefore goes before its head.
    (The intrusive list is vLLM's idea: ``FreeKVCacheBlockQueue``.)
    """

    __slots__ = ("_next", "_previous", "node", "num_blocks", "num_free", "refs")

    def __init__(self, num_blocks: int) -> None:
        end = num_blocks  # one more entry is the list's sentinel
        self.num_blocks = num_blocks
        self.num_free = num_blocks  # cached blocks that nobody holds are counted: they can be reused
        self.refs = [0] * num_blocks
        self.node = [0] * num_blocks  # the prefix-tree node whose content the block holds; 0 for none
        self._next: list[int] = [*range(1, num_blocks + 1), 0]
        self._previous: list[int] = [end, *range(num_blocks)]

    def allocate(self) -> int:
        """Take the block at the head of the free list, with one reference. If ``node[block]`` is not 0, the caller
        must remove that node from the prefix tree: its content is about to be overwritten.

        Raises:
            OutOfBlocksError: no block is free.
        """
        if not self.num_free:
            raise OutOfBlocksError(f"all {self.num_blocks} blocks are in use")
        block = self._next[self.num_blocks]
        self._unlink(block)
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference, taking the block out of the free list if it was cached there."""
        if self.refs[block] == 0:
            self._leave(block)
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; the last one puts the block into the free list: at the tail if it holds cached content,
        at the head if not.

        Raises:
            RuntimeError: the block is free already (a bug in the caller).
        """
        refs = self.refs[block]
        if refs <= 0:
            raise RuntimeError(f"block {block} is released twice")
        self.refs[block] = refs - 1
        if refs == 1:
            self._enter(block)

    def forget(self, block: int) -> None:
        """The block's content is no longer cached; if it is free, it moves to the head of the list."""
        self.node[block] = 0
        if self.refs[block] == 0:
            self._unlink(block)
            self._link(block, at_tail=False)

    def free_blocks(self) -> list[int]:
        """The free list, in the order of reuse. O(number free): for audits and pictures."""
        blocks, block = [], self._next[self.num_blocks]
        while block != self.num_blocks:
            blocks.append(block)
            block = self._next[block]
        return blocks

    def _enter(self, block: int) -> None:
        """Nobody holds the block any more."""
        self._link(block, at_tail=self.node[block] != 0)

    def _leave(self, block: int) -> None:
        """The block, which is free, is about to be held."""
        self._unlink(block)

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self.num_free -= 1

    def _link(self, block: int, *, at_tail: bool) -> None:
        end = self.num_blocks
        if at_tail:
            before, after = self._previous[end], end
        else:
            before, after = end, self._next[end]
        self._next[before] = self._previous[after] = block
        self._previous[block], self._next[block] = before, after
        self.num_free += 1
