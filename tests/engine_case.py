"""Engines for tests: over an executor that proves every read of memory, and the proof that one is left clean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from octavo import EngineConfig, LLMEngine, RequestOutput
from octavo.plan import Executor, ModelFacts, StepPlan, StepResult
from octavo.simulator.oracle import OracleExecutor


class Wrapped:
    """An executor around another, to be overridden; ``facts`` may be changed."""

    def __init__(self, inner: Executor, **facts: Any) -> None:
        self.inner = inner
        self.facts: ModelFacts = dataclasses.replace(inner.facts, **facts)

    def submit(self, plan: StepPlan) -> Any:
        return self.inner.submit(plan)

    def collect(self, handle: Any) -> StepResult:
        return self.inner.collect(handle)

    def close(self) -> None:
        self.inner.close()


def oracle_engine(
    folder: Path, *, executor: type[Wrapped] = Wrapped, failing: frozenset[str] = frozenset(), **config: Any
) -> LLMEngine:
    """An engine whose model is make-believe and whose memory is checked; ``folder`` gives the tokenizer."""
    settings = EngineConfig(
        model=str(folder), **({"block_size": 4, "num_blocks": 60, "max_num_batched_tokens": 32} | config)
    )
    oracle = OracleExecutor(
        settings.num_blocks or 60, settings.block_size, vocab_size=384, max_model_len=240, failing=failing
    )
    return LLMEngine(settings, executor=executor(oracle))


def finish(engine: LLMEngine) -> dict[str, RequestOutput]:
    """Step until nothing is left; the last output of each request that ended."""
    ended = {}
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                ended[output.request_id] = output
    return ended


def assert_clean(engine: LLMEngine) -> None:
    """Nothing is live, queued, held or half delivered."""
    for _ in range(2):  # one collects what is in flight, the next carries the last releases to the executor
        engine.step()
    scheduler = engine.scheduler
    assert not engine.has_unfinished()
    assert not scheduler.requests
    assert not scheduler.residency.running
    assert not scheduler.residency.waiting
    assert not list(scheduler.sequences())
    assert not scheduler.residency.released
    scheduler.memory.audit([])
    assert scheduler.memory.num_free == engine.facts.num_blocks
    assert not engine._builder._texts
    executor: Any = engine._executor
    if isinstance(executor, Wrapped):
        assert not executor.inner.slots  # type: ignore[attr-defined]
    elif isinstance(executor, OracleExecutor):
        assert not executor.slots
    else:
        assert (executor._slots.seq_id == -1).all()
