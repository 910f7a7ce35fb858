"""What a recorded load is: when requests came, how long they were, and which of them began alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    ``contents`` names its prompt piece by piece (:attr:`Trace.piece` tokens each, the last one perhaps fewer): two
    prompts that begin with the same numbers begin with the same tokens. It is empty where the trace says nothing of
    contents; then no other prompt begins alike.
    """

    arrival: float  #: seconds since the trace's first request
    num_prompt: int  #: tokens
    num_output: int  #: tokens that were generated; 0 for one that failed
    contents: tuple[int, ...] = ()
    priority: int = 0  #: lower is more urgent; read under the policy "priority" alone
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded load, in order of arrival."""

    name: str
    format: str  #: "mooncake" or "azure"
    requests: tuple[TraceRequest, ...]
    piece: int = 512  #: tokens of prompt that a number in ``TraceRequest.contents`` stands for
    num_contents: int = 0  #: the numbers in ``contents`` are smaller

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrival if self.requests else 0.0

    @property
    def longest(self) -> int:
        """Tokens, prompt and output, of the longest request."""
        return max((request.num_prompt + max(1, request.num_output) for request in self.requests), default=0)

    def first(self, count: int) -> Trace:
        """The trace's first ``count`` requests."""
        if count < 1:
            raise ConfigError(f"limit={count} must be at least 1 request")
        return replace(self, requests=self.requests[:count])

    def stretched(self, factor: float) -> Trace:
        """The same requests, ``factor`` times as far apart: 0 lets all of them come at once.

        Raises:
            ConfigError: the factor is negative or not finite.
        """
        if not 0.0 <= factor < float("inf"):
            raise ConfigError(f"time_scale={factor} must be a number from 0 (all at once) upwards")
        return replace(
            self, requests=tuple(replace(request, arrival=request.arrival * factor) for request in self.requests)
        )

    def at_rate(self, rate: float) -> Trace:
        """The same requests, stretched or pressed together so that ``rate`` of them come a second on average.

        Raises:
            ConfigError: the rate is not positive, or the trace is too short to have one.
        """
        if not 0.0 < rate < float("inf"):
            raise ConfigError(f"rate={rate} must be a positive number of requests a second")
        if not self.seconds:
            raise ConfigError(f"rate={rate} cannot be had: all requests of {self.name} come at the same moment")
        return self.stretched((len(self.requests) - 1) / rate / self.seconds)
