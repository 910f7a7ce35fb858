"""Who holds which blocks: reserve, share, publish, free."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_case import Memory, blocks_of

from octavo.errors import OutOfBlocksError
from octavo.request import Sequence


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
