"""The ladder: one load through four configurations of the same scheduler, to see what each idea buys."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from octavo.config import EngineConfig
from octavo.engine import LLMEngine
from octavo.errors import ConfigError
from octavo.presets import PRESETS
from octavo.request import RequestOutput, SamplingParams
from octavo.simulator.cost import Machine
from octavo.simulator.report import Outcome, Percentiles
from octavo.simulator.simulation import simulation
from octavo.simulator.trace import Trace, TraceRequest

URGENT, ORDINARY = 0, 1
"""Priorities of the load's two classes: the lower goes first."""

MOST_MOMENTS = 1200
"""More of them a picture cannot show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A service in small: a few assistants, each with an opening that all its prompts share; questions and answers of
    mixed lengths; requests that come at random, some of them urgent.

    Args:
        requests: how many.
        rate: requests a second, on average (the gaps are exponential: a Poisson process).
        assistants: openings; each request begins with one of them.
        opening: tokens of an opening, a multiple of ``piece``.
        question: least and most tokens that follow it.
        answer: least and most tokens generated.
        urgent: the share of urgent requests.
        piece: tokens in which contents are counted; a multiple of the block size lets whole blocks be shared.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a number is out of range.
    """

    requests: int = 400
    rate: float = 3.0
    assistants: int = 4
    opening: int = 512
    question: tuple[int, int] = (64, 512)
    answer: tuple[int, int] = (64, 512)
    urgent: float = 0.2
    piece: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "assistants", "piece"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 < self.rate < float("inf"):
            raise ConfigError(f"rate={self.rate} must be a positive number of requests a second")
        if not 0.0 <= self.urgent <= 1.0:
            raise ConfigError(f"urgent={self.urgent} must be a share from 0 to 1")
        if self.opening < 0 or self.opening % self.piece:
            raise ConfigError(f"opening={self.opening} must be a multiple of piece={self.piece}")
        for name in ("question", "answer"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ConfigError(f"{name}={low, high} must be a least and a most number of tokens, from 1")

    @property
    def longest(self) -> int:
        """Tokens of the longest request it can draw."""
        return self.opening + self.question[1] + self.answer[1]

    def trace(self) -> Trace:
        """Draw it."""
        rng = random.Random(self.seed)
        shared = self.opening // self.piece
        fresh = self.assistants * shared
        now, requests = 0.0, []
        for place in range(self.requests):
            now += rng.expovariate(self.rate) if place else 0.0
            assistant = rng.randrange(self.assistants)
            question, answer = rng.randint(*self.question), rng.randint(*self.answer)
            own = -(-question // self.piece)
            contents = (*range(assistant * shared, (assistant + 1) * shared), *range(fresh, fresh + own))
            fresh += own
            priority = URGENT if rng.random() < self.urgent else ORDINARY
            requests.append(TraceRequest(now, self.opening + question, answer, contents, priority))
        return Trace("ladder", "drawn", tuple(requests), self.piece, fresh)


@dataclass(frozen=True, slots=True)
class Moment:
    """The memory at a moment, as shares of all of it."""

    seconds: float
    held: float  #: by requests
    filled: float  #: of that, holding a token


@dataclass(slots=True)
class Rung:
    """What became of the load under one configuration. Times in seconds."""

    preset: str
    num_requests: int
    num_finished: int = 0
    num_failed: int = 0  #: for lack of memory, in mid-run
    num_preemptions: int = 0
    num_evicted: int = 0  #: cached blocks that were dropped to make room
    ttft_urgent: Percentiles | None = None  #: time to first token, from arrival
    ttft_ordinary: Percentiles | None = None
    hit_rate: float = 0.0  #: prompt tokens found in memory over prompt tokens, of finished requests
    utilisation: float = 0.0  #: tokens over token slots of held blocks
    output_tokens_per_second: float = 0.0  #: of finished requests
    seconds: float = 0.0
    num_steps: int = 0
    timeline: list[Moment] = field(default_factory=list)
    stride: int = 1  #: steps from one moment of the timeline to the next

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    def watch(self, seconds: float, held: float, filled: float) -> None:
        """Note the memory at a moment; of many moments, evenly chosen ones are kept."""
        if self.num_steps % self.stride == 0:
            self.timeline.append(Moment(seconds, held, filled))
            if len(self.timeline) > MOST_MOMENTS:
                del self.timeline[1::2]
                self.stride *= 2
        self.num_steps += 1

    def count(self, outcomes: list[Outcome], seconds: float) -> None:
        """Fill in what requests tell."""
        done = [outcome for outcome in outcomes if outcome.finished is not None and outcome.failed is None]
        prompts = sum(outcome.request.num_prompt for outcome in done)
        self.num_finished = len(done)
        self.num_failed = sum(outcome.failed is not None for outcome in outcomes)
        self.ttft_urgent = _ttft(done, URGENT)
        self.ttft_ordinary = _ttft(done, ORDINARY)
        self.hit_rate = sum(outcome.num_cached for outcome in done) / prompts if prompts else 0.0
        self.output_tokens_per_second = sum(outcome.num_generated for outcome in done) / seconds if seconds else 0.0
        self.seconds = seconds


def _ttft(outcomes: list[Outcome], priority: int) -> Percentiles | None:
    return Percentiles.of(
        outcome.first_token - outcome.request.arrival
        for outcome in outcomes
        if outcome.request.priority == priority and outcome.first_token is not None
    )


def climb(
    load: Load,
    machine: Machine,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    **fields: Any,
) -> Iterator[Rung]:
    """The four rungs under a virtual clock: the real scheduler, and a machine that is modelled.

    Args:
        load: what to serve.
        machine: how long steps take, and how much memory there is.
        progress: told the preset, how many requests have ended, and of how many.
        fields: of :class:`~octavo.config.EngineConfig`, the same on every rung (``num_blocks``, ``max_num_seqs``).

    Raises:
        ConfigError: a field cannot be honoured.
    """
    trace = load.trace()
    for preset in PRESETS:
        rung = Rung(preset, len(trace.requests))
        replay = simulation(trace, EngineConfig.preset(preset, **fields), machine, watch=rung.watch)
        report = replay.run(None if progress is None else partial(progress, preset))
        rung.count(replay.outcomes, report.seconds)
        rung.num_preemptions = report.num_preemptions
        rung.num_evicted = report.num_evicted
        rung.utilisation = report.utilisation
        yield rung


def climb_for_real(
    load: Load,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    **fields: Any,
) -> Iterator[Rung]:
    """The four rungs with the engine itself, on the wall clock: the load's contents become token ids of the model.

    Args:
        load: what to serve; prompts and answers must fit the model's context.
        progress: told the preset, how many requests have ended, and of how many.
        fields: of :class:`~octavo.config.EngineConfig`, the same on every rung.

    Raises:
        ConfigError: a field cannot be honoured.
        RequestError: the load does not fit the model.
    """
    trace = load.trace()
    for preset in PRESETS:
        with LLMEngine(EngineConfig.preset(preset, **fields)) as engine:
            yield _Run(preset, trace, engine).finish(progress)


class _Run:
    """One rung with the engine itself."""

    def __init__(self, preset: str, trace: Trace, engine: LLMEngine) -> None:
        self.rung = Rung(preset, len(trace.requests))
        self.engine = engine
        self.trace = trace
        self.outcomes = {str(place): Outcome(request) for place, request in enumerate(trace.requests)}
        self.waiting = deque(enumerate(trace.requests))
        self.began = 0.0

    def finish(self, progress: Callable[[str, int, int], None] | None) -> Rung:
        """Serve the whole load."""
        engine, rung, ended = self.engine, self.rung, 0
        self._warm_up()
        self.began = time.monotonic()
        while self.waiting or engine.has_unfinished():
            now = time.monotonic() - self.began
            while self.waiting and self.waiting[0][1].arrival <= now:
                self._add(*self.waiting.popleft())
            if not engine.has_unfinished():
                time.sleep(self.waiting[0][1].arrival - now)
                continue
            for output in engine.step():
                ended += output.finished
                self._take(output)
            snapshot = engine.memory_snapshot()
            slots = len(snapshot.owner) * snapshot.block_size
            held = snapshot.num_used * snapshot.block_size / slots
            rung.watch(time.monotonic() - self.began, held, snapshot.filled_slots / slots)
            if progress is not None:
                progress(rung.preset, ended, rung.num_requests)
        stats = engine.stats()
        rung.num_preemptions, rung.num_evicted = stats.num_preemptions, stats.num_evicted
        rung.utilisation = stats.kv_utilisation
        rung.count(list(self.outcomes.values()), time.monotonic() - self.began)
        return rung

    def _warm_up(self) -> None:
        self.engine.generate([[1] * 16] * 2, max_tokens=4)
        self.engine.reset_prefix_cache()
        self.engine.reset_stats()

    def _add(self, place: int, request: TraceRequest) -> None:
        by_priority = self.engine.config.policy == "priority"
        self.engine.add_request(
            self._prompt(request),
            SamplingParams(max_tokens=request.num_output, ignore_eos=True, seed=place),
            request_id=str(place),
            priority=request.priority if by_priority else 0,
        )

    def _prompt(self, request: TraceRequest) -> list[int]:
        vocab = self.engine.facts.vocab_size
        tokens: list[int] = []
        for content in request.contents:
            rng = random.Random(content)
            tokens += [rng.randrange(1, vocab) for _ in range(self.trace.piece)]
        return tokens[: request.num_prompt]

    def _take(self, output: RequestOutput) -> None:
        outcome, metrics = self.outcomes[output.request_id], output.metrics
        if metrics.first_token is not None:
            outcome.first_token = metrics.first_token - self.began
        if output.finished:
            outcome.finished = time.monotonic() - self.began
            outcome.failed = output.error
            outcome.num_cached = metrics.num_cached_tokens
            outcome.num_preemptions = metrics.num_preemptions
            outcome.num_generated = len(output.outputs[0].token_ids)
