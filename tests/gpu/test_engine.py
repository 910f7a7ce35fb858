"""Whole engines on a real GPU: tokens beside the CPU's, and bits beside their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine_case import assert_clean
from executor.gpu.soak import everything, soak

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

NEW = 40
PROMPTS = [
    "Once upon a time",
    "The king said to his youngest daughter that she must keep her promise, and open the door to the frog. So she went",
    "A",
    "There was once a fox who",
    "In the middle of the forest stood a house, and in the house lived an old woman who had two daughters;",
]
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, seed=7, max_tokens=NEW, ignore_eos=True, logprobs=3)
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.1, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    {"temperature": 1.0, "n": 3},
    {"beam_width": 3, "n": 2},
    {"temperature": 0.8, "logprobs": 4, "prompt_logprobs": 2},
    {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0.0, "logit_bias": {9: 5.0, 11: -3.0}, "min_tokens": 6, "logprobs": 0},
    {"temperature": 1.0, "stop": ["e "]},
]


def build(**changes: Any) -> LLMEngine:
    """The bundled model, its bits not to depend on the batch."""
    settings = {"device": "cuda", "dtype": "float32", "block_size": 16, "num_blocks": 400, "batch_invariant": True}
    return LLMEngine(EngineConfig(**(settings | changes)))


@pytest.fixture(scope="module")
def engine() -> Iterator[LLMEngine]:
    with build() as made:
        yield made


@pytest.fixture(scope="module")
def alone(engine: LLMEngine) -> Any:
    """A request by itself, from a cold cache."""
    engine.reset_prefix_cache()
    return everything(engine.generate([PROMPTS[1]], DRAWN)[0])


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
def test_greedy_tokens_are_the_cpus(depth: int, batch_invariant: bool) -> None:
    """Teacher-forced: each is the reference's best, or within 1e-4 of it."""
    with build(depth=depth, batch_invariant=batch_invariant) as made:
        outputs = made.generate(PROMPTS, temperature=0.0, max_tokens=60)
        assert_clean(made)
    with LLMEngine(EngineConfig(device="cpu", kernels="reference", dtype="float32", num_blocks=400)) as cpu:
        for output in outputs:
            tokens = output.outputs[0].token_ids
            forced = [*output.prompt_token_ids, *tokens]
            scores = cpu.generate([forced], temperature=0.0, max_tokens=1, prompt_logprobs=1)[0].prompt_logprobs
            assert scores is not None
            for token, score in zip(tokens, scores[-len(tokens) :], strict=True):
                assert score is not None
                assert max(score.values()) - score[token] <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_tells_stories(dtype: str) -> None:
    """Sampled by the GPU's own default: nothing fails, and what is likely on the CPU comes."""
    with build(dtype=dtype, batch_invariant=False) as made:
        outputs = made.generate(PROMPTS, temperature=0.0, max_tokens=40, logprobs=1)
        assert_clean(made)
    for output in outputs:
        assert output.outputs[0].cumulative_logprob > -3.0 * len(output.outputs[0].token_ids)


def test_batched(engine: LLMEngine, alone: Any) -> None:
    engine.reset_prefix_cache()
    assert everything(engine.generate(PROMPTS, DRAWN)[1]) == alone


def test_prefix_cached(engine: LLMEngine, alone: Any) -> None:
    output = engine.generate([PROMPTS[1]], DRAWN)[0]
    assert output.metrics.num_cached_tokens >= 16
    assert everything(output) == alone


def test_forked(engine: LLMEngine, alone: Any) -> None:
    engine.reset_prefix_cache()
    (siblings, _) = everything(engine.generate([PROMPTS[1]], DRAWN, n=3)[0])
    assert siblings[0] == alone[0][0]
    assert len({tuple(each[0]) for each in siblings}) == 3


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("graphs", [True, False])
def test_graphs_and_plans_in_flight(alone: Any, depth: int, graphs: bool) -> None:
    with build(depth=depth, cuda_graphs=graphs) as made:
        assert everything(made.generate(PROMPTS, DRAWN)[1]) == alone


def test_chunked(alone: Any) -> None:
    with build(max_num_batched_tokens=7, block_size=16) as made:
        assert everything(made.generate(PROMPTS, DRAWN)[1]) == alone


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"swap_space": 0.1, "preemption": "swap"}], ids=["recomputed", "swapped"])
def test_interrupted(alone: Any, settings: dict[str, Any], depth: int) -> None:
    """Put out by an urgent request when half of it is done."""
    tight = {"num_blocks": 8, "max_model_len": 128, "max_num_batched_tokens": 32, "policy": "priority"}
    with build(**tight, **settings, depth=depth, prefix_caching=False) as made:
        name = made.add_request(PROMPTS[1], DRAWN)
        while made.stats().num_generated_tokens < NEW // 2:
            made.step()
        made.add_request(PROMPTS[4] * 3, DRAWN, priority=-1)
        outputs: dict[str, RequestOutput] = {}
        while made.has_unfinished():
            outputs |= {output.request_id: output for output in made.step() if output.finished}
        assert outputs[name].metrics.num_preemptions > 0
        assert (outputs[name].metrics.num_swapped_in > 0) == bool(settings)
        assert everything(outputs[name]) == alone


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(kind))
def test_every_kind_of_request(engine: LLMEngine, kind: dict[str, Any]) -> None:
    """In a crowd as alone."""
    params = SamplingParams(**({"max_tokens": 20, "seed": 3} | kind))
    together = [everything(output) for output in engine.generate(PROMPTS, params)]
    assert together == [everything(engine.generate([prompt], params)[0]) for prompt in PROMPTS]


def test_drafts() -> None:
    """What is generated does not change by guesses."""
    few = [*range(300, 306)]  # so few different tokens that guesses come true
    params = SamplingParams(temperature=0.8, seed=7, max_tokens=60, logprobs=2, allowed_token_ids=few)
    found = []
    for settings in ({"speculative": "ngram", "ngram_min": 1, "row_cost": 0.0}, {}):
        with build(**settings) as made:
            found.append([everything(output) for output in made.generate(PROMPTS, params)])
            assert (made.stats().num_accepted_tokens > 5) == bool(settings)
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(6))
def test_soak(seed: int) -> None:
    def small(**settings: Any) -> LLMEngine:
        return build(**({"block_size": 4} | settings))

    with build(block_size=4, num_blocks=2000, max_model_len=120) as reference:
        soak(small, reference, seed, [*range(3, 1500)], KINDS, steps=600)


FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24},
    "gemma3": {"num_hidden_layers": 3, "sliding_window": 10, "sliding_window_pattern": 3},
    "qwen2": {},
    "qwen3": {"head_dim": 64, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tokens_of_transformers(checkpoint: Callable[..., Any], family: str) -> None:
    pytest.importorskip("transformers")
    from checkpoints import load_reference

    folder = checkpoint(family, **FAMILIES[family])
    prompts = [random.Random(length).choices(range(2, 384), k=length) for length in (3, 90, 17, 33)]
    with build(model=str(folder), batch_invariant=False) as made:
        outputs = made.generate(prompts, temperature=0.0, max_tokens=40, ignore_eos=True)
    reference = load_reference(folder)
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = [*prompt, *output.outputs[0].token_ids]
        with torch.inference_mode():
            logits = reference(torch.tensor([tokens])).logits[0]
        for position in range(len(prompt), len(tokens)):
            row = logits[position - 1]
            assert row.max() - row[tokens[position]] <= 1e-4
