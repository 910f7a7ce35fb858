"""Who waits for whom to compute a block."""

from __future__ import annotations

from memory_case import Memory


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
