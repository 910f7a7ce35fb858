"""Gated activations: SwiGLU and GeGLU (Shazeer, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = silu(gate) * up``; gate_up [T, 2 I], the gate in its first half; out [T, I]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    out.copy_(F.silu(gate) * up)
    return out


def gelu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = gelu(gate) * up``, gelu in its tanh form; gate_up [T, 2 I], the gate in its first half; out [T, I]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    out.copy_(F.gelu(gate, approximate="tanh") * up)
    return out
