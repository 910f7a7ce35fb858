"""Whole searches and penalised decoding beside transformers' ``generate``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load_reference

from octavo import EngineConfig, LLMEngine, SamplingParams

VOCAB = 384
PROMPTS = [random.Random(seed).choices(range(2, VOCAB), k=length) for seed, length in enumerate((4, 19, 33, 7))]
MANY_ENDS = list(range(1, 60))  # a random model meets one of these soon


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LLMEngine]:
    config = EngineConfig(
        model=str(folder), dtype="float32", block_size=4, num_blocks=400, max_num_batched_tokens=50, num_threads=1
    )
    with LLMEngine(config) as made:
        yield made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load_reference(folder)


def theirs(reference: Any, prompt: list[int], ends: list[int], **keywords: Any) -> tuple[list[list[int]], list[float]]:
    """transformers' continuations, each up to its end token, and their scores."""
    result = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **keywords,
    )
    found = []
    for row in result.sequences[:, len(prompt) :].tolist():
        end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    return found, result.sequences_scores.tolist() if "num_beams" in keywords else []


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
@pytest.mark.parametrize("ends", [[1], MANY_ENDS], ids=["one end", "many ends"])
def test_beams_are_those_of_transformers(
    engine: LLMEngine, reference: Any, ends: list[int], length_penalty: float, early_stopping: bool
) -> None:
    params = SamplingParams(
        beam_width=4,
        n=3,
        max_tokens=16,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        stop_token_ids=ends,
    )
    outputs = engine.generate(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens, scores = theirs(
            reference,
            prompt,
            ends,
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=16,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        assert [each.token_ids for each in output.outputs] == tokens
        ours = [each.cumulative_logprob / len(each.token_ids) ** length_penalty for each in output.outputs]
        assert ours == pytest.approx(scores, abs=1e-3)
        for each in output.outputs:
            assert each.finish_reason == ("stop" if each.token_ids[-1] in ends else "length")
    if ends is MANY_ENDS:
        assert any(each.finish_reason == "stop" for output in outputs for each in output.outputs)


def test_beams_with_a_repetition_penalty(engine: LLMEngine, reference: Any) -> None:
    outputs = engine.generate(PROMPTS, beam_width=3, n=3, max_tokens=12, repetition_penalty=1.4)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens, _ = theirs(
            reference, prompt, [1], num_beams=3, num_return_sequences=3, max_new_tokens=12, repetition_penalty=1.4
        )
        assert [each.token_ids for each in output.outputs] == tokens


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.5])
def test_penalised_greedy_tokens_are_those_of_transformers(engine: LLMEngine, reference: Any, penalty: float) -> None:
    outputs = engine.generate(PROMPTS, temperature=0.0, max_tokens=40, repetition_penalty=penalty)
    plain = engine.generate(PROMPTS, temperature=0.0, max_tokens=40)
    assert [each.outputs[0].token_ids for each in outputs] != [each.outputs[0].token_ids for each in plain]
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens, _ = theirs(reference, prompt, [1], max_new_tokens=40, repetition_penalty=penalty)
        assert output.outputs[0].token_ids == tokens[0]


def test_min_tokens_is_transformers_min_new_tokens(engine: LLMEngine, reference: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, min_tokens=9, stop_token_ids=MANY_ENDS)
    outputs = engine.generate(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens, _ = theirs(reference, prompt, MANY_ENDS, max_new_tokens=40, min_new_tokens=9)
        assert output.outputs[0].token_ids == tokens[0]
        assert len(tokens[0]) >= 9
