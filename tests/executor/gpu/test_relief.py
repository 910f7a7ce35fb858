"""Memory that runs out in the midst of steps: every request is served all the same, bit by bit as if it had not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_case import assert_clean
from executor.gpu.stand_in import StandIn, StandInOutOfMemoryError
from executor.gpu.stand_in_engine import settings_of, stand_in_engine

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.executor.gpu import relief
from octavo.executor.gpu.graphs import GraphLadder
from octavo.executor.gpu.parts import NO_MEMORY
from octavo.executor.gpu.relief import MemoryRelief

PROMPTS = [random.Random(length).choices(range(2, 384), k=length) for length in (19, 3, 33, 8)]
PARAMS = [
    SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=0.9, seed=1, ignore_eos=True, repetition_penalty=1.3, logprobs=2),
    SamplingParams(max_tokens=9, temperature=0.9, seed=2, ignore_eos=True, prompt_logprobs=1, presence_penalty=0.6),
    SamplingParams(max_tokens=9, temperature=1.0, seed=3, ignore_eos=True, n=3),
]


def everything(outputs: list[Any]) -> list[Any]:
    return [([(o.token_ids, o.logprobs) for o in output.outputs], output.prompt_logprobs) for output in outputs]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("llama")


class Short(StandIn):
    """Out of memory in every so many-th kernel call, until it is told to be of use."""

    every = 0
    calls = 0
    failed = 0

    def launch(self, function: Any, args: Any, kwargs: Any) -> Any:
        if self.every and self.capturing is None:
            self.calls += 1
            if self.calls % self.every == 0:
                self.failed += 1
                raise StandInOutOfMemoryError("out of memory")
        return super().launch(function, args, kwargs)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("every", "graphs"), [(23, True), (29, False), (67, False)])
def test_steps_that_fail_here_and_there_are_done_again(folder: Path, depth: int, every: int, graphs: bool) -> None:
    settings = settings_of(depth=depth, max_num_batched_tokens=29, cuda_graphs=graphs)
    config = EngineConfig(model=str(folder), **settings)
    with LLMEngine(config) as engine:
        expected = everything(engine.generate(PROMPTS, PARAMS))
    device = Short()
    with stand_in_engine(config, device) as engine:
        device.every = every
        assert everything(engine.generate(PROMPTS, PARAMS)) == expected
        assert device.failed > 1
        device.every = 0
        assert_clean(engine)
        assert everything(engine.generate(PROMPTS, PARAMS)) == expected


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_steps_too_large_are_done_in_parts(folder: Path, depth: int, most: int) -> None:
    config = EngineConfig(model=str(folder), **settings_of(depth=depth, max_num_batched_tokens=29))
    with LLMEngine(config) as engine:
        expected = everything(engine.generate(PROMPTS, PARAMS))
    device = StandIn()
    with stand_in_engine(config, device) as engine:
        device.most_rows = most
        assert everything(engine.generate(PROMPTS, PARAMS)) == expected
        assert_clean(engine)


def test_who_cannot_be_served_at_all_fails_alone(folder: Path) -> None:
    config = EngineConfig(model=str(folder), **settings_of(depth=1))
    device = StandIn()
    with stand_in_engine(config, device) as engine:
        device.most_rows = 0
        for output in engine.generate(PROMPTS, PARAMS):
            assert all(one.finish_reason == "error" for one in output.outputs)
            assert output.outputs[0].stop_reason == NO_MEMORY or NO_MEMORY in str(output)
        device.most_rows = None
        assert_clean(engine)
        assert all(one.token_ids for output in engine.generate(PROMPTS, PARAMS) for one in output.outputs)


def test_graphs_are_given_up_before_a_step_is_divided() -> None:
    device, tried = StandIn(), []
    ladder = GraphLadder(device, (1, 2, 4), 2**30)
    for size in (1, 2, 4):
        ladder.run(size, lambda: None)
    found = MemoryRelief(device, ladder)

    def work(fails: int) -> int:
        tried.append(len(ladder.captured))
        if len(tried) <= fails:
            raise StandInOutOfMemoryError("out of memory")
        return len(tried)

    assert found.attempt(lambda: work(1)) == 2
    assert tried == [3, 3]
    tried.clear()
    assert found.attempt(lambda: work(2)) == 3
    assert tried == [3, 3, 0]
    assert ladder.sizes == (1, 4)
    with pytest.raises(StandInOutOfMemoryError):
        found.attempt(lambda: work(99))
    with pytest.raises(ValueError, match="other"):
        found.attempt(lambda: int("other"))
    assert found.reason is None


def test_larger_parts_are_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "_PATIENCE", 3)
    found = MemoryRelief(StandIn(), GraphLadder(StandIn(), (), 0))
    assert found.allows(1000)
    found.limit(1000, "out of memory")
    found.limit(500, "out of memory")
    found.limit(800, "out of memory")  # a part of it was found to be too much already
    assert found.reason == "out of memory"
    assert found.allows(250)
    assert [found.allows(260) for _ in range(5)] == [False] * 4 + [True]


def test_the_trial_is_not_relieved(folder: Path) -> None:
    """What does not fit at the start is said at the start."""
    config = EngineConfig(model=str(folder), **settings_of())
    device = StandIn()
    device.most_rows = 95
    with pytest.raises(
        ValueError, match="did not suffice to compute the largest step: lower max_num_batched_tokens=96"
    ):
        stand_in_engine(config, device)
    stand_in_engine(replace(config, max_num_batched_tokens=95), device).close()
