"""What comes back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class CompletionOutput:
    """One continuation. ``logprobs[i]`` maps token ids at new position i to log-probabilities: the token drawn and
    the alternatives asked for."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, float]] | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds on the engine's clock, and what memory did for the request."""

    arrival: float = 0.0
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0  #: prompt tokens whose KV was in memory already when it was first admitted
    num_shared_blocks: int = 0  #: blocks taken over from the prefix tree, a sibling or a fork's source
    num_copies: int = 0  #: shared blocks copied because it wrote into them (copy-on-write)
    num_preemptions: int = 0
    num_swapped_out: int = 0  #: blocks moved to host memory when it was preempted
    num_swapped_in: int = 0  #: blocks moved back
    num_drafted_tokens: int = 0  #: guessed and verified (``speculative``)
    num_accepted_tokens: int = 0  #: those of them that equalled the token drawn


@dataclass(slots=True)
class RequestOutput:
    """All that is known of a request so far. ``outputs`` are in order of index (or, for beams and best_of, of rank)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[dict[int, float] | None] | None = None
    error: str | None = None  #: what failed, where ``finish_reason`` is "error"

    @property
    def text(self) -> str:
        """The first output's text."""
        return self.outputs[0].text if self.outputs else ""
