"""Copy-on-write: whoever writes first copies."""

from __future__ import annotations

import pytest
from memory_case import Memory, blocks_of

from octavo.errors import OutOfBlocksError
from octavo.plan import BlockCopy


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
