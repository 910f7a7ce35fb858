"""The softmax of attention, one tile of keys after the other (Dao et al., FlashAttention, 2022).

Scores are kept in powers of two: what is compared and summed is ``x * multiplier``, where the multiplier holds log2(e)
and the attention's scale, or the softcap where that is applied to x first. A row that has seen nothing yet has the
maximum -inf and the sum 0; no step makes NaN of that.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """Good to float32's precision of 1; exp2 may overflow, which is right."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)


@triton.jit
def attend_tile(
    q,
    k,
    v,
    k_scales,
    v_scales,
    visible,
    acc,
    peak,
    total,
    multiplier,
    inner,
    MASKED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys: q [M, D], k [D, N], v [N, D], visible [M, N] (or [1, N]) if MASKED; the scales [N] of int8
    keys and values if QUANTIZED.

    ``acc`` [M, D], ``peak`` and ``total`` [M], float32, are what the tiles before it left; gives the same.
    """
    x = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
    if QUANTIZED:
        x *= k_scales[None, :]
    if HAS_SOFTCAP:
        x = tanh(x * inner)
    if MASKED:
        x = tl.where(visible, x, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(x, 1) * multiplier)
    base = new_peak
    if MASKED:
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(x * multiplier - base[:, None])
    kept = tl.exp2(peak - base)
    total = total * kept + tl.sum(weights, 1)
    if QUANTIZED:
        weights *= v_scales[None, :]
    acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * kept[:, None], input_precision=PRECISION)
    return acc, new_peak, total


@triton.jit
def merge(acc, peak, total, more_acc, more_peak, more_total):
    """Two parts of one softmax. The products are fused explicitly, so that every kernel that merges rounds alike."""
    new_peak = tl.maximum(peak, more_peak)
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    kept, added = tl.exp2(peak - base), tl.exp2(more_peak - base)
    total = tl.fma(more_total, added, total * kept)
    acc = tl.fma(more_acc, tl.broadcast_to(added[:, None], acc.shape), acc * kept[:, None])
    return acc, new_peak, total


@triton.jit
def finish(acc, peak, total, sinks, heads, is_head, HAS_SINKS: tl.constexpr):
    """The weighted mean [M, D]: rows that saw nothing are 0. With sinks, ``heads`` [M] says whose row it is."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=is_head, other=0.0).to(tl.float32) * LOG2E
        total += tl.exp2(sink - tl.where(peak == float("-inf"), 0.0, peak))
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
