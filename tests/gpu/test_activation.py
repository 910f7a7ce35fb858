"""Gated activations on the GPU, at real sizes, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import DTYPES, close, poisoned

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)


@pytest.mark.parametrize("kind", ["silu_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 3072), (257, 4864), (4096, 8192), (3, 30)])
def test_gated_activations(kind: str, dtype: torch.dtype, rows: int, inner: int) -> None:
    gate_up = torch.randn(rows, 2 * inner, device="cuda").to(dtype)
    out = poisoned(rows, inner, dtype=dtype).cuda()
    assert getattr(triton, kind)(gate_up, out) is out
    gate, up = gate_up.double().chunk(2, -1)
    active = F.silu(gate) if kind == "silu_and_mul" else F.gelu(gate, approximate="tanh")
    assert close(out, active * up)
