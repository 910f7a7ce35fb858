"""Norms against float64."""

from __future__ import annotations

import pytest
import torch
from exactness import DTYPES, close, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards

from octavo.kernels.triton import add_rms_norm, rms_norm


def expected(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (offset + weight.double())


@settings(max_examples=8)
@given(
    st.integers(1, 9), st.integers(1, 700), st.sampled_from(DTYPES), st.sampled_from([0.0, 1.0]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, offset: float, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = (3 * torch.randn(rows, width + 5 * strided)).to(dtype)[:, :width]
    weight, out = torch.rand(width).to(dtype), poisoned(rows, width, dtype=dtype)
    assert rms_norm(x, weight, 1e-5, out, offset) is out
    assert close(out, expected(x, weight, 1e-5, offset))


@settings(max_examples=8)
@given(
    st.integers(1, 9), st.integers(1, 700), st.sampled_from(DTYPES), st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.0]), st.integers(0, 99),
)  # fmt: skip
def test_add_rms_norm(
    rows: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype, offset: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x, residual = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight, out, total = torch.rand(width).to(weight_dtype), poisoned(rows, width, dtype=dtype), residual + x
    with backwards():
        assert add_rms_norm(x, residual, weight, 1e-6, out, offset) is out
    assert torch.equal(residual, total), "the residual is the sum, rounded as eager PyTorch rounds"
    assert close(out, expected(total, weight, 1e-6, offset))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_too_wide_to_hold(dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, 33_000).to(dtype) for _ in range(2))
    weight, out, total = torch.rand(33_000).to(dtype), poisoned(2, 33_000, dtype=dtype), residual + x
    assert close(rms_norm(x, weight, 1e-5, out), expected(x, weight, 1e-5, 0.0))
    out.fill_(torch.nan)
    add_rms_norm(x, residual, weight, 1e-5, out)
    assert torch.equal(residual, total)
    assert close(out, expected(total, weight, 1e-5, 0.0))


@pytest.mark.parametrize("width", [64, 1024])
def test_rows_beyond_two_to_the_31_elements(width: int) -> None:
    """Memory that is not touched costs none."""
    far = 2**30 + 64
    x, residual = (torch.empty(4 * far, dtype=torch.bfloat16).as_strided((4, width), (far - 64, 1)) for _ in range(2))
    x.copy_(torch.randn(4, width))
    residual.copy_(torch.randn(4, width))
    out, total = poisoned(4, width, dtype=torch.bfloat16), residual + x
    add_rms_norm(x, residual, torch.ones(width), 1e-5, out)
    assert torch.equal(residual, total)
    assert close(out, expected(total, torch.ones(width), 1e-5, 0.0))


def test_a_norm_may_overwrite_its_input() -> None:
    x, weight = torch.randn(4, 48), torch.rand(48)
    apart = rms_norm(x, weight, 1e-6, torch.empty(4, 48))
    assert torch.equal(rms_norm(x, weight, 1e-6, x), apart)


def test_no_rows() -> None:
    rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5, torch.empty(0, 8))
