"""Short of blocks: who loses them, when, and how it goes on."""

from __future__ import annotations

import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.request import Request, SamplingParams, SequenceState


def case(num_blocks: int, **config: object) -> Case:
    settings = {"block_size": 4, "policy": "priority", "ageing_seconds": 1000.0, "max_num_batched_tokens": 64} | config
    return Case(SchedulerConfig(num_blocks=num_blocks, **settings))  # type: ignore[arg-type]


def add(over: Case, prompt: list[int], max_tokens: int = 12, priority: int = 0, n: int = 1) -> Request:
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, n=n), priority=priority, stops=False)
    assert request is not None
    return request


def states(*requests: Request) -> list[str]:
    return ["".join(sorted({seq.state.value for seq in request.live})) for request in requests]


def test_an_urgent_request_takes_from_the_bottom_what_it_needs_and_no_more() -> None:
    over = case(14)
    first, second, third = (add(over, [token] * 13) for token in (1, 2, 3))  # 4 blocks each
    over.step()
    ids = [request.live[0].id for request in (first, second, third)]
    urgent = add(over, [0] * 13, priority=-1)
    plan = over.step()
    assert plan.preempted == (ids[2],)
    assert states(first, second, third, urgent) == ["running", "running", "waiting", "running"]
    assert urgent.live[0].id in [chunk.seq_id for chunk in plan.chunks]
    larger = add(over, [3, 0] * 14, priority=-2)  # 7 blocks: 2 are free, each victim brings 4
    plan = over.step()
    assert plan.preempted == (ids[1], ids[0])
    assert states(first, second, third, urgent, larger) == ["waiting", "waiting", "waiting", "running", "running"]
    over.drain()
    over.check_outputs()


def test_nobody_is_preempted_in_vain() -> None:
    """The yield of all that rank below would not suffice: they go on, and the urgent one waits."""
    over = case(10)
    above, below = add(over, [1] * 16, priority=-2), add(over, [2] * 12)
    over.step()
    between = add(over, [3] * 25, priority=-1)  # 7 blocks; 2 are free, 4 could be had
    plan = over.step()
    assert plan.preempted == ()
    assert states(above, below, between) == ["running", "running", "waiting"]
    assert len(plan.chunks) == 2
    over.drain()
    over.check_outputs()


def test_nobody_is_preempted_without_need() -> None:
    over = case(20)
    low = [add(over, [token] * 8, priority=5) for token in (1, 2)]
    over.step()
    add(over, [3] * 25, priority=-1)
    over.step()
    assert over.scheduler.residency.num_preemptions == 0
    assert states(*low) == ["running", "running"]


def test_lower_ranks_take_nothing_from_higher_ones() -> None:
    over = case(6)
    first, second = add(over, [1] * 8, max_tokens=16), add(over, [2] * 8, max_tokens=16)
    planned = []
    while first.id in over.scheduler.requests:
        plan = over.step()
        assert first.live == [] or first.live[0].id not in plan.preempted
        planned.append({chunk.seq_id for chunk in plan.chunks})
    assert all(0 in ids for ids in planned)  # the first one computed in every step
    assert second.num_preemptions > 0
    assert first.num_preemptions == 0
    over.drain()
    over.check_outputs()


def test_what_is_planned_in_a_step_is_not_preempted_in_it() -> None:
    """Held by Case.step for every plan of every test; here the case that would break it: all short in one step."""
    over = case(8, block_size=1)
    requests = [add(over, [token], max_tokens=7) for token in (1, 2, 3)]
    preempted = 0
    while over.scheduler.requests:
        plan = over.step()
        preempted += len(plan.preempted)
        assert not set(plan.preempted) & {chunk.seq_id for chunk in plan.chunks}
    assert preempted == sum(request.num_preemptions for request in requests) > 0
    over.check_outputs()


def test_slots_are_preempted_for_too() -> None:
    over = case(100, max_num_seqs=3)
    low, lower = add(over, [1] * 5), add(over, [2] * 5, priority=1)
    over.step()
    pair = add(over, [3] * 5, priority=-1, n=2)
    plan = over.step()
    assert plan.preempted == (lower.live[0].id,)
    assert states(low, lower, pair) == ["running", "waiting", "running"]
    over.drain()
    over.check_outputs()


def test_shared_blocks_are_no_gain() -> None:
    """Preempting one of two that share a prefix frees its own blocks only; yield counts that."""
    over = case(11)
    prompt = [1] * 24
    shared = [add(over, [*prompt, token], max_tokens=6) for token in (2, 3)]
    over.step()
    over.step()
    over.step()
    held = over.config.num_blocks - over.scheduler.memory.num_free
    assert held == 8  # six shared, and one each
    urgent = add(over, [0] * 18, max_tokens=2, priority=-1)  # 5 blocks; 3 free, one for each victim
    plan = over.step()
    assert len(plan.preempted) == 2
    assert states(*shared, urgent) == ["waiting", "waiting", "running"]
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("caching", [True, False])
def test_the_preempted_go_on_where_they_were(caching: bool) -> None:
    over = case(10, prefix_caching=caching)
    low = add(over, [1] * 14, max_tokens=20)
    for _ in range(6):
        over.step()
    tokens = list(low.live[0].tokens)
    assert len(tokens) == 20
    urgent = add(over, [2] * 24, max_tokens=2, priority=-1)
    over.step()
    assert low.live[0].state is SequenceState.WAITING
    assert low.live[0].tokens == tokens  # nothing generated is lost
    while urgent.id in over.scheduler.requests:
        over.step()
    plan = over.step()
    chunk = next(chunk for chunk in plan.chunks if chunk.seq_id == low.live[0].id)
    # With the cache, what the urgent one did not overwrite is not computed again.
    assert (chunk.start > 0) is caching
    assert chunk.start + chunk.count == 20
    assert low.num_preemptions == 1
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
def test_siblings_are_preempted_and_come_back_together(depth: int) -> None:
    over = case(14, depth=depth)
    group = add(over, [1] * 9, max_tokens=12, n=3)
    for _ in range(5):
        over.step()
    assert len(group.live) == 3
    urgent = add(over, [2] * 38, max_tokens=3, priority=-1)
    plan = over.step()
    assert sorted(plan.preempted) == sorted(seq.id for seq in group.live)
    assert {seq.state for seq in group.live} == {SequenceState.WAITING}
    while urgent.id in over.scheduler.requests:
        over.step()
    over.drain()
    assert group.num_preemptions == 1
    over.check_outputs()
