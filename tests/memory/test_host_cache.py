"""The second tier, move by move: what may be demoted, and what may be read in which step."""

from __future__ import annotations

import pytest

from octavo.config import EVICTIONS, SchedulerConfig
from octavo.memory import MemoryManager
from octavo.memory.host_cache import HostCache
from octavo.request import Request, SamplingParams, Sequence


class Memory:
    """A manager of blocks of 4 with a second tier, and sequences computed by hand."""

    def __init__(self, num_blocks: int = 8, host: int = 20, eviction: str = "lru") -> None:
        self.manager = MemoryManager(
            SchedulerConfig(
                num_blocks=num_blocks, block_size=4, num_host_blocks=host, host_cache=True, eviction=eviction
            )
        )
        assert self.manager.host_cache is not None
        self.cache: HostCache = self.manager.host_cache
        self.live: list[Sequence] = []
        self.count = 0

    def sequence(self, tokens: list[int]) -> Sequence:
        self.count += 1
        request = Request(str(self.count), tokens, SamplingParams(), max_new_tokens=9)
        self.live.append(Sequence(self.count, request, 0, tokens))
        return self.live[-1]

    def cached(self, token: int, blocks: int) -> None:
        """Compute a prompt of so many blocks, publish it, let it go."""
        seq = self.sequence([token] * (4 * blocks + 1))
        self.manager.reserve(seq, 4 * blocks)
        self.end_step()
        seq.num_computed = seq.num_scheduled = 4 * blocks
        self.manager.publish(seq)
        self.free(seq)

    def free(self, seq: Sequence) -> None:
        self.manager.free(seq)
        self.live.remove(seq)
        self.audit()

    def end_step(self) -> None:
        self.manager.evicted.clear()
        self.manager.swaps.end_step()
        self.audit()

    def audit(self) -> None:
        self.manager.audit(self.live)


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_what_is_only_just_coming_back_is_not_sent_out_again(eviction: str) -> None:
    memory = Memory(eviction=eviction)
    memory.cached(1, 5)
    memory.cached(2, 8)
    manager, moves = memory.manager, memory.manager.swaps
    again = memory.sequence([1] * 21)
    manager.promote(again)
    memory.audit()
    assert len(manager.match(again)) == len(moves.moves_in) == 5
    coming = set(moves.moves_in)
    before = [block for block, _ in moves.moves_out]
    greedy = memory.sequence([3] * 40)
    manager.reserve(greedy, 32)  # takes the whole pool, in the same step
    memory.audit()
    assert not moves.moves_in
    assert manager.match(again) == []
    sent = [block for block, _ in moves.moves_out]
    assert sent[: len(before)] == before
    assert not coming & set(sent[len(before) :])  # on the device there is nothing of it yet


def test_what_is_only_just_leaving_does_not_come_back_in_the_same_step() -> None:
    memory = Memory()
    memory.cached(1, 5)
    other = memory.sequence([2] * 25)
    memory.manager.reserve(other, 24)
    again = memory.sequence([1] * 21)
    assert memory.cache.num_demoted == 3
    memory.manager.promote(again)
    assert len(memory.manager.match(again)) == 2
    assert not memory.manager.swaps.moves_in
    memory.end_step()
    memory.free(other)
    memory.manager.promote(again)
    assert len(memory.manager.match(again)) == 5
    assert len(memory.manager.swaps.moves_in) == 3


def test_as_much_comes_back_as_there_is_room_for() -> None:
    memory = Memory()
    memory.cached(1, 6)
    memory.cached(2, 8)
    other = memory.sequence([3] * 21)
    memory.manager.reserve(other, 20)
    memory.end_step()
    again = memory.sequence([1] * 25)
    memory.manager.promote(again)
    assert len(memory.manager.match(again)) == memory.manager.num_free == 3
    memory.audit()


def test_pages_given_up_by_one_step_are_free_after_it() -> None:
    memory = Memory(host=8)
    memory.cached(1, 8)
    memory.cached(2, 8)
    host = memory.manager.swaps.host
    assert host.num_free == 0
    assert memory.manager.num_host_free == 8
    memory.manager.promote(memory.sequence([1] * 33))
    # The blocks of the second prompt made way, and found no page: those of the first are still to be read.
    assert memory.cache.num_reclaimable == 0
    assert host.num_free == 0
    memory.end_step()
    assert host.num_free == 8


def test_leaves_are_given_up_before_their_parents() -> None:
    memory = Memory(host=4)
    memory.cached(1, 4)
    memory.cached(2, 8)
    again = memory.sequence([1] * 17)
    for left in (3, 2, 1, 0):
        assert memory.cache.make_room(4 - left)
        memory.audit()
        assert len(memory.manager.matcher.filed(again)) == left
    assert not memory.cache.make_room(5)
