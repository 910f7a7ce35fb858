"""Products of bytes, against float64 and, to the bit, against themselves in every form and batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cpu_forms import outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import INTERPRETED

from octavo.kernels.cpu import Int8PanelLinear, byte_linear, linear
from octavo.kernels.cpu.jit import host_features
from octavo.kernels.quantized import QuantizedWeight

HALF_UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23, torch.float16: 2.0**-11}


def made(columns: int, inputs: int, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (columns, inputs), generator=generator, dtype=torch.int8)
    return QuantizedWeight(values, torch.rand(columns, 1, generator=generator) / inputs, None, 8)


def exact(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, activation: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64 of the rows as they are rounded to bytes, and how far float32 may be from it."""
    largest = x.float().abs().amax(1, keepdim=True)
    rows = (x.float() * (torch.tensor([[127.0]]) / largest)).round()  # a number over a tensor is rounded twice
    scales = weight.scales.double().T * (largest / 127).double()
    result = rows.double() @ weight.values.double().T * scales + (0 if bias is None else bias.double())
    room = 1e-6 * (rows.double().abs() @ weight.values.double().abs().T * scales + 1)
    if activation is None:
        return result, room
    gate, up = result.chunk(2, dim=1)
    room_gate, room_up = room.chunk(2, dim=1)
    gate_of = F.silu if activation == "silu_and_mul" else lambda z: F.gelu(z, approximate="tanh")
    return gate_of(gate) * up, 1.2 * (room_gate * up.abs() + room_up * gate.abs()) + 1e-5


@settings(max_examples=8 if INTERPRETED else 60, deadline=None)
@given(
    rows=st.integers(1, 40 if INTERPRETED else 150),
    columns=st.integers(1, 150),
    inputs=st.integers(1, 700),
    bias=st.booleans(),
    activation=st.sampled_from([None, "silu_and_mul", "gelu_and_mul"]),
    dtypes=st.sampled_from([(torch.bfloat16,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products(
    rows: int,
    columns: int,
    inputs: int,
    bias: bool,
    activation: str | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    strided: bool,
    seed: int,
) -> None:
    columns *= 1 if activation is None else 2
    weight, generator = made(columns, inputs, seed), torch.Generator().manual_seed(seed)
    added = torch.randn(columns, generator=generator).to(dtypes[0]) if bias else None
    x = torch.randn(rows, inputs + 32 * strided, generator=generator).to(dtypes[0])[:, :inputs]
    product = Int8PanelLinear(weight, added, activation)
    # what lies around the result is left as it is
    room = torch.full((rows + 2, product.outputs + 16), math.nan, dtype=dtypes[1])
    out = room[1:-1, : product.outputs]
    assert product(x, out) is out
    expected, lost = exact(x, weight, added, activation)
    assert bool(((out.double() - expected).abs() <= 1.01 * HALF_UNIT[dtypes[1]] * expected.abs() + lost).all())
    assert bool(room[0].isnan().all() and room[-1].isnan().all() and room[:, product.outputs :].isnan().all())
    if dtypes[0] == dtypes[1]:
        assert torch.equal(product(x), out)


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_runs_blocks_and_shared_rows_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, generator = made(32 * 17, 832, 1), torch.Generator().manual_seed(2)
    x = torch.randn(333, 832, generator=generator).bfloat16()
    expected = Int8PanelLinear(weight)(x)
    monkeypatch.setattr(byte_linear, "CHUNK_BYTES", 64 * 832)
    monkeypatch.setattr(byte_linear, "RUN_BYTES", 2 * 13 * 2048)
    monkeypatch.setattr(byte_linear, "num_threads", lambda: threads)
    product = Int8PanelLinear(weight)
    assert torch.equal(product(x), expected)
    monkeypatch.setattr(byte_linear, "HERE_ITEMS", 2**30)
    assert torch.equal(product(x), expected)


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 76), last=st.integers(1, 77), scale=st.sampled_from([1.0, 1e-6, 1e6]))
def test_a_row_has_the_same_bits_beside_any_others(first: int, last: int, scale: float) -> None:
    product, generator = Int8PanelLinear(made(96, 576, 3)), torch.Generator().manual_seed(4)
    x = torch.randn(77, 576, generator=generator).bfloat16()
    whole = product(x)
    last = max(last, first + 1)
    assert torch.equal(product(x[first:last]), whole[first:last])
    others = x * scale
    others[first] = x[first]
    assert torch.equal(product(others)[first], whole[first])


def test_rows_of_zeros_and_of_what_is_no_number_keep_to_themselves() -> None:
    x = torch.ones(5, 64, dtype=torch.bfloat16)
    x[1, 7], x[2], x[3, 3] = math.nan, 0.0, math.inf
    bias = torch.ones(32)
    result = Int8PanelLinear(made(32, 64, 5), bias)(x)
    assert result[1].isnan().all()
    assert (result[2] == 1).all()
    assert not result[3].isfinite().any()
    assert torch.equal(result[0], result[4])
    assert result[0].isfinite().all()


def test_no_rows() -> None:
    assert Int8PanelLinear(made(32, 64, 7))(torch.empty(0, 64, dtype=torch.bfloat16)).shape == (0, 32)


def test_what_it_does_not_serve_is_refused() -> None:
    weight = made(4, 64, 1)
    for other in (
        QuantizedWeight(weight.values, weight.scales.expand(4, 2).contiguous(), None, 8),
        QuantizedWeight(weight.values, weight.scales, weight.scales, 8),
        QuantizedWeight(weight.values.view(torch.uint8), weight.scales, None, 4),
    ):
        assert not Int8PanelLinear.serves(other)
        with pytest.raises(ValueError, match="panels"):
            Int8PanelLinear(other)
    with pytest.raises(ValueError, match="halves"):
        Int8PanelLinear(made(3, 64, 1), None, "silu_and_mul")
    product, x, out = Int8PanelLinear(weight), torch.ones(3, 64), torch.empty(3, 4)
    for bad_x, bad_out in ((x.long(), out), (x[:, :32], out), (x[:2], out), (x, out.double()), (x, out[:, :2])):
        with pytest.raises(ValueError, match="must be"):
            product(bad_x, bad_out)


BITS = """
import hashlib, torch
from octavo.kernels.cpu import Int8PanelLinear, dots, int8_panels
from octavo.kernels.quantized import QuantizedWeight
digest = hashlib.sha256()
for rows, columns, inputs in ((1, 70, 130), (5, 64, 64), (19, 96, 300)):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(-127, 128, (columns, inputs), generator=generator, dtype=torch.int8)
    weight = QuantizedWeight(values, torch.rand(columns, 1, generator=generator), None, 8)
    product = Int8PanelLinear(weight)
    digest.update(product(torch.randn(rows, inputs, generator=generator)).numpy().tobytes())
print(int8_panels.BY_TILES, dots.WIDE_DOTS, dots.NARROW_DOTS, digest.hexdigest())
"""


@pytest.mark.skipif(INTERPRETED or "avx512vnni" not in host_features(), reason="this CPU has one form only")
def test_vectors_give_the_bits_that_tiles_give() -> None:
    assert len(set(outcomes(BITS))) == 1


def test_it_shares_the_loops_of_other_products() -> None:
    """What follows the words that all products have must not lie on them."""
    assert byte_linear.SOURCE_STRIDE == linear.BLOCK + 8
    assert byte_linear.OWN == byte_linear.SHARED_BYTES + 8
