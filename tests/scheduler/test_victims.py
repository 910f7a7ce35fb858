"""The ladder's other ways to be short of memory: the least recently run gives way, or nobody does."""

from __future__ import annotations

import random

import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.presets import PRESETS
from octavo.request import FinishReason, Request, SamplingParams


def case(num_blocks: int, victims: str, **config: object) -> Case:
    settings = {"block_size": 4, "max_num_batched_tokens": 64} | config
    return Case(SchedulerConfig(num_blocks=num_blocks, victims=victims, **settings))  # type: ignore[arg-type]


def add(over: Case, prompt: int, new: int, priority: int = 0, n: int = 1) -> Request:
    tokens = [len(over.requests) % over.vocab_size] * prompt
    request = over.add(tokens, SamplingParams(max_tokens=new, n=n), priority=priority, stops=False)
    assert request is not None
    return request


def ends(*requests: Request) -> list[FinishReason | None]:
    return [request.sequences[0].finish_reason for request in requests]


# -- nobody gives way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
def test_without_victims_the_one_who_is_short_fails_in_mid_run_and_the_others_go_on(depth: int) -> None:
    over = case(8, "none", depth=depth, prefix_caching=False)
    first, second = add(over, 12, 12), add(over, 12, 12)  # 3 blocks each at once, 6 in the end
    over.drain()
    assert ends(first, second) == [FinishReason.ERROR, FinishReason.LENGTH]
    assert over.scheduler.num_out_of_blocks == 1
    assert over.scheduler.residency.num_preemptions == 0
    assert first.failure == (
        'out of blocks: 1 more are needed at 17 tokens, 0 are free, and victims="none" takes them from nobody'
    )
    assert len(first.sequences[0].output_token_ids) == 5 - depth  # what it had generated is not lost to the caller
    over.check_outputs()


def test_without_victims_requests_are_let_in_without_a_look_at_memory() -> None:
    naive, careful = case(6, "none"), case(6, "rank")
    for over in (naive, careful):
        add(over, 12, 4)
        add(over, 16, 4)
        over.step()
    assert len(careful.scheduler.residency.running) == 1  # the second one waits until it fits
    assert naive.scheduler.num_out_of_blocks == 1  # it was begun, and there was no block for its prompt
    for over in (naive, careful):
        over.drain()
        over.check_outputs()
    assert careful.scheduler.num_out_of_blocks == 0


def test_its_blocks_help_the_next_in_the_same_step() -> None:
    over = case(10, "none", prefix_caching=False)
    requests = [add(over, 12, 8) for _ in range(3)]
    over.drain()
    assert ends(*requests) == [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH]


def test_the_failed_are_returned_by_the_next_commit() -> None:
    over = case(8, "none", prefix_caching=False)
    first = add(over, 12, 12)
    add(over, 12, 12)
    changed: list[object] = []
    for _ in range(6):
        assert not first.failure
        plan = over.scheduler.schedule()
        changed = list(over.scheduler.commit(plan, over.executor.collect(over.executor.submit(plan))))
    assert first.failure
    assert changed[0] is first.sequences[0]
    over.drain()


def test_siblings_fail_together() -> None:
    over = case(12, "none", prefix_caching=False)
    keeper, group = add(over, 9, 20), add(over, 9, 9, n=2)
    late = add(over, 8, 4)
    over.drain()
    assert ends(keeper, late) == [FinishReason.LENGTH] * 2 or over.scheduler.num_out_of_blocks
    assert len({seq.finish_reason for seq in group.sequences}) == 1
    over.check_outputs()


# -- the least recently run gives way ---------------------------------------------------------------------------------


def test_lru_does_not_look_at_rank() -> None:
    """The first is short: with rank, the third gives way; by the time of the last run, the second, which ran before
    the third."""
    losers = {}
    for victims in ("rank", "lru"):
        over = case(11, victims, prefix_caching=False)
        first, second, third = add(over, 10, 12), add(over, 12, 12), add(over, 12, 12)
        over.drain()
        over.check_outputs()
        assert ends(first, second, third) == [FinishReason.LENGTH] * 3
        losers[victims] = next(plan.preempted for plan in over.plans if plan.preempted)
    assert losers == {"rank": (2,), "lru": (1,)}


def test_under_lru_nobody_is_preempted_to_admit_another() -> None:
    over = case(5, "lru", policy="priority", prefix_caching=False)
    low = add(over, 12, 4, priority=5)
    over.step()
    urgent = add(over, 12, 4, priority=-5)
    while low.live:
        assert not urgent.sequences[0].num_scheduled
        over.step()
    over.drain()
    assert (low.num_preemptions, urgent.num_preemptions) == (0, 0)


# -- the ladder -------------------------------------------------------------------------------------------------------


def test_what_each_step_of_the_ladder_buys() -> None:
    """One load through all four: the first fails requests, the second none; the third serves the urgent sooner; the
    fourth computes less."""
    found = {}
    for name, fields in PRESETS.items():
        over = Case(SchedulerConfig(num_blocks=26, block_size=4, max_num_seqs=8, ageing_seconds=1e6, **fields))
        rng = random.Random(5)
        stem = [rng.randrange(4) for _ in range(20)]
        waits, begun = [], {}
        for second in range(60):
            if second % 3 == 0:
                params = SamplingParams(max_tokens=rng.choice([8, 24]))
                tail = [rng.randrange(4) for _ in range(6)]
                priority = -1 if second % 12 == 0 else 0
                request = over.add([*stem, *tail], params, priority=priority, arrival=float(second), stops=False)
                assert request is not None
                if priority:
                    begun[request.id] = second
            over.step()
            for key in [key for key in begun if len(over.requests[key].sequences[0].tokens) > 26]:
                waits.append(second - begun.pop(key))
        over.drain()
        over.check_outputs()
        found[name] = (
            over.scheduler.num_out_of_blocks,
            over.scheduler.residency.num_preemptions,
            sum(waits),
            sum(plan.num_tokens for plan in over.plans),
        )
    assert found["v1-naive"][0] > 0
    assert found["v1-naive"][1] == 0
    assert all(found[name][0] == 0 for name in ("v2-lru", "v3-priority", "v4-prefix"))
    assert found["v2-lru"][1] > 0
    assert found["v3-priority"][2] < found["v2-lru"][2]
    assert found["v4-prefix"][3] < found["v3-priority"][3]
