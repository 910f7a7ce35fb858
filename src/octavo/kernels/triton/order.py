"""Numbers ordered as integers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def order_key(x):
    """int32 in the order of float32 numbers; equal numbers, 0 and -0 too, have equal keys."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def order_value(key):
    """The number of an :func:`order_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
