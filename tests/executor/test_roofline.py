"""What the machine would allow."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.executor.roofline import Roofline, measure
from octavo.executor.torch_executor import TorchExecutor
from octavo.hub import bundled_model

LIMITS = Roofline(
    bytes_per_second=1000.0,
    flops_per_second=10_000.0,
    best_rows=64,
    weight_bytes=500,
    kv_bytes_per_token=10.0,
    flops_per_token=200.0,
    head_flops=50.0,
)


def test_the_slower_of_bytes_and_operations_binds() -> None:
    assert LIMITS.least_seconds(steps=1, tokens=1, draws=1) == (0.5, "memory")
    assert LIMITS.least_seconds(steps=1, tokens=1, draws=1, context=100) == (1.5, "memory")
    assert LIMITS.least_seconds(steps=2, tokens=100, draws=10) == (2.05, "products")


def test_the_figures_are_the_models() -> None:
    config = EngineConfig(kernels="reference", dtype="float32", num_blocks=8, max_num_seqs=2)
    executor = TorchExecutor(config, bundled_model())
    found = measure(executor)
    model = executor.decoder.config
    assert found.bytes_per_second > 0
    assert found.flops_per_second > 0
    assert found.flops_per_token == model.flops_per_token
    assert found.head_flops == 2 * model.hidden_size * model.vocab_size
    # K and V of every layer, in float32
    assert found.kv_bytes_per_token == model.num_layers * 2 * model.num_kv_heads * model.head_dim * 4
    weights = model.flops_per_token // 2 + model.vocab_size * model.hidden_size
    assert 4 * weights <= found.weight_bytes <= 4.1 * weights
