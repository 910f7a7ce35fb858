"""Gated activations as compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import ARCHITECTURES, compiled

from octavo.kernels import triton


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["silu_and_mul", "gelu_and_mul"])
def test_gated_activations(architecture: int, kind: str) -> None:
    gate_up, out = torch.empty(4, 2 * 3072, dtype=torch.bfloat16), torch.empty(4, 3072, dtype=torch.bfloat16)
    (launch,) = compiled(architecture, lambda: getattr(triton, kind)(gate_up, out))
    assert launch.grid == (4, 3)
    assert launch.count("LDG") == launch.count("LDG", ".128") == 2
    assert launch.count("STG") == launch.count("STG", ".128") == 1
