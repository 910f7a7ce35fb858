"""Moving a sequence's memory to the host and back."""

from __future__ import annotations

from octavo.errors import OutOfBlocksError
from octavo.memory.departure import Departure
from octavo.memory.forks import Forks
from octavo.memory.layout import BlockLayout
from octavo.memory.prefix_cache import PrefixCache
from octavo.memory.prefix_tree import block_key
from octavo.plan import HOLE
from octavo.request import PrefixNode, Request, Sequence


class Swapper:
    """What has to move when a sequence leaves the device, and when it comes back.

    What others hold too, and the prefix tree knows, is not moved: on coming back it is found there.
    """

    __slots__ = ("_cache", "_forks", "_layout", "_swaps")

    def __init__(self, layout: BlockLayout, cache: PrefixCache, forks: Forks) -> None:
        self._layout = layout
        self._cache = cache
        self._forks = forks
        self._swaps = cache.swaps

    def departure(self, request: Request) -> Departure | None:
        """What moving the request's memory to the host would take; None if it cannot be moved in this step, because
        something is about to be copied or moved into it."""
        counts: dict[int, int] = {}
        for seq in request.live:
            for table in seq.tables:
                for block in table.blocks:
                    counts[block] = counts.get(block, 0) + 1
        arriving = {copy.target for copy in self._forks.copies} | self._swaps.moves_in.keys()
        if not arriving.isdisjoint(counts):
            return None
        pages, spans, taken = 0, [], set[int]()
        for seq in request.live:
            if seq.swapped is None:
                first, rows = self._movable(seq, seq.num_resumable, counts, taken)
                pages += sum(block != HOLE for row in rows for block in row)
                spans.append((first * self._layout.block_size, seq.num_resumable))
                taken.update(block for table in seq.tables for block in table.blocks)
        return Departure(pages, tuple(spans))

    def put_away(self, seq: Sequence, length: int) -> None:
        """Keep the KV of the first ``length`` tokens of ``seq``, which is about to be freed, in host memory: all but
        blocks that others hold and the prefix tree knows. Their content stays where it is, at least while they run.

        Raises:
            OutOfBlocksError: too few host blocks are free; nothing was changed.
        """
        if seq.swapped is None:  # else it came back to compute what it had left behind, and got no further
            counts = {block: 1 for table in seq.tables for block in table.blocks}
            first, rows = self._movable(seq, length, counts, set())
            if rows:
                if self._cache.host_cache is not None:
                    self._cache.host_cache.make_room(sum(block != HOLE for row in rows for block in row))
                before = len(self._swaps.moves_out)
                self._swaps.put(seq, first, length, rows)
                seq.request.num_swapped_out += len(self._swaps.moves_out) - before

    def bring_back(self, seq: Sequence) -> None:
        """Bring back what ``seq`` has in host memory; its cursor stands where it stood. It must hold, as cached prefix,
        every block before those; beyond them too, what the prefix tree has is shared rather than moved.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
        """
        pool, swapped = self._cache.pool, seq.swapped
        if swapped is None:
            raise RuntimeError(f"{seq} is not swapped out")
        held = len(seq.tables[0].blocks)
        rows = swapped.pages[held - swapped.first :]
        cached = self._cached(seq, held, swapped.length // self._layout.block_size, rows)
        hits = [block for row in cached for block in row if block != HOLE]
        moves = sum(page != HOLE for row in rows for page in row) - len(hits)
        need = moves + sum(pool.refs[block] == 0 for block in hits)
        if need > pool.num_free:
            raise OutOfBlocksError(f"sequence {seq.id} needs {need} blocks to come back; {pool.num_free} are free")
        for block in hits:  # before any block is taken from the free list, where they may stand
            pool.share(block)
        for row, blocks in zip(rows, cached, strict=True):
            for table, page, block in zip(seq.tables, row, blocks, strict=True):
                table.blocks.append(block if block != HOLE or page == HOLE else self._cache.fetch(page))
        self._close_holes(seq)
        seq.request.num_swapped_in += moves
        self._swaps.discard(seq)
        seq.num_computed = seq.num_scheduled = max(swapped.length, held * self._layout.block_size)
        seq.capacity = len(seq.tables[0].blocks) * self._layout.block_size

    def _movable(
        self, seq: Sequence, length: int, counts: dict[int, int], taken: set[int]
    ) -> tuple[int, list[tuple[int, ...]]]:
        """The blocks that have to move so that the first ``length`` tokens of ``seq`` can come back: the number of the
        first one, and the rest of the table from there on. Before it lies what others hold too, beside the ``counts``
        references of the request itself, or its siblings have ``taken``, and is found in the prefix tree: that stays
        with them. Where blocks have left a window all of the rest moves: on coming back there might be no prefix that
        reaches so far."""
        refs, node = self._cache.pool.refs, self._cache.pool.node
        rows = list(zip(*(table.blocks[: self._layout.num_blocks(length)] for table in seq.tables), strict=True))
        first = 0
        for row in rows:
            if HOLE in row:
                break
            if not all(node[block] and (refs[block] > counts[block] or block in taken) for block in row):
                break
            first += 1
        return first, rows[first:]

    def _cached(self, seq: Sequence, start: int, full: int, rows: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """For each of the pages in ``rows``, of logical blocks from ``start`` on (``full`` and later ones are not
        full), the cached block that holds the same; HOLE where there is none."""
        size, tree, found = self._layout.block_size, self._cache.tree, []
        child: PrefixNode = seq.node
        for i, row in enumerate(rows, start):
            key = block_key(seq.tokens, i * size, (i + 1) * size)
            child = tree.find(child, key) if child and i < full else 0
            blocks = tree.blocks[child] if child else (HOLE,) * self._layout.num_groups
            found.append(tuple(HOLE if page == HOLE else block for page, block in zip(row, blocks, strict=True)))
        return found

    def _close_holes(self, seq: Sequence) -> None:
        """Release what ``seq`` holds before a hole: it came back with the window of the prefix that it found, and with
        its own, which is a later one."""
        for group in self._layout.windowed:
            table = seq.tables[group]
            while HOLE in table.blocks[table.gone :]:
                if table.blocks[table.gone] != HOLE:
                    self._cache.release(table.blocks[table.gone])
                    table.blocks[table.gone] = HOLE
                table.gone += 1
