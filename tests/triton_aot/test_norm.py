"""Norms as compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import ARCHITECTURES, compiled

from octavo.kernels.triton import add_rms_norm, rms_norm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("width", [128, 4096, 32_768, 65_536])
@pytest.mark.parametrize("has_residual", [False, True])
def test_norms(architecture: int, width: int, has_residual: bool) -> None:
    x, out = (torch.empty(8, width, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.empty(width, dtype=torch.bfloat16)

    def call() -> None:
        if has_residual:
            add_rms_norm(x, x, weight, 1e-5, out)
        else:
            rms_norm(x, weight, 1e-5, out)

    (launch,) = compiled(architecture, call)
    assert launch.count("STG") == launch.count("STG", ".128") >= (2 if has_residual else 1), launch.instructions
    weights = 1 if width == 128 else 0  # of narrow rows: each thread takes the columns it writes weights for
    assert launch.count("LDG") - weights == launch.count("LDG", ".128") >= (2 if has_residual else 1)
