"""Who holds which blocks: sharing, growth, copy-on-write, publication, release."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Set
from collections.abc import Sequence as Numbers
from itertools import islice, takewhile
from typing import cast

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory.departure import Departure
from octavo.memory.evicting_pool import EvictingPool
from octavo.memory.eviction import EVICTIONS
from octavo.memory.host_cache import HostCache
from octavo.memory.pool import BlockPool
from octavo.memory.prefix_tree import PrefixTree, block_key, block_keys
from octavo.memory.snapshot import MemorySnapshot
from octavo.memory.swap_table import SwapTable
from octavo.plan import HOLE, BlockCopy, LayerGroup
from octavo.request import BlockTable, PrefixNode, Request, Sequence, SequenceState


class MemoryManager:
    """The block tables of all sequences, over one pool shared by all layer groups.

    Every change is all or nothing: a call that raises OutOfBlocksError has changed nothing. Copies and evictions
    that a step brings about are collected in ``copies`` and ``evicted`` until the scheduler puts them into its plan.

    A layer group with a window gives back the blocks that no token still to be computed can see (:meth:`give_back`).
    What they hold stays cached like anything else that nobody holds, but may be evicted by itself: "leaf before parent"
    binds full groups only. A node of the tree goes with the block of a full group; where all groups have windows, when
    it has neither blocks nor children. A prefix can be shared if every full group has all its blocks, and every
    windowed group those that the next token looks back on, the last one in any case: the place of a sequence in the
    tree must not be pruned under it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.block_size = config.block_size
        self.groups = config.groups
        self.num_groups = len(config.groups)
        self.windowed = [g for g, group in enumerate(config.groups) if group.window is not None]
        self._stride = config.max_num_batched_tokens * (config.depth + 1)
        self.caching = config.prefix_caching
        self.tree = PrefixTree()
        # Under "lru" the pool's free list is the policy.
        self.evicting: EvictingPool | None = None
        if config.eviction != "lru" and config.prefix_caching:
            policy = EVICTIONS[config.eviction](config.num_blocks)
            self.evicting = EvictingPool(config.num_blocks, policy, self._may_go)
        self.pool: BlockPool = self.evicting or BlockPool(config.num_blocks)
        self.copies: list[BlockCopy] = []
        self.evicted: list[int] = []
        self.swaps = SwapTable(config.num_host_blocks)
        self.host_cache: HostCache | None = None
        if config.host_cache and config.prefix_caching and config.num_host_blocks and not self.windowed:
            self.host_cache = HostCache(self.tree, self.swaps)
        # (node, next block's tokens) -> the sequence that is computing that block just now
        self._leaders: dict[tuple[PrefixNode, bytes], Sequence] = {}
        self._led: dict[int, tuple[PrefixNode, bytes]] = {}

    # -- questions ---------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Blocks that can be had, cached ones included."""
        return self.pool.num_free

    @property
    def num_host_free(self) -> int:
        """Host pages that a sequence can have, those of demoted prefixes included."""
        return self.swaps.host.num_free + (self.host_cache.num_reclaimable if self.host_cache is not None else 0)

    def blocks_for(self, num_tokens: int) -> int:
        """The most blocks that a sequence of so many tokens holds at once, over all layer groups."""
        if not self.windowed:
            return -(-num_tokens // self.block_size) * self.num_groups
        return sum(group.blocks_for(num_tokens, self.block_size, self._stride) for group in self.groups)

    def blocks_beside(self, num_tokens: int, num_prompt: int) -> int:
        """The most blocks that a sequence of so many tokens holds beside those it shares with its siblings: the full
        ones of their prompt. What leaves a window is shared only while it lasts, so there nothing is counted on."""
        whole, shared = -(-num_tokens // self.block_size), num_prompt // self.block_size
        return sum(
            group.blocks_for(num_tokens, self.block_size, self._stride)
            if group.window is not None and num_tokens > group.window
            else whole - shared
            for group in self.groups
        )

    def most_blocks(self, request: Request) -> int:
        """The most blocks the request can ever hold at once: its sequences share the prompt's full blocks only."""
        prompt, count = len(request.prompt_token_ids), request.params.num_sequences
        total = prompt + request.max_new_tokens
        most = self.blocks_for(total) + (count - 1) * self.blocks_beside(total, prompt)
        if count > 1 and any(total > (group.window or total) for group in self.groups):
            # A sibling that cannot begin where the others are, for want of a windowed block, computes blocks of the
            # full groups anew, until it is seen that they are filed already.
            step = min(prompt, self._stride) // self.block_size + 1
            most += step * (self.num_groups - len(self.windowed))
        return most

    def match(self, seq: Sequence) -> list[int]:
        """The nodes of the longest cached prefix that ``seq`` can go on from, leaving at least its last token to
        compute."""
        nodes = self._walk(seq, array("i", seq.tokens))
        if self.host_cache is not None:
            while nodes and nodes[-1] in self.host_cache.nodes:
                nodes.pop()
        if self.windowed:
            del nodes[self._covered(nodes) :]
        return nodes

    def _covered(self, nodes: list[int]) -> int:
        """How many of ``nodes`` a sequence can begin with: the most such that no windowed group has a hole in what is
        seen from there."""
        blocks, length, tried = self.tree.blocks, len(nodes), 0
        while tried < len(self.windowed):
            group = self.windowed[tried]
            first = self._gone(group, length)
            hole = next((i for i in range(length - 1, first - 1, -1) if blocks[nodes[i]][group] == HOLE), None)
            if hole is None:
                tried += 1
            else:  # whoever begins between the hole and here sees it, too
                length, tried = hole, 0
        return length

    def _gone(self, group: int, num_published: int) -> int:
        """How many leading blocks a sequence does not need that begins after so many cached ones."""
        position = self.groups[group].first_visible(num_published * self.block_size)
        return max(0, min(position // self.block_size, num_published - 1))

    def _walk(self, seq: Sequence, tokens: array[int]) -> list[int]:
        size, nodes, node = self.block_size, [], seq.request.namespace
        find, content, width = self.tree.find, tokens.tobytes(), tokens.itemsize * self.block_size
        parent: PrefixNode = node
        for i in range((len(tokens) - 1) // size):
            child = find(parent, content[i * width : (i + 1) * width])
            if not child:
                break
            nodes.append(child)
            parent = child
        return nodes

    def leader(self, seq: Sequence, nodes: list[int]) -> Sequence | None:
        """The sequence, if any, that is just now computing the block which follows the match ``nodes``, and for which
        ``seq`` could wait instead of computing it too."""
        start = len(nodes) * self.block_size
        if not self._leaders or start + self.block_size > len(seq.tokens) - 1:
            return None
        parent = nodes[-1] if nodes else seq.request.namespace
        return self._leaders.get((parent, block_key(seq.tokens, start, start + self.block_size)))

    def need(self, seq: Sequence, upto: int, nodes: list[int] | None = None) -> int:
        """Free blocks it takes so that ``seq`` can write every position from ``num_scheduled`` to ``upto``. With
        ``nodes`` it holds nothing yet, the cached prefix is shared first (its idle blocks leave the free list, too),
        and what leaves a window on the way is taken again."""
        wanted = -(-upto // self.block_size)
        if nodes is not None:
            refs, blocks, need = self.pool.refs, self.tree.blocks, 0
            for g, group in enumerate(self.groups):
                idle = sum(refs[blocks[node][g]] == 0 for node in nodes[self._gone(g, len(nodes)) :])
                most = group.blocks_for(upto, self.block_size, self._stride)
                need += min(wanted - len(nodes) + idle, most)
            return need
        need = sum(max(0, wanted - len(table.blocks)) for table in seq.tables)
        if self.windowed and seq.swapped is not None:
            rows = seq.swapped.pages[len(seq.tables[0].blocks) - seq.swapped.first :]
            need -= sum(page == HOLE for row in rows for page in row)
        return need + len(self._shared_tail(seq))

    def fork_point(self, seq: Sequence, source: Sequence | None) -> int:
        """How many tokens of its prompt ``seq``, which holds nothing, could share with ``source``, whose tokens begin
        with that prompt, at this moment by :meth:`fork`; at least its last token is left to compute."""
        if source is None or source.state is not SequenceState.RUNNING:
            return 0
        point = min(len(seq.tokens) - 1, seq.num_prompt, source.num_computed)
        i, offset = divmod(point, self.block_size)
        tails = {table.blocks[i] for table in source.tables} if offset else set()
        if not tails.isdisjoint(self.swaps.moves_in) or any(copy.target in tails for copy in self.copies):
            point -= offset  # what is only now moved or copied there cannot be copied on in the same step
        # As in give_back: what the next token sees is there, and the block that the sequence's node hangs on.
        last = max(0, point // self.block_size - 1)
        for group, table in zip(self.groups, source.tables, strict=True):
            if table.gone > min(last, group.first_visible(point) // self.block_size):
                return 0
        return point

    def need_forked(self, upto: int, point: int) -> int:
        """:meth:`need` for a fork made at ``point``: what it adds to the blocks that it shares, and the copy of the
        partly filled one."""
        more = -(-upto // self.block_size) - point // self.block_size
        return sum(min(more, group.blocks_for(upto, self.block_size, self._stride)) for group in self.groups)

    def shared_for_good(self, nodes: Numbers[int]) -> set[int]:
        """The blocks that sharing the cached prefix ``nodes`` would hold for as long as the sequence lives: those of
        groups that see the whole past. (A window's leave it, and :meth:`need` counts them by its bound.)"""
        full = [g for g, group in enumerate(self.groups) if group.window is None]
        return {self.tree.blocks[node][g] for node in nodes for g in full}

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

    def departure(self, request: Request) -> Departure | None:
        """What moving the request's memory to the host would take; None if it cannot be moved in this step, because
        something is about to be copied or moved into it."""
        counts: dict[int, int] = {}
        for seq in request.live:
            for table in seq.tables:
                for block in table.blocks:
                    counts[block] = counts.get(block, 0) + 1
        if any(copy.target in counts for copy in self.copies) or not counts.keys().isdisjoint(self.swaps.moves_in):
            return None
        pages, spans, taken = 0, [], set[int]()
        for seq in request.live:
            if seq.swapped is None:
                first, rows = self._movable(seq, seq.num_resumable, counts, taken)
                pages += sum(block != HOLE for row in rows for block in row)
                spans.append((first * self.block_size, seq.num_resumable))
                taken.update(block for table in seq.tables for block in table.blocks)
        return Departure(pages, tuple(spans))

    def _movable(
        self, seq: Sequence, length: int, counts: dict[int, int], taken: set[int]
    ) -> tuple[int, list[tuple[int, ...]]]:
        """The blocks that have to move so that the first ``length`` tokens of ``seq`` can come back: the number of the
        first one, and the rest of the table from there on. Before it lies what others hold too, beside the ``counts``
        references of the request itself, or its siblings have ``taken``, and is found in the prefix tree: that stays
        with them. Where blocks have left a window all of the rest moves: on coming back there might be no prefix that
        reaches so far."""
        refs, node = self.pool.refs, self.pool.node
        rows = list(zip(*(table.blocks[: -(-length // self.block_size)] for table in seq.tables), strict=True))
        first = 0
        for row in rows:
            if HOLE in row:
                break
            if not all(node[block] and (refs[block] > counts[block] or block in taken) for block in row):
                break
            first += 1
        return first, rows[first:]

    # -- changes -----------------------------------------------------------------------------------------------

    def share(self, seq: Sequence, nodes: list[int]) -> None:
        """Let ``seq``, which holds nothing, begin with the cached prefix ``nodes``: those tokens count as computed."""
        blocks = self.tree.blocks
        for g, table in enumerate(seq.tables):
            table.gone = self._gone(g, len(nodes))
            table.blocks.extend([HOLE] * table.gone)
            for node in nodes[table.gone :]:
                block = blocks[node][g]
                self.pool.share(block)
                table.blocks.append(block)
        if self.evicting is not None:
            for i in range(len(nodes) - 1, -1, -1):
                for table in seq.tables:
                    if i >= table.gone:
                        self.evicting.eviction.touch(table.blocks[i])
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
        for group in self._shared_tail(seq):
            self._copy_tail(seq, group)
        wanted = -(-upto // self.block_size)
        for table in seq.tables:
            while len(table.blocks) < wanted:
                table.blocks.append(self._allocate())
        seq.capacity = len(seq.tables[0].blocks) * self.block_size

    def fork(self, parent: Sequence, child: Sequence, upto: int | None = None) -> None:
        """``child`` shares every block that holds one of the first ``upto`` computed tokens of ``parent`` [all], the
        partial last one too. Neither may write to that one before it has asked again."""
        if upto is None:
            upto = parent.num_computed
        count = -(-upto // self.block_size)
        for source, target in zip(parent.tables, child.tables, strict=True):
            target.gone = source.gone
            target.blocks.extend(source.blocks[:count])
            for block in target.blocks[target.gone :]:
                self.pool.share(block)
            child.request.num_shared += count - target.gone
        child.num_computed = child.num_scheduled = child.capacity = upto
        parent.capacity = parent.num_scheduled
        child.node, child.num_published = parent.node, min(parent.num_published, upto // self.block_size)
        for _ in range(parent.num_published - child.num_published):
            child.node = self.tree.parent(cast(int, child.node))

    def publish(self, seq: Sequence) -> None:
        """File every full block of ``seq`` that has been computed since the last call, so that others can share it.
        Where the same tokens are filed already, ``seq`` changes over to that block and gives its own back."""
        request = seq.request
        if not self.caching and request.params.num_sequences == 1 and not seq.num_published:
            return  # nobody could share it; a fork's, that hangs in its family's tree, goes on there
        size, tree, pool = self.block_size, self.tree, self.pool
        self._stop_leading(seq)
        first, last = seq.num_published, seq.num_computed // size
        keys = block_keys(seq.tokens, first * size, last * size, size)
        if first >= last:
            return
        tables, parent = seq.tables, seq.node
        for i, key in enumerate(keys, first):
            node = tree.find(parent, key)
            if not node:
                blocks = tuple([table.blocks[i] for table in tables])
                node = tree.insert(parent, key, blocks)
                held = tuple([block for block in blocks if block != HOLE]) if self.windowed else blocks
                self._file(node, held, parent, key, i)
            else:
                if self.host_cache is not None and node in self.host_cache.nodes:  # computed again since it was demoted
                    self.host_cache.take(node)
                for g, (table, block) in enumerate(zip(tables, tree.blocks[node], strict=True)):
                    own = table.blocks[i]
                    if own in (block, HOLE):
                        continue
                    if block == HOLE:  # evicted since, and computed anew
                        tree.put(node, g, own)
                        self._file(node, (own,), parent, key, i)
                    else:
                        pool.share(block)
                        request.num_shared += 1
                        table.blocks[i] = block
                        table.sent = min(table.sent, i)
                        self._release(own)
            parent = node
        seq.node, seq.num_published = parent, last

    def lead(self, seq: Sequence) -> None:
        """Announce that ``seq`` computes the block after its last published one, for :meth:`leader` to find."""
        start = seq.num_published * self.block_size
        if start + self.block_size > len(seq.tokens) or seq.id in self._led:
            return
        if not self.caching and seq.request.params.num_sequences == 1 and not seq.num_published:
            return
        key = (seq.node, block_key(seq.tokens, start, start + self.block_size))
        if key not in self._leaders:
            self._leaders[key] = seq
            self._led[seq.id] = key

    def give_back(self, seq: Sequence) -> None:
        """Release the blocks of windowed groups that no token of ``seq`` from ``num_computed`` on can see: only what
        is committed counts, so plans in flight still find theirs. The last published block is kept, for the next one
        hangs on its node."""
        for group in self.windowed:
            table = seq.tables[group]
            leaving = self.leaving(seq, group)
            for i in reversed(leaving):
                self._release(table.blocks[i])
                table.blocks[i] = HOLE
            table.gone = leaving.stop

    def leaving(self, seq: Sequence, group: int) -> range:
        """The entries of one windowed group's table that :meth:`give_back` would make holes."""
        gone = self.groups[group].first_visible(seq.num_computed) // self.block_size
        if seq.num_published:
            gone = min(gone, seq.num_published - 1)
        done = seq.tables[group].gone
        return range(done, max(gone, done))

    def free(self, seq: Sequence) -> None:
        """Give back every block, tail first, so that the free list evicts tails before heads."""
        self._stop_leading(seq)
        for i in range(len(seq.tables[0].blocks) - 1, -1, -1):
            for table in seq.tables:
                if i >= table.gone:
                    self._release(table.blocks[i])
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
        if seq.swapped is None:  # else it came back to compute what it had left behind, and got no further
            counts = {block: 1 for table in seq.tables for block in table.blocks}
            first, rows = self._movable(seq, length, counts, set())
            if rows:
                if self.host_cache is not None:
                    self.host_cache.make_room(sum(block != HOLE for row in rows for block in row))
                before = len(self.swaps.moves_out)
                self.swaps.put(seq, first, length, rows)
                seq.request.num_swapped_out += len(self.swaps.moves_out) - before
        self.free(seq)

    def swap_in(self, seq: Sequence) -> None:
        """Bring back what ``seq`` has in host memory; its cursor stands where it stood. It must hold, as cached prefix,
        every block before those; beyond them too, what the prefix tree has is shared rather than moved.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
        """
        swapped = seq.swapped
        if swapped is None:
            raise RuntimeError(f"{seq} is not swapped out")
        held = len(seq.tables[0].blocks)
        rows = swapped.pages[held - swapped.first :]
        cached = self._cached(seq, held, swapped.length // self.block_size, rows)
        hits = [block for row in cached for block in row if block != HOLE]
        moves = sum(page != HOLE for row in rows for page in row) - len(hits)
        need = moves + sum(self.pool.refs[block] == 0 for block in hits)
        if need > self.pool.num_free:
            raise OutOfBlocksError(f"sequence {seq.id} needs {need} blocks to come back; {self.pool.num_free} are free")
        for block in hits:  # before any block is taken from the free list, where they may stand
            self.pool.share(block)
        for row, blocks in zip(rows, cached, strict=True):
            for table, page, block in zip(seq.tables, row, blocks, strict=True):
                table.blocks.append(block if block != HOLE or page == HOLE else self._take_back(page))
        self._close_holes(seq)
        seq.request.num_swapped_in += moves
        self.swaps.discard(seq)
        seq.num_computed = seq.num_scheduled = max(swapped.length, held * self.block_size)
        seq.capacity = len(seq.tables[0].blocks) * self.block_size
        self.publish(seq)

    def _cached(self, seq: Sequence, start: int, full: int, rows: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """For each of the pages in ``rows``, of logical blocks from ``start`` on (``full`` and later ones are not
        full), the cached block that holds the same; HOLE where there is none."""
        size, found = self.block_size, []
        child: PrefixNode = seq.node
        for i, row in enumerate(rows, start):
            key = block_key(seq.tokens, i * size, (i + 1) * size)
            child = self.tree.find(child, key) if child and i < full else 0
            blocks = self.tree.blocks[child] if child else (HOLE,) * self.num_groups
            found.append(tuple(HOLE if page == HOLE else block for page, block in zip(row, blocks, strict=True)))
        return found

    def _close_holes(self, seq: Sequence) -> None:
        """Release what ``seq`` holds before a hole: it came back with the window of the prefix that it found, and with
        its own, which is a later one."""
        for group in self.windowed:
            table = seq.tables[group]
            while HOLE in table.blocks[table.gone :]:
                if table.blocks[table.gone] != HOLE:
                    self._release(table.blocks[table.gone])
                    table.blocks[table.gone] = HOLE
                table.gone += 1

    def _take_back(self, page: int) -> int:
        block = self._allocate()
        self.swaps.moves_in[block] = page
        return block

    def promote(self, seq: Sequence) -> None:
        """Bring those blocks of the prefix that ``seq`` could share back to the device which are in host memory. They
        are cached there like any other block that nobody holds, and as many are free as were before."""
        cache, pool = self.host_cache, self.pool
        if cache is None or not cache.nodes:
            return
        nodes = self._walk(seq, array("i", seq.tokens))
        first = next((i for i, node in enumerate(nodes) if node in cache.nodes), len(nodes))
        if first == len(nodes):
            return
        held = [block for node in nodes[:first] for block in self.tree.blocks[node]]
        for block in held:  # lest it be evicted for what follows it
            pool.share(block)
        readable = takewhile(lambda node: not cache.is_fresh(node), nodes[first:])
        coming = list(islice(readable, pool.num_free // self.num_groups))
        pages = [cache.take(node) for node in coming]  # all first, lest they make way for what they drive out
        cache.num_promoted += len(coming) * self.num_groups
        for i, (node, row) in enumerate(zip(coming, pages, strict=True), first):
            blocks = tuple([self._take_back(page) for page in row])
            parent: PrefixNode = nodes[i - 1] if i else seq.request.namespace
            self.tree.blocks[node] = blocks
            self._file(node, blocks, parent, block_key(seq.tokens, i * self.block_size, (i + 1) * self.block_size), i)
            held.extend(blocks)
        for block in reversed(held):
            pool.release(block)

    def reset_prefix_cache(self) -> int:
        """Forget every cached block that nobody holds; returns how many."""
        count = 0 if self.host_cache is None else self.host_cache.clear()
        for block in self.pool.free_blocks():
            if self.pool.node[block]:
                self._forget(block)
                count += 1
        return count

    # -- audits and pictures -----------------------------------------------------------------------------------

    def audit(self, sequences: Iterable[Sequence]) -> None:
        """Check that free + cached + used is everything, and that reference counts equal the tables' entries.

        Raises:
            RuntimeError: they do not; the message says where.
        """
        counts = [0] * self.pool.num_blocks
        for seq in sequences:
            lengths = {len(table.blocks) for table in seq.tables}
            if len(lengths) != 1 or min(lengths) * self.block_size < seq.num_scheduled:
                raise RuntimeError(f"{seq} holds too few blocks for what is scheduled")
            for group, table in zip(self.groups, seq.tables, strict=True):
                self._audit_holes(seq, group, table)
                for block in table.blocks[table.gone :]:
                    counts[block] += 1
        free = self.pool.free_blocks()
        for block, count in enumerate(counts):
            if count != self.pool.refs[block]:
                raise RuntimeError(f"block {block}: {self.pool.refs[block]} references, {count} in tables")
        if len(free) != self.pool.num_free or len(set(free)) != len(free) or any(counts[block] for block in free):
            raise RuntimeError("the free list disagrees with the reference counts")
        if len(free) + sum(count > 0 for count in counts) != self.pool.num_blocks:
            raise RuntimeError("blocks have leaked: free + cached + used is not the pool")
        self._audit_tree()
        self.swaps.audit(() if self.host_cache is None else self.host_cache.audit())

    def _audit_holes(self, seq: Sequence, group: LayerGroup, table: BlockTable) -> None:
        size, held = self.block_size, len(table.blocks) - table.gone
        if table.blocks.count(HOLE) != table.gone or any(block != HOLE for block in table.blocks[: table.gone]):
            raise RuntimeError(f"{seq}: the holes of a table are not its first {table.gone} entries")
        if table.gone * size > group.first_visible(seq.num_computed):
            raise RuntimeError(f"{seq} gave back a block that position {seq.num_computed} sees")
        if held > group.blocks_for(len(table.blocks) * size, size, self._stride):
            raise RuntimeError(f"{seq} holds {held} blocks for a window of {group.window}")

    def _audit_tree(self) -> None:
        pool, tree = self.pool, self.tree
        held = {block for block in range(pool.num_blocks) if pool.node[block]}
        filed: set[int] = set()
        demoted = () if self.host_cache is None else self.host_cache.nodes
        for node in tree.nodes():
            if node in demoted:
                if any(block != HOLE for block in tree.blocks[node]):
                    raise RuntimeError(f"prefix node {node} is demoted, and names a block")
                continue
            blocks = [block for block in tree.blocks[node] if block != HOLE]
            filed.update(blocks)
            parent = tree.parent(node)
            if any(pool.node[block] != node for block in blocks):
                raise RuntimeError(f"prefix node {node} names a block that holds something else")
            if not blocks and not tree.num_children(node):
                raise RuntimeError(f"prefix node {node} has neither blocks nor children")
            for group, own in zip(self.groups, tree.blocks[node], strict=True):
                if own == HOLE and group.window is None:
                    raise RuntimeError(f"prefix node {node} has a hole in a group that keeps everything")
            if isinstance(parent, int) and any(
                group.window is None and pool.refs[own] > 0 and pool.refs[above] == 0
                for group, own, above in zip(self.groups, tree.blocks[node], tree.blocks[parent], strict=True)
            ):
                raise RuntimeError(f"prefix node {node} is held, its parent {parent} is not")
        if held != filed:
            raise RuntimeError("the prefix tree and the pool disagree on what is cached")
        if self.evicting is not None:
            self.evicting.audit()

    def snapshot(self, sequences: Iterable[Sequence]) -> MemorySnapshot:
        """The whole pool, and which of ``sequences`` holds what. O(blocks)."""
        owners: list[tuple[int, ...]] = [()] * self.pool.num_blocks
        filled = [0] * self.pool.num_blocks
        for seq in sequences:
            for table in seq.tables:
                for i, block in enumerate(table.blocks[table.gone :], table.gone):
                    owners[block] = (*owners[block], seq.id)
                    filled[block] = max(filled[block], min(self.block_size, seq.num_computed - i * self.block_size))
        cached = frozenset(block for block in self.pool.free_blocks() if self.pool.node[block])
        used = self.pool.num_blocks - self.pool.num_free
        return MemorySnapshot(
            block_size=self.block_size,
            owner=owners,
            cached=cached,
            num_used=used,
            num_shared=sum(len(owner) > 1 for owner in owners),
            num_cached=len(cached),
            num_free=self.pool.num_free - len(cached),
            filled_slots=sum(max(0, count) for count in filled),
        )

    # -- inside ------------------------------------------------------------------------------------------------

    def _shared_tail(self, seq: Sequence) -> list[int]:
        """The groups in which the partial block that ``seq`` would write next is shared, or is filed in the prefix tree
        (a fork may begin in the middle of a full block)."""
        i, offset = divmod(seq.num_scheduled, self.block_size)
        if not offset:
            return []
        refs, node = self.pool.refs, self.pool.node
        return [g for g, table in enumerate(seq.tables) if refs[table.blocks[i]] > 1 or node[table.blocks[i]]]

    def _copy_tail(self, seq: Sequence, group: int) -> None:
        table, i = seq.tables[group], seq.num_scheduled // self.block_size
        source = table.blocks[i]
        target = self._allocate()
        self.copies.append(BlockCopy(group, source, target))
        seq.request.num_copies += 1
        table.blocks[i] = target
        table.sent = min(table.sent, i)
        self._release(source)

    def _allocate(self) -> int:
        block = self.pool.allocate()
        node = self.pool.node[block]
        if node:
            self.evicted.append(block)
            if self.host_cache is None or not self._demote(self.host_cache, node):
                self._forget(block)
        self.swaps.moves_in.pop(block, None)  # whoever it was for has lost it again
        return block

    def _file(self, node: int, blocks: tuple[int, ...], parent: PrefixNode, key: bytes, depth: int) -> None:
        """``blocks`` hold content of ``node`` now."""
        for block in blocks:
            self.pool.node[block] = node
        if self.evicting is not None:
            self.evicting.file(node, blocks, parent, key, depth)

    def _demote(self, cache: HostCache, node: int) -> bool:
        """Move a node that is to be evicted to host memory; False if it cannot be, because there is no page, or its
        content is only just on its way to the device."""
        blocks = self.tree.blocks[node]
        if any(block in self.swaps.moves_in for block in blocks) or not cache.demote(node, blocks):
            return False
        self.tree.blocks[node] = (HOLE,) * self.num_groups
        self._bare(blocks, self.tree.parent(node))
        return True

    def _forget(self, block: int) -> None:
        """What ``block`` holds is cached no longer: its node goes (a leaf, by the order of release) and whatever else
        that holds; or, where the block is a windowed group's, the block alone."""
        pool, tree = self.pool, self.tree
        node = pool.node[block]
        if self.windowed and (group := tree.blocks[node].index(block)) in self.windowed:
            tree.put(node, group, HOLE)
            tree.prune(node)
            pool.forget(block)
            return
        if self.host_cache is not None:
            self.host_cache.drop_below(node)
        parent = tree.parent(node)
        self._bare(tree.remove(node), parent)

    def _bare(self, blocks: tuple[int, ...], parent: PrefixNode) -> None:
        """``blocks`` hold nothing any more; if their node was the last one below ``parent``, that may go next."""
        for block in blocks:
            if block != HOLE:
                self.pool.forget(block)
        if self.evicting is not None and isinstance(parent, int) and not self._num_below(parent):
            for above, group in zip(self.tree.blocks[parent], self.groups, strict=True):
                if group.window is None:
                    self.evicting.settle(above)

    def _may_go(self, block: int) -> bool:
        """Whether the prefix tree could do without what ``block`` holds: leaves go before their parents, but for
        blocks of windowed groups."""
        node = self.pool.node[block]
        return not self._num_below(node) or self.tree.blocks[node].index(block) in self.windowed

    def _num_below(self, node: int) -> int:
        """The node's children on the device."""
        children = self.tree.num_children(node)
        return children - self.host_cache.num_below(node) if children and self.host_cache is not None else children

    def _release(self, block: int) -> None:
        pool = self.pool
        if not self.caching and pool.refs[block] == 1 and pool.node[block]:
            self._forget(block)
        pool.release(block)

    def _stop_leading(self, seq: Sequence) -> None:
        key = self._led.pop(seq.id, None)
        if key is not None:
            del self._leaders[key]
