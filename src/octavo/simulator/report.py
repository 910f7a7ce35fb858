"""What a replay found out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from octavo.config import SchedulerConfig
from octavo.simulator.meter import Meter
from octavo.simulator.trace import Trace, TraceRequest


@dataclass(slots=True)
class Outcome:
    """What became of one request; moments in seconds on the virtual clock."""

    request: TraceRequest
    refused: str | None = None  #: why it could never be served
    failed: str | None = None  #: why it ended in mid-run
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_generated: int = 0
    num_cached: int = 0  #: prompt tokens found in the prefix cache
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a time in seconds, over the requests that have it."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """None where there is no value."""
        numbers = np.fromiter(values, np.float64)
        if not len(numbers):
            return None
        p50, p90, p99 = np.percentile(numbers, (50, 90, 99))
        return cls(float(numbers.mean()), float(p50), float(p90), float(p99))


@dataclass(frozen=True, slots=True)
class Report:
    """A replay in numbers. Times are the virtual clock's; shares of memory are averages over time."""

    trace: str
    num_requests: int
    num_finished: int
    num_refused: int
    num_failed: int  #: in mid-run, for lack of memory
    seconds: float  #: from the first arrival to the end of the last step
    num_prompt_tokens: int  #: of finished requests, as the next two
    num_output_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int  #: put through the model, recomputed ones included
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float  #: prompts and outputs
    busy: float  #: the share of the time in which a step ran
    ttft: Percentiles | None  #: time to first token
    tpot: Percentiles | None  #: time per output token after the first
    latency: Percentiles | None  #: from arrival to the last token
    queued: Percentiles | None  #: from arrival to first being resident
    token_hit_rate: float  #: cached prompt tokens over prompt tokens
    block_hit_rate: float  #: the same in blocks, a last partial one counted
    utilisation: float  #: tokens over token slots of held memory
    held: float  #: held memory over all memory
    filled: float  #: tokens over all memory
    peak_held: float
    resident: float  #: requests that hold memory
    peak_resident: int
    num_steps: int
    num_preemptions: int
    num_evicted: int  #: cached blocks
    num_copies: int  #: blocks, as the next two
    num_swapped_out: int
    num_swapped_in: int
    refusals: tuple[str, ...]  #: why, each once

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def of(cls, trace: Trace, config: SchedulerConfig, outcomes: list[Outcome], meter: Meter, seconds: float) -> Report:
        """Put the numbers together."""
        done = [outcome for outcome in outcomes if outcome.finished is not None and outcome.failed is None]
        size = config.block_size
        prompt = sum(outcome.request.num_prompt for outcome in done)
        output = sum(outcome.num_generated for outcome in done)
        cached = sum(outcome.num_cached for outcome in done)
        refused = [outcome.refused for outcome in outcomes if outcome.refused is not None]
        return cls(
            trace=trace.name,
            num_requests=len(outcomes),
            num_finished=len(done),
            num_refused=len(refused),
            num_failed=sum(outcome.failed is not None for outcome in outcomes),
            seconds=seconds,
            num_prompt_tokens=prompt,
            num_output_tokens=output,
            num_cached_tokens=cached,
            num_computed_tokens=meter.num_computed_tokens,
            requests_per_second=_over(len(done), seconds),
            output_tokens_per_second=_over(output, seconds),
            total_tokens_per_second=_over(prompt + output, seconds),
            busy=_over(meter.busy, seconds),
            ttft=Percentiles.of(_since_arrival(outcome, outcome.first_token) for outcome in done),
            tpot=Percentiles.of(_per_token(outcome) for outcome in done if outcome.num_generated > 1),
            latency=Percentiles.of(_since_arrival(outcome, outcome.finished) for outcome in done),
            queued=Percentiles.of(_since_arrival(outcome, outcome.first_scheduled) for outcome in done),
            token_hit_rate=_over(cached, prompt),
            block_hit_rate=_over(
                sum(outcome.num_cached // size for outcome in done),
                sum(-(-outcome.request.num_prompt // size) for outcome in done),
            ),
            utilisation=_over(meter.filled_time, meter.held_time),
            held=_over(meter.held_time, meter.capacity_time),
            filled=_over(meter.filled_time, meter.capacity_time),
            peak_held=meter.peak_held,
            resident=_over(meter.resident_time, meter.busy),
            peak_resident=meter.peak_resident,
            num_steps=meter.num_steps,
            num_preemptions=meter.num_preempted,
            num_evicted=meter.num_evicted,
            num_copies=meter.num_copies,
            num_swapped_out=meter.num_swapped_out,
            num_swapped_in=meter.num_swapped_in,
            refusals=tuple(dict.fromkeys(refused)),
        )


def _since_arrival(outcome: Outcome, moment: float | None) -> float:
    return (moment or 0.0) - outcome.request.arrival


def _per_token(outcome: Outcome) -> float:
    return ((outcome.finished or 0.0) - (outcome.first_token or 0.0)) / (outcome.num_generated - 1)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
