"""Sixty-four prompts at once through the whole engine, beside transformers, for every family and odd shape.

The rule is teacher-forced: transformers computes each finished sequence once, and at every new position our token must
be the best of its logits, unless its two best lie within 1e-4 of each other. Such ties are counted, and must be rare.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load_reference

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams

VOCAB = 384
PROMPTS = 64
NEW = 64
TIE = 1e-4
TIES_ALLOWED = 0.001


def scaled(**rope: Any) -> dict[str, Any]:
    """Scaling from a trained context of 32, so that most positions lie beyond it."""
    return {"max_position_embeddings": 256, "rope_parameters": {"rope_theta": 10_000.0, **rope}}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
TWO_WIDE_HEADS = {"hidden_size": 160, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, GQA 3:1": ("llama", {}),
    "llama tied, heads of 80": ("llama", {**TWO_WIDE_HEADS, "tie_word_embeddings": True}),
    "llama linear, heads of 48": ("llama", {"head_dim": 48, **scaled(rope_type="linear", factor=4.0)}),
    "llama llama3, tied": ("llama", {"tie_word_embeddings": True, **scaled(**LLAMA3)}),
    "llama yarn, no GQA": ("llama", {"num_key_value_heads": 6, **scaled(**YARN)}),
    "mistral, window 24": ("mistral", {"sliding_window": 24}),
    "qwen2, biases, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, upper layers windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3, heads of 48 unlike hidden / heads": ("qwen3", {"head_dim": 48}),
    "qwen3, layers of both kinds": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 17,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma2, window 24": ("gemma2", {"num_hidden_layers": 4, "sliding_window": 24}),
    "gemma2, heads of 256, untied": (
        "gemma2",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 19}
        | {"tie_word_embeddings": False},
    ),
    "gemma3, five windowed to one": (
        "gemma3",
        {"num_hidden_layers": 7, "sliding_window": 16, "sliding_window_pattern": 6},
    ),
    "gemma3, linear on its full layers": (
        "gemma3",
        {
            "num_hidden_layers": 3,
            "sliding_window": 21,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
            },
        },
    ),
    "gemma3 with vision, text alone": ("gemma3 with vision", {"sliding_window": 30}),
}


def prompts_of(count: int, longest: int, seed: int = 0, lengths: Iterable[int] = ()) -> list[list[int]]:
    """Random prompts of mixed lengths; some begin alike, so that prefixes are shared."""
    rng = random.Random(seed)
    chosen = list(lengths) or [rng.randint(1, longest) for _ in range(count)]
    stem = rng.choices(range(2, VOCAB), k=longest)
    made = []
    for place, length in enumerate(chosen):
        prompt = rng.choices(range(2, VOCAB), k=length)
        if place % 4 == 0:
            prompt = [*stem[: length * 2 // 3], *prompt][:length]
        made.append(prompt)
    return made


def generate(folder: Path, kernels: str, prompts: list[list[int]], **config: Any) -> tuple[list[RequestOutput], Any]:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "kernels": kernels,
        "num_blocks": 700,
        "max_num_batched_tokens": 80,
        "num_threads": 1,  # a tiny model on a busy machine: threads would only wait for one another
    }
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, logprobs=0)
    with LLMEngine(EngineConfig(model=str(folder), **(settings | config))) as engine:
        return engine.generate(prompts, params), engine.stats()


def check(output: RequestOutput, logits: torch.Tensor) -> int:
    """Hold one output to the reference's logits at its new positions ``[NEW, VOCAB]``; returns its ties."""
    completion = output.outputs[0]
    assert len(completion.token_ids) == NEW
    assert completion.finish_reason == "length"
    ours = torch.tensor(completion.token_ids)
    best = logits.topk(2, dim=-1).values
    chosen = logits.gather(1, ours[:, None])[:, 0]
    tied = best[:, 0] - best[:, 1] <= TIE
    wrong = (ours != logits.argmax(-1)) & ~tied
    assert not wrong.any(), f"request {output.request_id}: positions {wrong.nonzero().flatten().tolist()}"
    assert (best[:, 0] - chosen <= TIE).all()
    logprobs = torch.log_softmax(logits, -1).gather(1, ours[:, None])[:, 0]
    reported = torch.tensor([entry[token] for entry, token in zip(completion.logprobs, ours.tolist(), strict=True)])
    torch.testing.assert_close(reported, logprobs, atol=1e-4, rtol=0)
    assert completion.cumulative_logprob == pytest.approx(float(logprobs.sum()), abs=NEW * 1e-4)
    return int((ours != logits.argmax(-1)).sum())


@torch.inference_mode()
def compare(folder: Path, outputs: list[RequestOutput]) -> None:
    reference = load_reference(folder)
    ties = 0
    for output in outputs:
        ids = output.prompt_token_ids + output.outputs[0].token_ids
        logits = reference(torch.tensor([ids[:-1]])).logits[0]
        ties += check(output, logits[len(output.prompt_token_ids) - 1 :])
    print(f"{ties} ties in {len(outputs) * NEW} tokens")
    assert ties <= TIES_ALLOWED * len(outputs) * NEW


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_transformers(checkpoint: Callable[..., Path], name: str, kernels: str) -> None:
    family, overrides = CASES[name]
    folder = checkpoint(family, **overrides)
    outputs, stats = generate(folder, kernels, prompts_of(PROMPTS, 100, seed=len(name)))
    assert stats.num_steps > 100  # prompts were cut to the budget and computed beside others' decodes
    assert stats.num_cached_tokens > 0
    compare(folder, outputs)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_dynamic_scaling_is_what_transformers_gives_token_by_token(
    checkpoint: Callable[..., Path], kernels: str
) -> None:
    """Past the trained context transformers' results depend on how tokens come; ours are those of one at a time."""
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    folder = checkpoint("llama", max_position_embeddings=32, rope_parameters=rope)
    lengths = [3, 17, 29, 32] * (PROMPTS // 4)
    outputs, _ = generate(folder, kernels, prompts_of(PROMPTS, 32, lengths=lengths))
    ties = 0
    for length in sorted(set(lengths)):
        reference = load_reference(folder)  # anew: it remembers the longest context that it has seen
        same = [output for output in outputs if len(output.prompt_token_ids) == length]
        ids = torch.tensor([output.prompt_token_ids + output.outputs[0].token_ids for output in same])
        with torch.inference_mode():
            step = reference(ids[:, :length], use_cache=True)
            logits = [step.logits[:, -1]]
            for position in range(length, ids.shape[1] - 1):
                step = reference(ids[:, position : position + 1], past_key_values=step.past_key_values, use_cache=True)
                logits.append(step.logits[:, -1])
        ties += sum(check(output, row) for output, row in zip(same, torch.stack(logits, 1), strict=True))
    assert ties <= TIES_ALLOWED * PROMPTS * NEW
