"""Any sequence of additions, steps, withdrawals and stops, over the KV oracle, audited after each.

Hypothesis chooses the actions and shrinks what it finds; ``tests/simulator/test_oracle_fuzz.py`` draws its loads from
seeds and is wider in its configurations. Both prove the same: every read finds exactly its own memory, nothing leaks,
everybody finishes, and everybody's tokens are those that its prefix determines.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle_case import Case

from octavo.config import EVICTIONS, SchedulerConfig
from octavo.plan import LayerGroup
from octavo.request import FinishReason, SamplingParams

EXAMPLES = int(os.environ.get("OCTAVO_FUZZ_MACHINES", "150"))

CONFIGS = st.builds(
    lambda windows, size, tokens, spare, **rest: SchedulerConfig(
        num_blocks=len(windows) * (tokens // size + spare),
        block_size=size,
        groups=tuple(LayerGroup(1, window) for window in windows),
        **rest,
    ),
    windows=st.one_of(
        st.sampled_from([(None,), (None,), (None, None)]),
        st.tuples(st.integers(1, 40)),
        st.tuples(st.none() | st.integers(1, 40), st.integers(1, 40)),
    ),
    size=st.sampled_from([1, 2, 3, 4, 8, 16]),
    tokens=st.sampled_from([20, 40, 60, 90]),
    spare=st.integers(1, 3),
    max_num_seqs=st.sampled_from([1, 2, 4, 8]),
    max_num_batched_tokens=st.sampled_from([1, 2, 5, 16, 64]),
    policy=st.sampled_from(["fcfs", "priority", "srpt", "fair"]),
    victims=st.sampled_from(["rank", "rank", "rank", "lru", "none"]),
    ageing_seconds=st.sampled_from([0.5, 50.0]),
    batching=st.sampled_from(["continuous", "continuous", "continuous", "static"]),
    prefix_caching=st.booleans(),
    host_cache=st.booleans(),
    eviction=st.sampled_from(EVICTIONS),
    depth=st.sampled_from([0, 1]),
    num_host_blocks=st.sampled_from([0, 4, 64]),
    preemption=st.sampled_from(["swap", "auto", "recompute"]),
    page_bytes=st.just(1),
    link_bandwidth=st.just(2.0),
    flops_per_token=st.just(1.0),
    compute_speed=st.sampled_from([0.6, 1.0]),
)

NEW_TOKENS = st.sampled_from([1, 2, 5, 9, 17, 30])
PLAIN = st.builds(
    lambda n, more, **rest: SamplingParams(n=n, best_of=n + more if more else None, **rest),
    n=st.sampled_from([1, 1, 1, 2, 3, 8]),
    more=st.sampled_from([0, 0, 0, 2]),
    max_tokens=NEW_TOKENS,
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
)
BEAMS = st.builds(
    lambda width, n, **rest: SamplingParams(n=min(n, width), beam_width=width, **rest),
    width=st.integers(2, 4),
    n=st.integers(1, 4),
    max_tokens=NEW_TOKENS,
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    early_stopping=st.booleans(),
)
PROMPTS = st.builds(
    lambda stem, length, tail: ([[0] * 40, [0, 1] * 20, [1, 1, 0] * 13][stem][:length] + tail) or [1],
    stem=st.integers(0, 2),
    length=st.integers(0, 39),
    tail=st.lists(st.integers(0, 3), max_size=6),
)


class Loads(RuleBasedStateMachine):
    """A :class:`Case` whose every next action hypothesis chooses."""

    case: Case
    clock = 0.0

    @initialize(config=CONFIGS, failing=st.sampled_from([frozenset(), frozenset(), frozenset({"r1"})]))
    def begin(self, config: SchedulerConfig, failing: frozenset[str]) -> None:
        self.case = Case(config, failing=failing)

    @rule(
        prompt=PROMPTS,
        params=st.one_of(PLAIN, PLAIN, BEAMS),
        priority=st.sampled_from([0, 0, -3, 2]),
        user=st.sampled_from([None, "u", "v"]),
        salt=st.sampled_from([None, None, "a"]),
        stops=st.booleans(),
    )
    def add(
        self, prompt: list[int], params: SamplingParams, priority: int, user: str | None, salt: str | None, stops: bool
    ) -> None:
        before = self.case.scheduler.memory.pool.free_blocks()
        live = list(self.case.scheduler.requests)
        request = self.case.add(
            prompt, params, priority=priority, arrival=self.clock, user=user, salt=salt, stops=stops
        )
        assert self.case.scheduler.memory.pool.free_blocks() == before
        assert list(self.case.scheduler.requests) == live + ([request.id] if request else [])

    @precondition(lambda self: self.case.requests)
    @rule(which=st.integers(0, 20), line=st.integers(0, 7), back=st.integers(0, 30), params=st.one_of(PLAIN, BEAMS))
    def fork(self, which: int, line: int, back: int, params: SamplingParams) -> None:
        parent = list(self.case.requests.values())[which % len(self.case.requests)]
        if not parent.sequences or (parent.params.beam_width > 1 and parent.id in self.case.scheduler.requests):
            return
        seq = parent.sequences[line % len(parent.sequences)]
        at = max(1, len(seq.tokens) - back)
        self.case.add(
            seq.tokens[:at],
            params,
            priority=parent.priority,
            arrival=self.clock,
            user=parent.user,
            salt=parent.salt,
            stops=False,
            fork_of=seq,
        )

    @rule(count=st.integers(1, 6), seconds=st.sampled_from([0.0, 0.3]))
    def step(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.case.step()
        self.clock += seconds

    @precondition(lambda self: self.case.scheduler.requests)
    @rule(which=st.integers(0, 20))
    def abort(self, which: int) -> None:
        live = list(self.case.scheduler.requests)
        self.case.abort(live[which % len(live)])

    @precondition(lambda self: self.case.scheduler.requests)
    @rule(which=st.integers(0, 20), sibling=st.integers(0, 7))
    def stop(self, which: int, sibling: int) -> None:
        """As a stop string in the text does."""
        request = list(self.case.scheduler.requests.values())[which % len(self.case.scheduler.requests)]
        seq = request.live[sibling % len(request.live)]
        if request.params.beam_width == 1 and len(seq.tokens) > seq.num_prompt:
            self.case.scheduler.stop(seq, FinishReason.ABORT, "stopped")  # so its tokens are not expected to be whole

    @rule()
    def reset_prefix_cache(self) -> None:
        self.case.scheduler.memory.reset_prefix_cache()

    @invariant()
    def audits_pass(self) -> None:
        if hasattr(self, "case"):
            self.case.audit()

    def teardown(self) -> None:
        if hasattr(self, "case"):
            self.case.drain()
            self.case.check_outputs()


Loads.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLoads = pytest.mark.fuzz(Loads.TestCase)
