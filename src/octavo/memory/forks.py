"""Sequences that share blocks until one of them writes."""

from __future__ import annotations

from typing import cast

from octavo.memory.layout import BlockLayout
from octavo.memory.prefix_cache import PrefixCache
from octavo.plan import BlockCopy
from octavo.request import Sequence, SequenceState


class Forks:
    """Copy-on-write: whoever writes first to a block that is shared copies it, the parent of a fork included.

    The copies that a step brings about are collected in ``copies`` until the scheduler puts them into its plan.
    """

    __slots__ = ("_cache", "_layout", "copies")

    def __init__(self, layout: BlockLayout, cache: PrefixCache) -> None:
        self.copies: list[BlockCopy] = []
        self._layout = layout
        self._cache = cache

    def point(self, seq: Sequence, source: Sequence | None) -> int:
        """How many tokens of its prompt ``seq``, which holds nothing, could share with ``source``, whose tokens begin
        with that prompt, at this moment by :meth:`fork`; at least its last token is left to compute."""
        if source is None or source.state is not SequenceState.RUNNING:
            return 0
        point = min(len(seq.tokens) - 1, seq.num_prompt, source.num_computed)
        i, offset = divmod(point, self._layout.block_size)
        tails = {table.blocks[i] for table in source.tables} if offset else set()
        if not tails.isdisjoint(self._cache.swaps.moves_in) or any(copy.target in tails for copy in self.copies):
            point -= offset  # what is only now moved or copied there cannot be copied on in the same step
        # As in MemoryManager.give_back: what the next token sees is there, and the block that the sequence's node
        # hangs on.
        last = max(0, point // self._layout.block_size - 1)
        for group, table in zip(self._layout.groups, source.tables, strict=True):
            if table.gone > min(last, group.first_visible(point) // self._layout.block_size):
                return 0
        return point

    def need(self, upto: int, point: int) -> int:
        """Free blocks it takes so that a fork made at ``point`` can write every position up to ``upto``: what it adds
        to the blocks that it shares, and the copy of the partly filled one."""
        more = self._layout.num_blocks(upto) - point // self._layout.block_size
        return sum(min(more, self._layout.most_held(g, upto)) for g in range(self._layout.num_groups))

    def fork(self, parent: Sequence, child: Sequence, upto: int | None = None) -> None:
        """``child`` shares every block that holds one of the first ``upto`` computed tokens of ``parent`` [all], the
        partial last one too. Neither may write to that one before it has asked again."""
        if upto is None:
            upto = parent.num_computed
        count = self._layout.num_blocks(upto)
        for source, target in zip(parent.tables, child.tables, strict=True):
            target.gone = source.gone
            target.blocks.extend(source.blocks[:count])
            for block in target.blocks[target.gone :]:
                self._cache.pool.share(block)
            child.request.num_shared += count - target.gone
        child.num_computed = child.num_scheduled = child.capacity = upto
        parent.capacity = parent.num_scheduled
        child.node, child.num_published = parent.node, min(parent.num_published, upto // self._layout.block_size)
        for _ in range(parent.num_published - child.num_published):
            child.node = self._cache.tree.parent(cast(int, child.node))

    def shared_tail(self, seq: Sequence) -> list[int]:
        """The groups in which the partial block that ``seq`` would write next is shared, or is filed in the prefix tree
        (a fork may begin in the middle of a full block)."""
        i, offset = divmod(seq.num_scheduled, self._layout.block_size)
        if not offset:
            return []
        refs, node = self._cache.pool.refs, self._cache.pool.node
        return [g for g, table in enumerate(seq.tables) if refs[table.blocks[i]] > 1 or node[table.blocks[i]]]

    def copy_tail(self, seq: Sequence, group: int) -> None:
        """Give ``seq`` a copy of its own of that block in one layer group."""
        table, i = seq.tables[group], seq.num_scheduled // self._layout.block_size
        source = table.blocks[i]
        target = self._cache.allocate()
        self.copies.append(BlockCopy(group, source, target))
        seq.request.num_copies += 1
        table.blocks[i] = target
        table.sent = min(table.sent, i)
        self._cache.release(source)
