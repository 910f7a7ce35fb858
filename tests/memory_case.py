"""A memory manager, and sequences that are computed by hand."""

from __future__ import annotations

import itertools

from octavo.config import SchedulerConfig
from octavo.memory import MemoryManager
from octavo.plan import LayerGroup
from octavo.request import Request, SamplingParams, Sequence


class Memory:
    """A manager, and sequences that are computed by hand."""

    def __init__(self, num_blocks: int = 12, block_size: int = 4, groups: int = 1, caching: bool = True) -> None:
        self.manager = MemoryManager(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=block_size,
                prefix_caching=caching,
                groups=(LayerGroup(1),) * groups,
            )
        )
        self.groups = groups
        self.ids = itertools.count()
        self.sequences: list[Sequence] = []

    def sequence(self, tokens: list[int], salt: str | None = None, n: int = 1) -> Sequence:
        name = str(next(self.ids))
        request = Request(name, tokens, SamplingParams(n=n), salt=salt, max_new_tokens=50)
        if not self.manager.caching:
            request.namespace = ("request", name)
        seq = Sequence(int(name), request, 0, list(tokens), self.groups)
        request.sequences, request.live = [seq], [seq]
        self.sequences.append(seq)
        return seq

    def compute(self, seq: Sequence, upto: int) -> None:
        """Reserve, compute and publish, as a step does."""
        self.manager.reserve(seq, upto)
        seq.num_scheduled = seq.num_computed = upto
        self.manager.publish(seq)
        self.audit()

    def fork(self, parent: Sequence) -> Sequence:
        child = Sequence(next(self.ids), parent.request, 1, list(parent.tokens), self.groups)
        self.manager.fork(parent, child)
        parent.request.live.append(child)
        self.sequences.append(child)
        self.audit()
        return child

    def free(self, seq: Sequence) -> None:
        self.manager.free(seq)
        self.sequences.remove(seq)
        self.audit()

    def audit(self) -> None:
        self.manager.audit(self.sequences)


def blocks_of(seq: Sequence, group: int = 0) -> list[int]:
    """Its table of one layer group."""
    return seq.tables[group].blocks
