"""Who holds which blocks: reserve, share, fork, copy-on-write, publish, free."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory import MemoryManager
from octavo.plan import BlockCopy, LayerGroup
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
    return seq.tables[group].blocks


@pytest.mark.parametrize("groups", [1, 2])
def test_reserve_is_all_or_nothing(groups: int) -> None:
    memory = Memory(num_blocks=4 * groups, groups=groups)
    first, second = memory.sequence([1] * 30), memory.sequence([2] * 30)
    memory.compute(first, 9)
    assert [len(blocks_of(first, group)) for group in range(groups)] == [3] * groups
    before = (list(blocks_of(second)), memory.manager.pool.free_blocks(), list(memory.manager.pool.refs))
    with pytest.raises(OutOfBlocksError, match=f"needs {2 * groups} blocks to reach 5 tokens; {groups} are free"):
        memory.manager.reserve(second, 5)
    assert (list(blocks_of(second)), memory.manager.pool.free_blocks(), list(memory.manager.pool.refs)) == before
    memory.compute(second, 4)
    with pytest.raises(OutOfBlocksError):
        memory.manager.reserve(first, 13)
    memory.compute(first, 12)  # room in the block that it has
    assert first.capacity == 12
    assert memory.manager.num_free == 0


@pytest.mark.parametrize("writer", ["parent", "child"])
def test_whoever_writes_first_copies(writer: str) -> None:
    memory = Memory()
    parent = memory.sequence([1] * 10)
    memory.compute(parent, 10)
    held = list(blocks_of(parent))
    child = memory.fork(parent)
    assert blocks_of(child) == held  # the partial last one too
    assert memory.manager.copies == []
    first, second = (parent, child) if writer == "parent" else (child, parent)
    assert memory.manager.need(first, 11) == 1
    memory.manager.reserve(first, 11)
    memory.audit()
    fresh = blocks_of(first)[2]
    assert memory.manager.copies == [BlockCopy(0, held[2], fresh)]
    assert blocks_of(first)[:2] == held[:2]
    assert blocks_of(second) == held
    assert memory.manager.need(second, 11) == 0  # now the only one
    memory.manager.reserve(second, 11)
    assert len(memory.manager.copies) == 1
    assert memory.manager.snapshot(memory.sequences).num_shared == 2


def test_a_copy_resends_the_table_from_there() -> None:
    memory = Memory()
    parent = memory.sequence([1] * 10)
    memory.compute(parent, 10)
    parent.tables[0].sent = 3
    memory.fork(parent)
    memory.manager.reserve(parent, 11)
    assert parent.tables[0].sent == 2


def test_copy_on_write_without_room_changes_nothing() -> None:
    memory = Memory(num_blocks=3)
    parent = memory.sequence([1] * 10)
    memory.compute(parent, 10)
    child = memory.fork(parent)
    with pytest.raises(OutOfBlocksError):
        memory.manager.reserve(child, 11)
    assert memory.manager.copies == []
    assert blocks_of(child) == blocks_of(parent)
    memory.audit()


def test_a_fork_on_a_block_border_copies_nothing() -> None:
    memory = Memory()
    parent = memory.sequence([1] * 8)
    memory.compute(parent, 8)
    child = memory.fork(parent)
    for seq in (parent, child):
        memory.manager.reserve(seq, 9)
    memory.audit()
    assert memory.manager.copies == []
    assert blocks_of(parent)[:2] == blocks_of(child)[:2]
    assert blocks_of(parent)[2] != blocks_of(child)[2]


def test_a_duplicate_gives_way_to_what_is_filed() -> None:
    memory = Memory()
    first, second = memory.sequence([7] * 11), memory.sequence([7] * 11)
    memory.manager.reserve(first, 8)
    memory.manager.reserve(second, 8)
    own = list(blocks_of(second))
    second.tables[0].sent = 2
    assert len({*blocks_of(first), *own}) == 4
    memory.compute(first, 8)
    memory.compute(second, 8)
    assert blocks_of(second) == blocks_of(first)
    assert second.tables[0].sent == 0  # the executor must be told
    assert memory.manager.pool.free_blocks()[:2] == own[::-1]  # nothing worth keeping: next to be used
    assert memory.manager.num_free == 10


def test_the_last_token_is_always_computed() -> None:
    memory = Memory()
    first = memory.sequence([7] * 12)
    memory.compute(first, 12)
    for length, matched in ((12, 2), (13, 3), (4, 0), (5, 1), (1, 0)):
        assert len(memory.manager.match(memory.sequence([7] * length))) == matched
    assert memory.manager.match(memory.sequence([7] * 12, salt="other")) == []
    assert memory.manager.match(memory.sequence([7, 7, 7, 8] * 3)) == []


def test_sharing_a_cached_prefix() -> None:
    memory = Memory()
    first = memory.sequence([7] * 12)
    memory.compute(first, 12)
    held = list(blocks_of(first))
    memory.free(first)
    assert memory.manager.num_free == 12
    second = memory.sequence([7] * 10 + [8] * 6)
    nodes = memory.manager.match(second)
    assert memory.manager.need(second, 16, nodes) == 4  # two idle ones leave the free list, two are new
    memory.manager.share(second, nodes)
    memory.audit()
    assert blocks_of(second) == held[:2]
    assert (second.num_computed, second.num_scheduled, second.capacity, second.num_published) == (8, 8, 8, 2)
    third = memory.sequence([7] * 10 + [9] * 6)
    assert memory.manager.need(third, 16, memory.manager.match(third)) == 2  # nothing idle among them now


def test_leaves_are_evicted_before_their_parents() -> None:
    memory = Memory(num_blocks=6)
    old = memory.sequence(list(range(12)))
    memory.compute(old, 12)
    tail_first = blocks_of(old)[::-1]
    memory.free(old)
    new = memory.sequence([50] * 30)
    evicted = []
    for length in range(4, 25, 4):
        memory.compute(new, length)
        evicted += memory.manager.evicted
        memory.manager.evicted.clear()
    assert evicted == tail_first
    assert len(memory.manager.cache.tree) == 6


def test_eviction_is_least_recently_used() -> None:
    memory = Memory(num_blocks=4)
    for token in (1, 2, 3):
        seq = memory.sequence([token] * 5)
        memory.compute(seq, 4)
        memory.free(seq)
    again = memory.sequence([1] * 5)
    memory.manager.share(again, memory.manager.match(again))
    memory.free(again)
    new = memory.sequence([9] * 12)
    memory.compute(new, 12)
    cached = [bool(memory.manager.match(memory.sequence([token] * 5))) for token in (1, 2, 3)]
    assert cached == [True, False, False]


def test_yield_counts_what_nobody_else_holds() -> None:
    memory = Memory(num_blocks=20)
    first, second = memory.sequence([7] * 13), memory.sequence([7] * 13)
    memory.compute(first, 13)
    memory.manager.share(second, memory.manager.match(second))
    memory.compute(second, 13)
    child = memory.fork(second)
    assert memory.manager.yield_of([first.request]) == 1
    assert memory.manager.yield_of([second.request]) == 1  # its own tail, which its child shares
    assert memory.manager.yield_of([first.request, second.request]) == 5
    free = memory.manager.num_free
    for seq in (second, child):
        memory.free(seq)
    assert memory.manager.num_free - free == 1
    memory.free(first)
    assert memory.manager.num_free - free == 5


def test_without_prefix_caching_siblings_share_and_others_do_not() -> None:
    memory = Memory(caching=False)
    parent = memory.sequence([7] * 9, n=2)
    memory.compute(parent, 9)
    child = memory.fork(parent)
    stranger = memory.sequence([7] * 9)
    assert memory.manager.match(stranger) == []
    memory.compute(stranger, 9)
    assert memory.manager.snapshot(memory.sequences).num_shared == 3
    memory.free(parent)
    back = Sequence(99, child.request, 0, list(parent.tokens))
    assert len(memory.manager.match(back)) == 2  # while a sibling holds them
    memory.free(child)
    assert memory.manager.match(back) == []
    memory.free(stranger)
    assert len(memory.manager.cache.tree) == 0
    assert memory.manager.snapshot([]).num_cached == 0


def test_reset_forgets_what_nobody_holds() -> None:
    memory = Memory()
    held, gone = memory.sequence([1] * 9), memory.sequence([2] * 9)
    for seq in (held, gone):
        memory.compute(seq, 9)
    memory.free(gone)
    assert memory.manager.snapshot(memory.sequences).num_cached == 2
    assert memory.manager.reset_prefix_cache() == 2
    memory.audit()
    assert memory.manager.match(memory.sequence([2] * 9)) == []
    assert len(memory.manager.match(memory.sequence([1] * 9))) == 2
    assert memory.manager.reset_prefix_cache() == 0


def test_a_follower_finds_its_leader_until_the_block_is_filed() -> None:
    memory = Memory()
    leader, follower = memory.sequence([7] * 9), memory.sequence([7] * 9)
    memory.manager.leaders.lead(leader)
    assert memory.manager.leaders.find(follower, []) is leader
    assert memory.manager.leaders.find(memory.sequence([7] * 4), []) is None  # its last token is its own to compute
    assert memory.manager.leaders.find(memory.sequence([7] * 9, salt="x"), []) is None
    memory.compute(leader, 4)
    assert memory.manager.leaders.find(follower, memory.manager.match(follower)) is None
    memory.manager.leaders.lead(leader)
    assert memory.manager.leaders.find(follower, memory.manager.match(follower)) is leader
    memory.free(leader)
    assert memory.manager.leaders.find(follower, memory.manager.match(follower)) is None


def test_the_snapshot_counts() -> None:
    memory = Memory(num_blocks=10)
    parent = memory.sequence([1] * 10)
    memory.compute(parent, 10)
    child = memory.fork(parent)
    gone = memory.sequence([2] * 5)
    memory.compute(gone, 5)
    memory.free(gone)
    snapshot = memory.manager.snapshot(memory.sequences)
    assert (snapshot.num_used, snapshot.num_shared, snapshot.num_cached, snapshot.num_free) == (3, 3, 1, 6)
    assert snapshot.filled_slots == 10
    assert snapshot.utilisation == 10 / 12
    assert [snapshot.owner[block] for block in blocks_of(parent)] == [(parent.id, child.id)] * 3
    assert Memory().manager.snapshot([]).utilisation == 1.0


def test_the_audit_finds_what_is_wrong() -> None:
    def broken() -> tuple[Memory, Sequence]:
        memory = Memory()
        seq = memory.sequence([1] * 10)
        memory.compute(seq, 10)
        return memory, seq

    memory, seq = broken()
    memory.manager.pool.refs[blocks_of(seq)[0]] += 1
    with pytest.raises(RuntimeError, match="2 references, 1 in tables"):
        memory.audit()
    memory, seq = broken()
    blocks_of(seq).pop()
    with pytest.raises(RuntimeError, match="too few blocks"):
        memory.audit()
    memory, seq = broken()
    memory.sequences.clear()
    with pytest.raises(RuntimeError, match="1 references, 0 in tables"):
        memory.audit()
    memory, seq = broken()
    memory.manager.pool.num_free -= 1
    with pytest.raises(RuntimeError, match="free list disagrees"):
        memory.audit()
    memory, seq = broken()
    memory.manager.pool.node[memory.manager.pool.free_blocks()[0]] = 1
    with pytest.raises(RuntimeError, match="disagree on what is cached"):
        memory.audit()
    memory, seq = broken()
    memory.manager.pool.node[blocks_of(seq)[0]] = 0
    with pytest.raises(RuntimeError, match="holds something else"):
        memory.audit()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    block_size=st.integers(1, 5),
    groups=st.integers(1, 2),
    caching=st.booleans(),
    actions=st.lists(
        st.tuples(st.sampled_from(["new", "grow", "grow", "fork", "free", "reset"]), st.integers(0, 7)), max_size=60
    ),
)
def test_any_history_passes_the_audit(
    block_size: int, groups: int, caching: bool, actions: list[tuple[str, int]]
) -> None:
    """And what ``need`` says is what ``reserve`` takes."""
    memory = Memory(num_blocks=14, block_size=block_size, groups=groups, caching=caching)
    manager = memory.manager
    for action, number in actions:
        if action == "new":
            seq = memory.sequence([number % 2] * 12 + [number] * 30, n=2)
            nodes = manager.match(seq)
            need = manager.need(seq, len(nodes) * block_size, nodes)
            before = manager.num_free
            manager.share(seq, nodes)
            assert before - manager.num_free == need
        elif memory.sequences and action != "reset":
            seq = memory.sequences[number % len(memory.sequences)]
            if action == "grow":
                upto = min(seq.num_computed + 1 + number, len(seq.tokens))
                need, before = manager.need(seq, upto), manager.num_free
                if need > before:
                    with pytest.raises(OutOfBlocksError):
                        manager.reserve(seq, upto)
                    assert manager.num_free == before
                elif upto > seq.num_computed:
                    manager.reserve(seq, upto)
                    assert before - manager.num_free == need
                    memory.compute(seq, upto)
            elif action == "fork":
                memory.fork(seq)
            else:
                memory.free(seq)
        elif action == "reset":
            manager.reset_prefix_cache()
        memory.audit()
    for seq in list(memory.sequences):
        memory.free(seq)
    assert manager.num_free == 14
