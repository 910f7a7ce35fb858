"""One computation for many: siblings, beams, cached prefixes, and prompts that begin alike in one batch."""

from __future__ import annotations

import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.plan import StepPlan, Want
from octavo.request import Request, SamplingParams


def case(num_blocks: int = 100, **config: object) -> Case:
    return Case(SchedulerConfig(num_blocks=num_blocks, **({"block_size": 4} | config)))  # type: ignore[arg-type]


def add(over: Case, prompt: list[int], max_tokens: int = 8, salt: str | None = None, **params: object) -> Request:
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, **params), salt=salt, stops=False)  # type: ignore[arg-type]
    assert request is not None
    return request


def used(over: Case) -> int:
    return over.config.num_blocks - over.scheduler.memory.num_free


def starts(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(chunk.seq_id, chunk.start, chunk.count) for chunk in plan.chunks]


# -- siblings ---------------------------------------------------------------------------------------------------------


def test_siblings_share_one_computation_of_the_prompt() -> None:
    over = case()
    request = add(over, [1] * 10, n=3)
    plan = over.step()
    assert starts(plan) == [(0, 0, 10)]
    assert plan.chunks[0].draws == (0, 1, 2)
    assert used(over) == 3  # forks share all of it, the partial block too
    assert [seq.index for seq in request.live] == [0, 1, 2]
    plan = over.step()
    assert starts(plan) == [(0, 10, 1), (1, 10, 1), (2, 10, 1)]
    assert [chunk.draws for chunk in plan.chunks] == [(0,), (1,), (2,)]
    assert len(plan.copies) == 2  # the last writer is alone with the original
    assert {copy.source for copy in plan.copies} == {2}
    assert used(over) == 5
    for _ in range(3):
        assert not over.step().copies
    over.drain()
    assert sum(plan.num_tokens for plan in over.plans) == 10 + 3 * 7
    over.check_outputs()


def test_on_a_block_border_siblings_copy_nothing() -> None:
    over = case()
    add(over, [1] * 8, n=4)
    over.drain()
    assert not any(plan.copies for plan in over.plans)
    assert sum(plan.num_tokens for plan in over.plans) == 8 + 4 * 7
    over.check_outputs()


def test_best_of_keeps_the_best() -> None:
    over = case()
    request = over.add([1] * 5, SamplingParams(n=2, best_of=4, max_tokens=3), stops=False)
    assert request is not None
    over.drain()
    # The oracle's log-probabilities fall with the index.
    assert [seq.index for seq in request.sequences] == [0, 1]
    assert len({chunk.seq_id for plan in over.plans for chunk in plan.chunks}) == 4
    over.check_outputs()


# -- beams ------------------------------------------------------------------------------------------------------------


def test_beams_advance_all_or_none() -> None:
    over = case(max_num_batched_tokens=5)
    other = add(over, [2] * 3, max_tokens=30)
    over.step()
    request = add(over, [1] * 6, max_tokens=9, beam_width=4, n=2)
    sizes = []
    while request.id in over.scheduler.requests:
        plan = over.step()
        beams = [chunk for chunk in plan.chunks if chunk.want == Want.LOGPROBS]
        sizes.append(len(beams))
        assert len({chunk.start for chunk in beams}) <= 1
    assert sizes[0] == 0  # four tokens beside the decode: not the whole prompt yet
    assert sizes[1:] == [1] + [4] * 8
    assert other.id in over.scheduler.requests
    over.drain()
    over.check_outputs()


def test_beams_that_do_not_fit_beside_a_higher_rank_wait_together() -> None:
    over = case(max_num_batched_tokens=4)
    other = add(over, [2] * 3, max_tokens=12)
    over.step()
    request = add(over, [1] * 3, max_tokens=5, beam_width=4)
    while other.id in over.scheduler.requests:
        plan = over.step()
        assert sum(chunk.want == Want.LOGPROBS for chunk in plan.chunks) <= 1  # its prompt, and then nothing
    assert {len(seq.tokens) for seq in request.live} == {4}  # one token each, from the prompt's own logits
    over.drain()
    over.check_outputs()


def test_beams_return_the_blocks_of_those_that_fell_out() -> None:
    over = case()
    add(over, [1] * 9, max_tokens=30, beam_width=3, n=3)
    peak = 0
    while over.scheduler.requests:
        over.step()
        peak = max(peak, used(over))
    assert peak <= 2 + 3 * 8  # never more than three lines of their own
    over.drain()
    over.check_outputs()


# -- prefixes ---------------------------------------------------------------------------------------------------------


def test_a_later_prompt_begins_after_what_is_cached() -> None:
    over = case()
    add(over, [1] * 18, max_tokens=2)
    over.drain()
    request = add(over, [1] * 14 + [2] * 6, max_tokens=2)
    assert starts(over.step()) == [(1, 12, 8)]
    assert request.num_cached == 12
    other = add(over, [1] * 14, salt="b")
    over.step()
    assert other.num_cached == 0
    over.drain()
    over.check_outputs()


def test_generated_tokens_are_cached_too() -> None:
    over = case()
    first = add(over, [1] * 6, max_tokens=11)
    over.drain()
    request = add(over, list(first.sequences[0].tokens) + [2] * 3)  # a conversation goes on
    over.step()
    assert request.num_cached == 16
    over.drain()
    over.check_outputs()


def test_prompts_alike_in_one_batch_are_computed_once() -> None:
    over = case(max_num_batched_tokens=64)
    stem = [1] * 16
    leader, follower, stranger = add(over, [*stem, 1]), add(over, [*stem, 2, 2]), add(over, [3] * 9)
    # The follower waits for its leader's blocks, which is no reason for the stranger to wait.
    assert starts(over.step()) == [(0, 0, 17), (2, 0, 9)]
    assert starts(over.step()) == [(0, 17, 1), (2, 9, 1), (1, 16, 2)]
    assert (leader.num_cached, follower.num_cached, stranger.num_cached) == (0, 16, 0)
    over.drain()
    over.check_outputs()


def test_followers_keep_pace_with_a_chunked_leader() -> None:
    over = case(max_num_batched_tokens=6)
    add(over, [1] * 30, max_tokens=2)
    followers = [add(over, [1] * 26 + [2], max_tokens=2) for _ in range(2)]
    over.drain()
    assert [request.num_cached for request in followers] == [24, 24]
    assert sum(plan.num_tokens for plan in over.plans) == 30 + 2 * 3 + 3
    over.check_outputs()


def test_a_follower_is_promoted_when_its_leader_is_withdrawn() -> None:
    over = case(max_num_batched_tokens=8)
    leader, follower = add(over, [1] * 40), add(over, [1] * 40 + [2])
    assert starts(over.step()) == [(0, 0, 8)]
    assert starts(over.step()) == [(0, 8, 8)]
    over.abort(leader.id)
    assert starts(over.step()) == [(1, 16, 8)]  # what the leader left in the cache, and on
    assert follower.num_cached == 16
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize("what", ["salt", "prefix_caching", "prompt_logprobs"])
def test_who_may_not_share_does_not_wait(what: str) -> None:
    over = case(max_num_batched_tokens=64, prefix_caching=what != "prefix_caching")
    add(over, [1] * 16 + [1])
    add(
        over,
        [1] * 16 + [2],
        salt="b" if what == "salt" else None,
        prompt_logprobs=0 if what == "prompt_logprobs" else None,
    )
    assert starts(over.step()) == [(0, 0, 17), (1, 0, 17)]
    over.drain()
    over.check_outputs()
