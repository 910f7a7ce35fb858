"""Rotary position embedding (Su et al., RoFormer, 2021) in one launch with what stands beside it in an attention layer:
the norm of queries and keys before it, and the writing of keys and values into their blocks after it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.quantized_kv import Kv
from octavo.kernels.triton.cache import KvPlace, magnitudes, quantization, quantized
from octavo.kernels.triton.launch import ceil_div, launch, next_power_of_2

HEADS = 16
"""Heads of one token that a program takes. The same for every batch, so that a head's norm is summed in one order."""


def rotary_warps(half: int) -> int:
    """Warps for heads with ``half`` angles: a thread has eight numbers of each half, one 16-byte load."""
    return max(1, min(8, HEADS * next_power_of_2(half) // 256))


@triton.jit
def _normed(values, scale, q_norm, k_norm, columns, mask, is_query, is_key):
    """Rows of queries and keys times ``scale`` and their weights, where they have any; others as they are."""
    if q_norm is not None:
        weights = tl.load(q_norm + columns, mask=mask, other=0.0).to(tl.float32)
        values = tl.where(is_query, values * scale * weights, values)
    if k_norm is not None:
        weights = tl.load(k_norm + columns, mask=mask, other=0.0).to(tl.float32)
        values = tl.where(is_key, values * scale * weights, values)
    return values


@triton.jit
def _stored(values, factor, QUANTIZED: tl.constexpr, dtype: tl.constexpr):
    """Rows as the cache holds them."""
    if QUANTIZED:
        return quantized(values, factor)
    return values.to(dtype)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotary_kernel(
    x, q_norm, k_norm, cos_sin, positions, cache, scales, slots,
    row_stride, head_stride, page, layer, kv_head, scale_page, scale_layer, scale_head, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, ROTATES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEEPS_KEYS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """``HEADS`` heads of token ``program_id(0)``. A head's row is [a | b | rest], a and b of ``HALF`` dimensions."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    exists = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    is_query = heads < NUM_HEADS
    turns = heads < NUM_HEADS + NUM_KV_HEADS
    is_key = turns & (heads >= NUM_HEADS)
    place = x + row * row_stride + heads * head_stride
    if NUM_KV_HEADS > 0:
        slot = tl.load(slots + row)
    if ROTATES:
        angles = cos_sin + tl.load(positions + row) * (2 * HALF)

    columns = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
    inside = columns < HALF
    mask = exists & inside
    a = tl.load(place + columns, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(place + columns + HALF, mask=mask, other=0.0).to(tl.float32)
    REST: tl.constexpr = DIM - 2 * HALF
    if REST > 0:
        others = 2 * HALF + tl.arange(0, triton.next_power_of_2(REST))[None, :]
        rest_mask = exists & (others < DIM)
        rest = tl.load(place + others, mask=rest_mask, other=0.0).to(tl.float32)

    if q_norm is not None or k_norm is not None:
        squares = tl.sum(a * a + b * b, 1, keep_dims=True)
        if REST > 0:
            squares += tl.sum(rest * rest, 1, keep_dims=True)
        scale = tl.rsqrt(squares / DIM + eps)
        a = _normed(a, scale, q_norm, k_norm, columns, inside, is_query, is_key)
        b = _normed(b, scale, q_norm, k_norm, columns + HALF, inside, is_query, is_key)
        if REST > 0:
            rest = _normed(rest, scale, q_norm, k_norm, others, others < DIM, is_query, is_key)

    if ROTATES:
        cos = tl.load(angles + columns, mask=inside, other=0.0)
        sin = tl.load(angles + columns + HALF, mask=inside, other=0.0)
        turned_a, turned_b = a * cos - b * sin, b * cos + a * sin
        a = tl.where(turns, turned_a, a)
        b = tl.where(turns, turned_b, b)

    stays = turns if KEEPS_KEYS else is_query
    tl.store(place + columns, a.to(x.dtype.element_ty), mask=mask & stays)
    tl.store(place + columns + HALF, b.to(x.dtype.element_ty), mask=mask & stays)
    if REST > 0:
        tl.store(place + others, rest.to(x.dtype.element_ty), mask=rest_mask & stays)

    if NUM_KV_HEADS > 0:
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        kv_heads = heads - NUM_HEADS  # of keys, then of values
        written = exists & (kv_heads >= 0) & (slot >= 0)
        target = cache + (block * page + layer + offset * DIM) + kv_heads * kv_head
        factor = tl.full((HEADS, 1), 1.0, tl.float32)
        if scales is not None:
            peak = tl.max(tl.maximum(magnitudes(a), magnitudes(b)), 1, keep_dims=True)
            if REST > 0:
                peak = tl.maximum(peak, tl.max(magnitudes(rest), 1, keep_dims=True))
            factor, scale_ = quantization(peak)
            scale_place = scales + (block * scale_page + scale_layer + offset) + kv_heads * scale_head
            tl.store(scale_place, scale_, mask=written)
        QUANTIZED: tl.constexpr = scales is not None
        tl.store(target + columns, _stored(a, factor, QUANTIZED, cache.dtype.element_ty), mask=mask & written)
        tl.store(target + columns + HALF, _stored(b, factor, QUANTIZED, cache.dtype.element_ty), mask=mask & written)
        if REST > 0:
            tl.store(
                target + others, _stored(rest, factor, QUANTIZED, cache.dtype.element_ty), mask=rest_mask & written
            )


def _launch(
    x: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    place: KvPlace | None,
    slots: torch.Tensor | None,
    block_size: int,
    num_heads: int,
    num_kv_heads: int,
    keep_keys: bool,
) -> None:
    """x [T, heads, D]: queries, and with a ``place`` keys and values behind them."""
    num_rows, _, dim = x.shape
    if num_rows == 0:
        return
    rotated = cos_sin.shape[1]
    half = (rotated or dim) // 2
    groups = ceil_div(num_heads + 2 * num_kv_heads, HEADS)
    cache, scales, *distances = (None,) * 2 + (0,) * 6 if place is None else place
    launch(
        _rotary_kernel, (num_rows, groups),
        x, q_norm, k_norm, cos_sin, positions, cache, scales, slots, *x.stride()[:2], *distances, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, DIM=dim, HALF=half, ROTATES=rotated > 0, BLOCK_SIZE=block_size,
        KEEPS_KEYS=keep_keys, HEADS=HEADS, num_warps=rotary_warps(half), enable_fp_fusion=scales is None,
    )  # fmt: skip


def rotate_and_write(
    qkv: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv: Kv,
    layer: int,
    slots: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    keep_keys: bool = False,
) -> None:
    """All that lies between a layer's QKV product and its attention, in one launch: the norm of each head of q and k,
    their rotation, and the writing of k and v into their slots.

    Floor: 4 (HQ + 2 HK) D bytes a token of 16-bit numbers; with ``keep_keys`` 2 HK D more.

    Args:
        qkv: [T, (HQ + 2 HK) D], rows contiguous. Afterwards its queries are normed and rotated, in place; its values
            are as they were; and so are its keys, unless ``keep_keys``.
        q_norm: [D], or None: queries are not normed.
        k_norm: [D], or None: keys are not normed.
        eps: of both norms.
        cos_sin: float32 [P, R], R even and at most D: cosines in the first R/2 columns, sines in the others.
            Dimensions from R on are not rotated.
        positions: int64 [T], rows of ``cos_sin``.
        kv: where keys and values go, as :meth:`~octavo.kernels.KvLayout.view` gives it. int8 is rounded from the
            float32 of the rotation, with the scale of each token and head.
        layer: which of its layers.
        slots: int64 [T], block id * block_size + offset. A row whose slot is negative is not written.
        num_heads: HQ.
        num_kv_heads: HK.
        keep_keys: write the rotated keys back into qkv too, for an attention that reads a chunk's own there.
    """
    dim = kv.shape[5]
    _launch(
        qkv.view(len(qkv), num_heads + 2 * num_kv_heads, dim), q_norm, k_norm, eps, cos_sin, positions,
        KvPlace.of(kv, layer), slots, kv.shape[4], num_heads, num_kv_heads, keep_keys,
    )  # fmt: skip


def rotary_embedding(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Rotate q [T, HQ, D] and k [T, HK, D] in place, a launch each; both may be strided views, their last dimension
    contiguous.

    Where k is to be stored, :func:`rotate_and_write` does both in one launch.

    Floor: 4 (HQ + HK) D bytes a token of 16-bit numbers.

    Args:
        q: queries.
        k: keys.
        positions: int64 [T], rows of ``cos_sin``.
        cos_sin: float32 [P, R], R even and at most D: cosines in the first R/2 columns, sines in the others.
    """
    for heads in (q, k):
        _launch(heads, None, None, 0.0, cos_sin, positions, None, None, 1, heads.shape[1], 0, False)
