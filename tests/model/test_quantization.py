"""Models whose weights are made of few bits while they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_runner import PagedRunner
from stored_weight import Stored
from torch.nn import functional as F

from octavo import kernels
from octavo.errors import ConfigError, WeightsError
from octavo.kernels.quantized import QuantizedWeight
from octavo.kernels.reference.quantized import quantized_rows
from octavo.model import Decoder, load_model, read_model_config, weights_bytes
from octavo.model.embedding import HasRows, LooksUp
from octavo.model.linear import LinearFactory
from octavo.model.quantized import quantize

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(range(5, 45))


def load(folder: Path, backend: str, dtype: str = "float32", **options: Any) -> Decoder:
    return load_model(folder, dtype=dtype, kernels=kernels.load(backend), **options)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("activation", [None, "silu_and_mul", "gelu_and_mul"])
def test_the_reference_is_the_sum_over_whole_numbers(bits: int, size: int | None, activation: str | None) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = quantize(torch.randn(48, 2560, generator=generator), bits, size)
    bias, x = torch.randn(48, generator=generator), torch.randn(9, 2560, generator=generator)
    (linear,) = kernels.load("reference").QUANTIZED_LINEARS
    rows, scales = quantized_rows(x)
    assert bool((rows.abs().amax(1) == 127).all())
    assert bool(((rows * scales - x).abs() <= 0.5001 * scales).all())
    expected = (rows.double() @ weight.dequantized().double().T) * scales.double() + bias
    if activation is not None:
        gate, up = expected.chunk(2, 1)
        expected = up * (F.silu(gate) if activation == "silu_and_mul" else F.gelu(gate, approximate="tanh"))
    torch.testing.assert_close(linear(weight, bias, activation)(x).double(), expected, rtol=1e-4, atol=1e-3)


def test_backends_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = quantize(torch.randn(70, 1300, generator=generator), 8)
    bias, x = torch.randn(70, generator=generator), torch.randn(19, 1300, generator=generator).bfloat16()
    x[3] = 0
    outcomes = []
    for backend in ("reference", "cpu"):
        factory = LinearFactory(torch.bfloat16, torch.device("cpu"), kernels.load(backend), batch_invariant=True)
        linear = factory.build_quantized(weight, bias)
        assert factory.notes == [f"linear 70x1300: {linear.kind} (by its bits and groups)"]
        ids = torch.tensor([3, 69, 0, 3])
        if isinstance(linear, LooksUp):
            rows = linear.look_up(ids, torch.zeros(4, 1300))
        else:
            assert isinstance(linear, HasRows)
            rows = linear.rows(ids).dequantized()
        assert torch.equal(rows, weight.dequantized()[ids])
        outcomes.append(linear(x, torch.empty(19, 70)))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_8_bits_is_nearly_the_model(checkpoint: Callable[..., Path], backend: str, tied: bool) -> None:
    folder = checkpoint("llama", tie_word_embeddings=tied)
    full, small = load(folder, backend), load(folder, backend, quantization="int8")
    ours, theirs = (PagedRunner(decoder).run({0: PROMPT}) for decoder in (small, full))
    alike = F.cosine_similarity(ours, theirs)
    assert alike.min() > 0.99
    assert alike.mean() > 0.998
    assert not torch.equal(ours, theirs)
    config = read_model_config(folder)
    bound = weights_bytes(config, torch.float32, "int8")
    assert small.weights_bytes <= bound < 0.5 * weights_bytes(config, torch.float32)
    assert small.weights_bytes < 0.4 * full.weights_bytes


@pytest.mark.parametrize(
    ("dtype", "invariant", "quick"), [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)]
)
def test_attentions_output_stays_in_full_where_a_matrix_unit_multiplies_it(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: str, invariant: bool, quick: bool
) -> None:
    backend = kernels.load("cpu")
    for name in ("available", "by_tiles"):
        monkeypatch.setattr(backend.PanelLinear, name, staticmethod(lambda: True))
    monkeypatch.setattr(backend.Int8PanelLinear, "available", staticmethod(lambda: True))
    folder = checkpoint("llama", dtype="bfloat16")
    decoder = load(folder, "cpu", dtype, quantization="int8", batch_invariant=invariant)
    kinds = {layer.output.kind for layer in decoder._layers}
    assert kinds == ({"panels"} if quick else {"int8 panels"})
    assert {layer.down.kind for layer in decoder._layers} == {"int8 panels"}
    assert decoder._recordable
    assert any("(kept in full)" in note for note in decoder.notes) == quick
    assert decoder.weights_bytes <= weights_bytes(read_model_config(folder), decoder.dtype, "int8")


def test_where_it_is_not_quick_everything_has_8_bits() -> None:
    held, output = torch.ones(2, 64), "layers.0.self_attn.o_proj"
    for quick in (True, False):
        assert (Stored(held).made(output, "int8", quick) is held) == quick
        assert isinstance(Stored(held).made("layers.0.self_attn.q_proj", "int8", quick), QuantizedWeight)
        assert isinstance(Stored(held).made(output, "int4", quick), QuantizedWeight)


def test_recorded_programs_give_what_single_calls_give(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.load("cpu").Int8PanelLinear, "available", staticmethod(lambda: True))
    folder = checkpoint("llama", dtype="bfloat16")
    recorded = load(folder, "cpu", "bfloat16", quantization="int8")
    plain = load(folder, "cpu", "bfloat16", quantization="int8")
    assert recorded._recordable
    plain._recordable = False
    results = []
    for decoder in (recorded, plain):
        runner = PagedRunner(decoder)
        mine = [runner.run({"a": PROMPT, "b": PROMPT[:7]}).clone()]
        mine += [runner.run({"a": [5], "b": [6], "c": PROMPT[:3]}, rows=[0, 4]).clone() for _ in range(2)]
        results.append(mine)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_invariant_holds_to_the_bit(checkpoint: Callable[..., Path], dtype: str) -> None:
    decoder = load(checkpoint("llama"), "cpu", dtype, quantization="int8", batch_invariant=True)
    whole = PagedRunner(decoder).run({0: PROMPT}).clone()
    chunked = PagedRunner(decoder)
    parts = [chunked.run({0: PROMPT[:17], 1: PROMPT[3:30]})[:17].clone()]
    parts += [chunked.run({1: [9], 0: [token]})[1:].clone() for token in PROMPT[17:]]
    assert torch.equal(torch.cat(parts), whole)


def test_what_is_in_8_bits_already_is_taken_as_it_is_and_other_bits_are_refused() -> None:
    eight, four = quantize(torch.ones(2, 4), 8, 2), quantize(torch.ones(2, 4), 4)
    assert Stored(eight).made("mlp", "int8") is eight
    with pytest.raises(ConfigError, match=r"quantization='int8'.*mlp in 4 bits: leave"):
        Stored(four).made("mlp", "int8")
    with pytest.raises(WeightsError, match=r"mlp cannot be quantised.*finite"):
        Stored(torch.full((2, 4), torch.nan)).made("mlp", "int8")
