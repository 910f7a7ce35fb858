"""What every slot of KV memory holds, whoever manages it; and whether those who read it read what they should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Work(NamedTuple):
    """Some consecutive tokens that one row computes in a step."""

    name: str
    digests: list[int]  #: of the row's every position
    start: int
    count: int
    table: list[int]  #: its blocks


class KvSlots:
    """Follows an engine's plans slot by slot: a slot holds the digest of the prefix it was computed for. Within a step
    all writes come before all reads, as in each layer of a model."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.blocks = [[0] * block_size for _ in range(num_blocks)]

    def copy(self, source: int, target: int) -> None:
        """A page is copied (copy-on-write)."""
        self.blocks[target] = list(self.blocks[source])

    def content(self, block: int) -> int:
        """What tells a full block's content: the digest in its last slot."""
        return self.blocks[block][-1]

    def compute(self, step: Iterable[Work]) -> list[str]:
        """Write what the step computes, then read all that it attends to.

        Returns:
            a sentence for each row that would have read something else than its own prefix.
        """
        size, step = self.block_size, list(step)
        for work in step:
            for position in range(work.start, work.start + work.count):
                self.blocks[work.table[position // size]][position % size] = work.digests[position]
        wrong = []
        for work in step:
            end = work.start + work.count
            for i in range(-(-end // size)):
                expected = work.digests[i * size : min(end, (i + 1) * size)]
                if self.blocks[work.table[i]][: len(expected)] != expected:
                    wrong.append(f"{work.name} reads positions {i * size} and on from a block that does not hold them")
                    break
        return wrong
