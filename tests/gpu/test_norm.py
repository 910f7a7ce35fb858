"""Norms on the GPU, at real sizes, against float64."""

from __future__ import annotations

import pytest
import torch
from exactness import DTYPES, close, poisoned

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)


def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 64, 3001])
@pytest.mark.parametrize("width", [96, 128, 896, 1024, 4096, 5120, 16_384, 40_960])
def test_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(rows, width, device="cuda").to(dtype) for _ in range(2))
    weight, out = torch.rand(width, device="cuda").to(dtype), poisoned(rows, width, dtype=dtype).cuda()
    assert close(triton.rms_norm(x, weight, 1e-5, out), expected(x, weight))
    out.fill_(torch.nan)
    total = residual + x
    triton.add_rms_norm(x, residual, weight, 1e-5, out)
    assert torch.equal(residual, total)
    assert close(out, expected(total, weight))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    x, weight = torch.randn(4097, 1024, device="cuda", dtype=torch.bfloat16), torch.rand(1024, device="cuda")
    together = triton.rms_norm(x, weight, 1e-5, torch.empty_like(x))
    for row in (0, 1, 4096):
        alone = triton.rms_norm(x[row : row + 1], weight, 1e-5, torch.empty_like(x[:1]))
        assert torch.equal(alone[0], together[row])


def test_rows_beyond_two_to_the_31_elements() -> None:
    far = 2**30 + 64
    x = torch.empty(2 * far + 1024, dtype=torch.bfloat16, device="cuda").as_strided((3, 1024), (far, 1))
    x.copy_(torch.randn(3, 1024))
    out = poisoned(3, 1024, dtype=torch.bfloat16).cuda()
    assert close(triton.rms_norm(x, torch.ones(1024, device="cuda"), 1e-5, out), expected(x, torch.ones(1024).cuda()))
