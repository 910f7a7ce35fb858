"""Norms against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards

from octavo.kernels.triton import add_rms_norm, rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = st.sampled_from(list(TOLERANCE))


def expected(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (offset + weight.double())


def check(out: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(out.double(), right, rtol=TOLERANCE[out.dtype], atol=TOLERANCE[out.dtype])


def poisoned(like: torch.Tensor) -> torch.Tensor:
    return torch.full(like.shape, math.nan, dtype=like.dtype)


@settings(max_examples=8)
@given(st.integers(1, 9), st.integers(1, 700), DTYPES, st.sampled_from([0.0, 1.0]), st.booleans())
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, offset: float, strided: bool) -> None:
    x = (3 * torch.randn(rows, width + 5)).to(dtype)[:, :width] if strided else torch.randn(rows, width).to(dtype)
    weight = torch.rand(width).to(dtype)
    out = poisoned(x)
    assert rms_norm(x, weight, 1e-5, out, offset) is out
    check(out, expected(x, weight, 1e-5, offset))


@settings(max_examples=8)
@given(st.integers(1, 9), st.integers(1, 700), DTYPES, st.sampled_from([0.0, 1.0]))
def test_add_rms_norm(rows: int, width: int, dtype: torch.dtype, offset: float) -> None:
    x, residual = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight, out, sum_ = torch.rand(width).to(dtype), poisoned(x), residual + x
    with backwards():
        assert add_rms_norm(x, residual, weight, 1e-6, out, offset) is out
    assert torch.equal(residual, sum_), "the residual is the sum, rounded as eager PyTorch rounds"
    check(out, expected(sum_, weight, 1e-6, offset))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_too_wide_to_hold(dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, 33_000).to(dtype) for _ in range(2))
    weight, out, sum_ = torch.rand(33_000).to(dtype), poisoned(x), residual + x
    check(rms_norm(x, weight, 1e-5, out), expected(x, weight, 1e-5, 0.0))
    out = poisoned(x)
    add_rms_norm(x, residual, weight, 1e-5, out)
    assert torch.equal(residual, sum_)
    check(out, expected(sum_, weight, 1e-5, 0.0))


@pytest.mark.parametrize("width", [64, 1024])
def test_rows_beyond_two_to_the_31_elements(width: int) -> None:
    """Memory that is not touched costs none."""
    far = 2**30 + 64
    x, residual = (torch.empty(4 * far, dtype=torch.bfloat16).as_strided((4, width), (far - 64, 1)) for _ in range(2))
    x.copy_(torch.randn(4, width))
    residual.copy_(torch.randn(4, width))
    out, sum_ = torch.empty(4, width, dtype=torch.bfloat16), residual + x
    add_rms_norm(x, residual, torch.ones(width), 1e-5, out)
    assert torch.equal(residual, sum_)
    check(out, expected(sum_, torch.ones(width), 1e-5, 0.0))


def test_no_rows() -> None:
    rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5, torch.empty(0, 8))
