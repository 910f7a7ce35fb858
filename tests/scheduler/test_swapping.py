"""Preempted requests whose blocks wait in host memory: what moves, when, and how they go on."""

from __future__ import annotations

import pytest
from oracle_case import Case, swapping_case

from octavo.plan import StepPlan
from octavo.request import Request, SamplingParams


def add(over: Case, prompt: list[int], max_tokens: int = 12, priority: int = 0, **params: int) -> Request:
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, **params), priority=priority, stops=False)
    assert request is not None
    return request


def until_gone(over: Case, request: Request) -> None:
    while request.id in over.scheduler.requests:
        over.step()


def back(over: Case, request: Request) -> StepPlan:
    """Step until the request computes again; the plan of that step."""
    ids = {seq.id for seq in request.live}
    for _ in range(200):
        plan = over.step()
        if ids & {chunk.seq_id for chunk in plan.chunks}:
            return plan
    raise AssertionError("it does not come back")


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_swapped_request_goes_on_where_it_was(caching: bool, depth: int) -> None:
    over = swapping_case(10, prefix_caching=caching, depth=depth)
    low = add(over, [1] * 14, max_tokens=20)
    for _ in range(6):
        over.step()
    (seq,) = low.live
    cursor, blocks = seq.num_scheduled, list(seq.tables[0].blocks)
    urgent = add(over, [2] * 37, max_tokens=2, priority=-1)  # overwrites the whole pool
    plan = over.step()
    assert plan.preempted == (seq.id,)
    assert [block for block, _ in plan.swap_out] == blocks[: -(-cursor // 4)]
    assert low.num_swapped_out == len(plan.swap_out) == 5
    assert seq.swapped is not None
    until_gone(over, urgent)
    plan = back(over, low)
    (chunk,) = plan.chunks
    assert (chunk.start, chunk.count) == (cursor, 1)  # nothing is computed twice
    assert len(plan.swap_in) == low.num_swapped_in == 5
    assert seq.swapped is None
    over.drain()
    over.check_outputs()


def test_what_the_prefix_tree_still_has_is_not_moved_back() -> None:
    over = swapping_case(10)
    low = add(over, [1] * 14, max_tokens=20)
    over.step()
    urgent = add(over, [2] * 25, max_tokens=2, priority=-1)  # 7 blocks: six were free, one of low's goes, its last
    plan = over.step()
    assert len(plan.swap_out) == 4
    until_gone(over, urgent)
    plan = back(over, low)
    assert [(chunk.start, chunk.count) for chunk in plan.chunks] == [(14, 1)]
    assert len(plan.swap_in) == 1  # the partial block; the three full ones were still cached
    assert (low.num_swapped_out, low.num_swapped_in) == (4, 1)
    over.drain()
    over.check_outputs()


def test_what_others_hold_is_not_moved_out() -> None:
    over = swapping_case(12)
    prompt = [1] * 24
    first, second = add(over, [*prompt, 2], max_tokens=20, priority=-5), add(over, [*prompt, 3], max_tokens=20)
    over.step()
    over.step()
    over.step()
    urgent = add(over, [0] * 19, max_tokens=1, priority=-9)  # 5 blocks; 4 are free
    plan = over.step()
    assert plan.preempted == (second.live[0].id,)
    assert len(plan.swap_out) == 1  # of seven: the six of the prompt stay with the first
    swapped = second.live[0].swapped
    assert swapped is not None
    assert (swapped.first, len(swapped.pages)) == (6, 1)
    until_gone(over, urgent)
    plan = back(over, second)
    assert len(plan.swap_in) == 1
    assert next(chunk.count for chunk in plan.chunks if chunk.seq_id == second.live[0].id) == 1
    assert first.num_preemptions == 0
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("budget", [64, 8])
def test_what_others_held_and_is_gone_is_computed_again_and_no_more(depth: int, budget: int) -> None:
    over = swapping_case(16, depth=depth, max_num_batched_tokens=budget)
    prompt = [1] * 24
    first = add(over, [*prompt, 2], max_tokens=28, priority=-5)
    for _ in range(4):
        over.step()
    second = add(over, [*prompt, 3], max_tokens=12)
    while len(second.live[0].tokens) < 31:
        over.step()
    cursor = second.live[0].num_scheduled
    short = over.scheduler.memory.num_free + 1  # one block more than there is
    urgent = add(over, [0] * (4 * short - 3), max_tokens=3, priority=-9)
    plan = over.step()
    assert plan.preempted == (second.live[0].id,)
    cursor = max(cursor, 24 + 4 * len(plan.swap_out) - 4 + 1)
    over.abort(first.id)
    flood = add(over, [3] * 60, max_tokens=2, priority=-8)  # overwrites the prefix, too
    until_gone(over, urgent)
    until_gone(over, flood)
    plan = back(over, second)
    ids, computed = second.live[0].id, 0
    while True:
        chunk = next(chunk for chunk in plan.chunks if chunk.seq_id == ids)
        if chunk.start >= cursor:
            break
        computed += chunk.count
        assert chunk.start + chunk.count <= 24  # up to the blocks on the host
        plan = back(over, second)
    assert 0 < computed <= 24
    assert second.num_swapped_in == second.num_swapped_out == 2
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("caching", [True, False])
def test_siblings_move_what_they_share_once(depth: int, caching: bool) -> None:
    over = swapping_case(16, depth=depth, prefix_caching=caching)
    group = add(over, [1] * 17, max_tokens=12, n=3)
    for _ in range(3):
        over.step()
    urgent = add(over, [2] * 61, max_tokens=3, priority=-1)
    plan = over.step()
    assert sorted(plan.preempted) == sorted(seq.id for seq in group.live)
    assert len(plan.swap_out) == 4 + 3  # four full blocks of the prompt, and each sibling's own
    assert len({host for _, host in plan.swap_out}) == 7
    until_gone(over, urgent)
    plan = back(over, group)
    assert len(plan.swap_in) == 7
    assert [chunk.count for chunk in plan.chunks] == [1, 1, 1]
    over.drain()
    assert group.num_preemptions == 1
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_fork_that_was_never_written_to_is_swapped_too(depth: int) -> None:
    """Right after a fork siblings share their partial block: each gets a page, and a block, of its own."""
    over = swapping_case(16, depth=depth)
    group = add(over, [1] * 17, max_tokens=12, n=3)
    over.step()
    if depth:
        over.step()
    urgent = add(over, [2] * 61, max_tokens=3, priority=-1)
    plan = over.step()
    assert len(plan.preempted) == len(group.live) == 3
    until_gone(over, urgent)
    plan = back(over, group)
    assert [chunk.count for chunk in plan.chunks] == [1, 1, 1]
    assert not plan.copies
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
def test_beams_come_back_together(depth: int) -> None:
    over = swapping_case(20, depth=depth)
    search = add(over, [1] * 13, max_tokens=16, beam_width=3, n=2)
    for _ in range(8):
        over.step()
    urgent = add(over, [2] * 73, max_tokens=3, priority=-1)
    plan = over.step()
    assert plan.swap_out
    computed = sum(chunk.count for chunk in plan.chunks)
    until_gone(over, urgent)
    plan = back(over, search)
    assert [chunk.count for chunk in plan.chunks] == [1] * len(search.live)
    assert computed
    over.drain()
    over.check_outputs()


def test_a_full_host_falls_back_to_recomputing() -> None:
    over = swapping_case(14, num_host_blocks=5)
    first, second = add(over, [1] * 21, max_tokens=8), add(over, [2] * 13, max_tokens=8, priority=1)
    over.step()
    urgent = add(over, [3] * 50, max_tokens=2, priority=-1)
    plan = over.step()
    assert len(plan.preempted) == 2
    assert len(plan.swap_out) == 4  # the second's; the first's six do not fit
    assert (first.num_swapped_out, second.num_swapped_out) == (0, 4)
    until_gone(over, urgent)
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("how", ["abort", "stop"])
def test_a_swapped_request_that_ends_gives_its_pages_back(how: str, depth: int) -> None:
    over = swapping_case(10, depth=depth)
    low = add(over, [1] * 14, max_tokens=8, n=2)
    for _ in range(3):
        over.step()
    add(over, [2] * 37, max_tokens=2, priority=-1)
    over.step()
    host = over.scheduler.memory.swaps.host
    assert host.num_free < 20
    if how == "abort":
        over.abort(low.id)
    else:
        from octavo.request import FinishReason

        for seq in list(low.live):
            over.scheduler.stop(seq, FinishReason.ABORT, "stopped")
    over.audit()
    over.step()
    assert host.num_free == 20
    over.drain()


def test_a_page_is_not_written_in_the_step_that_reads_it() -> None:
    """Out comes before in: with exactly enough pages for one, another cannot leave while that one comes back."""
    over = swapping_case(12, num_host_blocks=4, block_size=4)
    low = add(over, [1] * 15, max_tokens=6, priority=5)
    for _ in range(2):
        over.step()
    urgent = add(over, [2] * 40, max_tokens=1, priority=-5)
    over.step()
    assert low.num_swapped_out == 4
    until_gone(over, urgent)
    for plan in over.plans:
        assert not {host for _, host in plan.swap_out} & {host for host, _ in plan.swap_in}
    over.drain()
    over.check_outputs()


def test_nothing_is_swapped_without_host_memory() -> None:
    over = swapping_case(10, num_host_blocks=0)
    low = add(over, [1] * 14, max_tokens=20)
    for _ in range(3):
        over.step()
    add(over, [2] * 37, max_tokens=2, priority=-1)
    over.drain()
    assert low.num_preemptions == 1
    assert low.num_swapped_out == low.num_swapped_in == 0
    over.check_outputs()
