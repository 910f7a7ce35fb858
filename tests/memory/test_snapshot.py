"""A picture of the pool."""

from __future__ import annotations

from memory_case import Memory, blocks_of


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
