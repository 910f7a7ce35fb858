"""Drafts in the plan: what they take, what they leave, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.plan import PENDING, Chunk, StepPlan, Want
from octavo.request import Request, SamplingParams

FREE: dict[str, Any] = {"speculative": "ngram", "speculative_tokens": 3, "ngram_min": 1, "step_costs": (1.0, 1.0)}
"""Rows cost nothing, so every guess is made."""


def case(num_blocks: int = 100, block_size: int = 4, *, vocab_size: int = 1, **config: Any) -> Case:
    """By default the make-believe model knows one token, so that a guess always comes true."""
    return Case(SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **(FREE | config)), vocab_size=vocab_size)


def add(over: Case, prompt: list[int], max_tokens: int = 20, **keywords: Any) -> Request:
    names = ("n", "best_of", "beam_width", "stop")
    params = {name: keywords.pop(name) for name in names if name in keywords}
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, **params), stops=False, **keywords)
    assert request is not None
    return request


def only(plan: StepPlan) -> Chunk:
    [chunk] = plan.chunks
    return chunk


def told(plan: StepPlan) -> list[tuple[int, int]]:
    return [(chunk.count, chunk.drafts) for chunk in plan.chunks]


def test_a_chunk_with_drafts() -> None:
    over = case()
    request = add(over, [0] * 5, max_tokens=30)
    seq = request.live[0]
    over.step()
    chunk = only(over.step())
    assert (chunk.start, chunk.count, chunk.drafts, chunk.tokens) == (5, 3, 2, (0, 0, 0))  # careful at first
    assert (chunk.outputs_from, chunk.want, chunk.draws) == (5, Want.SAMPLE, (0,))
    assert (len(seq.tokens), seq.num_computed, seq.num_scheduled, seq.num_total) == (9, 8, 8, 9)
    assert told(over.step()) == [(4, 3)]
    over.drain()
    assert (request.num_drafted, request.num_accepted) == (21, 21)  # 30 tokens: 1, 3, six times 4, and 2
    over.check_outputs()


def test_what_was_guessed_wrong_is_computed_again() -> None:
    over = case(vocab_size=50)
    request = add(over, [1, 2, 3, 1, 2, 3, 1], max_tokens=40)
    seq = request.live[0]
    while over.scheduler.requests:
        before = seq.num_computed
        plan = over.step()
        if seq in request.live and only(plan).drafts:
            assert before < seq.num_computed == seq.num_scheduled == len(seq.tokens) - 1
    assert request.num_drafted > request.num_accepted
    over.drain()
    over.check_outputs()


def test_no_draft_reaches_beyond_the_last_token() -> None:
    over = case()
    add(over, [0] * 5, max_tokens=3)
    over.step()
    assert told(over.step()) == [(2, 1)]  # the second token and the third
    over.drain()
    over.check_outputs()


def test_drafts_have_what_is_left_of_the_budget() -> None:
    over = case(max_num_batched_tokens=8, policy="priority")
    add(over, [0] * 4)
    over.step()
    add(over, [0] * 11, priority=2, salt="b")
    assert told(over.step()) == [(1, 0), (7, 0)]  # the prompt of lower rank goes before
    assert told(over.step()) == [(3, 2), (4, 0)]
    assert told(over.step()) == [(4, 3), (3, 2)]
    over.drain()
    over.check_outputs()


def test_drafts_take_no_block_that_somebody_may_want() -> None:
    over = case(num_blocks=8)
    first, second = add(over, [0] * 9, max_tokens=23, salt="a"), add(over, [0] * 9, max_tokens=23, salt="b")
    while over.scheduler.requests:
        before = over.scheduler.memory.num_free
        plan = over.step()
        for chunk in plan.chunks:
            own = -(-(chunk.start + chunk.count - chunk.drafts) // 4)
            beyond = -(-(chunk.start + chunk.count) // 4) > own
            assert not (chunk.drafts and beyond and before < 2)
    assert over.scheduler.residency.num_preemptions > 0  # there is not enough for both
    assert first.num_accepted
    assert second.num_accepted
    over.check_outputs()


def test_in_flight_the_pending_token_is_guessed_too_and_nothing_is_planned_after_drafts() -> None:
    over = case(depth=1)
    seq = add(over, [0] * 5, max_tokens=30).live[0]
    over.step()
    while not (chunk := only(over.step())).drafts:
        pass
    assert chunk.tokens[0] == PENDING
    assert set(chunk.tokens[1:]) == {0}
    assert over.step().chunks == ()  # nobody knows yet how many come
    assert seq.in_flight == 0
    chunk = only(over.step())
    assert (chunk.tokens, chunk.drafts) == ((0,) * 4, 3)
    over.drain()
    over.check_outputs()


@pytest.mark.parametrize(
    ("keywords", "drafts"),
    [({"beam_width": 2, "n": 2}, False), ({"best_of": 3, "stop": ["x"]}, False), ({"best_of": 3}, True)],
)
def test_whose_tokens_are_chosen_after_the_step_gets_one_at_a_time(keywords: dict[str, Any], drafts: bool) -> None:
    over = case(vocab_size=2)
    request = add(over, [0, 1] * 5, **keywords)
    over.drain()
    assert (request.num_drafted > 0) is drafts
    over.check_outputs()


def test_every_sibling_has_guesses_of_its_own() -> None:
    over = case()
    request = add(over, [0] * 5, n=3)
    over.drain()
    assert request.num_drafted == request.num_accepted >= 3 * 14
    over.check_outputs()


def test_who_has_ended_is_forgotten() -> None:
    over = case()
    add(over, [0] * 5)
    name = add(over, [0] * 5, n=2, salt="b").id
    over.step()
    over.step()
    speculation = over.scheduler._speculation
    assert speculation is not None
    assert len(speculation._drafters) == 3
    over.abort(name)
    over.drain()
    assert not speculation._drafters


def test_without_speculation_there_is_none() -> None:
    over = case(speculative=None)
    request = add(over, [0] * 5)
    over.drain()
    assert request.num_drafted == 0
    assert all(chunk.drafts == 0 for plan in over.plans for chunk in plan.chunks)


def test_dear_rows_are_not_spent() -> None:
    over = case(step_costs=(1.0, 2.0), vocab_size=4)
    request = add(over, [0, 1, 2, 3] * 4, max_tokens=40)
    over.drain()
    assert request.num_drafted == 0
    over.check_outputs()
