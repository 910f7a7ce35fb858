"""A whole engine on the Triton kernels, in the interpreter: the GPU's executor over the stand-in for a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from executor.gpu.stand_in import StandIn
from executor.gpu.stand_in_engine import settings_of, stand_in_engine

from octavo import EngineConfig, SamplingParams

PROMPTS = [random.Random(length).choices(range(2, 384), k=length) for length in (14, 3)]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=4, ignore_eos=True, repetition_penalty=1.2),
]
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"num_hidden_layers": 1, "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"num_hidden_layers": 2, "sliding_window": 10},
}


@pytest.mark.parametrize("family", MODELS)
def test_tokens_are_those_of_the_reference(checkpoint: Callable[..., Path], family: str) -> None:
    """Prefill in chunks, decode with and without graphs, a draw with penalties, and one without."""
    folder = checkpoint(family, **MODELS[family])
    settings = settings_of(depth=1, num_blocks=24, max_num_seqs=2, max_num_batched_tokens=12, max_model_len=40)
    config = EngineConfig(
        model=str(folder), **(settings | {"block_size": 16, "num_blocks": 12, "batch_invariant": False})
    )
    found, devices = {}, {}
    for kernels in ("triton", "reference"):
        devices[kernels] = StandIn()
        with stand_in_engine(config, devices[kernels], kernels) as engine:
            found[kernels] = [output.outputs[0] for output in engine.generate(PROMPTS, PARAMS)]
    assert devices["triton"].graphs
    for mine, theirs in zip(found["triton"], found["reference"], strict=True):
        assert mine.token_ids == theirs.token_ids
        for ours, expected in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
            assert ours == pytest.approx(expected, abs=1e-4)
