"""In a steady decode step the host waits for nothing but the results of the step before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo import EngineConfig, LLMEngine, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.fixture
def forbidden() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error (waiting for an event is not: that is how results are
    collected)."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_decoding(forbidden: None, rows: int, graphs: bool) -> None:
    settings = {"num_blocks": 600, "depth": 1, "cuda_graphs": graphs}
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=40, max_tokens=100, ignore_eos=True)
    with LLMEngine(EngineConfig(device="cuda", **settings)) as engine:
        for row in range(rows):
            engine.add_request(f"Once upon a time there were {row} kings", params)
        for _ in range(20):  # prompts are computed, kernels compiled, graphs captured
            engine.step()
        torch.cuda.set_sync_debug_mode("error")
        before = engine.stats().num_generated_tokens
        for _ in range(40):  # a block is filled twice
            engine.step()
        torch.cuda.set_sync_debug_mode("default")
        assert engine.stats().num_generated_tokens - before == 40 * rows
