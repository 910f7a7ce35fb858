"""``batch_invariant=True`` in float32: whatever happens to a request on the way, its tokens and log-probabilities come
out with the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from executor.gpu.stand_in_engine import stand_in_engine

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams
from octavo.model import read_model_config

VOCAB, LENGTH, NEW = 384, 45, 40
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, seed=7, max_tokens=NEW, ignore_eos=True, logprobs=3)


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, VOCAB), k=length)


PROMPT = prompt_of(LENGTH, 0)
OTHERS = [prompt_of(length, length) for length in (3, 90, 17, 33, 64, 1, 50, 20)]

Bits = list[tuple[list[int], list[dict[int, float]]]]


def bits(output: RequestOutput) -> Bits:
    """Everything that must not change."""
    return [(each.token_ids, each.logprobs or []) for each in output.outputs]


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24},
    "gemma3": {"num_hidden_layers": 3, "sliding_window": 10, "sliding_window_pattern": 3},
    "gemma2-int8": {"sliding_window": 24},
}
"""By family; with int8 the model's keys and values are stored so."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(model: str, checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(model.removesuffix("-int8"), **MODELS[model])


STAND_IN = "stand-in"
"""The GPU's executor, on the stand-in for a GPU."""


@pytest.fixture(scope="module", params=["reference", "cpu", STAND_IN])
def engine_of(request: pytest.FixtureRequest, model: str, folder: Path) -> Callable[..., LLMEngine]:
    if request.param == STAND_IN and model != "gemma3":
        pytest.skip("one of both kinds of layers suffices")

    def build(**keywords: Any) -> LLMEngine:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "kv_cache_dtype": "int8" if model.endswith("-int8") else "auto",
            "kernels": request.param if request.param != STAND_IN else "reference",
            "block_size": 4,
            "num_blocks": 400,
            "batch_invariant": True,
            "num_threads": 1,
        }
        settings |= keywords
        if request.param == STAND_IN:
            return stand_in_engine(EngineConfig(model=str(folder), **settings, linear_kind="plain"))
        return LLMEngine(EngineConfig(model=str(folder), **settings))

    return build


@pytest.fixture(scope="module")
def engine(engine_of: Callable[..., LLMEngine]) -> Iterator[LLMEngine]:
    with engine_of() as made:
        yield made


@pytest.fixture(scope="module")
def alone(engine: LLMEngine) -> Bits:
    """The request by itself, from a cold cache."""
    engine.reset_prefix_cache()
    output = engine.generate([PROMPT], DRAWN)[0]
    assert output.metrics.num_cached_tokens == 0
    assert len(set(output.outputs[0].token_ids)) > 10  # noise was drawn: this is no greedy loop
    return bits(output)


def test_batched(engine: LLMEngine, alone: Bits) -> None:
    engine.reset_prefix_cache()
    outputs = engine.generate([*OTHERS[:4], PROMPT, *OTHERS[4:]], DRAWN)
    assert bits(outputs[4]) == alone


def test_prefix_cached(engine: LLMEngine, alone: Bits) -> None:
    engine.generate([PROMPT[:30]], DRAWN)
    output = engine.generate([PROMPT], DRAWN)[0]
    assert output.metrics.num_cached_tokens >= 28
    assert bits(output) == alone
    again = engine.generate([PROMPT], DRAWN)[0]
    assert again.metrics.num_cached_tokens == 44  # all but the last token's block
    assert bits(again) == alone


def test_cached_from_anothers_continuation(engine: LLMEngine, alone: Bits) -> None:
    """Blocks filled by decoding serve a later prompt as well as prefilled ones."""
    engine.reset_prefix_cache()
    first = engine.generate([PROMPT], DRAWN)[0]
    longer = PROMPT + first.outputs[0].token_ids[:20]
    warm = engine.generate([longer], DRAWN)[0]
    assert warm.metrics.num_cached_tokens == 64
    engine.reset_prefix_cache()
    cold = engine.generate([longer], DRAWN)[0]
    assert cold.metrics.num_cached_tokens == 0
    assert bits(warm) == bits(cold)


def test_chunked(engine_of: Callable[..., LLMEngine], alone: Bits) -> None:
    with engine_of(max_num_batched_tokens=7) as engine:
        assert bits(engine.generate([PROMPT], DRAWN)[0]) == alone
        engine.reset_prefix_cache()
        outputs = engine.generate([PROMPT, *OTHERS[:3]], DRAWN)
        assert bits(outputs[0]) == alone


@pytest.fixture(scope="module")
def tight(folder: Path) -> dict[str, Any]:
    """Memory in which one request has room, but not another, more urgent one beside it."""
    step, longest = 16, 90
    groups = read_model_config(folder).layer_groups
    room = sum(group.blocks_for(longest, 4, 2 * step) for group in groups)
    return {"num_blocks": room, "max_model_len": longest, "max_num_batched_tokens": step, "policy": "priority"}


def interrupted(engine: LLMEngine) -> RequestOutput:
    """The request, put out by an urgent one when half of it is done."""
    name = engine.add_request(PROMPT, DRAWN)
    while engine.stats().num_generated_tokens < NEW // 2:
        engine.step()
    engine.add_request(prompt_of(50, 50), DRAWN, priority=-1)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
    assert outputs[name].metrics.num_preemptions > 0
    assert engine.stats().num_swapped_out == outputs[name].metrics.num_swapped_out
    assert engine.stats().num_swapped_in == outputs[name].metrics.num_swapped_in
    return outputs[name]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("caching", [True, False])
def test_preempted(
    engine_of: Callable[..., LLMEngine], tight: dict[str, Any], alone: Bits, depth: int, caching: bool
) -> None:
    with engine_of(**tight, depth=depth, prefix_caching=caching) as engine:
        assert bits(interrupted(engine)) == alone


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("caching", [True, False])
def test_swapped(
    engine_of: Callable[..., LLMEngine], tight: dict[str, Any], alone: Bits, depth: int, caching: bool
) -> None:
    with engine_of(**tight, depth=depth, prefix_caching=caching, swap_space=0.01, preemption="swap") as engine:
        output = interrupted(engine)
        assert output.metrics.num_swapped_out > 0
        assert caching or output.metrics.num_swapped_in == output.metrics.num_swapped_out
        assert bits(output) == alone


def test_a_quarter_of_the_running_swapped_out_and_in(engine_of: Callable[..., LLMEngine]) -> None:
    """Eight run; two of them are put out by urgent work, and come back: no token and no log-probability changes a
    bit, nor does any of the six others'."""
    prompts = [*OTHERS[:7], PROMPT]
    with engine_of() as engine:
        undisturbed = [bits(output) for output in engine.generate(prompts, DRAWN)]
        groups = engine.facts.groups
    blocks = sum(group.blocks_for(len(prompt) + NEW, 4, 1) for group in groups for prompt in prompts)
    small = {"num_blocks": blocks, "policy": "priority", "prefix_caching": False, "max_model_len": 190}
    with engine_of(**small, swap_space=0.01, preemption="swap") as engine:
        names = [engine.add_request(prompt, DRAWN) for prompt in prompts]
        outputs: dict[str, RequestOutput] = {}
        while engine.stats().num_generated_tokens < 8 * NEW // 2:
            engine.step()
        snapshot = engine.memory_snapshot()
        free = snapshot.num_free + snapshot.num_cached
        urgent = engine.add_request(prompt_of(min(4 * (free // len(groups) + 12), 140), 5), DRAWN, priority=-1)
        while engine.has_unfinished():
            outputs |= {output.request_id: output for output in engine.step() if output.finished}
        swapped = [name for name in names if outputs[name].metrics.num_swapped_in]
        assert len(swapped) >= 2
        assert all(outputs[name].metrics.num_swapped_in == outputs[name].metrics.num_swapped_out for name in names)
        assert outputs[urgent].metrics.num_preemptions == 0
        assert [bits(outputs[name]) for name in names] == undisturbed


def test_forked(engine: LLMEngine, alone: Bits) -> None:
    """The first of several siblings is the request alone; each sibling has its own noise."""
    engine.reset_prefix_cache()
    copies = engine.stats().num_copies
    three = bits(engine.generate([PROMPT], DRAWN, n=3)[0])
    # 45 tokens in blocks of 4: the partial one, of each layer group, is copied by two of three
    assert engine.stats().num_copies - copies == 2 * len(engine.facts.groups)
    assert three[0] == alone[0]
    assert len({tuple(tokens) for tokens, _ in three}) == 3
    two = bits(engine.generate([*OTHERS, PROMPT], DRAWN, n=2)[-1])
    assert two == three[:2]


def test_in_flight(engine_of: Callable[..., LLMEngine], alone: Bits) -> None:
    with engine_of(depth=1) as engine:
        outputs = engine.generate([*OTHERS, PROMPT], DRAWN)
        assert bits(outputs[-1]) == alone


def test_static_batching(engine_of: Callable[..., LLMEngine], alone: Bits) -> None:
    with engine_of(batching="static", max_num_seqs=3) as engine:
        outputs = engine.generate([*OTHERS, PROMPT], DRAWN)
        assert bits(outputs[-1]) == alone


def test_prompt_logprobs_too(engine: LLMEngine, engine_of: Callable[..., LLMEngine]) -> None:
    whole = engine.generate([PROMPT], DRAWN, prompt_logprobs=2)[0].prompt_logprobs
    with engine_of(max_num_batched_tokens=7) as other:
        assert other.generate([PROMPT, *OTHERS[:2]], DRAWN, prompt_logprobs=2)[0].prompt_logprobs == whole


@pytest.mark.parametrize("at", [1, 20, 45, 46, 50, 51, None])
def test_forked_at_any_token(engine: LLMEngine, at: int | None) -> None:
    """A fork of a running request, against a fresh one on the same tokens, from a cold cache, with the same noise."""
    engine.reset_prefix_cache()
    name = engine.add_request(PROMPT, DRAWN)
    for _ in range(8):
        engine.step()
    fork = engine.fork_request(name, at)
    request = engine.scheduler.requests[fork]
    tokens = list(request.prompt_token_ids)
    outputs = {}
    while engine.has_unfinished():
        outputs.update({output.request_id: output for output in engine.step()})
    cached = outputs[fork].metrics.num_cached_tokens
    windowed = any(group.window is not None for group in engine.facts.groups)
    if at is None or not windowed:  # further back, blocks have left the window
        assert cached == len(tokens) - 1
    engine.reset_prefix_cache()
    fresh = engine._prepare(tokens, DRAWN)
    fresh.first_index = request.first_index
    alone = engine._run([fresh], None)[0]
    assert alone.metrics.num_cached_tokens == 0
    assert bits(outputs[fork]) == bits(alone)
