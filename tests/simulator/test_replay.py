"""Replay: the clock, the books, and the oracle underneath."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from trace_case import random_trace

from octavo.config import BATCHINGS, EVICTIONS, POLICIES, EngineConfig
from octavo.errors import ConfigError, EngineError
from octavo.plan import StepPlan
from octavo.recorder import RunLog, read_log
from octavo.simulator.cost import MACHINES, LinearCost, Machine, machine
from octavo.simulator.report import Report
from octavo.simulator.simulation import simulation
from octavo.simulator.trace import Trace, TraceRequest

COST = LinearCost(step=1.0, prefill_token=0.01, decode_sequence=0.1, context_token=0.001)
TOY = Machine(about="round numbers", cost=COST, kv_token_bytes=2, kv_bytes=2 * 16 * 20, max_model_len=1000)


class Plans:
    """A recorder that keeps them."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def begin(self, config: object) -> None:
        self.config = config

    def write(self, plan: StepPlan) -> None:
        self.plans.append(plan)


def trace_of(*requests: tuple[float, int, int]) -> Trace:
    return Trace("t", "azure", tuple(TraceRequest(*request) for request in requests))


def replay(trace: Trace, *, check: bool = False, on: Machine = TOY, **fields: object) -> tuple[Report, list[StepPlan]]:
    recorder = Plans()
    report = simulation(trace, EngineConfig(**fields), on, check=check, recorder=recorder).run()
    return report, recorder.plans


def test_a_request_alone_takes_what_the_cost_says() -> None:
    run = simulation(trace_of((0.0, 20, 3), (100.0, 1, 1)), EngineConfig(), TOY)
    report = run.run()
    first, second = run.outcomes
    assert first.first_token == pytest.approx(1 + 20 * 0.01)
    assert first.finished == pytest.approx(1.2 + (1.1 + 0.021) + (1.1 + 0.022))
    assert first.num_generated == 3
    assert second.first_scheduled == 100.0  # the time in between is skipped
    assert report.seconds == second.finished == pytest.approx(100 + 1.1 + 0.001)
    assert report.busy == pytest.approx((1.2 + 1.121 + 1.122 + 1.101) / report.seconds)
    assert report.ttft is not None
    assert report.ttft.p50 == pytest.approx((1.2 + 1.101) / 2)
    assert report.tpot is not None
    assert report.tpot.mean == pytest.approx((1.121 + 1.122) / 2)


def test_guesses_about_texts_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ConfigError, match="speculative='ngram' cannot be simulated: a trace holds no texts"):
        simulation(trace_of((0.0, 20, 3)), EngineConfig(speculative="ngram"), TOY)


def test_with_a_plan_in_flight_an_arrival_is_seen_one_step_later() -> None:
    trace = trace_of((0.0, 10, 5), (0.5, 10, 1))
    waits = []
    for depth in (0, 1):
        run = simulation(trace, EngineConfig(depth=depth), TOY)
        run.run()
        waits.append([outcome.first_scheduled for outcome in run.outcomes])
    prefill, decode = 1.1, 1.1 + 0.011
    assert waits[0] == [0.0, pytest.approx(prefill)]
    assert waits[1] == [0.0, pytest.approx(prefill + decode)]  # the second plan was made before the first one ran


def test_time_is_used_up_by_everything_a_plan_does() -> None:
    cost = LinearCost(
        step=1, prefill_token=10, decode_sequence=100, context_token=1000, attended_pair=10_000,
        copied_byte=100_000, swapped_byte=1_000_000, transfer=10_000_000,
    )  # fmt: skip
    run = simulation(trace_of((0.0, 3, 2), (0.0, 2, 1)), EngineConfig(), TOY)
    plan = run._scheduler.schedule()
    assert cost.seconds(plan, 7) == 0.0
    run._admit_due()
    plan = run._scheduler.schedule()
    assert [chunk.count for chunk in plan.chunks] == [3, 2]
    assert cost.seconds(plan, 7) == 1 + 5 * 10 + (6 + 3) * 10_000
    run._scheduler.commit(plan, run._executor.collect(run._executor.submit(plan)))
    plan = run._scheduler.schedule()
    assert cost.seconds(plan, 7) == 1 + 100 + 4 * 1000
    plan = replace(plan, copies=((0, 1, 2),), swap_out=((1, 2),), swap_in=((3, 4), (5, 6)))  # type: ignore[arg-type]
    assert cost.seconds(plan, 7) == 1 + 100 + 4 * 1000 + 7 * 100_000 + 3 * (7_000_000 + 10_000_000)


def test_equal_beginnings_share_blocks() -> None:
    contents = ((0, 1, 2), (0, 1, 3), (4, 5, 6))
    requests = tuple(TraceRequest(100.0 * i, 90, 4, each) for i, each in enumerate(contents))
    trace = Trace("t", "mooncake", requests, piece=32, num_contents=7)
    for size in (1, 2, 4, 8, 16, 32):
        report, _ = replay(trace, block_size=size, num_blocks=400 // size, check=True)
        assert report.num_cached_tokens == 64
        assert report.token_hit_rate == pytest.approx(64 / 270)
        assert report.block_hit_rate == pytest.approx(64 // size / (3 * -(-90 // size)))
        assert report.num_computed_tokens == 3 * 93 - 64
    assert replay(trace, prefix_caching=False)[0].num_cached_tokens == 0
    assert replay(trace, prefix_caching=False, block_size=48, num_blocks=30)[0].num_finished == 3
    for size in (48, 64):
        with pytest.raises(ConfigError, match=f"block_size={size} does not divide the 32 tokens"):
            replay(trace, block_size=size)


def test_a_repeated_partial_piece_is_shared_block_by_block() -> None:
    requests = (TraceRequest(0.0, 40, 2, (0, 1)), TraceRequest(50.0, 40, 2, (0, 1)))
    trace = Trace("t", "mooncake", requests, piece=32, num_contents=2)
    assert replay(trace, block_size=32)[0].num_cached_tokens == 32
    assert replay(trace, block_size=4)[0].num_cached_tokens == 36  # one token at least is computed


def test_what_can_never_fit_is_refused_and_the_others_go_on() -> None:
    report, _ = replay(trace_of((0.0, 400, 1), (0.0, 30, 3), (0.0, 310, 60)))
    assert (report.num_finished, report.num_refused) == (1, 2)
    assert len(report.refusals) == 2
    assert "a request of 400 + 1 tokens exceeds the context served, which is 320" in report.refusals[0]
    report, _ = replay(trace_of((0.0, 60, 4), (0.0, 60, 5)), max_model_len=64)
    assert (report.num_finished, report.num_refused) == (1, 1)
    report, _ = replay(trace_of((0.0, 400, 1)))
    assert (report.num_finished, report.ttft, report.output_tokens_per_second) == (0, None, 0.0)


def random_fields(rng: random.Random) -> dict[str, object]:
    size = rng.choice([1, 2, 4, 8, 16])
    return {
        "block_size": size,
        "num_blocks": rng.choice([160, 240, 1000]) // size,
        "max_num_seqs": rng.choice([1, 3, 16]),
        "max_num_batched_tokens": rng.choice([8, 50, 500]),
        "policy": rng.choice(POLICIES),
        "batching": rng.choice(BATCHINGS),
        "prefix_caching": rng.random() < 0.8,
        "depth": rng.choice([0, 1]),
        "eviction": rng.choice(EVICTIONS),
        "swap_space": rng.choice([0.0, 2 * 64 / 2**30, 1e-3]),  # GiB: none, 64 tokens, plenty
        "preemption": rng.choice(["auto", "swap", "recompute"]),
    }


@pytest.mark.parametrize("seed", range(24))
def test_random_traces_keep_the_books_and_the_oracle_content(seed: int) -> None:
    rng = random.Random(seed)
    trace, fields = random_trace(rng), random_fields(rng)
    run = simulation(trace, EngineConfig(**fields), TOY, check=True, recorder=(kept := Plans()))
    now = 0.0
    while run.step():
        assert run.clock.now >= now
        now = run.clock.now
    report = run.run()
    assert report.num_finished + report.num_refused == len(trace.requests)
    assert report.num_output_tokens == sum(
        max(1, outcome.request.num_output) for outcome in run.outcomes if outcome.refused is None
    )
    for outcome in run.outcomes:
        if outcome.refused is None:
            assert outcome.first_scheduled is not None
            assert outcome.request.arrival <= outcome.first_scheduled < outcome.first_token <= outcome.finished
    # What is computed is every token but each request's last, less what was found; and, where blocks were lost, what
    # was lost and is not found again.
    once = sum(
        outcome.request.num_prompt - outcome.num_cached + outcome.num_generated - 1
        for outcome in run.outcomes
        if outcome.refused is None
    )
    assert report.num_computed_tokens == sum(plan.num_tokens for plan in kept.plans)
    if not report.num_preemptions:
        assert report.num_computed_tokens == once
    assert report.num_evicted == sum(len(plan.evicted) for plan in kept.plans)
    assert 0 < report.filled <= report.held <= report.peak_held <= 1
    assert report.utilisation == pytest.approx(report.filled / report.held)
    assert 0 < report.resident <= report.peak_resident <= fields["max_num_seqs"]
    again, plans = replay(trace, **fields)  # without the oracle, too, it is the same run
    assert plans == kept.plans
    assert again == report


def test_preemption_is_among_what_was_tried() -> None:
    reports = []
    for seed in range(24):
        rng = random.Random(seed)
        trace, fields = random_trace(rng), random_fields(rng)
        reports.append(replay(trace, **fields)[0])
    assert sum(report.num_preemptions > 0 for report in reports) > 3
    assert sum(report.num_swapped_in > 0 for report in reports) > 0


def test_the_run_log_holds_the_run(tmp_path: Path) -> None:
    trace = random_trace(random.Random(5))
    _, plans = replay(trace)
    with RunLog(tmp_path / "run.jsonl") as log:
        simulation(trace, EngineConfig(), TOY, recorder=log).run()
    header, logged = read_log(tmp_path / "run.jsonl")
    assert header.config["num_blocks"] == 20
    assert list(logged) == plans


def test_progress_reaches_the_end() -> None:
    told = []
    simulation(random_trace(random.Random(1)), EngineConfig(), TOY).run(lambda *state: told.append(state))
    assert told == sorted(told)
    assert told[-1] == (30, 30)


def test_a_scheduler_that_plans_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = simulation(trace_of((0.0, 5, 5)), EngineConfig(), TOY)
    monkeypatch.setattr(run._scheduler, "schedule", lambda: StepPlan(0, ()))
    monkeypatch.setattr(run._scheduler, "commit", lambda plan, result: [])
    with pytest.raises(EngineError, match="plans nothing"):
        run.run()


def test_machines_and_their_numbers() -> None:
    for name, known in MACHINES.items():
        report, _ = replay(trace_of((0.0, 100, 10), (0.0, 50, 3)), on=machine(name))
        assert report.num_finished == 2, known.about
    changed = machine("h100-8b", kv_bytes=2**30, numbers={"step": 0.5})
    assert (changed.kv_bytes, changed.cost.step) == (2**30, 0.5)
    assert changed.cost.prefill_token == MACHINES["h100-8b"].cost.prefill_token
    for call, says in [
        (lambda: machine("abacus"), "cost='abacus' is unknown: use one of rtx4090-8b"),
        (lambda: machine("h100-8b", kv_bytes=0), "0 bytes"),
        (lambda: machine("h100-8b", numbers={"stepp": 1}), "did you mean 'step'"),
        (lambda: machine("h100-8b", numbers={"step": -1}), "step=-1"),
        (lambda: machine("h100-8b", numbers={"step": float("nan")}), "step=nan"),
        (lambda: replay(trace_of((0.0, 1, 1)), on=machine("h100-8b", kv_bytes=1000)), "hold no block of 16"),
    ]:
        with pytest.raises(ConfigError, match=says):
            call()
