"""A trace through the real scheduler, under a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from octavo.config import SchedulerConfig
from octavo.errors import EngineError, RequestError, RequestTooLargeError
from octavo.plan import Executor, Handle, StepPlan, StepResult
from octavo.request import Request, SamplingParams, Sequence
from octavo.scheduler import Scheduler
from octavo.simulator.clock import VirtualClock
from octavo.simulator.meter import Meter, Usage
from octavo.simulator.prompt_tokens import PromptTokens
from octavo.simulator.report import Outcome, Report
from octavo.simulator.trace import Trace

_IDLE_LIMIT = 4  # a step without chunks may release what the next one needs; more in a row would go on for ever


class Planner(Protocol):
    """What the loop asks of a scheduler."""

    @property
    def config(self) -> SchedulerConfig:
        """What it was made with."""

    def has_unfinished(self) -> bool:
        """Whether a request is live."""

    def add(self, request: Request) -> None:
        """Take a request in, or refuse it."""

    def schedule(self) -> StepPlan:
        """The next step's plan."""

    def commit(self, plan: StepPlan, result: StepResult) -> list[Sequence]:
        """Take in what a plan brought."""


class Recorder(Protocol):
    """Writes plans down."""

    def begin(self, config: SchedulerConfig) -> None:
        """Take the configuration."""

    def write(self, plan: StepPlan) -> None:
        """Take a plan."""


class _InFlight(NamedTuple):
    plan: StepPlan
    handle: Handle
    submitted: float
    usage: Usage


class Replay:
    """Runs one trace: requests are admitted when they are due on the clock, steps last as long as the executor says,
    time without work is skipped. ``config.depth`` plans are in flight beside the one being built, as in the engine.

    Args:
        trace: the load.
        scheduler: the real one, or a baseline with its methods.
        executor: says how long a plan takes; it must be fresh.
        usage: how the scheduler's memory is filled at the moment.
        recorder: is given every plan.
        audit: called now and then, between steps, to raise an error if anything is wrong.

    Raises:
        EngineError: the scheduler cannot go on though requests are live.
    """

    def __init__(
        self,
        trace: Trace,
        scheduler: Planner,
        executor: Executor,
        usage: Callable[[], Usage],
        *,
        recorder: Recorder | None = None,
        audit: Callable[[], None] | None = None,
    ) -> None:
        self.trace = trace
        self.clock = VirtualClock()
        self.meter = Meter()
        self.outcomes: list[Outcome] = [Outcome(request) for request in trace.requests]
        self._scheduler = scheduler
        self._executor = executor
        self._usage = usage
        self._recorder = recorder
        self._audit = audit
        self._tokens = PromptTokens(trace)
        self._arrived = 0
        self._ended = 0
        self._in_flight: deque[_InFlight] = deque()
        self._idle = 0
        if recorder is not None:
            recorder.begin(scheduler.config)

    @property
    def config(self) -> SchedulerConfig:
        """The scheduler's."""
        return self._scheduler.config

    def run(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Replay the whole trace. ``progress`` is told how many requests have ended, of how many."""
        total = len(self.outcomes)
        while self.step():
            if progress is not None:
                progress(self._ended, total)
        if self._audit is not None:
            self._audit()
        return Report.of(self.trace, self.config, self.outcomes, self.meter, self.clock.now)

    def step(self) -> bool:
        """One turn of the loop; False when everything is done."""
        self._admit_due()
        if not self._scheduler.has_unfinished() and not self._in_flight:
            if self._arrived == len(self.outcomes):
                return False
            self.clock.wait_until(self.trace.requests[self._arrived].arrival)
            return True
        plan = self._scheduler.schedule()
        if self._recorder is not None:
            self._recorder.write(plan)
        usage = self._usage()
        self._in_flight.append(_InFlight(plan, self._executor.submit(plan), self.clock.now, usage))
        while len(self._in_flight) > (self.config.depth if plan.chunks else 0):
            self._collect(self._in_flight.popleft())
        self._idle = 0 if plan.chunks else self._idle + 1
        if self._idle == _IDLE_LIMIT:
            raise EngineError("requests are live, but the scheduler plans nothing: a bug in Octavo; please report it")
        if self._audit is not None and plan.step % 64 == 0:
            self._audit()
        return True

    def _admit_due(self) -> None:
        requests, now = self.trace.requests, self.clock.now
        while self._arrived < len(requests) and requests[self._arrived].arrival <= now:
            place = self._arrived
            self._arrived += 1
            try:
                self._scheduler.add(self._request(place))
            except RequestError as error:
                self.outcomes[place].refused = str(error)
                self._ended += 1

    def _request(self, place: int) -> Request:
        entry = self.trace.requests[place]
        length = max(1, entry.num_output)
        if entry.num_prompt + length > self.config.max_model_len:
            raise RequestTooLargeError(
                f"a request of {entry.num_prompt} + {length} tokens exceeds the context served, which is "
                f"{self.config.max_model_len} (max_model_len, or what the memory holds)"
            )
        return Request(
            str(place),
            self._tokens.prompt(place),
            SamplingParams(max_tokens=length),
            priority=entry.priority,
            arrival=entry.arrival,
            user=entry.user,
            max_new_tokens=length,
        )

    def _collect(self, step: _InFlight) -> None:
        plan = step.plan
        result = self._executor.collect(step.handle)
        began = self.clock.finish(step.submitted, result.elapsed)
        now = self.clock.now
        for init in plan.init:
            outcome = self.outcomes[int(init.request_id)]
            if outcome.first_scheduled is None:
                outcome.first_scheduled = began
        for seq in self._scheduler.commit(plan, result):
            request = seq.request
            if request.first_token is None:
                request.first_token = now
            if seq.finish_reason is not None:
                self._end(request, now)
        self.meter.count(plan, result.elapsed, step.usage)

    def _end(self, request: Request, now: float) -> None:
        self._ended += 1
        outcome = self.outcomes[int(request.id)]
        outcome.first_token, outcome.finished = request.first_token, now
        outcome.failed = request.failure
        outcome.num_cached = request.num_cached
        outcome.num_preemptions = request.num_preemptions
        outcome.num_generated = len(request.sequences[0].tokens) - len(request.prompt_token_ids)


def paged_usage(scheduler: Scheduler) -> Usage:
    """How the block pool is filled: what is held and not filled is the end of each table."""
    memory = scheduler.memory
    size, empty, resident = memory.block_size, 0, 0
    for request in scheduler.residency.running:
        resident += 1
        for seq in request.live:
            for table in seq.tables:
                empty += len(table.blocks) * size - seq.num_scheduled
    held = (memory.pool.num_blocks - memory.num_free) * size
    return Usage(memory.pool.num_blocks * size, held, max(0, held - empty), resident)
