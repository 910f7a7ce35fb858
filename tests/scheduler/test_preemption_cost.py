"""The choice between moving and recomputing follows its numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.memory import Departure
from octavo.plan import LayerGroup
from octavo.request import SamplingParams
from octavo.scheduler.preemption_cost import prefers_swap, recompute_seconds, swap_seconds


def config(**numbers: object) -> SchedulerConfig:
    settings = {
        "num_blocks": 10,
        "page_bytes": 1000,
        "link_bandwidth": 4000.0,
        "flops_per_token": 30.0,
        "attention_flops": 2.0,
        "compute_speed": 100.0,
    }
    return SchedulerConfig(**(settings | numbers))  # type: ignore[arg-type]


def test_bytes_over_the_link_both_ways() -> None:
    assert swap_seconds(config(), 0) == 0
    assert swap_seconds(config(), 3) == 1.5


def test_flops_over_the_speed_of_a_prefill() -> None:
    assert recompute_seconds(config(attention_flops=0.0), 10, 20) == 3.0
    assert recompute_seconds(config(), 2, 4) == pytest.approx((60 + 2 * (3 + 4)) / 100)
    groups = (LayerGroup(2), LayerGroup(3, window=2))
    assert recompute_seconds(config(groups=groups), 2, 4) == pytest.approx((60 + 2 * (2 * (3 + 4) + 3 * (2 + 2))) / 100)


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_what_is_attended_to_is_counted_position_by_position(start: int, count: int, window: int | None) -> None:
    end = start + count
    seen = sum(min(position + 1, window or end) for position in range(start, end))
    numbers = config(groups=(LayerGroup(1, window),), flops_per_token=0.0, attention_flops=1.0, compute_speed=1.0)
    assert recompute_seconds(numbers, start, end) == seen


@given(
    pages=st.integers(0, 50),
    spans=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 400)), max_size=3),
    link=st.floats(1.0, 1e6),
    speed=st.floats(1.0, 1e6),
)
def test_the_cheaper_way_is_taken(pages: int, spans: list[tuple[int, int]], link: float, speed: float) -> None:
    numbers = config(link_bandwidth=link, compute_speed=speed)
    departure = Departure(pages, tuple((start, start + count) for start, count in spans))
    again = sum(recompute_seconds(numbers, start, start + count) for start, count in spans)
    assert prefers_swap(numbers, departure) is (swap_seconds(numbers, pages) < again)
    assert prefers_swap(config(preemption="swap"), departure)
    assert not prefers_swap(config(preemption="recompute"), departure)


def preempted(length: int, **numbers: object) -> tuple[int, int]:
    """A request of ``length`` tokens is preempted: how many blocks were moved out, and tokens computed again."""
    case = Case(
        config(num_blocks=30, block_size=4, num_host_blocks=30, policy="priority", prefix_caching=False, **numbers)
    )
    low = case.add([1] * length, SamplingParams(max_tokens=5), stops=False)
    assert low is not None
    case.step()
    case.add([2] * 110, SamplingParams(max_tokens=2), priority=-1, stops=False)
    computed, ids = 0, low.live[0].id
    while low.id in case.scheduler.requests:
        plan = case.step()
        computed += sum(chunk.count for chunk in plan.chunks if chunk.seq_id == ids)
    case.drain()
    case.check_outputs()
    assert low.num_preemptions == 1
    return low.num_swapped_out, computed


@pytest.mark.parametrize("length", [17, 61])
def test_the_scheduler_goes_by_it(length: int) -> None:
    """Around the speed of the link at which both cost the same, all else being equal."""
    blocks = -(-length // 4)
    even = swap_seconds(config(link_bandwidth=1.0), blocks) / recompute_seconds(config(), 0, length)
    assert preempted(length, link_bandwidth=even * 1.01)[0] == blocks
    assert preempted(length, link_bandwidth=even * 0.99)[0] == 0
    assert preempted(length, link_bandwidth=even * 1.01, preemption="recompute")[0] == 0
    assert preempted(length, link_bandwidth=even * 0.99, preemption="swap")[0] == blocks


def test_attention_makes_long_contexts_worth_moving() -> None:
    """Bytes grow with the length, FLOPs with its square."""
    numbers = {"link_bandwidth": 1500.0, "flops_per_token": 20.0, "attention_flops": 1.0}
    assert preempted(16, **numbers)[0] == 0
    assert preempted(80, **numbers)[0] == 20


def test_what_comes_back_is_not_computed_again() -> None:
    assert preempted(40, preemption="swap") == (10, 4)
    assert preempted(40, preemption="recompute") == (0, 44)
