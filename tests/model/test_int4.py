"""Models whose matrices are made 4 bits while they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_runner import PagedRunner
from stored_weight import Stored
from torch.nn import functional as F

from octavo import kernels
from octavo.errors import ConfigError, WeightsError
from octavo.kernels.quantized import QuantizedWeight
from octavo.model import Decoder, load_model, read_model_config, weights_bytes
from octavo.model.quantized import quantize

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(range(5, 45))


def load(folder: Path, backend: str = "cpu", dtype: str = "bfloat16", **options: Any) -> Decoder:
    return load_model(folder, dtype=dtype, kernels=kernels.load(backend), **options)


@settings(deadline=None, max_examples=30)
@given(
    size=st.sampled_from([2, 32, 64]),
    magnitude=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_centred_bits_are_the_nearest_about_zero(size: int, magnitude: float, seed: int) -> None:
    weight = torch.randn(5, 2 * size, generator=torch.Generator().manual_seed(seed)) * magnitude
    made = quantize(weight, 4, size, centred=True)
    assert made.mins is not None
    assert torch.equal(made.mins, 8 * made.scales)
    near = made.scales[(made.scales.abs() >= 2.0**-20) & (made.scales.abs() <= 65504)]
    assert torch.equal(near, near.half().float())
    groups = weight.unflatten(1, (-1, size))
    step = groups.abs().amax(2) / 8
    error = (made.dequantized() - weight).unflatten(1, (-1, size)).square().sum(2)
    # the greatest magnitude has a step of its own; that opposite to it may be a step off
    assert bool((error <= size * (1.04 * step) ** 2).all())
    if size > 2:
        plain = quantize(weight, 4, size).dequantized() - weight
        assert float(error.sum()) <= 1.5 * float(plain.square().sum())


def test_groups_around_zero_that_are_all_alike_are_exact() -> None:
    weight = torch.tensor([[0.0] * 4 + [2.5] * 4 + [-1.0] * 4])
    assert torch.allclose(quantize(weight, 4, 4, centred=True).dequantized(), weight, rtol=1e-3)


@pytest.mark.parametrize(("backend", "tied"), [("reference", False), ("cpu", False), ("cpu", True)])
def test_a_model_in_4_bits_is_like_the_model(checkpoint: Callable[..., Path], backend: str, tied: bool) -> None:
    folder = checkpoint("llama", tie_word_embeddings=tied)
    full, small = load(folder, backend, "float32"), load(folder, backend, "float32", quantization="int4")
    ours, theirs = (PagedRunner(decoder).run({0: PROMPT}) for decoder in (small, full))
    alike = F.cosine_similarity(ours, theirs)
    assert 0.9 < alike.mean() < 0.9999
    bound = weights_bytes(read_model_config(folder), torch.float32, "int4")
    assert small.weights_bytes <= bound < weights_bytes(read_model_config(folder), torch.float32, "int8")


def test_recorded_programs_give_what_single_calls_give_to_the_bit(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("GroupedPanelLinear", "Int8PanelLinear"):
        monkeypatch.setattr(getattr(kernels.load("cpu"), kind), "available", staticmethod(lambda: True))
    folder = checkpoint("llama", dtype="bfloat16")
    recorded, plain = load(folder, quantization="int4"), load(folder, quantization="int4")
    assert recorded._recordable
    plain._recordable = False
    results = []
    for decoder in (recorded, plain):
        runner = PagedRunner(decoder)
        mine = [runner.run({"a": PROMPT, "b": PROMPT[:7]}).clone()]
        mine += [runner.run({"a": [5], "b": [6], "c": PROMPT[:3]}, rows=[0, 4]).clone() for _ in range(2)]
        results.append(mine)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_embeddings_and_head_have_8_bits_and_others_groups_that_fit() -> None:
    for module in ("model.embed_tokens", "lm_head"):
        made = Stored(torch.randn(2, 128)).made(module, "int4")
        assert isinstance(made, QuantizedWeight)
        assert (made.bits, made.group_size) == (8, 128)
    for inputs, size in ((128, 64), (96, 32)):
        made = Stored(torch.randn(2, inputs)).made("model.layers.0.mlp.up_proj", "int4")
        assert isinstance(made, QuantizedWeight)
        assert (made.bits, made.group_size) == (4, size)


def test_what_cannot_have_4_bits_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match=r"layers.7.mlp.up_proj cannot be quantised: its 40 inputs .* int8"):
        Stored(torch.randn(2, 40)).made("layers.7.mlp.up_proj", "int4")
    with pytest.raises(ConfigError, match=r"up_proj in 8 bits: leave"):
        Stored(quantize(torch.ones(2, 64), 8)).made("up_proj", "int4")
    four = quantize(torch.ones(2, 128), 4, 128)
    assert Stored(four).made("up_proj", "int4") is four
