"""The audit finds books that do not balance."""

from __future__ import annotations

import pytest
from memory_case import Memory, blocks_of

from octavo.request import Sequence


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
