"""The device's memory: how much is taken, and what happens when it runs out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_case import assert_clean

from octavo import EngineConfig, LLMEngine
from octavo.errors import ConfigError
from octavo.executor.doctor import inspect
from octavo.executor.gpu.accelerator import CudaAccelerator

PROMPTS = [f"Once upon a time there were {number} kings" for number in range(24)]
SETTINGS = {"device": "cuda", "max_num_seqs": 24, "max_num_batched_tokens": 512}


@pytest.fixture
def whole_device() -> Iterator[None]:
    """Afterwards the process may take all memory again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_no_more_is_taken_than_allowed() -> None:
    device = CudaAccelerator()
    others = device.memory().used
    share = (others + 2 * 2**30) / device.memory().total
    with LLMEngine(EngineConfig(**(SETTINGS | {"max_num_seqs": 512}), gpu_memory_utilization=share)) as engine:
        engine.generate(PROMPTS * 20, temperature=0.8, top_p=0.9, logprobs=3, repetition_penalty=1.1, max_tokens=30)
        assert_clean(engine)
        now = device.memory()
        assert now.used <= share * now.total + 2**28  # what was allocated and given back is not counted by anyone


def test_a_share_that_is_too_small_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.001 allows .* no room for one KV block"):
        LLMEngine(EngineConfig(**SETTINGS, gpu_memory_utilization=0.001))


def test_the_doctor_sees_the_device() -> None:
    report = inspect(EngineConfig(device="cuda"))
    assert report.gpu is not None
    assert report.gpu.description.name == torch.cuda.get_device_name()
    assert report.memory.num_blocks > 0


@pytest.mark.parametrize("room", [2**20, 2**23])
def test_a_device_that_is_suddenly_full_ends_no_engine(whole_device: None, room: int) -> None:
    """What is allocated from here on must do with ``room`` bytes: steps are done in parts, or fail alone."""
    with LLMEngine(EngineConfig(**SETTINGS, num_blocks=2000)) as engine:
        expected = [output.outputs[0].text for output in engine.generate(PROMPTS, temperature=0.0, max_tokens=20)]
        engine.reset_prefix_cache()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved() + room
        torch.cuda.set_per_process_memory_fraction(taken / CudaAccelerator().description.total_bytes)
        engine.generate(PROMPTS, temperature=0.0, max_tokens=20, logprobs=5, prompt_logprobs=5, frequency_penalty=0.1)
        assert_clean(engine)
        torch.cuda.set_per_process_memory_fraction(1.0)
        again = engine.generate(PROMPTS, temperature=0.0, max_tokens=20)
        assert_clean(engine)
        assert all(len(output.outputs[0].text) > 0 for output in again)
        assert sum(output.outputs[0].text == text for output, text in zip(again, expected, strict=True)) >= 12
