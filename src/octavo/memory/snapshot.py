"""What the memory looks like at one moment: for pictures, reports and people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.memory.pool import BlockPool
from octavo.request import Sequence


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Every block of the pool, and whose it is."""

    block_size: int
    owner: list[tuple[int, ...]]  #: for each block the ids of the sequences that hold it; () where it is free
    cached: frozenset[int]  #: free blocks whose content a later prompt could use
    num_used: int  #: blocks held by at least one sequence
    num_shared: int  #: blocks held by more than one
    num_cached: int
    num_free: int  #: free blocks without content worth keeping
    filled_slots: int  #: token slots of held blocks that hold a computed token

    @classmethod
    def of(cls, pool: BlockPool, block_size: int, sequences: Iterable[Sequence]) -> MemorySnapshot:
        """The whole pool, and which of ``sequences`` holds what. O(blocks)."""
        owners: list[tuple[int, ...]] = [()] * pool.num_blocks
        filled = [0] * pool.num_blocks
        for seq in sequences:
            for table in seq.tables:
                for i, block in enumerate(table.blocks[table.gone :], table.gone):
                    owners[block] = (*owners[block], seq.id)
                    filled[block] = max(filled[block], min(block_size, seq.num_computed - i * block_size))
        cached = frozenset(block for block in pool.free_blocks() if pool.node[block])
        used = pool.num_blocks - pool.num_free
        return cls(
            block_size=block_size,
            owner=owners,
            cached=cached,
            num_used=used,
            num_shared=sum(len(owner) > 1 for owner in owners),
            num_cached=len(cached),
            num_free=pool.num_free - len(cached),
            filled_slots=sum(max(0, count) for count in filled),
        )

    @property
    def utilisation(self) -> float:
        """Computed tokens over the token slots of held blocks; 1.0 when nothing is held."""
        held = self.num_used * self.block_size
        return self.filled_slots / held if held else 1.0
