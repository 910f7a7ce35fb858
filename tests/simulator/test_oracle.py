"""The judge is judged: each kind of wrong plan is caught in the step where it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.plan import HOLE, PENDING, BlockCopy, Chunk, LayerGroup, StepPlan, Want
from octavo.request import SamplingParams
from octavo.simulator.oracle import OracleError, OracleExecutor, chain


def half_way() -> Case:
    """Two requests that decode, one of them with a sibling that shares its partial block."""
    case = Case(SchedulerConfig(num_blocks=40, block_size=4))
    case.add([1] * 9, SamplingParams(max_tokens=20, n=2), stops=False)
    case.add([2] * 7, SamplingParams(max_tokens=20), stops=False)
    case.step()
    return case


def first(**fields: object) -> Callable[[StepPlan], StepPlan]:
    """Change fields of the plan's first chunk."""

    def change(plan: StepPlan) -> StepPlan:
        return dataclasses.replace(plan, chunks=(plan.chunks[0]._replace(**fields), *plan.chunks[1:]))  # type: ignore[arg-type]

    return change


def plan_with(**fields: object) -> Callable[[StepPlan], StepPlan]:
    return lambda plan: dataclasses.replace(plan, **fields)  # type: ignore[arg-type]


def another_token(plan: StepPlan) -> StepPlan:
    last = plan.chunks[-1]
    return dataclasses.replace(plan, chunks=(*plan.chunks[:-1], last._replace(tokens=(last.tokens[0] + 1,))))


def twice(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, chunks=(*plan.chunks, plan.chunks[0]))


def swapped_slots(plan: StepPlan) -> StepPlan:
    one, two, *rest = plan.chunks
    return dataclasses.replace(plan, chunks=(one._replace(slot=two.slot), two._replace(slot=one.slot), *rest))


def anothers_block(plan: StepPlan) -> StepPlan:
    last = plan.chunks[-1]
    return dataclasses.replace(plan, chunks=(*plan.chunks[:-1], last._replace(blocks_from=(0,), blocks=((0, 1),))))


def wrong_copy(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, copies=tuple(BlockCopy(c.group, 0, c.target) for c in plan.copies))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (plan_with(step=0), "comes after step 0"),
        (plan_with(released=(17,)), "slot 17 is released, but nobody holds it"),
        (twice, "computes twice"),
        (swapped_slots, "which is not its own"),
        (first(slot=30), "which is not its own"),
        (first(tokens=()), "0 tokens for 1 positions"),
        (first(count=0, tokens=()), "0 tokens for 0 positions"),
        (another_token, "is not the one known"),
        (first(start=12, tokens=(PENDING,)), "was never sampled"),
        (first(blocks_from=(9,)), "is cut to 9"),
        (first(blocks_from=(0,), blocks=((),)), "no block for position 9"),
        (plan_with(copies=()), "does not hold position"),
        (wrong_copy, "does not hold position"),
        (anothers_block, "does not hold position"),
    ],
)
def test_a_wrong_plan_is_caught(spoil: Callable[[StepPlan], StepPlan], says: str) -> None:
    case = half_way()
    plan = case.scheduler.schedule()
    assert plan.copies
    with pytest.raises(OracleError, match=says):
        case.executor.submit(spoil(plan))


def test_a_slot_is_not_given_twice() -> None:
    case = half_way()
    init = dataclasses.replace(case.plans[0], step=5, chunks=())
    with pytest.raises(OracleError, match="while it is held"):
        case.executor.submit(init)


def test_memory_overwritten_behind_a_sequences_back_is_noticed() -> None:
    case = half_way()
    plan = case.scheduler.schedule()
    case.executor.memory[case.scheduler.requests["r1"].live[0].tables[0].blocks[0], 2] += np.uint64(1)
    with pytest.raises(OracleError, match=r"request r1\), group 0: block \d+ does not hold position 2 of 8"):
        case.executor.submit(plan)


def test_what_has_left_a_window_is_not_looked_at_and_what_has_not_is() -> None:
    case = Case(SchedulerConfig(num_blocks=20, block_size=4, groups=(LayerGroup(1), LayerGroup(1, 6))))
    case.add([1] * 17, SamplingParams(max_tokens=20), stops=False)
    case.step()
    plan = case.scheduler.schedule()  # position 17 sees from 12 on
    blocks = case.scheduler.requests["r0"].live[0].tables[1].blocks
    assert blocks.count(HOLE) == 3
    table = case.executor.slots[plan.chunks[0].slot].tables[1]
    case.executor.memory[table[:3]] += np.uint64(1)
    case.executor.submit(plan)
    wrong = plan.chunks[0]._replace(start=18, tokens=(PENDING,), blocks_from=(5, 3), blocks=((), (HOLE, blocks[4])))
    with pytest.raises(OracleError, match=r"group 1: a hole does not hold position 12 of 19"):
        case.executor.submit(StepPlan(plan.step + 1, (wrong,)))
    wrong = wrong._replace(blocks_from=(5, 4), blocks=((), (HOLE,)))
    with pytest.raises(OracleError, match="position 18 would be written to a hole"):
        case.executor.submit(StepPlan(plan.step + 2, (wrong,)))


def drafting() -> Case:
    """A sequence that has drafted, and been wrong; its next plan drafts again."""
    speculative = {"speculative": "ngram", "speculative_tokens": 5, "ngram_min": 1, "step_costs": (1.0, 1.0)}
    case = Case(SchedulerConfig(num_blocks=40, block_size=4, **speculative), vocab_size=4)  # type: ignore[arg-type]
    request = case.add([1, 2, 3] * 4, SamplingParams(max_tokens=60), stops=False)
    assert request is not None
    while request.num_drafted == request.num_accepted:
        case.step()
    return case


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda chunk: chunk._replace(drafts=chunk.drafts + 1), "nothing is drawn where drafts are to be verified"),
        (lambda chunk: chunk._replace(want=Want.NONE), "nothing is drawn where drafts are to be verified"),
        (
            lambda chunk: chunk._replace(drafts=chunk.drafts + 1, outputs_from=chunk.outputs_from - 1),
            r"the token at \d+ is known, but drafted",
        ),
        (  # as if the rejected drafts' memory were good
            lambda chunk: chunk._replace(start=chunk.start + 1, outputs_from=chunk.start + 1, tokens=chunk.tokens),
            "the token at|does not hold position",
        ),
    ],
)
def test_wrong_drafts_are_caught(spoil: Callable[[Chunk], Chunk], says: str) -> None:
    case = drafting()
    plan = case.scheduler.schedule()
    [chunk] = plan.chunks
    assert chunk.drafts
    with pytest.raises(OracleError, match=says):
        case.executor.submit(dataclasses.replace(plan, chunks=(spoil(chunk),)))


def test_what_a_rejected_draft_left_behind_is_nobodys_memory() -> None:
    case = drafting()
    plan = case.scheduler.schedule()
    [chunk] = plan.chunks
    [slot] = case.executor.slots.values()
    block, offset = divmod(chunk.start, 4)
    left = case.executor.memory[case.scheduler.requests["r0"].live[0].tables[0].blocks[block], offset]
    assert left != slot.digests[chunk.start]  # it is written again in the next step, before it is read
    case.executor.submit(plan)


def test_swapped_blocks_keep_their_content() -> None:
    executor = OracleExecutor(4, 2, num_host_blocks=2)
    case = half_way()
    init = case.plans[0].init[0]._replace(tokens=(1, 2, 3), num_prompt=3)
    chunk = Chunk(init.slot, init.seq_id, 0, 3, (1, 2, 3), (0,), ((0, 1),), 2, case.plans[0].chunks[0].want, (0,))
    token = executor.submit(StepPlan(0, (chunk,), init=(init,))).results[0].samples[0].token
    executor.submit(StepPlan(1, (), swap_out=((0, 1), (1, 0))))
    executor.memory[:] = 0
    more = chunk._replace(start=3, count=1, tokens=(token,), blocks=((3, 2),))
    wrong = StepPlan(2, (more,), swap_in=((0, 3), (1, 2)))
    with pytest.raises(OracleError):
        executor.submit(wrong)
    executor.submit(StepPlan(3, (more,), swap_in=((1, 3), (0, 2))))


def test_digests_tell_prefixes_and_salts_apart() -> None:
    assert chain(None, [1, 2, 3])[:2] == chain(None, [1, 2])
    last = {tuple(chain(salt, tokens))[-1] for salt in (None, "a", "b") for tokens in ([1, 2], [2, 1], [1], [1, 2, 0])}
    assert len(last) == 12
