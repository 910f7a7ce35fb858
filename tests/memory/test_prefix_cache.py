"""What stays in the prefix tree, and what goes first."""

from __future__ import annotations

from memory_case import Memory, blocks_of


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
