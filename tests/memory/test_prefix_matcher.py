"""Which cached prefix a sequence can go on from (windowed groups: test_windows.py)."""

from __future__ import annotations

from memory_case import Memory


def test_the_last_token_is_always_computed() -> None:
    memory = Memory()
    first = memory.sequence([7] * 12)
    memory.compute(first, 12)
    for length, matched in ((12, 2), (13, 3), (4, 0), (5, 1), (1, 0)):
        assert len(memory.manager.match(memory.sequence([7] * length))) == matched
    assert memory.manager.match(memory.sequence([7] * 12, salt="other")) == []
    assert memory.manager.match(memory.sequence([7, 7, 7, 8] * 3)) == []
