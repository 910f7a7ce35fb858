"""One head's row: prepared before attention, finished after it."""

from __future__ import annotations

import math

from octavo.kernels.cpu.attention.words import (
    BLOCK_SIZE,
    COS_SIN,
    DIM,
    DTYPE,
    EPS,
    HEAD,
    HEADS,
    K_NORM,
    KEY_STRIDE,
    KEYS,
    KV,
    KV_DTYPE,
    KV_HEADS,
    NORM_DTYPE,
    OUT,
    OUT_STRIDE,
    PAGE,
    POSITIONS,
    Q_NORM,
    Q_STRIDE,
    ROTARY,
    SCALE,
    SCALES,
    SINKS,
    SINKS_DTYPE,
    SLOTS,
    VALUE_OFFSET,
    VALUE_STRIDE,
    VALUES,
    WINDOW,
    Q,
)
from octavo.kernels.cpu.elementwise import (
    dtype_sum_squares,
    narrow,
    quantize_row,
    rotate,
    scale_narrow,
    scale_weighted,
    sum_squares,
    turn_row,
    widen,
)
from octavo.kernels.cpu.emitter import F32, INT8, ITEM_SIZE
from octavo.kernels.cpu.jit import device
from octavo.kernels.cpu.tiles import (
    exponential,
)
from octavo.kernels.cpu.words import as_f32, copy_bytes, load_f32, load_f64, load_i64, store_f32


@device
def prepare(p: int, source: int, to: int, target: int, weight: int, row: int, factor: float, spare: int) -> None:
    """A head's row is normed if ``weight`` is not 0, rotated if there is a table of angles, scaled, and becomes one of
    ``to``: f32 or the row's own dtype. ``spare`` has room for two rows of f32."""
    dim, dtype, norm_dtype = load_i64(p + DIM), load_i64(p + DTYPE), load_i64(p + NORM_DTYPE)
    angles, size = load_i64(p + COS_SIN), load_i64(p + ROTARY)
    if angles != 0:
        angles += load_i64(load_i64(p + POSITIONS) + 8 * row) * size * 4
    if angles != 0 and size == dim and (weight == 0 or norm_dtype == dtype):
        norm = 1.0
        if weight != 0:
            norm = 1.0 / math.sqrt(dtype_sum_squares(dtype, source, dim) / dim + load_f64(p + EPS))
        turn_row(dtype, source, weight, norm, angles, size // 2, factor, to, target)
        return
    widen(dtype, source, spare, dim)
    if weight != 0:
        norm = 1.0 / math.sqrt(sum_squares(spare, dim) / dim + load_f64(p + EPS))
        widen(norm_dtype, weight, spare + 4 * dim, dim)
        scale_weighted(spare, spare + 4 * dim, norm, 0.0, dim)
    if angles != 0:
        rotate(spare, angles, size // 2)
    scale_narrow(to, spare, factor, target, dim)


@device
def write(p: int, row: int, head: int, spare: int) -> None:
    """Prepare the key of ``row`` and store it and the value in the row's slot."""
    dim, block_size = load_i64(p + DIM), load_i64(p + BLOCK_SIZE)
    dtype, kv_dtype = load_i64(p + DTYPE), load_i64(p + KV_DTYPE)
    item = ITEM_SIZE[dtype]
    slot = load_i64(load_i64(p + SLOTS) + 8 * row)
    block = slot // block_size
    rows = load_i64(p + KV) + block * load_i64(p + PAGE) + head * load_i64(p + HEAD)
    place = slot - block * block_size
    target = rows + place * dim * ITEM_SIZE[kv_dtype]
    scale_at = rows + load_i64(p + SCALES) + 4 * place
    offset = load_i64(p + VALUE_OFFSET)
    key = load_i64(p + KEYS) + row * load_i64(p + KEY_STRIDE) + head * dim * item
    value = load_i64(p + VALUES) + row * load_i64(p + VALUE_STRIDE) + head * dim * item
    to = kv_dtype if kv_dtype == dtype else F32
    prepare(p, key, to, target if to == kv_dtype else spare, load_i64(p + K_NORM), row, 1.0, spare + 4 * dim)
    if kv_dtype == INT8:
        store_f32(scale_at, quantize_row(F32, spare, target, dim))
        store_f32(scale_at + offset, quantize_row(dtype, value, target + offset, dim))
        return
    if to != kv_dtype:
        narrow(kv_dtype, spare, target, dim)
    if dtype == kv_dtype:
        copy_bytes(value, target + offset, dim * item)
    else:
        widen(dtype, value, spare, dim)
        narrow(kv_dtype, spare, target + offset, dim)


@device
def visible(p: int, position: int) -> int:
    """The first key that a token at ``position`` sees."""
    return max(0, position - load_i64(p + WINDOW) + 1)


@device
def finish(p: int, target: int, query_head: int, acc: int, top: float, total: float, spare: int) -> None:
    """Divide a query's sum by its weights, a sink's included, and write it out."""
    dim, sinks = load_i64(p + DIM), load_i64(p + SINKS)
    kept = as_f32(1.0)
    if sinks != 0:
        dtype = load_i64(p + SINKS_DTYPE)
        widen(dtype, sinks + query_head * ITEM_SIZE[dtype], spare, 1)
        sink = load_f32(spare)
        largest = max(top, sink)
        kept = exponential(top - largest)
        total = total * kept + exponential(sink - largest)
    scale_narrow(load_i64(p + DTYPE), acc, kept / total, target, dim)


@device
def load_query(p: int, start: int, head: int, pair: int, to: int, target: int, spare: int) -> None:
    """The query of a pair of (token, query head) of a sequence whose rows begin at ``start``, scaled, as ``to``: see
    :func:`prepare`."""
    dim = load_i64(p + DIM)
    group = load_i64(p + HEADS) // load_i64(p + KV_HEADS)
    token = pair // group
    query_head = head * group + pair - token * group
    row = start + token
    source = load_i64(p + Q) + row * load_i64(p + Q_STRIDE) + query_head * dim * ITEM_SIZE[load_i64(p + DTYPE)]
    prepare(p, source, to, target, load_i64(p + Q_NORM), row, load_f64(p + SCALE), spare)


@device
def store_result(p: int, start: int, head: int, pair: int, acc: int, top: float, total: float, spare: int) -> None:
    """Finish such a pair: see :func:`finish`."""
    dim = load_i64(p + DIM)
    group = load_i64(p + HEADS) // load_i64(p + KV_HEADS)
    token = pair // group
    query_head = head * group + pair - token * group
    target = load_i64(p + OUT) + (start + token) * load_i64(p + OUT_STRIDE)
    target += query_head * dim * ITEM_SIZE[load_i64(p + DTYPE)]
    finish(p, target, query_head, acc, top, total, spare)
