"""Who holds which blocks: sharing, growth, publication, release."""

from __future__ import annotations

from collections.abc import Iterable, Set
from collections.abc import Sequence as Numbers

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory.audit import MemoryAudit
from octavo.memory.forks import Forks
from octavo.memory.layout import BlockLayout
from octavo.memory.leaders import Leaders
from octavo.memory.prefix_cache import PrefixCache
from octavo.memory.prefix_matcher import PrefixMatcher
from octavo.memory.prefix_tree import block_keys
from octavo.memory.snapshot import MemorySnapshot
from octavo.memory.swap_table import SwapTable
from octavo.memory.swapper import Swapper
from octavo.plan import HOLE
from octavo.request import Request, Sequence


class MemoryManager:
    """The block tables of all sequences, over one pool shared by all layer groups.

    Every change is all or nothing: a call that raises OutOfBlocksError has changed nothing. Copies and evictions
    that a step brings about are collected in ``copies`` and ``evicted`` until the scheduler puts them into its plan.

    A layer group with a window gives back the blocks that no token still to be computed can see (:meth:`give_back`).
    What they hold stays cached like anything else that nobody holds.

    The work is done by parts that can be asked themselves: ``layout`` (how many blocks tokens take), ``cache`` (what is
    in the blocks), ``matcher`` (cached prefixes), ``leaders`` (prefixes being computed), ``forks`` (copy-on-write) and
    ``swapper`` (host memory).
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.block_size = config.block_size
        self.caching = config.prefix_caching
        self.layout = BlockLayout(config)
        self.swaps = SwapTable(config.num_host_blocks)
        self.cache = PrefixCache(config, self.layout, self.swaps)
        self.pool = self.cache.pool
        self.host_cache = self.cache.host_cache
        self.evicted = self.cache.evicted
        self.matcher = PrefixMatcher(self.layout, self.cache)
        self.leaders = Leaders(config.block_size, config.prefix_caching)
        self.forks = Forks(self.layout, self.cache)
        self.copies = self.forks.copies
        self.swapper = Swapper(self.layout, self.cache, self.forks)

    # -- questions ---------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Blocks that can be had, cached ones included."""
        return self.pool.num_free

    @property
    def num_host_free(self) -> int:
        """Host pages that a sequence can have, those of demoted prefixes included."""
        return self.swaps.host.num_free + (self.host_cache.num_reclaimable if self.host_cache is not None else 0)

    def match(self, seq: Sequence) -> list[int]:
        """The nodes of the longest cached prefix that ``seq`` can go on from, leaving at least its last token to
        compute."""
        return self.matcher.match(seq)

    def need(self, seq: Sequence, upto: int, nodes: list[int] | None = None) -> int:
        """Free blocks it takes so that ``seq`` can write every position from ``num_scheduled`` to ``upto``. With
        ``nodes`` it holds nothing yet, the cached prefix is shared first (its idle blocks leave the free list, too),
        and what leaves a window on the way is taken again."""
        wanted = self.layout.num_blocks(upto)
        if nodes is not None:
            refs, blocks, need = self.pool.refs, self.cache.tree.blocks, 0
            for g in range(self.layout.num_groups):
                idle = sum(refs[blocks[node][g]] == 0 for node in nodes[self.layout.first_needed(g, len(nodes)) :])
                need += min(wanted - len(nodes) + idle, self.layout.most_held(g, upto))
            return need
        need = sum(max(0, wanted - len(table.blocks)) for table in seq.tables)
        if self.layout.windowed and seq.swapped is not None:
            rows = seq.swapped.pages[len(seq.tables[0].blocks) - seq.swapped.first :]
            need -= sum(page == HOLE for row in rows for page in row)
        return need + len(self.forks.shared_tail(seq))

    def shared_for_good(self, nodes: Numbers[int]) -> set[int]:
        """The blocks that sharing the cached prefix ``nodes`` would hold for as long as the sequence lives: those of
        groups that see the whole past. (A window's leave it, and :meth:`need` counts them by its bound.)"""
        blocks = self.cache.tree.blocks
        return {blocks[node][group] for node in nodes for group in self.layout.full}

    def yield_of(self, victims: Iterable[Request], wanted: Set[int] = frozenset()) -> int:
        """Blocks that would become free for others if these requests lost theirs: those held by nobody else, but for
        those that are ``wanted`` as they are, as part of a cached prefix."""
        counts: dict[int, int] = {}
        for request in victims:
            for seq in request.live:
                for table in seq.tables:
                    for block in table.blocks[table.gone :]:
                        counts[block] = counts.get(block, 0) + 1
        refs = self.pool.refs
        return sum(count == refs[block] for block, count in counts.items() if block not in wanted)

    # -- changes -----------------------------------------------------------------------------------------------

    def share(self, seq: Sequence, nodes: list[int]) -> None:
        """Let ``seq``, which holds nothing, begin with the cached prefix ``nodes``: those tokens count as computed."""
        blocks, evicting = self.cache.tree.blocks, self.cache.evicting
        for g, table in enumerate(seq.tables):
            table.gone = self.layout.first_needed(g, len(nodes))
            table.blocks.extend([HOLE] * table.gone)
            for node in nodes[table.gone :]:
                block = blocks[node][g]
                self.pool.share(block)
                table.blocks.append(block)
        if evicting is not None:
            for i in range(len(nodes) - 1, -1, -1):
                for table in seq.tables:
                    if i >= table.gone:
                        evicting.eviction.touch(table.blocks[i])
        if nodes:
            seq.node = nodes[-1]
        if not seq.request.num_preemptions:
            seq.request.num_shared += sum(len(table.blocks) - table.gone for table in seq.tables)
        seq.num_published = len(nodes)
        seq.num_computed = seq.num_scheduled = seq.capacity = len(nodes) * self.block_size

    def reserve(self, seq: Sequence, upto: int) -> None:
        """Grow the tables so that positions ``num_scheduled`` to ``upto`` can be written, copying the partial block
        where it is shared (copy-on-write: whoever writes first copies, the parent of a fork included).

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
        """
        need = self.need(seq, upto)
        if need > self.pool.num_free:
            raise OutOfBlocksError(
                f"sequence {seq.id} needs {need} blocks to reach {upto} tokens; {self.pool.num_free} are free"
            )
        for group in self.forks.shared_tail(seq):
            self.forks.copy_tail(seq, group)
        wanted = self.layout.num_blocks(upto)
        for table in seq.tables:
            while len(table.blocks) < wanted:
                table.blocks.append(self.cache.allocate())
        seq.capacity = len(seq.tables[0].blocks) * self.block_size

    def fork(self, parent: Sequence, child: Sequence, upto: int | None = None) -> None:
        """``child`` shares every block that holds one of the first ``upto`` computed tokens of ``parent`` [all], the
        partial last one too. Neither may write to that one before it has asked again."""
        self.forks.fork(parent, child, upto)

    def publish(self, seq: Sequence) -> None:
        """File every full block of ``seq`` that has been computed since the last call, so that others can share it.
        Where the same tokens are filed already, ``seq`` changes over to that block and gives its own back."""
        request = seq.request
        if not self.caching and request.params.num_sequences == 1 and not seq.num_published:
            return  # nobody could share it; a fork's, that hangs in its family's tree, goes on there
        size, cache, tree = self.block_size, self.cache, self.cache.tree
        self.leaders.stop(seq)
        first, last = seq.num_published, seq.num_computed // size
        if first >= last:
            return
        keys = block_keys(seq.tokens, first * size, last * size, size)
        tables, parent = seq.tables, seq.node
        for i, key in enumerate(keys, first):
            node = tree.find(parent, key)
            if not node:
                blocks = tuple([table.blocks[i] for table in tables])
                node = tree.insert(parent, key, blocks)
                held = tuple([block for block in blocks if block != HOLE]) if self.layout.windowed else blocks
                cache.file(node, held, parent, key, i)
            else:
                if (
                    cache.host_cache is not None and node in cache.host_cache.nodes
                ):  # computed again since it was demoted
                    cache.host_cache.take(node)
                for g, (table, block) in enumerate(zip(tables, tree.blocks[node], strict=True)):
                    own = table.blocks[i]
                    if own in (block, HOLE):
                        continue
                    if block == HOLE:  # evicted since, and computed anew
                        tree.put(node, g, own)
                        cache.file(node, (own,), parent, key, i)
                    else:
                        cache.pool.share(block)
                        request.num_shared += 1
                        table.blocks[i] = block
                        table.sent = min(table.sent, i)
                        cache.release(own)
            parent = node
        seq.node, seq.num_published = parent, last

    def give_back(self, seq: Sequence) -> None:
        """Release the blocks of windowed groups that no token of ``seq`` from ``num_computed`` on can see: only what
        is committed counts, so plans in flight still find theirs. The last published block is kept, for the next one
        hangs on its node."""
        for group in self.layout.windowed:
            table = seq.tables[group]
            leaving = self.leaving(seq, group)
            for i in reversed(leaving):
                self.cache.release(table.blocks[i])
                table.blocks[i] = HOLE
            table.gone = leaving.stop

    def leaving(self, seq: Sequence, group: int) -> range:
        """The entries of one windowed group's table that :meth:`give_back` would make holes."""
        gone = self.layout.groups[group].first_visible(seq.num_computed) // self.block_size
        if seq.num_published:
            gone = min(gone, seq.num_published - 1)
        done = seq.tables[group].gone
        return range(done, max(gone, done))

    def free(self, seq: Sequence) -> None:
        """Give back every block, tail first, so that the free list evicts tails before heads."""
        self.leaders.stop(seq)
        for i in range(len(seq.tables[0].blocks) - 1, -1, -1):
            for table in seq.tables:
                if i >= table.gone:
                    self.cache.release(table.blocks[i])
        for table in seq.tables:
            table.blocks.clear()
            table.sent = table.gone = 0
        seq.num_computed = seq.num_scheduled = seq.capacity = seq.num_published = 0
        seq.node = seq.request.namespace

    def swap_out(self, seq: Sequence, length: int) -> None:
        """Free what ``seq`` holds, keeping the KV of its first ``length`` tokens in host memory. Of blocks that others
        hold and the prefix tree knows, none is moved: their content stays where it is, at least while they run.

        Raises:
            OutOfBlocksError: too few host blocks are free; nothing was changed.
        """
        self.swapper.put_away(seq, length)
        self.free(seq)

    def swap_in(self, seq: Sequence) -> None:
        """Bring back what ``seq`` has in host memory; its cursor stands where it stood. It must hold, as cached prefix,
        every block before those; beyond them too, what the prefix tree has is shared rather than moved.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
        """
        self.swapper.bring_back(seq)
        self.publish(seq)

    def promote(self, seq: Sequence) -> None:
        """Bring those blocks of the prefix that ``seq`` could share back to the device which are in host memory. They
        are cached there like any other block that nobody holds, and as many are free as were before."""
        if self.host_cache is not None and self.host_cache.nodes:
            self.cache.promote(self.host_cache, seq, self.matcher.filed(seq))

    def reset_prefix_cache(self) -> int:
        """Forget every cached block that nobody holds; returns how many."""
        return self.cache.reset()

    # -- audits and pictures -----------------------------------------------------------------------------------

    def audit(self, sequences: Iterable[Sequence]) -> None:
        """Check that free + cached + used is everything, and that reference counts equal the tables' entries.

        Raises:
            RuntimeError: they do not; the message says where.
        """
        MemoryAudit(self.layout, self.cache).run(sequences)

    def snapshot(self, sequences: Iterable[Sequence]) -> MemorySnapshot:
        """The whole pool, and which of ``sequences`` holds what. O(blocks)."""
        return MemorySnapshot.of(self.pool, self.block_size, sequences)
