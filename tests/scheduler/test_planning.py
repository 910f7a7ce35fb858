"""What a plan holds: decodes first, then chunks of prompts, within the budget; who is admitted, and when."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.errors import EngineError, RequestTooLargeError, UnknownRequestError
from octavo.plan import PENDING, StepPlan, StepResult, Want
from octavo.request import Request, SamplingParams


def case(num_blocks: int = 100, block_size: int = 4, *, vocab_size: int = 4, **config: object) -> Case:
    return Case(
        SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **config),  # type: ignore[arg-type]
        vocab_size=vocab_size,
    )


def add(over: Case, prompt: list[int], max_tokens: int = 20, **keywords: object) -> Request:
    params = {
        name: keywords.pop(name) for name in ("n", "best_of", "beam_width", "prompt_logprobs") if name in keywords
    }
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, **params), stops=False, **keywords)  # type: ignore[arg-type]
    assert request is not None
    return request


def counts(plan: StepPlan) -> list[tuple[int, int]]:
    return [(chunk.seq_id, chunk.count) for chunk in plan.chunks]


def test_decodes_come_first_and_prompts_fill_the_budget() -> None:
    over = case(max_num_batched_tokens=8)
    first = add(over, [1] * 4).live[0].id
    assert counts(over.step()) == [(first, 4)]
    second = add(over, [2] * 20).live[0].id
    third = add(over, [3] * 5).live[0].id
    assert counts(over.step()) == [(first, 1), (second, 7)]
    assert counts(over.step()) == [(first, 1), (second, 7)]
    assert counts(over.step()) == [(first, 1), (second, 6), (third, 1)]
    assert counts(over.step()) == [(first, 1), (second, 1), (third, 4)]
    assert counts(over.step()) == [(first, 1), (second, 1), (third, 1)]


def test_a_long_prompt_of_higher_rank_does_not_stop_decodes() -> None:
    over = case(max_num_batched_tokens=4, policy="priority")
    running = [add(over, [token]).live[0].id for token in (1, 2)]
    over.step()
    urgent = add(over, [3] * 20, priority=-1).live[0].id
    assert counts(over.step()) == [(running[0], 1), (running[1], 1), (urgent, 2)]


def test_chunks_say_what_is_wanted_of_them() -> None:
    over = case(max_num_batched_tokens=8)
    request = add(over, [1] * 20, prompt_logprobs=0)
    plain = add(over, [2] * 12)
    chunks = [chunk for _ in range(5) for chunk in over.step().chunks]
    mine = [chunk for chunk in chunks if chunk.seq_id == request.live[0].id]
    assert [(c.start, c.count, c.outputs_from, c.want) for c in mine[:4]] == [
        (0, 8, 0, Want.NONE),  # every position's logits are wanted
        (8, 8, 8, Want.NONE),
        (16, 4, 16, Want.SAMPLE),
        (20, 1, 20, Want.SAMPLE),
    ]
    theirs = [chunk for chunk in chunks if chunk.seq_id == plain.live[0].id]
    assert [(c.start, c.count, c.outputs_from, c.want) for c in theirs[:3]] == [
        (0, 4, 4, Want.NONE),
        (4, 7, 11, Want.NONE),
        (11, 1, 11, Want.SAMPLE),
    ]


def test_a_prompt_is_admitted_when_the_whole_of_it_fits() -> None:
    """Chunk by chunk, two prompts that do not fit together would thrash."""
    over = case(num_blocks=10, max_num_batched_tokens=8)
    first, second = add(over, [1] * 25, max_tokens=4), add(over, [2] * 25, max_tokens=4)
    while over.scheduler.requests:
        over.step()
        if first.id in over.scheduler.requests:
            assert over.scheduler.residency.waiting.first() is second
    assert over.scheduler.residency.num_preemptions == 0
    over.check_outputs()


def test_a_newcomer_leaves_those_above_a_block_to_grow() -> None:
    """Else it would be admitted into their next block, and preempted for it at once."""
    over = case(num_blocks=6)
    first, second = add(over, [1] * 12, max_tokens=8), add(over, [2] * 12, max_tokens=4)
    over.step()
    assert over.scheduler.memory.num_free == 3  # just what the second one's prompt takes
    assert over.scheduler.residency.waiting.first() is second
    over.drain()
    assert (first.num_preemptions, second.num_preemptions) == (0, 0)
    over.check_outputs()


def test_no_block_is_left_to_those_who_will_never_want_one() -> None:
    over = case(num_blocks=7)
    add(over, [1] * 13, max_tokens=3)  # four blocks, to its very end
    second = add(over, [2] * 12, max_tokens=1)
    over.step()
    assert second.live == []  # it was admitted, computed, and is done


def test_a_budget_used_up_by_decodes_admits_nobody_more() -> None:
    """A decode that has just been planned into the last slot of its block looks like one that may stall."""
    over = case(num_blocks=60, max_num_batched_tokens=8, max_num_seqs=16)
    add(over, [1] * 3)
    add(over, [2] * 3)
    over.step()
    for token in range(3, 12):
        add(over, [token] * 6)
    assert [count for _, count in counts(over.step())] == [1, 1, 6]
    assert len(over.scheduler.residency.running) <= 4  # not all nine, of whom one computes


def test_nobody_overtakes_one_who_waits_for_memory() -> None:
    over = case(num_blocks=10)
    add(over, [1] * 25, max_tokens=12)
    over.step()
    large, small = add(over, [2] * 25, max_tokens=12), add(over, [3], max_tokens=1)
    over.step()
    assert sorted(over.scheduler.residency.waiting, key=lambda request: request.rank) == [large, small]


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_sequences_than_slots(limit: int) -> None:
    over = case(max_num_seqs=limit)
    for token in range(7):
        add(over, [token % 4, token // 4], max_tokens=5)
    while over.scheduler.requests:
        assert len(over.step().chunks) <= limit
    over.check_outputs()


def test_static_batching_admits_nobody_until_the_batch_drains() -> None:
    over = case(batching="static", max_num_seqs=2)
    batches = []
    for length in (3, 9, 2, 2, 5):
        add(over, [length % 4] * 3, max_tokens=length)
    while over.scheduler.requests:
        batches.append({chunk.seq_id for chunk in over.step().chunks})
    first_seen = {seq_id: step for step, batch in reversed([*enumerate(batches)]) for seq_id in batch}
    assert first_seen == {0: 0, 1: 0, 2: 9, 3: 9, 4: 11}
    over.check_outputs()


def test_continuous_batching_admits_at_once() -> None:
    over = case(max_num_seqs=2)
    seen = []
    for length in (3, 9, 2):
        add(over, [length % 4] * 3, max_tokens=length)
    while over.scheduler.requests:
        seen.append({chunk.seq_id for chunk in over.step().chunks})
    assert seen[3] == {1, 2}  # the step after the first one's last


def test_ageing() -> None:
    """A level of priority is worth a head start of ageing_seconds, neither more nor less."""
    for arrival, first in ((4.0, 1), (6.0, 0)):
        over = case(max_num_seqs=1, policy="priority", ageing_seconds=1.0)
        add(over, [1, 2], arrival=0.0, priority=5, max_tokens=2)
        add(over, [2, 2], arrival=arrival, priority=0, max_tokens=2)
        assert [chunk.seq_id for chunk in over.step().chunks] == [first]
    over = case(max_num_seqs=1, policy="fcfs")
    add(over, [1, 2], arrival=0.0, priority=5, max_tokens=2)
    add(over, [2, 2], arrival=4.0, priority=0, max_tokens=2)
    assert [chunk.seq_id for chunk in over.step().chunks] == [0]


def test_equal_ranks_go_in_order_of_arrival() -> None:
    over = case(max_num_seqs=1, policy="priority")
    names = [add(over, [1, token], max_tokens=1).id for token in range(4)]
    order = []
    while over.scheduler.requests:
        live = set(over.scheduler.requests)
        over.step()
        order += live - set(over.scheduler.requests)
    assert order == names


# -- depth 1 ----------------------------------------------------------------------------------------------------------


def test_with_a_plan_in_flight_the_next_names_tokens_to_come() -> None:
    over = case(depth=1)
    add(over, [1] * 5, max_tokens=4)
    plans = [over.step() for _ in range(5)]
    assert [chunk.tokens for plan in plans for chunk in plan.chunks] == [(1,) * 5, (PENDING,), (PENDING,), (PENDING,)]
    assert [chunk.start for plan in plans for chunk in plan.chunks] == [0, 5, 6, 7]
    assert not over.scheduler.requests  # and nothing was computed past its end
    over.check_outputs()


def test_what_needs_the_host_is_not_planned_while_in_flight() -> None:
    over = case(depth=1)
    beams = add(over, [1] * 5, max_tokens=6, beam_width=2)
    siblings = add(over, [2] * 5, max_tokens=6, n=2)
    plans = []
    while over.scheduler.requests:
        plans.append(over.step())
    searching = [
        seq_id for plan in plans for seq_id in {chunk.seq_id for chunk in plan.chunks if chunk.want == Want.LOGPROBS}
    ]
    assert searching
    for before, after in itertools.pairwise(plans):
        wanted = [{c.slot for c in plan.chunks if c.want == Want.LOGPROBS} for plan in (before, after)]
        assert not (wanted[0] and wanted[1])
        assert all(PENDING not in chunk.tokens for chunk in after.chunks if chunk.want == Want.LOGPROBS)
    assert PENDING in [token for plan in plans for chunk in plan.chunks for token in chunk.tokens]  # the siblings
    assert beams.hypotheses
    assert len(siblings.sequences) == 2
    over.check_outputs()


def test_blocks_of_one_that_ended_in_flight_come_back_when_its_plan_is_collected() -> None:
    over = case(num_blocks=8, vocab_size=1, depth=1)  # every token is the stop token
    request = over.add([0] * 9, SamplingParams(max_tokens=5))
    assert request is not None
    over.step()  # the prompt, in flight
    over.step()  # a decode in flight; the prompt's sample has ended the request
    assert not over.scheduler.requests
    assert over.scheduler.memory.num_free == 5
    assert [seq.request for seq in over.scheduler.sequences()] == [request]
    other = over.add([0, 0], SamplingParams(max_tokens=5))
    assert other is not None
    plan = over.step()  # its own plan must not name those blocks yet
    assert not plan.released
    assert not set(plan.chunks[0].blocks[0]) & {0, 1, 2}
    assert over.scheduler.memory.num_free == 7  # collected now
    assert over.step().released == (0,)
    over.drain()
    over.check_outputs()


# -- refusals and bookkeeping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ([1], SamplingParams(n=5, max_tokens=1), "grows 5 sequences at once, max_num_seqs is 4"),
        ([1], SamplingParams(best_of=5, max_tokens=1), "grows 5 sequences"),
        ([1], SamplingParams(beam_width=4, max_tokens=1), "beam_width=4 exceeds max_num_batched_tokens=3"),
        ([1] * 30, SamplingParams(max_tokens=11), "can need 11 blocks of 4; the pool has 10"),
        ([1] * 10, SamplingParams(n=3, max_tokens=10), "can need 11 blocks"),  # 2 shared and 3 of their own each
    ],
)
def test_what_can_never_fit_is_refused_and_nothing_changes(
    prompt: list[int], params: SamplingParams, says: str
) -> None:
    over = case(num_blocks=10, max_num_seqs=4, max_num_batched_tokens=3)
    running = add(over, [2] * 9)
    over.step()
    free = over.scheduler.memory.pool.free_blocks()
    request = Request("x", prompt, params, max_new_tokens=params.max_tokens or 1)
    with pytest.raises(RequestTooLargeError, match=says):
        over.scheduler.add(request)
    assert list(over.scheduler.requests) == [running.id]
    assert over.scheduler.memory.pool.free_blocks() == free
    assert not over.scheduler.residency.waiting
    assert not request.sequences
    over.drain()
    over.check_outputs()


def test_what_just_fits_is_served() -> None:
    for params, prompt in (
        (SamplingParams(max_tokens=10), [1] * 30),
        (SamplingParams(n=3, max_tokens=6), [1] * 10),
        (SamplingParams(n=3, beam_width=3, max_tokens=6), [1] * 10),
    ):
        over = case(num_blocks=10, max_num_seqs=3, max_num_batched_tokens=3)
        assert over.add(prompt, params, stops=False) is not None
        over.drain()
        over.check_outputs()


def test_unknown_requests_and_results_that_do_not_fit() -> None:
    over = case()
    with pytest.raises(UnknownRequestError, match="'nobody'"):
        over.scheduler.abort("nobody")
    add(over, [1])
    plan = over.scheduler.schedule()
    with pytest.raises(EngineError, match="1 chunks were planned, 0 came back"):
        over.scheduler.commit(plan, StepResult(plan.step, ()))


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("num_blocks", [30, 8])
def test_one_token_a_step_is_enough_for_everybody(depth: int, num_blocks: int) -> None:
    over = case(num_blocks=num_blocks, max_num_batched_tokens=1, depth=depth)
    for token in range(8):
        add(over, [token % 4] * (1 + 2 * token), max_tokens=10)
    over.drain(limit=3000)
    over.check_outputs()


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from oracle_case import random_case;"
        "print([hashlib.sha256(repr(random_case(seed).plans).encode()).hexdigest() for seed in (5, 6, 7, 8)])"
    )
    tests = str(Path(__file__).parent.parent)
    printed = {
        subprocess.run(
            [sys.executable, "-c", program, tests],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_a_static_batch_is_as_large_as_there_are_seats_whatever_a_step_can_compute() -> None:
    over = case(batching="static", max_num_seqs=3, max_num_batched_tokens=4)
    for length in (9, 2, 3, 2):
        add(over, [length % 4] * 6, max_tokens=length)
    over.step()
    assert len(over.scheduler.residency.running) == 3
    while len(over.scheduler.requests) > 1:
        assert len(over.scheduler.residency.running) <= 3
        over.step()
    over.drain()
    over.check_outputs()


def test_nobody_is_preempted_for_blocks_that_the_urgent_one_shares() -> None:
    """What a victim holds of the urgent prompt's own prefix makes no room for the rest of it."""
    over = case(num_blocks=10, policy="priority")
    add(over, [9] * 8, priority=-2, max_tokens=12)  # 3 blocks, and ranked above
    lower = add(over, [1] * 16, priority=0, max_tokens=12)  # 5 blocks, 4 of them the urgent one's prefix
    over.step()
    over.step()
    assert over.scheduler.memory.num_free == 2
    urgent = add(over, [1] * 16 + [5] * 12, priority=-1, max_tokens=4)  # 4 shared, 3 more, and 1 for who is above
    over.step()
    assert lower.num_preemptions == 0
    assert urgent.live[0].slot == -1
    over.drain()
    over.check_outputs()
