"""The contiguous baselines: what they promise about memory, and that they do the same work."""

from __future__ import annotations

import random

import pytest
from trace_case import random_trace

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.memory.contiguous import RULES
from octavo.plan import Want
from octavo.simulator.contiguous_scheduler import ContiguousScheduler
from octavo.simulator.cost import LinearCost, Machine
from octavo.simulator.simulation import contiguous_simulation, simulation
from octavo.simulator.trace import Trace, TraceRequest

COST = LinearCost(step=1.0, prefill_token=0.01, decode_sequence=0.1, context_token=0.001)
TOY = Machine(about="round numbers", cost=COST, kv_token_bytes=2, kv_bytes=2 * 512, max_model_len=256)


def trace_of(*requests: tuple[float, int, int]) -> Trace:
    return Trace("t", "azure", tuple(TraceRequest(*request) for request in requests))


@pytest.mark.parametrize(("rule", "together"), [("reserve-max", 2), ("power-of-two", 4), ("oracle", 5)])
def test_how_many_fit(rule: str, together: int) -> None:
    """512 slots: two of 256, four of 128, five of 100."""
    report = contiguous_simulation(trace_of(*[(0.0, 90, 10)] * 12), EngineConfig(), TOY, rule).run()
    assert report.num_finished == 12
    assert report.peak_resident == together
    assert report.num_cached_tokens == report.num_preemptions == 0
    given = {"reserve-max": 256, "power-of-two": 128, "oracle": 100}[rule]
    assert report.peak_held == pytest.approx(together * given / 512)
    assert 90 / given <= report.utilisation < 100 / given


def test_a_hole_that_is_too_small_holds_up_all_behind_it() -> None:
    # 200 and 200 leave 112; the third needs 150 and waits, and the fourth, which would fit, waits behind it.
    run = contiguous_simulation(
        trace_of((0.0, 150, 50), (0.0, 190, 10), (0.0, 140, 10), (0.0, 20, 5)), EngineConfig(), TOY, "oracle"
    )
    run.run()
    begun = [outcome.first_scheduled for outcome in run.outcomes]
    assert begun[0] == begun[1] == 0.0
    assert begun[2] == begun[3] == run.outcomes[1].finished


def test_the_first_plan() -> None:
    run = contiguous_simulation(
        trace_of((0.0, 5, 3), (0.0, 9, 2)), EngineConfig(max_num_batched_tokens=8), TOY, "oracle"
    )
    plans = []
    run._recorder = type("Plans", (), {"write": lambda self, plan: plans.append(plan)})()
    run.run()
    assert [[(c.seq_id, c.start, c.count, c.want) for c in plan.chunks] for plan in plans] == [
        [(0, 0, 5, Want.SAMPLE), (1, 0, 3, Want.NONE)],
        [(0, 5, 1, Want.SAMPLE), (1, 3, 6, Want.SAMPLE)],
        [(0, 6, 1, Want.SAMPLE), (1, 9, 1, Want.SAMPLE)],
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_random_loads_are_served_as_by_the_paged_scheduler(rule: str, seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    config = EngineConfig(
        max_num_seqs=rng.choice([1, 4, 50]),
        max_num_batched_tokens=rng.choice([7, 64, 1000]),
        depth=rng.choice([0, 1]),
        batching=rng.choice(["continuous", "static"]),
        prefix_caching=False,
        num_blocks=32,
    )
    run = contiguous_simulation(trace, config, TOY, rule)
    report = run.run()
    assert report.num_finished == len(trace.requests)
    assert report.num_output_tokens == sum(max(1, request.num_output) for request in trace.requests)
    assert report.num_computed_tokens == report.num_prompt_tokens + report.num_output_tokens - report.num_finished
    assert report.filled <= report.held <= report.peak_held <= 1
    assert report.peak_resident <= config.max_num_seqs
    assert report == contiguous_simulation(trace, config, TOY, rule).run()
    scheduler = run._scheduler
    assert isinstance(scheduler, ContiguousScheduler)
    assert scheduler.usage()[1:] == (0, 0, 0)  # everything came back
    paged = simulation(trace, config, TOY).run()
    assert paged.num_output_tokens == report.num_output_tokens


def test_what_never_fits_is_refused() -> None:
    requests = trace_of((0.0, 300, 1), (0.0, 10, 1), (0.0, 200, 1))
    for rule in RULES:
        report = contiguous_simulation(requests, EngineConfig(), TOY, rule).run()
        assert (report.num_finished, report.num_refused) == (2, 1), rule
        assert "exceeds the context served, which is 256" in report.refusals[0]
    # A buddy allocator over 208 slots never gives 256.
    for rule, finished in (("reserve-max", 3), ("power-of-two", 2), ("oracle", 3)):
        small = trace_of((0.0, 150, 1), (0.0, 10, 1), (0.0, 60, 1))
        report = contiguous_simulation(small, EngineConfig(num_blocks=13), TOY, rule).run()
        assert report.num_finished == finished, rule
    assert (
        "would be given 256 of 208"
        in contiguous_simulation(small, EngineConfig(num_blocks=13), TOY, "power-of-two").run().refusals[0]
    )
    with pytest.raises(ConfigError, match="contiguous='magic' is unknown: use one of reserve-max"):
        contiguous_simulation(requests, EngineConfig(), TOY, "magic")
