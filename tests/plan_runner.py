"""Plans made by hand for an executor: sequences in shuffled blocks, any mixture of chunks, forks and preemptions.

Each layer group has a table; a windowed group gives back the blocks that have left its window, and what lies in them
may be spoiled, so that an executor which still reads it cannot go unnoticed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from octavo.plan import HOLE, PENDING, BlockCopy, Chunk, ChunkResult, Executor, SamplingSpec, SlotInit, StepPlan, Want

GREEDY = SamplingSpec(temperature=0.0)


@dataclass
class Line:
    """A sequence as the planner knows it."""

    seq_id: int
    tokens: list[int]
    num_prompt: int
    spec: SamplingSpec
    seed: int
    index: int
    slot: int = -1  # -1: not resident
    computed: int = 0
    tables: tuple[list[int], ...] = ([],)
    sent: list[int] = field(default_factory=list)  # leading entries of each table that the executor knows
    results: list[ChunkResult] = field(default_factory=list)

    @property
    def blocks(self) -> list[int]:
        """The first layer group's table."""
        return self.tables[0]

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class PlanRunner:
    """Keeps what a scheduler would keep, in the plainest way."""

    def __init__(
        self,
        executor: Executor,
        block_size: int,
        num_slots: int,
        seed: int = 0,
        spoil: Callable[[int], object] | None = None,  # called with each block that nobody holds any more
    ) -> None:
        self.spoil = spoil
        self.executor = executor
        self.block_size = block_size
        self.groups = executor.facts.groups
        self.random = random.Random(seed)
        self.free = list(range(executor.facts.num_blocks))
        self.random.shuffle(self.free)
        self.shares: dict[int, int] = {}  # block -> tables that hold it
        self.slots = list(range(num_slots))
        self.random.shuffle(self.slots)
        self.lines: dict[object, Line] = {}
        self.released: list[int] = []
        self.steps = 0
        self.made = 0

    def add(self, name: object, prompt: list[int], spec: SamplingSpec = GREEDY, seed: int = 0, index: int = 0) -> Line:
        self.made += 1
        line = self.lines[name] = Line(self.made, list(prompt), len(prompt), spec, seed, index)
        line.tables = tuple([] for _ in self.groups)
        return line

    def fork(self, parent: object, name: object, index: int, tokens: list[int]) -> Line:
        """A child that shares the parent's blocks; ``tokens`` are all of the child's."""
        old = self.lines[parent]
        self.made += 1
        line = Line(self.made, list(tokens), old.num_prompt, old.spec, old.seed, index)
        line.computed, line.tables = old.computed, tuple(list(table) for table in old.tables)
        for table in line.tables:
            for block in table:
                if block != HOLE:
                    self.shares[block] += 1
        self.lines[name] = line
        return line

    def preempt(self, name: object) -> None:
        """Take the slot and the blocks away; the sequence starts again at its next chunk."""
        line = self.lines[name]
        if line.slot >= 0:
            self.released.append(line.slot)
            self.slots.insert(self.random.randint(0, len(self.slots)), line.slot)
        for table in line.tables:
            for block in reversed(table):
                if block != HOLE:
                    self._unshare(block)
        line.slot, line.computed, line.tables = -1, 0, tuple([] for _ in self.groups)

    def finish(self, name: object) -> Line:
        self.preempt(name)
        return self.lines.pop(name)

    def step(
        self,
        counts: Mapping[object, int],
        draws: Mapping[object, tuple[int, ...]] | None = None,
        wants: Mapping[object, Want] | None = None,
        outputs_from: Mapping[object, int] | None = None,
    ) -> dict[object, ChunkResult]:
        """Compute so many tokens of each; who reaches its end draws, and its own token is appended."""
        init: list[SlotInit] = []
        copies: list[BlockCopy] = []
        chunks = []
        for name, count in counts.items():
            line = self.lines[name]
            if line.slot < 0:
                line.slot, line.sent = self.slots.pop(), [0] * len(self.groups)
                init.append(
                    SlotInit(
                        line.slot,
                        line.seq_id,
                        str(name),
                        line.index,
                        line.seed,
                        line.num_prompt,
                        tuple(line.tokens),
                        line.spec,
                    )
                )
            chunks.append(self._chunk(name, line, count, copies, draws or {}, wants or {}, outputs_from or {}))
        plan = StepPlan(
            self.steps, tuple(chunks), init=tuple(init), copies=tuple(copies), released=tuple(self.released)
        )
        self.released = []
        self.steps += 1
        result = self.executor.collect(self.executor.submit(plan))
        assert result.step == plan.step
        assert len(result.results) == len(chunks)
        found = dict(zip(counts, result.results, strict=True))
        for name, outcome in found.items():
            line = self.lines[name]
            line.computed += counts[name]
            line.results.append(outcome)
            self._give_back(line)
            if outcome.samples:
                line.tokens.append(outcome.samples[0].token)
        return found

    def _chunk(self, name, line, count, copies, draws, wants, outputs_from) -> Chunk:
        start, end = line.computed, line.computed + count
        assert 0 < end <= len(line.tokens)
        keep, added = list(line.sent), []
        for group, table in enumerate(line.tables):
            first = start // self.block_size
            if first < len(table) and self.shares[table[first]] > 1:  # about to write into a shared block
                new = self._take()
                copies.append(BlockCopy(group, table[first], new))
                self._unshare(table[first])
                table[first] = new
                keep[group] = min(keep[group], first)
            while len(table) * self.block_size < end:
                table.append(self._take())
            added.append(tuple(table[keep[group] :]))
            line.sent[group] = len(table)
        want = wants.get(name, Want.SAMPLE if end == len(line.tokens) else Want.NONE)
        return Chunk(
            line.slot,
            line.seq_id,
            start,
            count,
            tuple(line.tokens[start:end]),
            tuple(keep),
            tuple(added),
            outputs_from.get(name, end if want == Want.NONE else end - 1),
            want,
            draws.get(name, (line.index,)) if want == Want.SAMPLE else (),
        )

    def _give_back(self, line: Line) -> None:
        for group, table in zip(self.groups, line.tables, strict=True):
            if group.window is not None:
                gone = max(0, line.computed - group.window + 1) // self.block_size  # whole blocks nobody sees any more
                for place in range(gone):
                    if table[place] != HOLE:
                        self._unshare(table[place])
                        table[place] = HOLE

    def _take(self) -> int:
        block = self.free.pop()
        self.shares[block] = 1
        return block

    def _unshare(self, block: int) -> None:
        self.shares[block] -= 1
        if not self.shares[block]:
            if self.spoil is not None:
                self.spoil(block)
            self.free.insert(self.random.randint(0, len(self.free)), block)


def pending(chunk: Chunk) -> Chunk:
    """The same decode chunk as a planner would send it while the sample is still in flight."""
    return chunk._replace(tokens=(PENDING,))
