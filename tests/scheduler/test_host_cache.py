"""Cached prefixes that were evicted from the device wait in host memory, and come back."""

from __future__ import annotations

import pytest
from oracle_case import Case, swapping_case

from octavo.config import EVICTIONS
from octavo.memory.host_cache import HostCache
from octavo.plan import LayerGroup, StepPlan
from octavo.request import Request, SamplingParams


def case(num_blocks: int = 8, **config: object) -> Case:
    return swapping_case(num_blocks, **({"host_cache": True} | config))


def serve(over: Case, prompt: list[int], max_tokens: int = 1, **params: int) -> tuple[Request, list[StepPlan]]:
    """One request from beginning to end; it, and its plans."""
    first = len(over.plans)
    request = over.add(prompt, SamplingParams(max_tokens=max_tokens, **params), stops=False)
    assert request is not None
    over.drain()
    over.check_outputs()
    return request, over.plans[first:]


def cache_of(over: Case) -> HostCache:
    cache = over.scheduler.memory.host_cache
    assert cache is not None
    return cache


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("depth", [0, 1])
def test_what_was_evicted_comes_back(eviction: str, groups: int, depth: int) -> None:
    over = case(8 * groups, eviction=eviction, depth=depth, groups=(LayerGroup(1),) * groups)
    serve(over, [1] * 21)
    _, plans = serve(over, [2] * 29)
    out = [move for plan in plans for move in plan.swap_out]
    moved = cache_of(over).num_demoted
    assert moved == len(out) >= 5 * groups
    again, plans = serve(over, [1] * 21)
    assert again.num_cached == 20
    back = [move for plan in plans for move in plan.swap_in]
    assert len(back) == cache_of(over).num_promoted >= 3 * groups
    assert {host for host, _ in back} <= {host for _, host in out}


def test_without_it_they_are_computed_again() -> None:
    for config in ({"host_cache": False}, {"num_host_blocks": 0}):
        over = case(**config)  # type: ignore[arg-type]
        serve(over, [1] * 21)
        serve(over, [2] * 31)
        again, _ = serve(over, [1] * 21)
        assert again.num_cached == 0
        assert not any(plan.swap_out or plan.swap_in for plan in over.plans)


def test_a_salt_keeps_host_memory_apart_too() -> None:
    over = case()
    serve(over, [1] * 21)
    serve(over, [2] * 31)
    other = over.add([1] * 21, SamplingParams(max_tokens=1), salt="other")
    assert other is not None
    over.drain()
    assert other.num_cached == 0


def test_the_longest_demoted_goes_when_host_memory_is_full() -> None:
    over = case(num_host_blocks=8)
    for token in (1, 2, 3):
        serve(over, [token] * 31)
    assert over.scheduler.memory.swaps.host.num_free == 0
    assert serve(over, [1] * 31)[0].num_cached == 4  # its leaves went first
    over = case(num_host_blocks=8)
    for token in (1, 2, 3):
        serve(over, [token] * 31)
    assert serve(over, [2] * 31)[0].num_cached == 28


def test_a_preempted_request_goes_before_them() -> None:
    over = case(10, num_host_blocks=6)
    serve(over, [3] * 38)
    low = over.add([1] * 14, SamplingParams(max_tokens=20), stops=False)
    assert low is not None
    for _ in range(6):
        over.step()
    assert cache_of(over).num_reclaimable > 1
    assert over.scheduler.memory.swaps.host.num_free < 5
    urgent = over.add([2] * 37, SamplingParams(max_tokens=2), priority=-1, stops=False)
    assert urgent is not None
    plan = over.step()
    assert len(plan.preempted) == 1
    assert low.num_swapped_out == 5
    over.drain()
    over.check_outputs()
    assert low.num_swapped_in > 0


def test_what_is_computed_again_leaves_host_memory() -> None:
    over = case()
    serve(over, [1] * 21)
    serve(over, [2] * 31)
    held = over.scheduler.memory.swaps.host.num_free
    serve(over, [1] * 20, prompt_logprobs=0)  # every position is computed
    assert cache_of(over).num_promoted == 0
    assert not any(plan.swap_in for plan in over.plans)
    # Five pages of the first prompt came free, four blocks of the second took some.
    assert over.scheduler.memory.swaps.host.num_free == held + 5 - 4
    assert serve(over, [1] * 21)[0].num_cached == 20


def test_forgetting_all_cached_prefixes_forgets_these() -> None:
    over = case()
    serve(over, [1] * 21)
    serve(over, [2] * 31)
    memory = over.scheduler.memory
    demoted = 20 - memory.swaps.host.num_free
    assert demoted == 5
    assert memory.reset_prefix_cache() == demoted + 7
    over.audit()
    assert len(memory.cache.tree) == 0
    assert serve(over, [1] * 21)[0].num_cached == 0


def test_a_prefix_longer_than_the_pool_has_room_for_comes_back_in_part() -> None:
    over = case(8, num_host_blocks=64)
    serve(over, [1] * 29)
    serve(over, [2] * 31)
    holder = over.add([3] * 13, SamplingParams(max_tokens=3), stops=False)
    assert holder is not None
    over.step()
    again = over.add([1] * 29, SamplingParams(max_tokens=2), stops=False)
    assert again is not None
    over.drain()
    over.check_outputs()
