"""Blocks by what they hold: which are filed in the prefix tree, and what goes when one is needed."""

from __future__ import annotations

from collections.abc import Sequence as Numbers
from itertools import islice, takewhile

from octavo.config import SchedulerConfig
from octavo.memory.evicting_pool import EvictingPool
from octavo.memory.eviction import EVICTIONS
from octavo.memory.host_cache import HostCache
from octavo.memory.layout import BlockLayout
from octavo.memory.pool import BlockPool
from octavo.memory.prefix_tree import PrefixTree, block_key
from octavo.memory.swap_table import SwapTable
from octavo.plan import HOLE
from octavo.request import PrefixNode, Sequence


class PrefixCache:
    """The pool of blocks, and the prefix tree that knows what is in them.

    What nobody holds stays cached until its block is needed. A node of the tree goes with the block of a full group;
    where all groups have windows, when it has neither blocks nor children. Leaves go before their parents, but for
    blocks of windowed groups, which may be evicted by themselves. With a ``host_cache`` a node moves to host memory
    instead, as long as there is room.

    Evicted blocks are collected in ``evicted`` until the scheduler puts them into its plan.
    """

    __slots__ = ("_keeps", "_layout", "evicted", "evicting", "host_cache", "pool", "swaps", "tree")

    def __init__(self, config: SchedulerConfig, layout: BlockLayout, swaps: SwapTable) -> None:
        self.tree = PrefixTree()
        self.swaps = swaps
        self.evicted: list[int] = []
        # Under "lru" the pool's free list is the policy.
        self.evicting: EvictingPool | None = None
        if config.eviction != "lru" and config.prefix_caching:
            policy = EVICTIONS[config.eviction](config.num_blocks)
            self.evicting = EvictingPool(config.num_blocks, policy, self._may_go)
        self.pool: BlockPool = self.evicting or BlockPool(config.num_blocks)
        self.host_cache: HostCache | None = None
        if config.host_cache and config.prefix_caching and config.num_host_blocks and not layout.windowed:
            self.host_cache = HostCache(self.tree, swaps)
        self._keeps = config.prefix_caching  # what nobody holds any more
        self._layout = layout

    def allocate(self) -> int:
        """A block to write to; what was cached there is evicted.

        Raises:
            OutOfBlocksError: all blocks are held.
        """
        block = self.pool.allocate()
        node = self.pool.node[block]
        if node:
            self.evicted.append(block)
            if self.host_cache is None or not self._demote(self.host_cache, node):
                self.forget(block)
        self.swaps.moves_in.pop(block, None)  # whoever it was for has lost it again
        return block

    def fetch(self, page: int) -> int:
        """A block into which this step moves a host page."""
        block = self.allocate()
        self.swaps.moves_in[block] = page
        return block

    def release(self, block: int) -> None:
        """Drop a reference."""
        pool = self.pool
        if not self._keeps and pool.refs[block] == 1 and pool.node[block]:
            self.forget(block)
        pool.release(block)

    def file(self, node: int, blocks: tuple[int, ...], parent: PrefixNode, key: bytes, depth: int) -> None:
        """``blocks`` hold content of ``node`` now, which is at ``depth`` below ``parent``."""
        for block in blocks:
            self.pool.node[block] = node
        if self.evicting is not None:
            self.evicting.file(node, blocks, parent, key, depth)

    def forget(self, block: int) -> None:
        """What ``block`` holds is cached no longer: its node goes (a leaf, by the order of release) and whatever else
        that holds; or, where the block is a windowed group's, the block alone."""
        pool, tree = self.pool, self.tree
        node = pool.node[block]
        if self._is_windowed(node, block):
            tree.put(node, tree.blocks[node].index(block), HOLE)
            tree.prune(node)
            pool.forget(block)
            return
        if self.host_cache is not None:
            self.host_cache.drop_below(node)
        parent = tree.parent(node)
        self._bare(tree.remove(node), parent)

    def promote(self, cache: HostCache, seq: Sequence, nodes: Numbers[int]) -> None:
        """Bring those of ``nodes``, a filed prefix of ``seq``, back to the device that ``cache`` has in host memory.
        They are cached there like any other block that nobody holds, and as many are free as were before."""
        pool, size = self.pool, self._layout.block_size
        first = next((i for i, node in enumerate(nodes) if node in cache.nodes), len(nodes))
        if first == len(nodes):
            return
        held = [block for node in nodes[:first] for block in self.tree.blocks[node]]
        for block in held:  # lest it be evicted for what follows it
            pool.share(block)
        readable = takewhile(lambda node: not cache.is_fresh(node), nodes[first:])
        coming = list(islice(readable, pool.num_free // self._layout.num_groups))
        pages = [cache.take(node) for node in coming]  # all first, lest they make way for what they drive out
        cache.num_promoted += len(coming) * self._layout.num_groups
        for i, (node, row) in enumerate(zip(coming, pages, strict=True), first):
            blocks = tuple([self.fetch(page) for page in row])
            parent: PrefixNode = nodes[i - 1] if i else seq.request.namespace
            self.tree.blocks[node] = blocks
            self.file(node, blocks, parent, block_key(seq.tokens, i * size, (i + 1) * size), i)
            held.extend(blocks)
        for block in reversed(held):
            pool.release(block)

    def reset(self) -> int:
        """Forget every cached block that nobody holds; returns how many."""
        count = 0 if self.host_cache is None else self.host_cache.clear()
        for block in self.pool.free_blocks():
            if self.pool.node[block]:
                self.forget(block)
                count += 1
        return count

    def _demote(self, cache: HostCache, node: int) -> bool:
        """Move a node that is to be evicted to host memory; False if it cannot be, because there is no page, or its
        content is only just on its way to the device."""
        blocks = self.tree.blocks[node]
        if any(block in self.swaps.moves_in for block in blocks) or not cache.demote(node, blocks):
            return False
        self.tree.blocks[node] = (HOLE,) * self._layout.num_groups
        self._bare(blocks, self.tree.parent(node))
        return True

    def _bare(self, blocks: tuple[int, ...], parent: PrefixNode) -> None:
        """``blocks`` hold nothing any more; if their node was the last one below ``parent``, that may go next."""
        for block in blocks:
            if block != HOLE:
                self.pool.forget(block)
        if self.evicting is not None and isinstance(parent, int) and not self._num_below(parent):
            for group in self._layout.full:
                self.evicting.settle(self.tree.blocks[parent][group])

    def _may_go(self, block: int) -> bool:
        """Whether the prefix tree could do without what ``block`` holds: leaves go before their parents, but for
        blocks of windowed groups."""
        node = self.pool.node[block]
        return not self._num_below(node) or self._is_windowed(node, block)

    def _is_windowed(self, node: int, block: int) -> bool:
        """Whether ``block``, one of the node's, is that of a group that sees only a window."""
        windowed = self._layout.windowed
        return bool(windowed) and self.tree.blocks[node].index(block) in windowed

    def _num_below(self, node: int) -> int:
        """The node's children on the device."""
        children = self.tree.num_children(node)
        return children - self.host_cache.num_below(node) if children and self.host_cache is not None else children
