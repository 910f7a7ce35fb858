"""What the choice between swapping and recomputing knows of the machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.executor.factory import create_executor
from octavo.executor.prefill_speed import prefill_speed
from octavo.executor.torch_executor import TorchExecutor


def build(folder: Path, **keywords: object) -> TorchExecutor:
    settings = {"dtype": "float32", "kernels": "reference", "block_size": 4, "num_blocks": 40, "num_threads": 1}
    executor = create_executor(EngineConfig(model=str(folder), **(settings | keywords)), folder)  # type: ignore[arg-type]
    assert isinstance(executor, TorchExecutor)
    return executor


def test_it_is_flops_over_seconds(tiny_llama: Path) -> None:
    executor = build(tiny_llama)
    facts, began = executor.facts, time.perf_counter()
    speed = prefill_speed(executor, EngineConfig(block_size=4))
    seconds = time.perf_counter() - began
    count = 160  # what the pool holds
    flops = count * facts.flops_per_token + facts.attention_flops * facts.groups[0].num_layers * count * (count + 1) / 2
    assert speed > 2 * flops / seconds  # of two runs the quicker one took less than half of all
    weights = load_file(tiny_llama / "model.safetensors")
    products = sum(weight.numel() for name, weight in weights.items() if name.endswith("_proj.weight"))
    assert facts.flops_per_token == 2 * products


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({}, False),
        ({"swap_space": 0.001, "preemption": "swap"}, False),
        ({"swap_space": 0.001}, True),
        ({"swap_space": 0.001, "link_bandwidth": 5e9, "compute_speed": 7e9}, True),
    ],
)
def test_it_is_measured_where_it_matters(tiny_llama: Path, settings: dict[str, object], measured: bool) -> None:
    facts = build(tiny_llama, **settings).facts
    assert (facts.link_bandwidth > 0) is (facts.compute_speed > 0) is measured
    assert any("recomputing at" in note for note in facts.notes) is measured
    if "link_bandwidth" in settings:
        assert (facts.link_bandwidth, facts.compute_speed) == (5e9, 7e9)


def test_measuring_leaves_nothing_behind(tiny_llama: Path) -> None:
    prompts = [[5, 6, 7, 8] * 5, [9] * 11]
    outputs = []
    for space in (0.0, 0.001):
        config = EngineConfig(
            model=str(tiny_llama), dtype="float32", block_size=4, num_blocks=60, num_threads=1, swap_space=space
        )
        with LLMEngine(config) as engine:
            outputs.append(
                [output.outputs[0].token_ids for output in engine.generate(prompts, SamplingParams(temperature=0))]
            )
            assert engine.memory_snapshot().num_used == 0
            assert (engine.scheduler.config.num_host_blocks > 0) is (space > 0)
    assert outputs[0] == outputs[1]
