"""What is generated does not change by guesses: with ``batch_invariant=True`` in float32, not in a bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams

NEW = 60
FEW = list(range(40, 46))
"""So few different tokens that what was drawn repeats itself every now and then."""

GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
DRAWN = SamplingParams(
    temperature=0.8, top_p=0.95, seed=7, max_tokens=NEW, ignore_eos=True, allowed_token_ids=FEW, logprobs=2
)


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, 384), k=length)


def everything(output: RequestOutput) -> list[Any]:
    return [
        (each.token_ids, each.text, each.logprobs, each.cumulative_logprob, each.finish_reason, each.stop_reason)
        for each in output.outputs
    ]


def varied(greedy: RequestOutput) -> list[SamplingParams]:
    """Every parameter that the tokens of one step could lead astray; ``greedy`` says where text can be made to end."""
    tokens, text = greedy.outputs[0].token_ids, greedy.text
    return [
        GREEDY,
        DRAWN,
        _with(DRAWN, repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.05, logit_bias={41: 1.5}),
        _with(DRAWN, n=3, top_k=4, min_p=0.05, seed=9),
        _with(DRAWN, n=2, best_of=3, seed=10),
        _with(DRAWN, n=1, best_of=3, seed=10, stop=[text[-3:]]),
        _with(GREEDY, stop_token_ids=[tokens[40]], min_tokens=25),
        _with(GREEDY, stop=[text[len(text) // 2 :][:4]], min_tokens=20, logprobs=1),
        _with(GREEDY, stop=[text[len(text) // 2 :][:4]], include_stop_str_in_output=True),
        _with(GREEDY, bad_words=[text[-6:-3]], frequency_penalty=0.01, logprobs=0),
        _with(GREEDY, beam_width=2, n=2, max_tokens=20),
        _with(GREEDY, prompt_logprobs=1, max_tokens=1),
    ]


def _with(params: SamplingParams, **changes: Any) -> SamplingParams:
    fields = {name: getattr(params, name) for name in SamplingParams.__slots__} | changes
    return SamplingParams(**fields)


@pytest.fixture(scope="module", params=[("llama", {}), ("mistral", {"sliding_window": 24})], ids=["llama", "windows"])
def engine_of(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Callable[..., LLMEngine]:
    family, shape = request.param
    folder = checkpoint(family, **shape)

    def build(**keywords: Any) -> LLMEngine:
        settings: dict[str, Any] = {
            "dtype": "float32", "kernels": "cpu", "block_size": 4, "num_blocks": 600, "batch_invariant": True,
            "num_threads": 1,
        }  # fmt: skip
        return LLMEngine(EngineConfig(model=str(folder), **(settings | keywords)))

    return build


PROMPTS = [prompt_of(length, length) for length in (9, 21, 33, 5, 12, 12, 16, 40, 17, 8, 11, 13)]


@pytest.fixture(scope="module")
def wanted(engine_of: Callable[..., LLMEngine]) -> tuple[list[SamplingParams], list[list[Any]]]:
    """Parameters, and what comes of them without a guess."""
    with engine_of() as engine:
        # Where the text of one ends must lie within what repeats itself: the end of a greedy continuation.
        each = [varied(engine.generate([prompt], GREEDY)[0])[i] for i, prompt in enumerate(PROMPTS)]
        return each, [everything(output) for output in engine.generate(PROMPTS, each)]


FREE = {"speculative": "ngram", "ngram_min": 1, "row_cost": 0.0}
"""Rows that cost nothing: every guess is tried."""


@pytest.mark.parametrize(
    "settings",
    [
        FREE,
        FREE | {"depth": 1},
        {"speculative": "ngram", "row_cost": 0.01, "speculative_tokens": 3, "max_num_batched_tokens": 19},
    ],
    ids=["all", "in flight", "few"],
)
def test_every_parameter(
    engine_of: Callable[..., LLMEngine],
    wanted: tuple[list[SamplingParams], list[list[Any]]],
    settings: dict[str, Any],
) -> None:
    params, expected = wanted
    with engine_of(**settings) as engine:
        outputs = engine.generate(PROMPTS, params)
        assert [everything(output) for output in outputs] == expected
        stats = engine.stats()
        assert stats.num_drafted_tokens > stats.num_accepted_tokens > 5
        assert stats.num_drafted_tokens == sum(output.metrics.num_drafted_tokens for output in outputs)
        assert stats.num_accepted_tokens == sum(output.metrics.num_accepted_tokens for output in outputs)
        assert outputs[10].metrics.num_drafted_tokens == 0  # beams
        # What it went through in fewer steps is in the prefix cache like anything else, and right.
        again = engine.generate(PROMPTS, params)
        assert [everything(output) for output in again] == expected
        engine.memory_snapshot()
        engine.scheduler.memory.audit(engine.scheduler.sequences())


@pytest.mark.parametrize("how", ["swap", "recompute"])
@pytest.mark.parametrize("depth", [0, 1])
def test_preempted(engine_of: Callable[..., LLMEngine], how: str, depth: int) -> None:
    """Put out by an urgent one in the middle of it."""
    params = _with(DRAWN, temperature=0.5)
    with engine_of() as engine:
        expected = everything(engine.generate([PROMPTS[2]], params)[0])
        groups = engine.facts.groups
    room = sum(group.blocks_for(100, 4, 32) for group in groups)
    tight = {"num_blocks": room, "max_model_len": 100, "max_num_batched_tokens": 16, "policy": "priority"}
    with engine_of(**tight, **FREE, depth=depth, preemption=how, swap_space=0.01) as engine:
        name = engine.add_request(PROMPTS[2], params)
        while engine.stats().num_generated_tokens < NEW // 2:
            engine.step()
        engine.add_request(prompt_of(60, 50), _with(GREEDY, max_tokens=20), priority=-1)
        outputs: dict[str, RequestOutput] = {}
        while engine.has_unfinished():
            outputs |= {output.request_id: output for output in engine.step() if output.finished}
        metrics = outputs[name].metrics
        assert metrics.num_preemptions > 0
        assert (metrics.num_swapped_out > 0) is (how == "swap")
        assert metrics.num_accepted_tokens > 5
        assert everything(outputs[name]) == expected


def test_forked(engine_of: Callable[..., LLMEngine]) -> None:
    """A fork of a running request, while both are ahead of themselves."""
    runs = []
    for settings in ({}, FREE):
        with engine_of(**settings) as engine:
            name = engine.add_request(PROMPTS[1], GREEDY)
            while len(engine.scheduler.requests[name].sequences[0].tokens) < 51:
                engine.step()
            fork = engine.fork_request(name, 50, _with(DRAWN, temperature=0.3))
            outputs = {}
            while engine.has_unfinished():
                outputs |= {output.request_id: output for output in engine.step() if output.finished}
            runs.append([everything(outputs[each]) for each in (name, fork)])
    assert runs[0] == runs[1]
    assert outputs[fork].metrics.num_accepted_tokens > 0
