"""Whether the books of the memory balance."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.memory.layout import BlockLayout
from octavo.memory.prefix_cache import PrefixCache
from octavo.plan import HOLE
from octavo.request import BlockTable, Sequence


class MemoryAudit:
    """Checks tables, pool, prefix tree and host pages against one another. O(blocks): for tests and simulations."""

    __slots__ = ("_cache", "_layout")

    def __init__(self, layout: BlockLayout, cache: PrefixCache) -> None:
        self._layout = layout
        self._cache = cache

    def run(self, sequences: Iterable[Sequence]) -> None:
        """Check that free + cached + used is everything, and that reference counts equal the tables' entries.

        Raises:
            RuntimeError: they do not; the message says where.
        """
        counts = self._count(sequences)
        pool, host_cache = self._cache.pool, self._cache.host_cache
        free = pool.free_blocks()
        for block, count in enumerate(counts):
            if count != pool.refs[block]:
                raise RuntimeError(f"block {block}: {pool.refs[block]} references, {count} in tables")
        if len(free) != pool.num_free or len(set(free)) != len(free) or any(counts[block] for block in free):
            raise RuntimeError("the free list disagrees with the reference counts")
        if len(free) + sum(count > 0 for count in counts) != pool.num_blocks:
            raise RuntimeError("blocks have leaked: free + cached + used is not the pool")
        self._audit_tree()
        self._cache.swaps.audit(() if host_cache is None else host_cache.audit())

    def _count(self, sequences: Iterable[Sequence]) -> list[int]:
        """For each block the tables' entries that name it."""
        counts = [0] * self._cache.pool.num_blocks
        for seq in sequences:
            lengths = {len(table.blocks) for table in seq.tables}
            if len(lengths) != 1 or min(lengths) * self._layout.block_size < seq.num_scheduled:
                raise RuntimeError(f"{seq} holds too few blocks for what is scheduled")
            for group, table in enumerate(seq.tables):
                self._audit_holes(seq, group, table)
                for block in table.blocks[table.gone :]:
                    counts[block] += 1
        return counts

    def _audit_holes(self, seq: Sequence, group: int, table: BlockTable) -> None:
        size, held = self._layout.block_size, len(table.blocks) - table.gone
        layers = self._layout.groups[group]
        if table.blocks.count(HOLE) != table.gone or any(block != HOLE for block in table.blocks[: table.gone]):
            raise RuntimeError(f"{seq}: the holes of a table are not its first {table.gone} entries")
        if table.gone * size > layers.first_visible(seq.num_computed):
            raise RuntimeError(f"{seq} gave back a block that position {seq.num_computed} sees")
        if held > self._layout.most_held(group, len(table.blocks) * size):
            raise RuntimeError(f"{seq} holds {held} blocks for a window of {layers.window}")

    def _audit_tree(self) -> None:
        pool, tree, host_cache = self._cache.pool, self._cache.tree, self._cache.host_cache
        held = {block for block in range(pool.num_blocks) if pool.node[block]}
        filed: set[int] = set()
        demoted = () if host_cache is None else host_cache.nodes
        for node in tree.nodes():
            if node in demoted:
                if any(block != HOLE for block in tree.blocks[node]):
                    raise RuntimeError(f"prefix node {node} is demoted, and names a block")
                continue
            filed.update(self._audit_node(node))
        if held != filed:
            raise RuntimeError("the prefix tree and the pool disagree on what is cached")
        if self._cache.evicting is not None:
            self._cache.evicting.audit()

    def _audit_node(self, node: int) -> list[int]:
        """Check a node that is on the device; returns its blocks."""
        pool, tree, groups = self._cache.pool, self._cache.tree, self._layout.groups
        blocks = [block for block in tree.blocks[node] if block != HOLE]
        parent = tree.parent(node)
        if any(pool.node[block] != node for block in blocks):
            raise RuntimeError(f"prefix node {node} names a block that holds something else")
        if not blocks and not tree.num_children(node):
            raise RuntimeError(f"prefix node {node} has neither blocks nor children")
        for group, own in zip(groups, tree.blocks[node], strict=True):
            if own == HOLE and group.window is None:
                raise RuntimeError(f"prefix node {node} has a hole in a group that keeps everything")
        if isinstance(parent, int) and any(
            group.window is None and pool.refs[own] > 0 and pool.refs[above] == 0
            for group, own, above in zip(groups, tree.blocks[node], tree.blocks[parent], strict=True)
        ):
            raise RuntimeError(f"prefix node {node} is held, its parent {parent} is not")
        return blocks
