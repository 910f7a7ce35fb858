"""Moving a sequence's blocks to host memory and back: what moves, all or nothing, and no page lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory import HostPool, MemoryManager
from octavo.plan import LayerGroup
from octavo.request import Request, SamplingParams, Sequence


class Memory:
    """A manager with the content of every device and host block, moved as plans would move it."""

    def __init__(
        self, num_blocks: int = 12, host: int = 12, block_size: int = 4, groups: int = 1, caching: bool = True
    ) -> None:
        self.manager = MemoryManager(
            SchedulerConfig(
                num_blocks=num_blocks,
                num_host_blocks=host,
                block_size=block_size,
                prefix_caching=caching,
                groups=(LayerGroup(1),) * groups,
            )
        )
        self.groups = groups
        self.device: dict[int, list[tuple[int, ...]]] = {}  # block -> the prefix that each slot holds
        self.host: dict[int, list[tuple[int, ...]]] = {}
        self.sequences: list[Sequence] = []
        self.count = 0

    @property
    def host_free(self) -> int:
        return self.manager.swaps.host.num_free

    def sequence(self, tokens: list[int], request: Request | None = None) -> Sequence:
        self.count += 1
        if request is None:
            request = Request(str(self.count), tokens, SamplingParams(n=2), max_new_tokens=50)
            if not self.manager.caching:
                request.namespace = ("request", request.id)
        seq = Sequence(self.count, request, 0, list(tokens), self.groups)
        request.sequences.append(seq)
        request.live.append(seq)
        self.sequences.append(seq)
        return seq

    def compute(self, seq: Sequence, upto: int) -> None:
        start = seq.num_computed
        self.manager.reserve(seq, upto)
        self.run()
        for g, table in enumerate(seq.tables):
            for position in range(start, upto):
                block, offset = divmod(position, self.manager.block_size)
                slots = self.device.setdefault(table.blocks[block], [()] * self.manager.block_size)
                slots[offset] = (g, *seq.tokens[: position + 1])
        seq.num_scheduled = seq.num_computed = upto
        self.manager.publish(seq)
        self.check()

    def run(self) -> None:
        """Execute the step's moves in a plan's order."""
        manager = self.manager
        for block, page in manager.swaps.moves_out:
            self.host[page] = list(self.device[block])
        for copy in manager.copies:
            self.device[copy.target] = list(self.device[copy.source])
        for block, page in manager.swaps.moves_in.items():
            self.device[block] = list(self.host[page])
        manager.copies.clear()
        manager.evicted.clear()
        manager.swaps.end_step()

    def check(self) -> None:
        """Everybody's blocks hold exactly what they should."""
        self.manager.audit(self.sequences)
        size = self.manager.block_size
        for seq in self.sequences:
            for g, table in enumerate(seq.tables):
                for position in range(seq.num_computed):
                    held = self.device[table.blocks[position // size]][position % size]
                    assert held == (g, *seq.tokens[: position + 1])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_sequence_goes_out_and_comes_back(groups: int) -> None:
    memory = Memory(num_blocks=4 * groups, groups=groups)
    seq = memory.sequence([7] * 20)
    memory.compute(seq, 10)
    memory.manager.swap_out(seq, 10)
    assert memory.manager.num_free == 4 * groups
    assert memory.host_free == 12 - 3 * groups
    assert (seq.num_computed, seq.request.num_swapped_out) == (0, 3 * groups)
    memory.run()
    other = memory.sequence([8] * 20)
    memory.compute(other, 16)  # the whole pool
    with pytest.raises(OutOfBlocksError, match=f"needs {3 * groups} blocks to come back; 0 are free"):
        memory.manager.swap_in(seq)
    assert seq.swapped is not None
    memory.check()
    memory.manager.free(other)
    memory.manager.swap_in(seq)
    assert memory.host_free == 12 - 3 * groups  # until the plan is made, for it reads them
    memory.run()
    assert memory.host_free == 12
    assert (seq.num_computed, seq.num_scheduled, seq.capacity, seq.num_published) == (10, 10, 12, 2)
    assert seq.request.num_swapped_in == 3 * groups
    memory.compute(seq, 16)


def test_too_few_host_pages_change_nothing() -> None:
    memory = Memory(host=2)
    seq = memory.sequence([7] * 20)
    memory.compute(seq, 9)
    before = list(seq.tables[0].blocks)
    with pytest.raises(OutOfBlocksError, match="3 host blocks are needed, 2 of 2 are free"):
        memory.manager.swap_out(seq, 9)
    assert seq.tables[0].blocks == before
    assert seq.swapped is None
    assert memory.host_free == 2
    memory.check()


def test_a_departure_is_what_swapping_out_takes() -> None:
    memory = Memory(num_blocks=20)
    first = memory.sequence([7] * 20)
    memory.compute(first, 10)
    child = memory.sequence([7] * 20, first.request)
    memory.manager.fork(first, child)
    memory.compute(child, 15)  # copies the partial block, and takes one more
    stranger = memory.sequence([7] * 6 + [8] * 10)
    memory.manager.share(stranger, memory.manager.match(stranger))
    memory.compute(stranger, 9)
    request = first.request
    for seq in (first, child):
        seq.num_total = len(seq.tokens) + 1
    departure = memory.manager.swapper.departure(request)
    assert departure is not None
    # Block 0 stays with the stranger; 1 goes with the first; each has its own from there.
    assert departure == (2 + 2, ((4, 10), (8, 15)))
    for seq in (child, first):
        memory.manager.swap_out(seq, seq.num_resumable)
    memory.run()
    assert 12 - memory.host_free == departure.num_pages
    assert [seq.swapped.first for seq in (first, child) if seq.swapped] == [1, 2]
    again = memory.manager.swapper.departure(request)
    assert again == (0, ())  # they are there already
    memory.check()


def test_what_is_about_to_be_written_does_not_leave() -> None:
    memory = Memory()
    first = memory.sequence([7] * 20)
    memory.compute(first, 6)
    child = memory.sequence([7] * 20, first.request)
    memory.manager.fork(first, child)
    memory.manager.reserve(child, 7)  # a copy that has not been made yet
    assert memory.manager.swapper.departure(first.request) is None
    memory.run()
    assert memory.manager.swapper.departure(first.request) is not None
    for seq in (child, first):
        memory.manager.swap_out(seq, 6)
    memory.run()
    memory.manager.swap_in(first)
    assert memory.manager.swapper.departure(first.request) is None
    memory.run()
    assert memory.manager.swapper.departure(first.request) is not None


def test_a_block_taken_again_in_the_same_step_is_not_moved_into() -> None:
    memory = Memory(num_blocks=3, caching=False)
    seq = memory.sequence([7] * 20)
    memory.compute(seq, 9)
    memory.manager.swap_out(seq, 9)
    memory.run()
    memory.manager.swap_in(seq)
    assert len(memory.manager.swaps.moves_in) == 3
    memory.manager.free(seq)
    other = memory.sequence([8] * 20)
    memory.manager.reserve(other, 8)
    assert len(memory.manager.swaps.moves_in) == 1


def test_the_audit_finds_pages_held_twice_or_lost() -> None:
    for break_it in (
        lambda pool: pool._free.append(0),
        lambda pool: pool._free.pop(),
        lambda pool: pool._free.append(pool.num_blocks),
    ):
        memory = Memory()
        seq = memory.sequence([7] * 20)
        memory.compute(seq, 9)
        memory.manager.swap_out(seq, 9)
        memory.check()
        break_it(memory.manager.swaps.host)
        with pytest.raises(RuntimeError, match="host pages have leaked, or are held twice"):
            memory.check()


def test_the_host_pool_is_all_or_nothing() -> None:
    pool = HostPool(3)
    taken = pool.allocate(2)
    with pytest.raises(OutOfBlocksError, match="2 host blocks are needed, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.release(taken)
    assert sorted(pool.allocate(3)) == [0, 1, 2]
    assert HostPool(0).allocate(0) == []


ACTIONS = st.sampled_from(["new", "grow", "grow", "fork", "out", "out", "in", "free"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    block_size=st.integers(1, 5),
    groups=st.integers(1, 2),
    caching=st.booleans(),
    host=st.sampled_from([0, 4, 64]),
    actions=st.lists(st.tuples(ACTIONS, st.integers(0, 9)), max_size=60),
)
def test_any_history_keeps_everybodys_content(
    block_size: int, groups: int, caching: bool, host: int, actions: list[tuple[str, int]]
) -> None:
    memory = Memory(16, host, block_size, groups, caching)
    manager = memory.manager
    for action, number in actions:
        seq = memory.sequences[number % len(memory.sequences)] if memory.sequences else None
        try:
            if action == "new" or seq is None:
                seq = memory.sequence([number % 2] * 12 + [number] * 40)
                manager.share(seq, manager.match(seq))
            elif action == "in" and seq.swapped is not None:
                if not seq.num_computed and not seq.tables[0].blocks:
                    manager.share(seq, manager.match(seq))
                missing = seq.swapped.first * block_size
                if seq.num_computed < missing:
                    memory.compute(seq, missing)
                manager.swap_in(seq)
            elif action == "out":
                manager.swap_out(seq, seq.num_computed)
            elif seq.swapped is not None and action != "free":
                continue
            elif action == "grow":
                memory.compute(seq, min(seq.num_computed + 1 + number, len(seq.tokens) - 1))
            elif action == "fork":
                manager.fork(seq, memory.sequence(list(seq.tokens), seq.request))
            else:
                manager.swaps.discard(seq)
                manager.free(seq)
                memory.sequences.remove(seq)
                seq.request.live.remove(seq)
        except OutOfBlocksError:
            pass
        memory.run()
        memory.check()
    for seq in memory.sequences:
        manager.swaps.discard(seq)
        manager.free(seq)
    memory.run()
    assert (manager.num_free, memory.host_free) == (16, host)
