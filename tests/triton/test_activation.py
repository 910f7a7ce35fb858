"""Gated activations against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import DTYPES, HALF_UNIT, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import triton

KINDS = pytest.mark.parametrize("kind", ["silu_and_mul", "gelu_and_mul"])


@KINDS
@settings(max_examples=6)
@given(
    st.integers(1, 4), st.integers(1, 2100), st.sampled_from(DTYPES), st.sampled_from([1.0, 40.0]), st.integers(0, 99)
)
def test_gated_activations(kind: str, rows: int, inner: int, dtype: torch.dtype, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    gate_up, out = (torch.randn(rows, 2 * inner) * size).to(dtype), poisoned(rows, inner, dtype=dtype)
    assert getattr(triton, kind)(gate_up, out) is out
    gate, up = gate_up.double().chunk(2, -1)
    active = F.silu(gate) if kind == "silu_and_mul" else F.gelu(gate, approximate="tanh")
    # 1 + tanh(x) loses what lies below a float's last place
    lost = 2.0**-22 * (gate * up).abs()
    allowed = 1.2 * HALF_UNIT[dtype] * (active * up).abs() + lost + 1e-6 + HALF_UNIT[dtype] * 1e-2
    assert ((out.double() - active * up).abs() <= allowed).all()


@KINDS
def test_extremes(kind: str) -> None:
    gate = torch.tensor([-1e4, -100.0, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4]).repeat(3)
    gate_up = torch.cat((gate, torch.full_like(gate, 2.0)))[None].repeat(2, 1)
    out = getattr(triton, kind)(gate_up, poisoned(2, len(gate), dtype=torch.float32))
    assert torch.allclose(out, gate.clamp(min=0).expand(2, -1) * 2, atol=1e-6)


def test_no_rows() -> None:
    triton.silu_and_mul(torch.empty(0, 16), torch.empty(0, 8))
