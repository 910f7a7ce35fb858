"""An executor that computes nothing, and says how long it would have taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from octavo.errors import EngineError
from octavo.plan import Chunk, ChunkResult, Handle, ModelFacts, Sample, StepPlan, StepResult, Want

_NOTHING = ChunkResult()


class CostExecutor:
    """Answers each plan at once, with the seconds that a cost model gives it.

    Args:
        facts: what the scheduler is to know of the machine.
        seconds: the cost model: seconds of a plan.
        token_of: the token that a request (by its id) generates, over and over.
    """

    def __init__(self, facts: ModelFacts, seconds: Callable[[StepPlan], float], token_of: Callable[[str], int]) -> None:
        self.facts = facts
        self._seconds = seconds
        self._token_of = token_of
        self._samples: dict[int, Sample] = {}  # by slot
        self._plain: dict[int, ChunkResult] = {}  # by slot: the result of drawing once

    def submit(self, plan: StepPlan) -> StepResult:
        """Run the plan at once; the handle is its result."""
        for slot in plan.released:
            del self._samples[slot], self._plain[slot]
        for init in plan.init:
            sample = self._samples[init.slot] = Sample(self._token_of(init.request_id))
            self._plain[init.slot] = ChunkResult((sample,))
        plain = self._plain
        results = tuple([plain[chunk.slot] if len(chunk.draws) == 1 else self._rare(chunk) for chunk in plan.chunks])
        return StepResult(plan.step, results, self._seconds(plan))

    def collect(self, handle: Handle) -> StepResult:
        """The result of a submitted plan."""
        return cast(StepResult, handle)

    def close(self) -> None:
        """Nothing to give back."""

    def _rare(self, chunk: Chunk) -> ChunkResult:
        if chunk.want is Want.LOGPROBS:
            raise EngineError("a cost model knows no probabilities, so it cannot search with beams")
        return ChunkResult((self._samples[chunk.slot],) * len(chunk.draws)) if chunk.draws else _NOTHING
