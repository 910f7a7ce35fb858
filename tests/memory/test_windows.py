"""Layer groups with a window: what leaves it is given back, what is cached of it can be shared, and nothing more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory import MemoryManager
from octavo.plan import HOLE, LayerGroup
from octavo.request import Request, SamplingParams, Sequence

SIZE = 4


class Memory:
    """A manager with layer groups of these windows, and sequences computed by hand, one step at a time."""

    def __init__(self, *windows: int | None, num_blocks: int = 40, eviction: str = "lru", budget: int = 8) -> None:
        self.groups = tuple(LayerGroup(1, window) for window in windows)
        self.manager = MemoryManager(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=SIZE,
                groups=self.groups,
                eviction=eviction,
                max_num_batched_tokens=budget,
            )
        )
        self.budget = budget
        self.sequences: list[Sequence] = []
        self.count = 0

    def sequence(self, tokens: list[int]) -> Sequence:
        self.count += 1
        request = Request(str(self.count), tokens, SamplingParams(), max_new_tokens=50)
        seq = Sequence(self.count, request, 0, list(tokens), len(self.groups))
        request.sequences, request.live = [seq], [seq]
        self.sequences.append(seq)
        return seq

    def compute(self, seq: Sequence, upto: int) -> None:
        """Step by step, as the scheduler does: reserve, compute, publish, give back."""
        while seq.num_computed < upto:
            end = min(upto, seq.num_computed + self.budget)
            self.manager.reserve(seq, end)
            seq.num_scheduled = end
            self.manager.audit(self.sequences)
            seq.num_computed = end
            self.manager.publish(seq)
            self.manager.give_back(seq)
            self.manager.audit(self.sequences)

    def begin(self, seq: Sequence) -> int:
        """Share what is cached; how many blocks that are."""
        nodes = self.manager.match(seq)
        need, before = self.manager.need(seq, len(nodes) * SIZE, nodes), self.manager.num_free
        self.manager.share(seq, nodes)
        assert before - self.manager.num_free == need
        self.manager.audit(self.sequences)
        return len(nodes)

    def free(self, seq: Sequence) -> None:
        self.manager.free(seq)
        self.sequences.remove(seq)
        self.manager.audit(self.sequences)


def held(seq: Sequence, group: int = 0) -> list[int]:
    """Which logical blocks it holds."""
    return [i for i, block in enumerate(seq.tables[group].blocks) if block != HOLE]


def test_blocks_leave_as_the_cursor_passes() -> None:
    memory = Memory(7)
    seq = memory.sequence([1] * 40)
    memory.compute(seq, 8)
    assert held(seq) == [0, 1]  # position 8 sees from 2 on
    memory.compute(seq, 10)
    assert held(seq) == [1, 2]  # position 10 sees from 4 on
    memory.compute(seq, 13)
    assert held(seq) == [1, 2, 3]
    memory.compute(seq, 14)
    assert held(seq) == [2, 3]
    assert seq.tables[0].blocks[:2] == [HOLE, HOLE]
    assert memory.manager.snapshot([seq]).num_used == 2
    assert memory.manager.snapshot([seq]).num_cached == 2


def test_groups_give_back_each_by_its_window() -> None:
    memory = Memory(None, 3, 9)
    seq = memory.sequence([1] * 40)
    memory.compute(seq, 22)
    assert [held(seq, group) for group in range(3)] == [[0, 1, 2, 3, 4, 5], [4, 5], [3, 4, 5]]
    assert memory.manager.yield_of([seq.request]) == 11
    memory.free(seq)
    assert memory.manager.num_free == 40


def test_a_fork_shares_what_is_left_and_each_gives_back_its_own() -> None:
    memory = Memory(6)
    parent = memory.sequence([1] * 40)
    memory.compute(parent, 18)
    child = memory.sequence([1] * 40)
    memory.manager.fork(parent, child)
    memory.manager.audit(memory.sequences)
    assert held(child) == held(parent) == [3, 4]
    shared = parent.tables[0].blocks[3]
    memory.compute(parent, 30)
    assert memory.manager.pool.refs[shared] == 1  # the child still sees it
    memory.compute(child, 30)
    assert memory.manager.pool.refs[shared] == 0


@pytest.mark.parametrize("eviction", ["lru", "fifo", "lfu", "arc", "prefix"])
def test_a_match_needs_the_last_window_and_no_more(eviction: str) -> None:
    memory = Memory(None, 9, eviction=eviction)
    old = memory.sequence([7] * 33)
    memory.compute(old, 32)
    windowed = [memory.manager.cache.tree.blocks[node][1] for node in memory.manager.match(memory.sequence([7] * 33))]
    assert HOLE not in windowed  # given back, but cached
    memory.free(old)
    for i in (0, 3):  # evicted by themselves: the nodes stay
        block = windowed[i]
        memory.manager.pool.share(block)
        memory.manager.cache.forget(block)
        memory.manager.pool.release(block)
    seq = memory.sequence([7] * 33)
    assert memory.begin(seq) == 8
    assert held(seq, 0) == list(range(8))
    assert held(seq, 1) == [6, 7]
    memory.free(seq)
    # of 24 tokens the last 8 lie in blocks 4 and 5; of 20 in 3 and 4, of 16 in 2 and 3: 3 is gone
    for tokens, blocks in ((25, 6), (21, 3), (17, 3), (13, 3), (9, 0), (5, 0)):
        seq = memory.sequence([7] * tokens)
        assert memory.begin(seq) == blocks
        memory.free(seq)


def test_what_a_node_lacks_is_filled_in() -> None:
    memory = Memory(None, 5)
    old = memory.sequence([7] * 21)
    memory.compute(old, 20)
    nodes = memory.manager.match(memory.sequence([7] * 21))
    memory.free(old)
    for node in nodes[2:]:
        block = memory.manager.cache.tree.blocks[node][1]
        memory.manager.pool.share(block)
        memory.manager.cache.forget(block)
        memory.manager.pool.release(block)
    seq = memory.sequence([7] * 21)
    assert memory.begin(seq) == 2
    memory.compute(seq, 20)
    assert memory.manager.match(memory.sequence([7] * 21)) == nodes
    assert held(seq, 0) == [0, 1, 2, 3, 4]
    assert all(HOLE not in memory.manager.cache.tree.blocks[node] for node in nodes)


def test_where_all_groups_have_windows_a_node_goes_when_nothing_is_left_of_it() -> None:
    memory = Memory(5, num_blocks=4, budget=4)
    seq = memory.sequence([7] * 41)
    memory.compute(seq, 40)  # in four blocks: what was given back was used again
    assert len(memory.manager.cache.tree) == 10
    assert len(memory.manager.match(memory.sequence([7] * 41))) == 10
    assert memory.manager.match(memory.sequence([7] * 21)) == []
    memory.free(seq)
    other = memory.sequence([8] * 41)
    memory.compute(other, 40)
    assert len(memory.manager.cache.tree) == 10  # the others' path is gone with its last block
    memory.free(other)
    memory.manager.reset_prefix_cache()
    assert len(memory.manager.cache.tree) == 0


def test_without_room_nothing_is_changed() -> None:
    memory = Memory(None, 4, num_blocks=8)
    seq = memory.sequence([1] * 60)
    memory.compute(seq, 18)
    before = ([list(table.blocks) for table in seq.tables], memory.manager.num_free)
    with pytest.raises(OutOfBlocksError):
        memory.manager.reserve(seq, 26)
    assert before == ([list(table.blocks) for table in seq.tables], memory.manager.num_free)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    window=st.integers(1, 40),
    size=st.integers(1, 32),
    budget=st.integers(1, 64),
    depth=st.integers(0, 1),
    length=st.integers(1, 400),
)
def test_a_sequence_of_any_length_holds_no_more_than_the_bound(
    window: int, size: int, budget: int, depth: int, length: int
) -> None:
    """And so it can be served from a pool of just so many blocks."""
    group = LayerGroup(1, window)
    bound = group.blocks_for(length + 40, size, budget * (depth + 1))
    assert bound <= -(-(max(window, size) - 1 + budget * (depth + 1)) // size) + 1
    case = Case(
        SchedulerConfig(num_blocks=bound, block_size=size, max_num_batched_tokens=budget, depth=depth, groups=(group,))
    )
    request = case.add([1] * length, SamplingParams(max_tokens=40), stops=False)
    assert request is not None
    case.drain()
    case.check_outputs()
    assert request.num_preemptions == 0


def test_the_audit_finds_a_block_given_back_too_early() -> None:
    memory = Memory(9)
    seq = memory.sequence([1] * 40)
    memory.compute(seq, 20)
    first = held(seq)[0]
    memory.manager.cache.release(seq.tables[0].blocks[first])
    seq.tables[0].blocks[first] = HOLE
    with pytest.raises(RuntimeError, match="the holes of a table"):
        memory.manager.audit([seq])
    seq.tables[0].gone = first + 1
    with pytest.raises(RuntimeError, match="gave back a block that position 20 sees"):
        memory.manager.audit([seq])


def test_the_audit_finds_a_block_that_should_have_been_given_back() -> None:
    memory = Memory(5)
    seq = memory.sequence([1] * 60)
    for upto in range(8, 57, 8):
        memory.manager.reserve(seq, upto)
        seq.num_scheduled = seq.num_computed = upto
        memory.manager.publish(seq)
    with pytest.raises(RuntimeError, match="blocks for a window of 5"):
        memory.manager.audit([seq])
