"""What the memory looks like at one moment: for pictures, reports and people."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def utilisation(self) -> float:
        """Computed tokens over the token slots of held blocks; 1.0 when nothing is held."""
        held = self.num_used * self.block_size
        return self.filled_slots / held if held else 1.0
