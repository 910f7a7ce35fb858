"""Writing keys and values into their blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.quantized_kv import LOWEST_PEAK, Kv, QuantizedKv
from octavo.kernels.triton.launch import ceil_div, launch, next_power_of_2

_LOWEST_PEAK = tl.constexpr(LOWEST_PEAK)
_TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to a small number, it leaves that number's nearest integer in the low bits."""


class KvPlace(NamedTuple):
    """Where one layer's keys and values lie; distances in elements. Keys' heads come first, then values'."""

    values: torch.Tensor  #: what the distances are measured in
    scales: torch.Tensor | None  #: where keys and values are int8
    page: int
    layer: int  #: from a page to the layer's first head
    head: int
    scale_page: int
    scale_layer: int
    scale_head: int

    @classmethod
    def of(cls, kv: Kv, layer: int) -> KvPlace:
        """The place of ``layer`` in ``kv``."""
        if not isinstance(kv, QuantizedKv):
            page, in_page, _, head = kv.stride()[:4]
            return cls(kv, None, page, layer * in_page, head, 0, 0, 0)
        page, in_page, _, head = kv.values.stride()[:4]
        scale_page, scale_layer, _, scale_head = kv.scales.stride()[:4]
        scales = scale_page, layer * scale_layer, scale_head
        return cls(kv.values, kv.scales, page, layer * in_page, head, *scales)


@triton.jit
def magnitudes(values):
    """The magnitudes of float32, as integers of the same order: NaN is above all."""
    return tl.abs(values).to(tl.int32, bitcast=True)


@triton.jit
def quantization(peak):
    """What rows are multiplied by to become int8, and the scales that make them themselves again, of the largest of
    their :func:`magnitudes`."""
    peak = peak.to(tl.float32, bitcast=True)
    is_zero = peak < _LOWEST_PEAK
    whole = tl.full(peak.shape, 127.0, tl.float32)
    factor = tl.where(is_zero, 0.0, tl.div_rn(whole, peak))
    return factor, tl.where(is_zero, 0.0, tl.div_rn(peak, whole))


@triton.jit
def quantized(values, factor):
    """``values * factor``, each product rounded to nearest even, as int8. The two may not be fused into one rounding:
    kernels that use this are compiled with ``enable_fp_fusion=False``."""
    return (values * factor + _TO_INTEGER).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _write_kv_kernel(
    k, v, cache, scales, slots,
    k_stride, k_head, v_stride, v_head, page, layer, head, scale_page, scale_layer, scale_head,
    NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """``HEADS`` heads of a token's keys (``program_id(1)`` 0) or values."""
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.program_id(2) * HEADS + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, triton.next_power_of_2(DIM))[None, :]
    slot = tl.load(slots + row)
    mask = (heads < NUM_KV_HEADS) & (columns < DIM) & (slot >= 0)
    if which == 0:
        rows = tl.load(k + row * k_stride + heads * k_head + columns, mask=mask, other=0.0)
    else:
        rows = tl.load(v + row * v_stride + heads * v_head + columns, mask=mask, other=0.0)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    heads += which * NUM_KV_HEADS
    place = cache + (block * page + layer + offset * DIM) + heads * head + columns
    if scales is None:
        tl.store(place, rows.to(tl.float32).to(cache.dtype.element_ty), mask=mask)
    else:
        values = rows.to(tl.float32)
        factor, scale = quantization(tl.max(magnitudes(values), 1, keep_dims=True))
        tl.store(place, quantized(values, factor), mask=mask)
        scale_place = scales + (block * scale_page + scale_layer + offset) + heads * scale_head
        tl.store(scale_place, scale, mask=(heads < (which + 1) * NUM_KV_HEADS) & (slot >= 0))


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: Kv, layer: int, slots: torch.Tensor) -> None:
    """Store row t of k and v [T, HK, D] in slot ``slots[t]`` (block id * block_size + offset) of ``layer``. A row whose
    slot is negative is not stored.

    Where the layer's keys are rotated first, :func:`~octavo.kernels.triton.rotary.rotate_and_write` saves the launch.

    Floor: 8 HK D bytes a token of 16-bit numbers, half of them read and half written.
    """
    num_rows, num_kv_heads, dim = k.shape
    if num_rows == 0:
        return
    place = KvPlace.of(kv, layer)
    width = next_power_of_2(dim)
    heads = min(next_power_of_2(num_kv_heads), max(1, 2048 // width))
    launch(
        _write_kv_kernel, (num_rows, 2, ceil_div(num_kv_heads, heads)),
        k, v, place.values, place.scales, slots, *k.stride()[:2], *v.stride()[:2], *place[2:],
        NUM_KV_HEADS=num_kv_heads, DIM=dim, BLOCK_SIZE=kv.shape[4], HEADS=heads,
        num_warps=max(1, min(4, heads * width // 256)), enable_fp_fusion=place.scales is None,
    )  # fmt: skip
