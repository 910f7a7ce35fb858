"""Gated activations: SwiGLU and GeGLU (Shazeer, 2020)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import ceil_div, launch

COLUMNS = 1024
"""What a program computes of a row: eight columns a thread, one 16-byte load of the gate and one of the other half."""

NUM_WARPS = 4

_GELU_SCALE = tl.constexpr(2 * 0.7978845608028654)
"""2 sqrt(2 / pi): 0.5 (1 + tanh z) is 1 / (1 + exp(-2 z))."""

_GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _gate_kernel(gate_up, out, gate_up_stride, out_stride, width, IS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = gate_up + row * gate_up_stride + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    exponent = gate
    if IS_GELU:
        exponent = _GELU_SCALE * (gate + _GELU_CUBIC * gate * gate * gate)
    active = gate / (1.0 + tl.exp(-exponent))
    tl.store(out + row * out_stride + columns, (active * up).to(out.dtype.element_ty), mask=inside)


def _launch(gate_up: torch.Tensor, out: torch.Tensor, is_gelu: bool) -> torch.Tensor:
    num_rows, width = out.shape
    if num_rows:
        launch(
            _gate_kernel,
            (num_rows, ceil_div(width, COLUMNS)),
            gate_up,
            out,
            gate_up.stride(0),
            out.stride(0),
            width,
            IS_GELU=is_gelu,
            BLOCK=COLUMNS,
            num_warps=NUM_WARPS,
        )
    return out


def silu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = silu(gate) * up``; gate_up [T, 2 I] with contiguous rows, the gate in its first half; out [T, I].

    Floor: 6 I bytes a row of 16-bit numbers (two halves read, one written).
    """
    return _launch(gate_up, out, is_gelu=False)


def gelu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = gelu(gate) * up``, gelu in its tanh form; gate_up [T, 2 I] with contiguous rows, the gate in its first
    half; out [T, I].

    Floor: 6 I bytes a row of 16-bit numbers.
    """
    return _launch(gate_up, out, is_gelu=True)
