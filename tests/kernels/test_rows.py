"""Norms, gated activations, rotary embedding and copies of blocks, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import BACKENDS, INTERPRETED, TOLERANCE, backend, small

EXAMPLES = 10 if INTERPRETED else 50
DTYPE = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIZE = st.integers(1, 130)
HALF_UNIT = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place, relative."""


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def close(result: torch.Tensor, expected: torch.Tensor, slack: float = 1.1) -> bool:
    """Equal up to the rounding of the result, and a little for what float32 lost before."""
    unit = HALF_UNIT[result.dtype]
    return bool(((result.double() - expected).abs() <= slack * unit * expected.abs() + 2e-6 + unit * 1e-3).all())


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=SIZE,
    dtype=DTYPE,
    weight_dtype=DTYPE,
    offset=st.sampled_from([0.0, 1.0]),
    adds=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norms(
    name: str,
    rows: int,
    width: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    offset: float,
    adds: bool,
    strided: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, width + 5 * strided).to(dtype)[:, :width]
    residual = (torch.randn(rows, width) * 3).to(dtype)
    weight = torch.rand(width).to(weight_dtype)
    out = poisoned(rows, width, dtype=dtype)
    normed = x.double()
    if adds:
        total = residual + x
        normed = total.double()
        assert backend(name).add_rms_norm(x, residual, weight, 1e-6, out, offset) is out
        assert torch.equal(residual, total)
    else:
        assert backend(name).rms_norm(x, weight, 1e-6, out, offset) is out
    expected = normed / (normed.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (offset + weight.double())
    assert close(out, expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_norm_may_overwrite_its_input(name: str) -> None:
    x, weight = torch.randn(4, 48), torch.rand(48)
    apart = torch.empty(4, 48)
    backend(name).rms_norm(x, weight, 1e-6, apart)
    backend(name).rms_norm(x, weight, 1e-6, x)
    assert torch.equal(x, apart)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["silu_and_mul", "gelu_and_mul"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(rows=st.integers(1, 5), inner=SIZE, dtype=DTYPE, size=st.sampled_from([1.0, 40.0]), seed=st.integers(0, 99))
def test_gated_activations(
    name: str, kind: str, rows: int, inner: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    gate_up = (torch.randn(rows, 2 * inner) * size).to(dtype)
    out = poisoned(rows, inner, dtype=dtype)
    assert getattr(backend(name), kind)(gate_up, out) is out
    gate, up = gate_up.double().chunk(2, -1)
    active = F.silu(gate) if kind == "silu_and_mul" else F.gelu(gate, approximate="tanh")
    # 1 + tanh(x) loses what lies below a float's last place
    lost = 2.0**-22 * (gate * up).abs()
    allowed = 1.2 * HALF_UNIT[dtype] * (active * up).abs() + lost + TOLERANCE[dtype] * 1e-2
    assert ((out.double() - active * up).abs() <= allowed).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["silu_and_mul", "gelu_and_mul"])
def test_activations_of_many_columns_and_of_extremes(name: str, kind: str) -> None:
    gate = torch.tensor([-1e4, -100.0, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4]).repeat(small(700, by=80))
    gate_up = torch.cat((gate, torch.full_like(gate, 2.0)))[None].repeat(3, 1)
    out = poisoned(3, len(gate), dtype=torch.float32)
    getattr(backend(name), kind)(gate_up, out)
    assert torch.allclose(out, gate.clamp(min=0).expand(3, -1) * 2, atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(1, 6),
    heads=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dim=st.sampled_from([8, 32, 48, 80, 128]),
    partial=st.booleans(),
    dtype=DTYPE,
    seed=st.integers(0, 99),
)
def test_rotary_embedding_of_strided_views(
    name: str, rows: int, heads: tuple[int, int], dim: int, partial: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    size = dim // 2 if partial else dim
    whole = torch.randn(rows, (sum(heads) + 1) * dim).to(dtype)
    before = whole.double().view(rows, -1, dim)
    angles = torch.rand(300, size // 2) * 6
    table = torch.cat((angles.cos(), angles.sin()), 1)
    positions = torch.randint(0, 300, (rows,))
    q, k, _ = whole.view(rows, -1, dim).split((*heads, 1), 1)
    backend(name).rotary_embedding(q, k, positions, table)
    # each pair (x[i], x[i + R / 2]) is a complex number, turned
    pairs = torch.complex(before[..., : size // 2], before[..., size // 2 : size])
    turned = pairs * torch.polar(torch.ones(1).double(), angles.double()[positions][:, None])
    expected = torch.cat((turned.real, turned.imag, before[..., size:]), -1)
    expected[:, sum(heads) :] = before[:, sum(heads) :]
    result = whole.double().view(rows, -1, dim)
    assert torch.allclose(result, expected, rtol=1.1 * HALF_UNIT[dtype], atol=TOLERANCE[dtype] * 0.3)
    assert torch.equal(result[:, sum(heads) :], before[:, sum(heads) :])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12), large=st.booleans())
def test_blocks_are_copied_in_order(name: str, pairs: list[tuple[int, int]], large: bool) -> None:
    page = (1 << 17) + 24 if large else 56
    cache = torch.randint(0, 256, (8, page), dtype=torch.uint8)
    expected = cache.clone()
    for source, target in pairs:
        expected[target] = expected[source].clone()
    ids = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    backend(name).copy_blocks(cache, ids[0], ids[1])
    assert torch.equal(cache, expected)


@pytest.mark.usefixtures("two_threads")
def test_large_rows_are_shared_out_between_threads() -> None:
    rows = small(200)
    x, residual, weight = torch.randn(rows, 512), torch.randn(rows, 512), torch.rand(512)
    wide = torch.randn(rows, 2 * 3000)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        sums, normed, gated = residual.clone(), torch.empty(rows, 512), torch.empty(rows, 3000)
        backend("cpu").add_rms_norm(x, sums, weight, 1e-6, normed)
        backend("cpu").silu_and_mul(wide, gated)
        results.append((sums, normed, gated))
    for two, one in zip(*results, strict=True):
        assert torch.equal(two, one)
