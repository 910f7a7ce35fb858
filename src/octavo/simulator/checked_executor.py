"""Two executors on one plan: one says how long it takes, the other whether it is right."""

from __future__ import annotations

from typing import cast

from octavo.errors import EngineError
from octavo.plan import Executor, Handle, ModelFacts, StepPlan, StepResult
from octavo.simulator.oracle import OracleExecutor


class CheckedExecutor:
    """Lets the oracle judge every plan, and answers as the other executor does.

    Args:
        executor: the one whose results and times count.
        oracle: one that samples the same tokens.
    """

    def __init__(self, executor: Executor, oracle: OracleExecutor) -> None:
        self._executor = executor
        self._oracle = oracle

    @property
    def facts(self) -> ModelFacts:
        """The other executor's."""
        return self._executor.facts

    def submit(self, plan: StepPlan) -> tuple[StepResult, Handle]:
        """Judge the plan, then begin it.

        Raises:
            OracleError: the plan is wrong; the message says where.
        """
        return self._oracle.submit(plan), self._executor.submit(plan)

    def collect(self, handle: Handle) -> StepResult:
        """The other executor's result.

        Raises:
            EngineError: the two have sampled different tokens, so that the oracle judges another run.
        """
        judged, begun = cast(tuple[StepResult, Handle], handle)
        result = self._executor.collect(begun)
        for one, other in zip(judged.results, result.results, strict=True):
            if [sample.token for sample in one.samples] != [sample.token for sample in other.samples]:
                raise EngineError(f"step {result.step}: the oracle sampled other tokens than the executor")
        return result

    def close(self) -> None:
        """Close both."""
        self._oracle.close()
        self._executor.close()
